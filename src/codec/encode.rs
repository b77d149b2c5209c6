//! Integer grid to buffers.

use half::bf16;
use rayon::prelude::*;

use super::buffers::{checksum, Buffers};
use super::header::{Header, Layout, ScaleGranularity, SourceDtype};
use super::plan::{plan, TileChoice, TileShape};
use super::reference::apply_left;
use super::tile_payload::{Predictor, TileHeader, NO_TABLE, PAYLOAD_ALIGN_BYTES};
use super::value_half;
use crate::error::{Error, Result};
use crate::rans::encoder::LaneEncoder;
use crate::rans::{FrequencyTable, LANES};
use crate::tile::raw_bits::{RawField, MAX_RAW_BITS};
use crate::tile::{lane_weight, Group, Tile, TileGrid, GROUP_COLS, LANE_WEIGHTS, STRIPE_ROWS};

/// How to encode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodeOptions {
    /// What a symbol stands for.
    pub layout: Layout,
    /// Single rows will be looked up: keep tiles one stripe high.
    pub row_access: bool,
    /// Whether tiles may code differences to the left where that is smaller.
    pub allow_left: bool,
    /// How to cut the matrix; `None`: as its own shape asks for.
    pub tile: Option<TileShape>,
}

impl Default for EncodeOptions {
    fn default() -> Self {
        Self { layout: Layout::Fast, row_access: false, allow_left: true, tile: None }
    }
}

/// Encodes the grid `values`, row-major `rows x cols`, with its `scales` (one, or one a row).
///
/// The same input gives the same bytes on any number of threads. `subject` is the tensor path.
///
/// ```
/// use codecllm::codec::{decode_grid_reference, encode, EncodeOptions, SourceDtype};
/// use half::bf16;
/// let values: Vec<i16> = (0..77 * 100).map(|n| (n % 13) - 6).collect();
/// let scales = [bf16::from_f32(0.5)];
/// let buffers = encode("w", &values, [77, 100], &scales, SourceDtype::F16, EncodeOptions::default())?;
/// assert_eq!(decode_grid_reference(&buffers.view("w")?)?, values);
/// # Ok::<(), codecllm::Error>(())
/// ```
pub fn encode(
    subject: &str,
    values: &[i16],
    [rows, cols]: [usize; 2],
    scales: &[bf16],
    dtype: SourceDtype,
    options: EncodeOptions,
) -> Result<Buffers> {
    // Refuses a shape without weights before anything is divided by it.
    TileGrid::new(rows, cols, STRIPE_ROWS, GROUP_COLS, subject)?;
    let shape =
        options.tile.unwrap_or_else(|| TileShape::choose(rows, cols, options.layout, options.row_access));
    let grid = TileGrid::new(rows, cols, shape.rows, shape.cols, subject)?;
    check_input(subject, values, scales, &grid)?;
    let plan = plan(values, &grid, options.layout, options.allow_left);
    let mut tiles: Vec<EncodedTile> = plan
        .choices
        .par_iter()
        .enumerate()
        .map(|(index, choice)| {
            encode_tile(values, &grid, &grid.tile(index), *choice, &plan.tables, options.layout)
        })
        .collect();
    drop_losing_tables(values, &grid, &plan.tables, &mut tiles);
    assemble(subject, &grid, scales, dtype, options.layout, &plan.tables, tiles)
}

fn check_input(subject: &str, values: &[i16], scales: &[bf16], grid: &TileGrid) -> Result<()> {
    let [rows, cols] = [grid.rows(), grid.cols()];
    if u32::try_from(rows).is_err() || u32::try_from(cols).is_err() {
        return Err(Error::unsupported(subject, format!("shape [{rows}, {cols}] passes 2^32 - 1")));
    }
    if rows.checked_mul(cols) != Some(values.len()) {
        return Err(Error::invalid(
            subject,
            format!("{} grid values for shape [{rows}, {cols}]", values.len()),
        ));
    }
    if scales.len() != 1 && scales.len() != rows {
        return Err(Error::invalid(
            subject,
            format!("{} scales for {rows} rows, wanted 1 or {rows}", scales.len()),
        ));
    }
    if values.contains(&i16::MIN) {
        return Err(Error::invalid(subject, "a grid value is -32768, wanted -32767 to 32767"));
    }
    Ok(())
}

struct EncodedTile {
    /// With `offset` still to be filled in.
    header: TileHeader,
    payload: Vec<u8>,
    /// Bytes that its symbols save over raw bits alone.
    saved_bytes: usize,
}

/// Stores tiles raw whose table takes more bytes than it saves them.
fn drop_losing_tables(values: &[i16], grid: &TileGrid, tables: &[FrequencyTable], tiles: &mut [EncodedTile]) {
    for (index, table) in tables.iter().enumerate() {
        let uses = |tile: &EncodedTile| usize::from(tile.header.table) == index;
        let mut bytes = Vec::new();
        table.write(&mut bytes);
        if tiles.iter().filter(|tile| uses(tile)).map(|tile| tile.saved_bytes).sum::<usize>() > bytes.len() {
            continue;
        }
        for (tile_index, tile) in tiles.iter_mut().enumerate().filter(|(_, tile)| uses(tile)) {
            let place = grid.tile(tile_index);
            *tile = encode_tile_raw(&TileValues::cut(values, grid, &place), &place);
        }
    }
}

#[allow(clippy::too_many_arguments)]
fn assemble(
    subject: &str,
    grid: &TileGrid,
    scales: &[bf16],
    dtype: SourceDtype,
    layout: Layout,
    tables: &[FrequencyTable],
    tiles: Vec<EncodedTile>,
) -> Result<Buffers> {
    // Tiles that turned out cheaper without symbols may have left a table unused.
    let used: Vec<bool> = (0..tables.len())
        .map(|table| tiles.iter().any(|tile| usize::from(tile.header.table) == table))
        .collect();
    let renumbered = |table: u8| match table {
        NO_TABLE => NO_TABLE,
        table => used[..usize::from(table)].iter().filter(|&&used| used).count() as u8,
    };
    let mut table_bytes = Vec::new();
    tables.iter().zip(&used).filter(|(_, used)| **used).for_each(|(table, _)| table.write(&mut table_bytes));
    let mut tile_bytes = Vec::new();
    let mut payload = Vec::with_capacity(tiles.iter().map(|tile| tile.payload.len()).sum());
    for mut tile in tiles {
        tile.header.offset = u32::try_from(payload.len() / PAYLOAD_ALIGN_BYTES).map_err(|_| {
            Error::unsupported(subject, "the coded tensor passes 64 GiB; split it along its rows")
        })?;
        tile.header.table = renumbered(tile.header.table);
        tile_bytes.extend(tile.header.to_bytes());
        payload.extend(tile.payload);
    }
    let scale_bytes: Vec<u8> = scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
    let header = Header {
        layout,
        dtype,
        grid: *grid,
        scale_bits: layout.scale_bits(),
        scale_granularity: if scales.len() == 1 { ScaleGranularity::Tensor } else { ScaleGranularity::Row },
        table_count: used.iter().filter(|&&used| used).count(),
        tables_bytes: table_bytes.len(),
        payload_bytes: payload.len(),
        checksum: checksum(&scale_bytes, &table_bytes, &tile_bytes, &payload),
    };
    Ok(Buffers {
        header: header.to_bytes().to_vec(),
        scales: scale_bytes,
        tables: table_bytes,
        tiles: tile_bytes,
        payload,
    })
}

/// One tile's grid values, row-major within the tile.
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

    /// The symbol at weights `first..` of `lane`; padding counts as class 0.
    #[inline]
    pub fn symbol(
        &self,
        halves: &[u32],
        group: &Group,
        lane: usize,
        first: usize,
        layout: Layout,
        raw_magnitude_bits: u32,
    ) -> u8 {
        let mut own = [0; 4];
        let count = layout.weights_per_symbol();
        for (index, half) in own[..count].iter_mut().enumerate() {
            let (row, col) = lane_weight(lane, first + index);
            if row < group.rows && col < group.cols {
                *half = halves[(group.row + row) * self.cols + group.col + col];
            }
        }
        layout.symbol(&own[..count], raw_magnitude_bits)
    }
}

/// Encodes a tile as planned, or with raw bits alone where that is smaller.
fn encode_tile(
    values: &[i16],
    grid: &TileGrid,
    tile: &Tile,
    choice: TileChoice,
    tables: &[FrequencyTable],
    layout: Layout,
) -> EncodedTile {
    let mut own = TileValues::cut(values, grid, tile);
    let raw_bytes = raw_payload_bytes(&own, tile);
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
    let escapes = Escapes::split(&own.values, layout.escape_from(choice.raw_magnitude_bits));
    let lanes = encode_lanes(&own, &escapes.halves, tile, choice, &tables[choice.table], layout);
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
        _ => encode_tile_raw(&TileValues::cut(values, grid, tile), tile),
    }
}

/// Sign and magnitude in as few bits as the largest magnitude needs.
fn raw_field_of(own: &TileValues) -> RawField {
    let largest = own.values.iter().map(|value| u32::from(value.unsigned_abs())).max().unwrap_or(0);
    let magnitude_bits = (u32::BITS - largest.leading_zeros()).min(MAX_RAW_BITS - 1);
    RawField { magnitude_bits, signed: magnitude_bits > 0 }
}

/// Bytes that [`encode_tile_raw`] would take.
fn raw_payload_bytes(own: &TileValues, tile: &Tile) -> usize {
    let field = raw_field_of(own);
    let fits = |value: &i16| u32::from(value.unsigned_abs()) < 1 << field.magnitude_bits;
    // Such an escape passes 10 bits: its value takes two bytes.
    let escapes = own.values.iter().filter(|value| !fits(value)).count();
    let raw: usize = tile.groups().map(|group| field.group_bytes(&group)).sum();
    (raw + 4 * escapes).next_multiple_of(PAYLOAD_ALIGN_BYTES)
}

/// A tile without symbols: all of its bits are raw.
fn encode_tile_raw(own: &TileValues, tile: &Tile) -> EncodedTile {
    let field = raw_field_of(own);
    let mut header = TileHeader {
        offset: 0,
        table: NO_TABLE,
        raw_magnitude_bits: field.magnitude_bits,
        predictor: Predictor::None,
        wide_lengths: false,
        wide_escapes: false,
        escapes: 0,
    };
    let escapes = Escapes::split(&own.values, 1 << field.magnitude_bits);
    let mut payload = Vec::new();
    write_raw_bits(field, own, &escapes.halves, tile, &mut payload);
    escapes.write(&mut header, &mut payload);
    EncodedTile { header, payload, saved_bytes: 0 }
}

fn encode_lanes(
    own: &TileValues,
    halves: &[u32],
    tile: &Tile,
    choice: TileChoice,
    table: &FrequencyTable,
    layout: Layout,
) -> Vec<(u32, Vec<u16>)> {
    let count = layout.weights_per_symbol();
    let mut lanes: Vec<LaneEncoder> = (0..LANES).map(|_| LaneEncoder::new()).collect();
    for group in tile.groups().rev() {
        for (lane, encoder) in lanes.iter_mut().enumerate() {
            for first in (0..LANE_WEIGHTS).step_by(count).rev() {
                if group.is_full() || group.has_symbol(lane, first, count) {
                    let raw = choice.raw_magnitude_bits;
                    encoder.push(own.symbol(halves, &group, lane, first, layout, raw), table);
                }
            }
        }
    }
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

/// A tile's values split into halves that fit and escapes that do not.
struct Escapes {
    halves: Vec<u32>,
    positions: Vec<u16>,
    values: Vec<i16>,
}

impl Escapes {
    fn split(values: &[i16], escape_from: u32) -> Self {
        let mut halves = Vec::with_capacity(values.len());
        let (mut positions, mut escaped) = (Vec::new(), Vec::new());
        for (position, &value) in values.iter().enumerate() {
            if u32::from(value.unsigned_abs()) < escape_from {
                halves.push(value_half(value));
            } else {
                halves.push(0);
                positions.push(position as u16);
                escaped.push(value);
            }
        }
        Self { halves, positions, values: escaped }
    }

    /// Appends the escapes and pads the payload; tells the header.
    fn write(&self, header: &mut TileHeader, payload: &mut Vec<u8>) {
        header.escapes = self.positions.len() as u16;
        header.wide_escapes = self.values.iter().any(|&value| i8::try_from(value).is_err());
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
