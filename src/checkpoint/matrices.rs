//! Matrices in memory to compressed ones, all to one target.

use tch::Tensor;

use super::compress::{missed_budget, Target, BUDGET_ATTEMPTS};
use crate::codec::{
    solve_exponent, CompressedTensor, EncodeOptions, ExactMatrix, GridRule, Layout, Matrix, RateSample,
    StepRule, TensorStats,
};
use crate::error::Result;

/// A matrix to compress, `[rows, cols]` in FP32, FP16 or BF16 on any device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MatrixToCompress<'a> {
    /// Full name, for messages.
    pub path: &'a str,
    pub weight: &'a Tensor,
    /// Its rows are looked up one by one.
    pub row_access: bool,
}

/// A compressed matrix, or why it is better left as it is.
pub(crate) type Outcome = std::result::Result<CompressedTensor, String>;

/// Compresses `matrices` in parallel rows of each; a size ([`Target::Bits`]) is met by all of them together.
///
/// # Errors
/// A matrix that is not finite, unless the target is lossless, by tensor path; a size that can't be met.
pub(crate) fn compress_matrices(
    matrices: &[MatrixToCompress<'_>],
    target: Target,
    layout: Layout,
) -> Result<Vec<Outcome>> {
    target.check()?;
    match target {
        Target::Int8 => matrices
            .iter()
            .map(|matrix| on_grid(matrix, GridRule::Own(StepRule::RowAbsmax), layout).map(if_smaller))
            .collect(),
        Target::Lossless => matrices.iter().map(|matrix| exact(matrix, layout)).collect(),
        Target::Bits(_) if matrices.is_empty() => Ok(Vec::new()),
        Target::Bits(bits) => to_budget(matrices, bits, layout),
    }
}

fn options(matrix: &MatrixToCompress<'_>, layout: Layout) -> EncodeOptions {
    EncodeOptions { layout, row_access: matrix.row_access, allow_left: true, tile: None }
}

fn on_grid(matrix: &MatrixToCompress<'_>, rule: GridRule<'_>, layout: Layout) -> Result<CompressedTensor> {
    let weights = Matrix::of(matrix.path, matrix.weight)?;
    let quantized = rule.quantize(&weights, matrix.path)?;
    CompressedTensor::encode(matrix.path, &weights, &quantized, options(matrix, layout))
}

fn exact(matrix: &MatrixToCompress<'_>, layout: Layout) -> Result<Outcome> {
    match ExactMatrix::of(matrix.path, matrix.weight)? {
        Ok(halves) => {
            CompressedTensor::encode_exact(matrix.path, &halves, options(matrix, layout)).map(if_smaller)
        }
        Err(inexact) => Ok(Err(inexact.to_string())),
    }
}

fn if_smaller(compressed: CompressedTensor) -> Outcome {
    let TensorStats { compressed_bytes, original_bytes, .. } = *compressed.stats();
    if compressed_bytes < original_bytes {
        return Ok(compressed);
    }
    Err(format!("coded it has {compressed_bytes} bytes, as it is {original_bytes}"))
}

fn to_budget(matrices: &[MatrixToCompress<'_>], bits: f64, layout: Layout) -> Result<Vec<Outcome>> {
    let sample = |matrix: &MatrixToCompress<'_>| {
        RateSample::new(matrix.path, &Matrix::of(matrix.path, matrix.weight)?, options(matrix, layout))
    };
    let samples: Vec<RateSample> = matrices.iter().map(sample).collect::<Result<_>>()?;
    let weights: usize = matrices.iter().map(|matrix| matrix.weight.numel()).sum();
    let [tolerance, limit] = Target::budget_tolerance(weights as u64);
    let (mut aim, mut got) = (bits, bits);
    for attempt in 1..=BUDGET_ATTEMPTS {
        let exponent = solve_exponent(&samples, 0, weights, aim)?;
        let compressed: Vec<CompressedTensor> = matrices
            .iter()
            .zip(&samples)
            .map(|(matrix, sample)| on_grid(matrix, GridRule::Measured(sample, exponent), layout))
            .collect::<Result<_>>()?;
        let bytes: usize = compressed.iter().map(|tensor| tensor.stats().compressed_bytes).sum();
        got = 8.0 * bytes as f64 / weights.max(1) as f64;
        if (got - bits).abs() <= if attempt < BUDGET_ATTEMPTS { tolerance } else { limit } {
            return Ok(compressed.into_iter().map(Ok).collect());
        }
        aim += bits - got;
    }
    Err(missed_budget(bits, got, limit))
}
