//! A compressed weight as the operators see it.

use std::cell::RefCell;

use crate::codec::{DecodeTables, HalfKind, TileDecoder, View};

/// A checked weight with its tables and scales spread for decoding.
pub(crate) struct WeightRef<'a> {
    pub view: View<'a>,
    pub tables: &'a DecodeTables,
    pub scales: &'a [f32],
}

impl WeightRef<'_> {
    pub fn rows(&self) -> usize {
        self.view.header.grid.rows()
    }

    pub fn cols(&self) -> usize {
        self.view.header.grid.cols()
    }

    /// How its halves are read.
    pub fn half_kind(&self) -> HalfKind {
        self.view.header.layout.half_kind()
    }

    /// The scale of `row`.
    pub fn scale(&self, row: usize) -> f32 {
        self.scales.get(row).or(self.scales.first()).copied().unwrap_or_default()
    }
}

thread_local! {
    static DECODER: RefCell<TileDecoder> = RefCell::new(TileDecoder::new());
}

/// Lends this thread's decoder.
pub(super) fn with_decoder<T>(work: impl FnOnce(&mut TileDecoder) -> T) -> T {
    DECODER.with_borrow_mut(work)
}
