//! A compressed weight, or a stripe of its rows, to a row-major dense buffer.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::parallel::parallel_for;
use super::weight::{with_decoder, WeightRef};
use crate::codec::{Fragments, HalfKind, TileSink};
use crate::error::Result;
use crate::tile::{Group, GROUP_COLS};

/// An element that a weight is decoded into: from FP32 (the grid value times the scale, or the float) rounded to nearest even, or where
/// the weight is of this very type, bit for bit.
pub(crate) trait ScratchElement: Copy + Send + Sync + 'static {
    fn round(value: f32) -> Self;
    fn round_slice(values: &[f32], out: &mut [Self]) {
        for (out, value) in out.iter_mut().zip(values) {
            *out = Self::round(*value);
        }
    }
    /// The elements that `halves` are, if they are of this type.
    fn same(_kind: HalfKind, _halves: &[u16]) -> Option<&[Self]> {
        None
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
    fn same(kind: HalfKind, halves: &[u16]) -> Option<&[Self]> {
        kind.as_fp16(halves)
    }
}

impl ScratchElement for bf16 {
    fn round(value: f32) -> Self {
        Self::from_f32(value)
    }
    fn round_slice(values: &[f32], out: &mut [Self]) {
        out.convert_from_f32_slice(values);
    }
    fn same(kind: HalfKind, halves: &[u16]) -> Option<&[Self]> {
        kind.as_bf16(halves)
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
            let start = (index * band_weights).min(output.len);
            let len = band_weights.min(output.len - start);
            // SAFETY: `start + len` is at most the slice's length, by the two minima. Parts of different bands are disjoint runs of
            // `band_weights`, each band is claimed by one thread, and `scratch` is borrowed mutably until all threads are done.
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
        // SAFETY: the run is inside one borrowed slice, so its elements are initialized and aligned; that nobody else has them is the
        // caller's word.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}

// SAFETY: `len` is a number, and `start` is only used by `part`, whose caller promises that no two parts overlap: a thread then has its
// elements alone, which is what `T: Send` allows.
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

/// Writes groups into a row-major band.
struct RowMajorSink<'a, T> {
    weight: &'a WeightRef<'a>,
    out: &'a mut [T],
    first_row: usize,
    first_col: usize,
}

impl<T: ScratchElement> RowMajorSink<'_, T> {
    /// Writes `halves` from column `col` of `row` (both within the tile) on.
    fn put(&mut self, row: usize, col: usize, halves: &[u16]) {
        let kind = self.weight.half_kind();
        let at = row * self.weight.cols() + self.first_col + col;
        let out = &mut self.out[at..at + halves.len()];
        if let Some(same) = T::same(kind, halves) {
            out.copy_from_slice(same);
            return;
        }
        let mut weights = [0f32; GROUP_COLS];
        let weights = &mut weights[..halves.len()];
        kind.weights(halves, self.weight.scale(self.first_row + row), weights);
        T::round_slice(weights, out);
    }
}

impl<T: ScratchElement> TileSink for RowMajorSink<'_, T> {
    fn group(&mut self, group: &Group, fragments: &Fragments) {
        let mut halves = [0; GROUP_COLS];
        for (row, pairs) in fragments.row_pairs().iter().enumerate().take(group.rows) {
            for (two, pair) in halves.chunks_exact_mut(2).zip(pairs) {
                two[0] = *pair as u16;
                two[1] = (pair >> 16) as u16;
            }
            self.put(group.row + row, group.col, &halves[..group.cols]);
        }
    }

    fn escape(&mut self, row: usize, col: usize, value: i16) -> bool {
        let kind = self.weight.half_kind();
        let at = row * self.weight.cols() + self.first_col + col;
        self.out[at] = match T::same(kind, &[value.cast_unsigned()]) {
            Some(same) => same[0],
            None => T::round(kind.weight(value, self.weight.scale(self.first_row + row))),
        };
        true
    }
}
