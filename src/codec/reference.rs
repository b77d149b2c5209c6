//! The reference decoder of a tensor: the definition of the format, one weight at a time, never optimized.

use super::buffers::View;
use super::classes::Classes;
use super::coded_table::CodedTable;
use super::decode::{escape_conflict, zeros};
use super::tile_payload::{Predictor, TileSections};
use crate::error::{Error, Result};
use crate::rans::decoder::LaneDecoder;
use crate::rans::LANES;
use crate::tile::{Tile, LANE_COLS, LANE_WEIGHTS};

/// Decodes the whole grid, row-major `rows x cols`.
///
/// The grid that [`encode`](super::encode()) was given; see its example.
pub fn decode_grid_reference(view: &View) -> Result<Vec<i16>> {
    check_layout(view, true)?;
    decode_values_reference(view)
}

/// Decodes all floats of an exact layout to their bits, row-major `rows x cols`.
///
/// The floats that [`encode_exact`](super::encode_exact) was given; see its example.
pub fn decode_bits_reference(view: &View) -> Result<Vec<u16>> {
    check_layout(view, false)?;
    Ok(decode_values_reference(view)?.into_iter().map(i16::cast_unsigned).collect())
}

/// Refuses a tensor on a grid where floats are wanted, and floats where a grid is; floats must have the scale 1.
pub(super) fn check_layout(view: &View, grid_wanted: bool) -> Result<()> {
    let layout = view.header.layout;
    if layout.is_grid() != grid_wanted {
        let wanted = if grid_wanted { "a grid (use decode_bits)" } else { "floats (use decode_grid)" };
        return Err(Error::invalid(view.subject(), format!("layout {}, wanted {wanted}", layout.name())));
    }
    if !grid_wanted {
        view.scales()?;
    }
    Ok(())
}

fn decode_values_reference(view: &View) -> Result<Vec<i16>> {
    let grid = view.header.grid;
    let tables = view.tables()?;
    let mut values = zeros(grid.rows().saturating_mul(grid.cols()), view.subject())?;
    for index in 0..grid.tile_count() {
        let tile = grid.tile(index);
        let decoded = decode_tile_reference(view, index, &tables)?;
        for (row, line) in decoded.chunks_exact(tile.cols).enumerate() {
            let at = (tile.row + row) * grid.cols() + tile.col;
            values[at..at + tile.cols].copy_from_slice(line);
        }
    }
    Ok(values)
}

/// Decodes one tile, row-major within the tile.
pub(super) fn decode_tile_reference(view: &View, index: usize, tables: &[CodedTable]) -> Result<Vec<i16>> {
    let tile = view.header.grid.tile(index);
    let kind = view.header.layout.half_kind();
    let sections = view.tile_sections(index)?;
    let mut halves = vec![0u32; tile.weights()];
    read_raw_bits(view, &sections, &tile, &mut halves);
    if sections.header.has_symbols() {
        let table = &tables[usize::from(sections.header.table)];
        read_symbols(view, &sections, &tile, table, &mut halves)?;
    }
    let mut values: Vec<i16> = halves.iter().map(|&half| kind.value_of(half)).collect();
    for (position, value) in sections.escapes() {
        if std::mem::replace(&mut values[position], value) != 0 {
            return Err(escape_conflict(view, &tile));
        }
    }
    if sections.header.predictor == Predictor::Left {
        undo_left(&mut values, tile.cols);
    }
    Ok(values)
}

fn read_raw_bits(view: &View, sections: &TileSections, tile: &Tile, halves: &mut [u32]) {
    let field = sections.header.raw_field(&view.header);
    let mut rest = sections.raw;
    for group in tile.groups() {
        let (bytes, after) = rest.split_at(field.group_bytes(&group));
        rest = after;
        field.read_group(&group, bytes, |lane, n, half| {
            if let Some((row, col)) = group.weight(lane, n) {
                halves[(group.row + row) * tile.cols + group.col + col] |= half;
            }
        });
    }
}

fn read_symbols(
    view: &View,
    sections: &TileSections,
    tile: &Tile,
    table: &CodedTable,
    halves: &mut [u32],
) -> Result<()> {
    let layout = view.header.layout;
    let classes = Classes::new(layout, sections.header.raw_magnitude_bits, table.first_exponent);
    let table = &table.frequencies;
    let symbol_of_slot = table.symbol_of_slot();
    let words: Vec<u16> =
        sections.words.chunks_exact(2).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]])).collect();
    let mut start = 0;
    for lane in 0..LANES {
        let broken = |error| {
            Error::corrupt(
                view.subject(),
                format!("lane {lane} of the tile at row {}, column {}: {error:?}", tile.row, tile.col),
            )
        };
        let own = &words[start..start + sections.lengths[lane]];
        start += sections.lengths[lane];
        let mut decoder = LaneDecoder::new(sections.states[lane], own);
        for group in tile.groups() {
            let count = layout.weights_per_symbol();
            for first in (0..LANE_WEIGHTS).step_by(count) {
                if !group.has_symbol(lane, first, count) {
                    continue;
                }
                let symbol = decoder.next_symbol(table, &symbol_of_slot).map_err(broken)?;
                for index in 0..count {
                    if let Some((row, col)) = group.weight(lane, first + index) {
                        halves[(group.row + row) * tile.cols + group.col + col] |=
                            classes.symbol_half(symbol, index);
                    }
                }
            }
        }
        decoder.finish().map_err(broken)?;
    }
    Ok(())
}

/// Turns residuals into values: sums along each run of 16 columns.
pub(super) fn undo_left(values: &mut [i16], cols: usize) {
    for row in values.chunks_exact_mut(cols) {
        for run in row.chunks_mut(LANE_COLS) {
            let mut left = 0i16;
            for value in run {
                left = left.wrapping_add(*value);
                *value = left;
            }
        }
    }
}

/// Turns values into residuals; `None` where one does not fit 16 bits.
pub(super) fn apply_left(values: &mut [i16], cols: usize) -> Option<()> {
    for row in values.chunks_exact_mut(cols) {
        for run in row.chunks_mut(LANE_COLS) {
            let mut left = 0i16;
            for value in run {
                let residual = value.checked_sub(left)?;
                left = *value;
                *value = residual;
            }
        }
    }
    Some(())
}
