//! Damage to what a tile is decoded from.

use codecllm::codec::Buffers;

/// Every byte of the tile headers, tables and payload changed in three ways, one at a time, with its number.
pub fn damaged(buffers: &Buffers) -> impl Iterator<Item = (usize, Buffers)> + '_ {
    let (tiles, tables) = (buffers.tiles.len(), buffers.tables.len());
    (0..tiles + tables + buffers.payload.len()).flat_map(move |at| {
        [0x01, 0x80, 0xFF].into_iter().map(move |flip| {
            let mut damaged = buffers.clone();
            if at < tiles {
                damaged.tiles[at] ^= flip;
            } else if at < tiles + tables {
                damaged.tables[at - tiles] ^= flip;
            } else {
                damaged.payload[at - tiles - tables] ^= flip;
            }
            (at, damaged)
        })
    })
}
