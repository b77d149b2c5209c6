//! Matrices in memory to compressed ones, all to one target.

use tch::Tensor;

use super::budget_search::BudgetSearch;
use super::compress::{encode_exact, encode_grid, if_smaller, missed_budget, Target, BUDGET_ATTEMPTS};
use crate::codec::{Budget, CompressedTensor, EncodeOptions, GridRule, Layout, Matrix, RateSample, StepRule};
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

/// Compresses `matrices`, each in the `layout` or, for none, in the one that suits it; a size ([`Target::Bits`]) is met by all together.
///
/// # Errors
/// A matrix that is not finite, unless the target is lossless, by tensor path; a size that can't be met.
pub(crate) fn compress_matrices(
    matrices: &[MatrixToCompress<'_>],
    target: Target,
    layout: Option<Layout>,
) -> Result<Vec<Outcome>> {
    target.check()?;
    match target {
        Target::Int8 => matrices
            .iter()
            .map(|matrix| on_grid(matrix, GridRule::Own(StepRule::RowAbsmax), layout).map(if_smaller))
            .collect(),
        Target::Lossless => matrices
            .iter()
            .map(|matrix| encode_exact(matrix.path, matrix.weight, options(matrix, layout)))
            .collect(),
        Target::Bits(_) if matrices.is_empty() => Ok(Vec::new()),
        Target::Bits(bits) => to_budget(matrices, bits, layout),
    }
}

fn options(matrix: &MatrixToCompress<'_>, layout: Option<Layout>) -> EncodeOptions {
    let layout = layout.unwrap_or(Layout::Fast);
    EncodeOptions { layout, row_access: matrix.row_access, allow_left: true, tile: None }
}

fn on_grid(
    matrix: &MatrixToCompress<'_>,
    rule: GridRule<'_>,
    layout: Option<Layout>,
) -> Result<CompressedTensor> {
    let weights = Matrix::of(matrix.path, matrix.weight)?;
    let quantized = rule.quantize(&weights, matrix.path)?;
    let options = options(matrix, layout);
    encode_grid(matrix.path, rule, &weights, &quantized, options, layout).map(|(compressed, _)| compressed)
}

fn to_budget(matrices: &[MatrixToCompress<'_>], bits: f64, layout: Option<Layout>) -> Result<Vec<Outcome>> {
    let sample = |matrix: &MatrixToCompress<'_>| {
        RateSample::new(matrix.path, &Matrix::of(matrix.path, matrix.weight)?, options(matrix, layout))
    };
    let mut samples: Vec<RateSample> = matrices.iter().map(sample).collect::<Result<_>>()?;
    let weights: usize = matrices.iter().map(|matrix| matrix.weight.numel()).sum();
    let [tolerance, limit] = Target::budget_tolerance(weights as u64);
    let reached = |compressed: &[CompressedTensor]| {
        let bytes: usize = compressed.iter().map(|tensor| tensor.stats().compressed_bytes).sum();
        8.0 * bytes as f64 / weights.max(1) as f64
    };
    let budget = Budget { other_bytes: 0, weights, bits };
    let mut exponent = budget.solve_in(&mut samples, layout)?;
    let mut search = BudgetSearch::new(bits);
    // The closest from either side.
    let [mut below, mut above]: [Option<Vec<CompressedTensor>>; 2] = [None, None];
    for _ in 0..BUDGET_ATTEMPTS {
        let compressed: Vec<CompressedTensor> = matrices
            .iter()
            .zip(&samples)
            .map(|(matrix, sample)| on_grid(matrix, GridRule::Measured(sample, exponent), layout))
            .collect::<Result<_>>()?;
        let got = reached(&compressed);
        if (got - bits).abs() <= tolerance {
            return Ok(compressed.into_iter().map(Ok).collect());
        }
        exponent = search.next(exponent, got);
        let (side, closer): (_, fn(f64, f64) -> bool) =
            if got < bits { (&mut below, |new, old| new > old) } else { (&mut above, |new, old| new < old) };
        if side.as_deref().is_none_or(|old| closer(got, reached(old))) {
            *side = Some(compressed);
        }
        if let (Some(below), Some(above)) = (&below, &above) {
            let mixed = mixed(below, above, bits * weights as f64 / 8.0);
            if (reached(&mixed) - bits).abs() <= tolerance {
                return Ok(mixed.into_iter().map(Ok).collect());
            }
        }
    }
    let closest = [below, above]
        .into_iter()
        .flatten()
        .min_by(|a, b| (reached(a) - bits).abs().total_cmp(&(reached(b) - bits).abs()));
    match closest {
        Some(closest) if (reached(&closest) - bits).abs() <= limit => {
            Ok(closest.into_iter().map(Ok).collect())
        }
        closest => Err(missed_budget(bits, closest.map_or(0.0, |closest| reached(&closest)), limit)),
    }
}

/// Some matrices as in `below`, others as in `above`, so that all together come close to `bytes`. Weights that lie on a grid of their own
/// (BF16 in a file of FP32) take sizes that jump with the step: no step gives what is between.
fn mixed(below: &[CompressedTensor], above: &[CompressedTensor], bytes: f64) -> Vec<CompressedTensor> {
    let size = |tensor: &CompressedTensor| tensor.stats().compressed_bytes as f64;
    let mut missing = bytes - below.iter().map(size).sum::<f64>();
    let mut order: Vec<usize> = (0..below.len()).collect();
    let growth = |index: &usize| size(&above[*index]) - size(&below[*index]);
    order.sort_by(|a, b| growth(b).total_cmp(&growth(a)));
    let mut result = below.to_vec();
    for index in order {
        // Largest first: each that brings the sum closer.
        let more = growth(&index);
        if (missing - more).abs() < missing.abs() {
            result[index] = above[index].clone();
            missing -= more;
        }
    }
    result
}
