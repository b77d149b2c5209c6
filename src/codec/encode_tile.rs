//! One tile's values to its header and payload.

use super::classes::Classes;
use super::coded_table::CodedTable;
use super::half_kind::HalfKind;
use super::header::Layout;
use super::plan::TileChoice;
use super::reference::apply_left;
use super::tile_payload::{Predictor, TileHeader, NO_TABLE, PAYLOAD_ALIGN_BYTES};
use crate::rans::encoder::LaneEncoder;
use crate::rans::{FrequencyTable, LANES};
use crate::tile::raw_bits::{RawField, MAX_RAW_BITS};
use crate::tile::{lane_weight, Group, Tile, TileGrid, LANE_WEIGHTS};

/// A tile, coded.
pub(super) struct EncodedTile {
    /// With `offset` still to be filled in.
    pub header: TileHeader,
    pub payload: Vec<u8>,
    /// Bytes that its symbols save over raw bits alone.
    pub saved_bytes: usize,
}

/// One tile's values, row-major within the tile.
pub(super) struct TileValues {
    pub values: Vec<i16>,
    cols: usize,
}

impl TileValues {
    /// Copies the tile's values out of the matrix.
    pub fn cut(values: &[i16], grid: &TileGrid, tile: &Tile) -> Self {
        let mut own = Vec::with_capacity(tile.weights());
        for row in tile.row..tile.row + tile.rows {
            let at = row * grid.cols() + tile.col;
            own.extend_from_slice(&values[at..at + tile.cols]);
        }
        Self { values: own, cols: tile.cols }
    }

    /// Turns the values into what `predictor` codes. The plan chose LEFT only where every residual fits.
    pub fn predict(&mut self, predictor: Predictor) {
        if predictor == Predictor::Left {
            let fits = apply_left(&mut self.values, self.cols);
            debug_assert!(fits.is_some());
        }
    }

    /// Calls `take(lane, symbol)` for every symbol of the tile, from last to first. `halves` are those of its weights; padding
    /// counts as class 0.
    pub fn symbols_backwards(
        &self,
        halves: &[u32],
        tile: &Tile,
        layout: Layout,
        classes: Classes,
        mut take: impl FnMut(usize, u8),
    ) {
        let count = layout.weights_per_symbol();
        for group in tile.groups().rev() {
            for lane in 0..LANES {
                for first in (0..LANE_WEIGHTS).step_by(count).rev() {
                    if group.is_full() || group.has_symbol(lane, first, count) {
                        take(lane, self.symbol(halves, &group, lane, first, count, classes));
                    }
                }
            }
        }
    }

    #[inline]
    fn symbol(
        &self,
        halves: &[u32],
        group: &Group,
        lane: usize,
        first: usize,
        count: usize,
        classes: Classes,
    ) -> u8 {
        let mut own = [0; 4];
        for (index, half) in own[..count].iter_mut().enumerate() {
            let (row, col) = lane_weight(lane, first + index);
            if row < group.rows && col < group.cols {
                *half = halves[(group.row + row) * self.cols + group.col + col];
            }
        }
        classes.symbol(&own[..count])
    }
}

/// Encodes a tile as planned, or with raw bits alone where that is smaller.
pub(super) fn encode_tile(
    values: &[i16],
    grid: &TileGrid,
    tile: &Tile,
    choice: TileChoice,
    table: &CodedTable,
    layout: Layout,
) -> EncodedTile {
    let mut own = TileValues::cut(values, grid, tile);
    let raw_bytes = raw_payload_bytes(&own, tile, layout);
    own.predict(choice.predictor);
    let mut header = TileHeader {
        offset: 0,
        table: choice.table as u8,
        raw_magnitude_bits: choice.raw_magnitude_bits,
        predictor: choice.predictor,
        wide_lengths: false,
        wide_escapes: false,
        escapes: 0,
    };
    let classes = Classes::new(layout, choice.raw_magnitude_bits, table.first_exponent);
    let escapes = Escapes::split(&own.values, layout.half_kind(), |half| classes.hold(half));
    let lanes = encode_lanes(&own, &escapes.halves, tile, classes, &table.frequencies, layout);
    header.wide_lengths = lanes.iter().any(|(_, words)| words.len() > 255);
    let mut payload = Vec::new();
    lanes.iter().for_each(|(state, _)| payload.extend(state.to_le_bytes()));
    for (_, words) in &lanes {
        let [low, high] = (words.len() as u16).to_le_bytes();
        payload.push(low);
        if header.wide_lengths {
            payload.push(high);
        }
    }
    write_raw_bits(layout.raw_field(choice.raw_magnitude_bits), &own, &escapes.halves, tile, &mut payload);
    lanes.iter().flat_map(|(_, words)| words).for_each(|word| payload.extend(word.to_le_bytes()));
    escapes.write(&mut header, &mut payload);
    match raw_bytes.checked_sub(payload.len()) {
        Some(saved_bytes) if saved_bytes > 0 => EncodedTile { header, payload, saved_bytes },
        _ => encode_tile_raw(&TileValues::cut(values, grid, tile), tile, layout),
    }
}

/// The raw bits of a tile without symbols: sign and magnitude in as few as the largest magnitude needs. Floats have none, as
/// zeros need none; the others are escapes.
fn raw_field_of(own: &TileValues, layout: Layout) -> RawField {
    if !layout.is_grid() {
        return RawField { magnitude_bits: 0, signed: false };
    }
    let largest = own.values.iter().map(|value| u32::from(value.unsigned_abs())).max().unwrap_or(0);
    let magnitude_bits = (u32::BITS - largest.leading_zeros()).min(MAX_RAW_BITS - 1);
    RawField { magnitude_bits, signed: magnitude_bits > 0 }
}

/// Whether the raw bits alone give this half.
fn raw_bits_hold(field: RawField, half: u32) -> bool {
    (half & 0x7FFF) >> field.magnitude_bits == 0 && (field.signed || half & 0x8000 == 0)
}

/// Bytes that [`encode_tile_raw`] would take.
fn raw_payload_bytes(own: &TileValues, tile: &Tile, layout: Layout) -> usize {
    let (field, kind) = (raw_field_of(own, layout), layout.half_kind());
    // Such an escape passes 10 bits, or is a float: its value takes two bytes.
    let escapes = own.values.iter().filter(|value| !raw_bits_hold(field, kind.half_of(**value))).count();
    let raw: usize = tile.groups().map(|group| field.group_bytes(&group)).sum();
    (raw + 4 * escapes).next_multiple_of(PAYLOAD_ALIGN_BYTES)
}

/// A tile without symbols: all of its bits are raw.
pub(super) fn encode_tile_raw(own: &TileValues, tile: &Tile, layout: Layout) -> EncodedTile {
    let field = raw_field_of(own, layout);
    let mut header = TileHeader {
        offset: 0,
        table: NO_TABLE,
        raw_magnitude_bits: field.magnitude_bits,
        predictor: Predictor::None,
        wide_lengths: false,
        wide_escapes: false,
        escapes: 0,
    };
    let escapes = Escapes::split(&own.values, layout.half_kind(), |half| raw_bits_hold(field, half));
    let mut payload = Vec::new();
    write_raw_bits(field, own, &escapes.halves, tile, &mut payload);
    escapes.write(&mut header, &mut payload);
    EncodedTile { header, payload, saved_bytes: 0 }
}

fn encode_lanes(
    own: &TileValues,
    halves: &[u32],
    tile: &Tile,
    classes: Classes,
    table: &FrequencyTable,
    layout: Layout,
) -> Vec<(u32, Vec<u16>)> {
    let mut lanes: Vec<LaneEncoder> = (0..LANES).map(|_| LaneEncoder::new()).collect();
    own.symbols_backwards(halves, tile, layout, classes, |lane, symbol| lanes[lane].push(symbol, table));
    lanes.into_iter().map(LaneEncoder::finish).collect()
}

fn write_raw_bits(field: RawField, own: &TileValues, halves: &[u32], tile: &Tile, payload: &mut Vec<u8>) {
    if field.bits() == 0 {
        return;
    }
    for group in tile.groups() {
        let half = |lane, n| {
            let (row, col) = lane_weight(lane, n);
            halves[(group.row + row) * own.cols + group.col + col]
        };
        field.write_group(&group, half, payload);
    }
}

/// A tile's values split into halves that classes and raw bits hold, and escapes. An escape's half is zero.
pub(super) struct Escapes {
    pub halves: Vec<u32>,
    kind: HalfKind,
    positions: Vec<u16>,
    values: Vec<i16>,
}

impl Escapes {
    pub fn split(values: &[i16], kind: HalfKind, hold: impl Fn(u32) -> bool) -> Self {
        let mut halves = Vec::with_capacity(values.len());
        let (mut positions, mut escaped) = (Vec::new(), Vec::new());
        for (position, &value) in values.iter().enumerate() {
            let half = kind.half_of(value);
            if hold(half) {
                halves.push(half);
            } else {
                halves.push(0);
                positions.push(position as u16);
                escaped.push(value);
            }
        }
        Self { halves, kind, positions, values: escaped }
    }

    /// Appends the escapes and pads the payload; tells the header.
    fn write(&self, header: &mut TileHeader, payload: &mut Vec<u8>) {
        header.escapes = self.positions.len() as u16;
        let narrow = |value: &i16| self.kind.is_grid() && i8::try_from(*value).is_ok();
        header.wide_escapes = !self.values.iter().all(narrow);
        self.positions.iter().for_each(|position| payload.extend(position.to_le_bytes()));
        for value in &self.values {
            let [low, high] = value.to_le_bytes();
            payload.push(low);
            if header.wide_escapes {
                payload.push(high);
            }
        }
        payload.resize(payload.len().next_multiple_of(PAYLOAD_ALIGN_BYTES), 0);
    }
}
