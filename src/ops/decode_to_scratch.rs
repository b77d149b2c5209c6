//! A compressed weight, or a stripe of its rows, to a row-major dense buffer.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::parallel::parallel_for;
use super::weight::{with_decoder, WeightRef, HALF_TO_VALUE};
use crate::codec::{Fragments, TileSink};
use crate::error::Result;
use crate::tile::{Group, GROUP_COLS};

/// An element that a weight is decoded into: the grid value times the scale in FP32, rounded to nearest even.
pub(crate) trait ScratchElement: Copy + Send + Sync + 'static {
    fn round(value: f32) -> Self;
    fn round_slice(values: &[f32], out: &mut [Self]) {
        for (out, value) in out.iter_mut().zip(values) {
            *out = Self::round(*value);
        }
    }
}

impl ScratchElement for f32 {
    fn round(value: f32) -> Self {
        value
    }
}

impl ScratchElement for f16 {
    fn round(value: f32) -> Self {
        Self::from_f32(value)
    }
    fn round_slice(values: &[f32], out: &mut [Self]) {
        out.convert_from_f32_slice(values);
    }
}

impl ScratchElement for bf16 {
    fn round(value: f32) -> Self {
        Self::from_f32(value)
    }
    fn round_slice(values: &[f32], out: &mut [Self]) {
        out.convert_from_f32_slice(values);
    }
}

/// Decodes the bands (rows of tiles) `bands` into `scratch`, row-major and without gaps.
///
/// `scratch` holds exactly the rows of these bands.
pub(crate) fn decode_to_scratch<T: ScratchElement>(
    weight: &WeightRef,
    bands: std::ops::Range<usize>,
    scratch: &mut [T],
) -> Result<()> {
    let grid = weight.view.header.grid;
    let band_weights = grid.tile_rows() * grid.cols();
    let output = Output { start: scratch.as_mut_ptr(), len: scratch.len() };
    parallel_for(bands.len(), weight.view.subject(), &|claimed| {
        for index in claimed {
            let start = index * band_weights;
            let len = band_weights.min(output.len.saturating_sub(start));
            // SAFETY: bands are disjoint runs of the scratch slice, which is borrowed for the whole call.
            let own = unsafe { output.part(start, len) };
            decode_band(weight, bands.start + index, own)?;
        }
        Ok(())
    })
}

/// The scratch slice, shared by threads that each take their own part.
struct Output<T> {
    start: *mut T,
    len: usize,
}

impl<T> Output<T> {
    /// # Safety
    /// `start + len` is at most the length, and no other part that is alive overlaps.
    #[allow(clippy::mut_from_ref)]
    unsafe fn part(&self, start: usize, len: usize) -> &mut [T] {
        // SAFETY: the caller's.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}

// SAFETY: the threads form disjoint slices of it, see `decode_to_scratch`.
unsafe impl<T: Send> Sync for Output<T> {}

fn decode_band<T: ScratchElement>(weight: &WeightRef, band: usize, out: &mut [T]) -> Result<()> {
    let grid = weight.view.header.grid;
    let across = grid.tiles_across();
    for index in band * across..(band + 1) * across {
        let tile = grid.tile(index);
        let mut sink = RowMajorSink { weight, out: &mut *out, first_row: tile.row, first_col: tile.col };
        with_decoder(|decoder| decoder.decode(&weight.view, weight.tables, index, &mut sink))?;
    }
    Ok(())
}

/// Dequantizes groups into a row-major band.
struct RowMajorSink<'a, T> {
    weight: &'a WeightRef<'a>,
    out: &'a mut [T],
    first_row: usize,
    first_col: usize,
}

impl<T: ScratchElement> TileSink for RowMajorSink<'_, T> {
    fn group(&mut self, group: &Group, fragments: &Fragments) {
        let mut halves = [f16::ZERO; GROUP_COLS];
        let mut values = [0f32; GROUP_COLS];
        for (row, pairs) in fragments.row_pairs().iter().enumerate().take(group.rows) {
            for (two, pair) in halves.chunks_exact_mut(2).zip(pairs) {
                two[0] = f16::from_bits(*pair as u16);
                two[1] = f16::from_bits((pair >> 16) as u16);
            }
            halves.convert_to_f32_slice(&mut values);
            let scale = self.weight.scale(self.first_row + group.row + row);
            values.iter_mut().for_each(|value| *value = *value * HALF_TO_VALUE * scale);
            let at = (group.row + row) * self.weight.cols() + self.first_col + group.col;
            T::round_slice(&values[..group.cols], &mut self.out[at..at + group.cols]);
        }
    }

    fn escape(&mut self, row: usize, col: usize, value: i16) -> bool {
        let at = row * self.weight.cols() + self.first_col + col;
        self.out[at] = T::round(f32::from(value) * self.weight.scale(self.first_row + row));
        true
    }
}
