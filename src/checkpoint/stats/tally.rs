//! What a choice makes of some weights, each sample weighted to stand for its whole tensor.

use super::CurvePoint;
use crate::codec::{CompressedTensor, HEADER_BYTES};
use crate::error::Result;
use crate::quantize::Distortion;

/// Sums over weights.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) weights: f64,
    pub(super) bits: f64,
    /// Least bits of an order-0 code.
    pub(super) bound_bits: f64,
    /// Bit for bit, without a grid.
    is_exact: bool,
    pub(super) distortion: Distortion,
}

impl Tally {
    /// `sample`, coded, of a tensor of `weights` weights: header and tables once, the rest in proportion.
    pub(super) fn of_sample(sample: &CompressedTensor, weights: usize) -> Result<Self> {
        let stats = sample.stats();
        let fixed = HEADER_BYTES + sample.buffers().view(sample.tensor_path())?.header.tables_bytes;
        let factor = weights as f64 / stats.weights.max(1) as f64;
        let rest = stats.compressed_bytes.saturating_sub(fixed) as f64 * factor;
        let bound = stats.grid_entropy_bits.or(stats.exponent_entropy_and_raw_bits).unwrap_or_default();
        let Distortion { signal, noise, max_error } = stats.distortion;
        Ok(Self {
            weights: weights as f64,
            bits: 8.0 * (fixed as f64 + rest),
            bound_bits: bound * weights as f64,
            is_exact: stats.grid_entropy_bits.is_none(),
            distortion: Distortion { signal: signal * factor, noise: noise * factor, max_error },
        })
    }

    /// A tensor stored as it is, at `bits` a weight.
    pub(super) fn as_it_is(weights: usize, bits: f64) -> Self {
        let all = bits * weights as f64;
        Self { weights: weights as f64, bits: all, bound_bits: all, is_exact: true, ..Self::default() }
    }

    pub(super) fn sum(tallies: impl Iterator<Item = Self>) -> Self {
        let add = |sum: Self, other: Self| Self {
            weights: sum.weights + other.weights,
            bits: sum.bits + other.bits,
            bound_bits: sum.bound_bits + other.bound_bits,
            is_exact: sum.is_exact || other.is_exact,
            distortion: sum.distortion.with(other.distortion),
        };
        tallies.fold(Self::default(), add)
    }

    /// Between this and `coarser`, a `share` of the way. Bits fall in proportion to the step's logarithm, and noise rises by
    /// powers.
    pub(super) fn towards(&self, coarser: &Self, share: f64) -> Self {
        let between = |a: f64, b: f64| a + (b - a) * share;
        let (fine, coarse) = (self.distortion.noise, coarser.distortion.noise);
        let noise = match fine > 0.0 && coarse > 0.0 {
            true => between(fine.ln(), coarse.ln()).exp(),
            false => between(fine, coarse),
        };
        Self {
            bits: between(self.bits, coarser.bits),
            bound_bits: between(self.bound_bits, coarser.bound_bits),
            distortion: Distortion { noise, ..self.distortion },
            ..*self
        }
    }

    pub(super) fn bits_per_weight(&self) -> f64 {
        self.bits / self.weights.max(1.0)
    }

    pub(super) fn point(&self, choice: &str) -> CurvePoint {
        let bound = (self.weights > 0.0).then(|| self.bound_bits / self.weights);
        CurvePoint {
            choice: choice.to_owned(),
            bits_per_weight: self.bits_per_weight(),
            grid_entropy_bits: bound.filter(|_| !self.is_exact),
            exponent_entropy_and_raw_bits: bound.filter(|_| self.is_exact),
            snr_db: self.distortion.snr_db(),
        }
    }
}
