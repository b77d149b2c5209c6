//! The buffers of a compressed matrix, with lengths and checksums made right: what is left is tables, tiles and payload.
//!
//! The input is the header, then each other buffer behind its length in two bytes; the payload is the rest.

#[path = "forge.rs"]
mod forge;

use std::path::Path;

use codecllm::checkpoint::Reader;
use codecllm::codec::{
    decode_bits, decode_bits_reference, decode_grid, decode_grid_reference, decompress_view, Buffers, Level,
    View, BUFFER_NAMES, HEADER_BYTES,
};

use forge::forge;

/// A few bytes may stand for a matrix of any size; one of this many weights is decoded in no time.
const MOST_WEIGHTS: usize = if cfg!(miri) { 1 << 13 } else { 1 << 20 };

pub fn run(data: &[u8]) {
    let Some(buffers) = parse(data) else { return };
    let Ok(view) = buffers.view("w") else { return };
    view.verify_checksum().expect("it was made right");
    if view.header.grid.rows() * view.header.grid.cols() <= MOST_WEIGHTS {
        decode(&view);
    }
}

/// Every decoder gives what the reference gives, or an error where it gives one.
fn decode(view: &View) {
    let bits = |grid: Vec<i16>| grid.into_iter().map(i16::cast_unsigned).collect::<Vec<_>>();
    let is_grid = view.header.layout.is_grid();
    let reference = if is_grid { decode_grid_reference(view).map(bits) } else { decode_bits_reference(view) };
    for level in Level::available() {
        let got =
            if is_grid { decode_grid(view, Some(level)).map(bits) } else { decode_bits(view, Some(level)) };
        assert_eq!(got.ok(), reference.as_ref().ok().cloned(), "{level:?}");
    }
    // Miri has no libtorch, and this gives a tensor.
    if cfg!(not(miri)) {
        let _ = decompress_view(view);
    }
}

fn parse(data: &[u8]) -> Option<Buffers> {
    let (header, mut rest) = data.split_at_checked(HEADER_BYTES)?;
    let mut next = || -> Option<Vec<u8>> {
        let (length, behind) = rest.split_first_chunk()?;
        let (buffer, behind) = behind.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
        rest = behind;
        Some(buffer.to_vec())
    };
    let (scales, tables, tiles) = (next()?, next()?, next()?);
    let mut buffers = Buffers { header: header.to_vec(), scales, tables, tiles, payload: rest.to_vec() };
    forge(&mut buffers);
    Some(buffers)
}

#[allow(dead_code, reason = "libFuzzer reads its seeds from a folder")]
pub fn seeds(root: &Path) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for golden in ["v1", "v1_exact"] {
        let reader = Reader::open(root.join("tests/golden").join(golden)).expect("a golden");
        for path in reader.names().filter_map(|name| name.strip_suffix(".header")) {
            let mut seed = Vec::new();
            for name in BUFFER_NAMES {
                let bytes = reader.read_bytes(&format!("{path}.{name}")).expect("a buffer of a golden");
                if name != "header" && name != "payload" {
                    seed.extend((bytes.len() as u16).to_le_bytes());
                }
                seed.extend(bytes);
            }
            seeds.push(seed);
        }
    }
    seeds
}
