//! Rows of a compressed matrix, by index: an embedding lookup.

use std::collections::HashMap;

use super::decode_to_scratch::{decode_to_scratch, ScratchElement};
use super::weight::WeightRef;
use crate::error::{Error, Result};

/// Gathers the rows `indices` into `out` `[indices, cols]`, decoding only the bands they lie in, each once.
pub(crate) fn gather_rows<T: ScratchElement + Default>(
    weight: &WeightRef,
    indices: &[i64],
    out: &mut [T],
) -> Result<()> {
    let grid = weight.view.header.grid;
    let cols = grid.cols();
    let mut wanted: HashMap<usize, Vec<(usize, usize)>> = HashMap::new();
    for (place, &index) in indices.iter().enumerate() {
        let row = usize::try_from(index).ok().filter(|row| *row < grid.rows()).ok_or_else(|| {
            Error::invalid(
                weight.view.subject(),
                format!("row {index}, the table has {} (a token id of another tokenizer?)", grid.rows()),
            )
        })?;
        wanted.entry(row / grid.tile_rows()).or_default().push((row % grid.tile_rows(), place));
    }
    let mut scratch = Vec::new();
    for (band, rows) in wanted {
        let first = band * grid.tile_rows();
        scratch.clear();
        scratch.resize(grid.tile_rows().min(grid.rows() - first) * cols, T::default());
        decode_to_scratch(weight, band..band + 1, &mut scratch)?;
        for (row, place) in rows {
            out[place * cols..(place + 1) * cols].copy_from_slice(&scratch[row * cols..(row + 1) * cols]);
        }
    }
    Ok(())
}
