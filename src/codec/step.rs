//! The step of the grid: by a rule for one matrix, or so that a whole model meets a bit budget.
//!
//! Under entropy coding the step decides everything. For a budget every matrix gets one step, its own root mean
//! square times a common factor: at equal relative steps all matrices have about the same signal-to-noise ratio.
//! How many bits a matrix takes at a step is measured, by encoding a sample of its rows.

use rayon::prelude::*;

use super::buffers::View;
use super::encode::{encode, EncodeOptions};
use super::header::HEADER_BYTES;
use super::plan::TileShape;
use super::tensor::Matrix;
use crate::error::{Error, Result};
use crate::quantize::{check_finite, quantize_rows, quantize_tensor, root_mean_square, Quantized};

/// The bits a weight that a budget may ask for.
pub const BUDGET_RANGE: std::ops::RangeInclusive<f64> = 2.5..=8.5;

/// Binary logarithms of the relative step between which a budget is sought: finer than 8.5 bits, coarser than 2.5.
const EXPONENT_RANGE: [f64; 2] = [-8.0, 2.0];

/// How close to the budget the search must come, bits a weight.
const TOLERANCE_BITS: f64 = 0.002;

/// Weights of a sample.
const SAMPLE_WEIGHTS: usize = 1 << 17;

/// How the step of a matrix is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum StepRule {
    /// One step per output row: its largest magnitude over 127. The classical INT8.
    RowAbsmax,
    /// One step for the matrix: its largest magnitude over 127.
    TensorAbsmax,
    /// One step for the matrix, given.
    Step(f32),
}

impl StepRule {
    /// Quantizes `matrix` so that every weight stays finite in its own dtype. `subject` is the tensor path.
    pub fn quantize(self, matrix: &Matrix, subject: &str) -> Result<Quantized> {
        let (weights, cols) = (matrix.weights.as_slice(), matrix.shape[1]);
        let mut quantized = match self {
            Self::RowAbsmax => quantize_rows(weights, cols, 127, subject),
            Self::TensorAbsmax => {
                let absmax = weights.iter().fold(0f32, |most, weight| most.max(weight.abs()));
                quantize_tensor(weights, cols, absmax / 127.0, subject)
            }
            Self::Step(step) => quantize_tensor(weights, cols, step, subject),
        }?;
        quantized.keep_finite(cols, |weight| matrix.dtype.holds(weight));
        Ok(quantized)
    }
}

/// A sample of one matrix, to learn what the whole takes at a step.
#[derive(Clone, Debug)]
pub struct RateSample {
    tensor_path: String,
    sample: Matrix,
    weights: usize,
    unit: f64,
    options: EncodeOptions,
}

impl RateSample {
    /// Takes a sample of `matrix`, which will be encoded with `options`.
    ///
    /// Errors where a weight of the matrix is not finite.
    pub fn new(tensor_path: &str, matrix: &Matrix, options: EncodeOptions) -> Result<Self> {
        let [rows, cols] = matrix.shape;
        check_finite(&matrix.weights, cols, tensor_path)?;
        // The sample alone would be cut in another way.
        let tile = TileShape::choose(rows, cols, options.layout, options.row_access);
        Ok(Self {
            tensor_path: tensor_path.to_owned(),
            weights: matrix.weights.len(),
            unit: root_mean_square(&matrix.weights),
            sample: matrix.sample(SAMPLE_WEIGHTS),
            options: EncodeOptions { tile: Some(tile), ..options },
        })
    }

    /// The matrix's full name.
    pub fn tensor_path(&self) -> &str {
        &self.tensor_path
    }

    /// Number of weights of the whole matrix.
    pub fn weights(&self) -> usize {
        self.weights
    }

    /// The step of this matrix when the common exponent is `exponent`.
    pub fn step(&self, exponent: f64) -> f32 {
        (self.unit * exponent.exp2()) as f32
    }

    /// Expected bits of the whole matrix, everything counted, when the common exponent is `exponent`.
    pub fn bits(&self, exponent: f64) -> Result<f64> {
        let Matrix { weights, shape, dtype } = &self.sample;
        let path = &self.tensor_path;
        let quantized = StepRule::Step(self.step(exponent)).quantize(&self.sample, path)?;
        let buffers = encode(path, &quantized.values, *shape, &quantized.scales, *dtype, self.options)?;
        Ok(whole_bits(&buffers.view(path)?, weights.len(), self.weights))
    }
}

/// Bits of the whole matrix, from a sample's: header and tables once, the rest by the number of weights.
fn whole_bits(view: &View, sample_weights: usize, weights: usize) -> f64 {
    let fixed = HEADER_BYTES + view.header.tables_bytes;
    let rest = (view.total_bytes() - fixed) as f64 * (weights as f64 / sample_weights as f64);
    8.0 * (fixed as f64 + rest)
}

/// The common exponent at which all matrices together, with `other_bytes` beside them, take `bits` for each of the
/// model's `weights`.
///
/// Errors where `bits` cannot be met because what does not depend on the step takes more.
pub fn solve_exponent(samples: &[RateSample], other_bytes: usize, weights: usize, bits: f64) -> Result<f64> {
    let excess = |exponent: f64| -> Result<f64> {
        let coded: f64 =
            samples.par_iter().map(|sample| sample.bits(exponent)).collect::<Result<Vec<_>>>()?.iter().sum();
        Ok((coded + 8.0 * other_bytes as f64) / weights.max(1) as f64 - bits)
    };
    let [mut fine, mut coarse] = EXPONENT_RANGE;
    let least = excess(coarse)?;
    if least > 0.0 {
        return Err(Error::invalid(
            "--bits",
            format!("{bits} bits a weight cannot be met: this model takes at least {:.2}", bits + least),
        ));
    }
    // One bit an octave is what the rate of any smooth distribution does; the Gaussian's offset is 2.05.
    let mut exponent = (2.3 - bits).clamp(fine, coarse);
    for _ in 0..24 {
        let excess = excess(exponent)?;
        if excess.abs() < TOLERANCE_BITS {
            break;
        }
        if excess > 0.0 {
            fine = exponent;
        } else {
            coarse = exponent;
        }
        let newton = exponent + excess;
        exponent = if newton > fine && newton < coarse { newton } else { 0.5 * (fine + coarse) };
    }
    Ok(exponent)
}
