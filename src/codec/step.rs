//! The step of the grid: by a rule for one matrix, or so that a whole model meets a bit budget.
//!
//! Under entropy coding the step decides everything. For a budget every matrix gets one step, its own root mean
//! square times a common factor: at equal relative steps all matrices have about the same signal-to-noise ratio.
//! How many bits a matrix takes at a step is measured, by encoding a sample of its rows.

use rayon::prelude::*;

use super::buffers::View;
use super::encode::{encode, EncodeOptions};
use super::header::Layout;
use super::header::HEADER_BYTES;
use super::importance::{Importance, RelativeSteps};
use super::layout_choice::Unsettled;
use super::plan::TileShape;
use super::tensor::Matrix;
use crate::error::{Error, Result};
use crate::quantize::{
    check_finite, quantize_rows, quantize_steps, quantize_tensor, root_mean_square, Feedback, Quantized,
};

/// The bits a weight that a budget may ask for.
///
/// What a [`RateSample`] is asked for lies in it; see its example.
pub const BUDGET_RANGE: std::ops::RangeInclusive<f64> = 2.5..=8.5;

/// Binary logarithms of the middle step, relative to the root mean square, between which a budget is sought: heavy tails at
/// 8.5 bits need the finer end; beyond the coarser one hardly a weight is left.
const EXPONENT_RANGE: [f64; 2] = [-16.0, 2.0];
/// What a step stays below: BF16 holds it.
const LARGEST_STEP: f64 = 1e38;

/// How close to the budget the search must come, bits a weight.
const TOLERANCE_BITS: f64 = 0.002;

/// How close it must be when the layouts are settled, bits a weight: a tenth of an octave changes what a layout takes by a hundredth.
const SETTLING_BITS: f64 = 0.1;

/// Weights of a sample.
const SAMPLE_WEIGHTS: usize = 1 << 17;

/// How the step of a matrix is chosen.
///
/// ```
/// use codecllm::codec::{Matrix, StepRule};
/// let matrix = Matrix::of("w", &tch::Tensor::from_slice(&[1f32, -0.5, 0.25, 0.0]).view([2, 2]))?;
/// let rows = StepRule::RowAbsmax.quantize(&matrix, "w")?; // a row's largest magnitude is 127 steps or, as here, one less
/// assert_eq!(rows.values, [126, -63, 126, 0]);
/// assert_eq!(StepRule::Step(0.25).quantize(&matrix, "w")?.values, [4, -2, 1, 0]);
/// # Ok::<(), codecllm::Error>(())
/// ```
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

/// How one matrix gets its grid.
///
/// `Measured` by a [`RateSample`]; see its example.
#[derive(Clone, Copy, Debug)]
pub enum GridRule<'a> {
    /// By a rule of its own.
    Own(StepRule),
    /// As measured, at a common exponent.
    Measured(&'a RateSample, f64),
}

impl GridRule<'_> {
    /// Quantizes `matrix` so that every weight stays finite in its own dtype. `subject` is the tensor path.
    pub fn quantize(self, matrix: &Matrix, subject: &str) -> Result<Quantized> {
        match self {
            Self::Own(rule) => rule.quantize(matrix, subject),
            Self::Measured(sample, exponent) => sample.quantize(matrix, exponent),
        }
    }
}

/// A sample of one matrix, to learn what the whole takes at a step; and how the whole is quantized then.
///
/// ```
/// use codecllm::codec::{solve_exponent, BUDGET_RANGE, CompressedTensor, EncodeOptions, GridRule, Layout, Matrix, RateSample};
/// use tch::{Device, Kind, Tensor};
/// let matrix = Matrix::of("w", &Tensor::randn([512, 512], (Kind::Float, Device::Cpu)))?;
/// let mut sample = RateSample::new("w", &matrix, EncodeOptions::default())?;
/// assert!(BUDGET_RANGE.contains(&5.3));
/// let exponent = solve_exponent(std::slice::from_ref(&sample), 0, sample.weights(), 5.3)?;
/// assert!((sample.bits(exponent)? / sample.weights() as f64 - 5.3).abs() < 0.1);
/// // A bell stays in the layout that was preferred.
/// assert!(!sample.settle_layout(exponent)?);
/// assert_eq!((sample.layout(), sample.layout_reason()), (Layout::Fast, None));
/// let quantized = GridRule::Measured(&sample, exponent).quantize(&matrix, sample.tensor_path())?;
/// assert_eq!(quantized.scales[0].to_f32(), half::bf16::from_f32(sample.step(exponent)).to_f32());
/// let compressed = CompressedTensor::encode("w", &matrix, &quantized, EncodeOptions::default())?;
/// assert!((compressed.stats().bits_per_weight - 5.3).abs() < 0.1);
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct RateSample {
    tensor_path: String,
    sample: Matrix,
    /// The rows of the matrix that the sample is made of.
    rows: Vec<usize>,
    weights: usize,
    steps: RelativeSteps,
    /// Mean over the rows of the binary logarithm of step over root mean square, at exponent 0.
    log_step: f64,
    importance: Option<Importance>,
    options: EncodeOptions,
    /// Rows and columns of the whole matrix.
    whole: [usize; 2],
    /// Why the layout is not the preferred one.
    layout_reason: Option<String>,
}

impl RateSample {
    /// Takes a sample of `matrix`, which will be encoded with `options`. Its step will be in proportion to its root mean square.
    ///
    /// Errors where a weight of the matrix is not finite.
    pub fn new(tensor_path: &str, matrix: &Matrix, options: EncodeOptions) -> Result<Self> {
        let steps = RelativeSteps::Matrix(root_mean_square(&matrix.weights));
        Self::with_steps(tensor_path, matrix, options, steps, None)
    }

    /// The same with steps that follow `importance`, and rounding with its error feedback.
    ///
    /// Errors where a weight of the matrix is not finite, or where `importance` is of a matrix of another shape.
    pub fn calibrated(
        tensor_path: &str,
        matrix: &Matrix,
        options: EncodeOptions,
        importance: &Importance,
    ) -> Result<Self> {
        if matrix.shape != importance.shape() {
            let message = format!("shape {:?}, calibrated as {:?}", matrix.shape, importance.shape());
            return Err(Error::invalid(tensor_path, message));
        }
        let importance = importance.clone();
        Self::with_steps(tensor_path, matrix, options, importance.relative_steps(), Some(importance))
    }

    fn with_steps(
        tensor_path: &str,
        matrix: &Matrix,
        options: EncodeOptions,
        steps: RelativeSteps,
        importance: Option<Importance>,
    ) -> Result<Self> {
        let [rows, cols] = matrix.shape;
        check_finite(&matrix.weights, cols, tensor_path)?;
        // The sample alone would be cut in another way.
        let tile = TileShape::choose(rows, cols, options.layout, options.row_access);
        let rms = root_mean_square(&matrix.weights).max(f64::MIN_POSITIVE);
        let log_step = match &steps {
            RelativeSteps::Matrix(step) => (step.max(f64::MIN_POSITIVE) / rms).log2(),
            RelativeSteps::Rows(steps) => {
                steps.iter().map(|step| (step / rms).log2()).sum::<f64>() / steps.len().max(1) as f64
            }
        };
        let rows = matrix.sample_rows(SAMPLE_WEIGHTS);
        Ok(Self {
            tensor_path: tensor_path.to_owned(),
            weights: matrix.weights.len(),
            sample: matrix.take_rows(&rows),
            rows,
            steps,
            log_step,
            importance,
            options: EncodeOptions { tile: Some(tile), ..options },
            whole: matrix.shape,
            layout_reason: None,
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

    /// The step of this matrix when the common exponent is `exponent`; the first row's where each has its own.
    pub fn step(&self, exponent: f64) -> f32 {
        self.step_of(0, exponent)
    }

    fn step_of(&self, row: usize, exponent: f64) -> f32 {
        let step = match &self.steps {
            RelativeSteps::Matrix(step) => *step,
            RelativeSteps::Rows(steps) => steps.get(row).copied().unwrap_or_default(),
        };
        (step * exponent.exp2()).clamp(f64::from(f32::MIN_POSITIVE), LARGEST_STEP) as f32
    }

    /// The steps of `rows`, or the one of the whole matrix.
    fn steps_of(&self, rows: impl Iterator<Item = usize>, exponent: f64) -> Vec<f32> {
        match self.steps {
            RelativeSteps::Matrix(_) => vec![self.step(exponent)],
            RelativeSteps::Rows(_) => rows.map(|row| self.step_of(row, exponent)).collect(),
        }
    }

    /// The layout that the matrix will have.
    pub fn layout(&self) -> Layout {
        self.options.layout
    }

    /// Why that is not the preferred one.
    pub fn layout_reason(&self) -> Option<&str> {
        self.layout_reason.as_deref()
    }

    /// Takes the layout for good that suits the matrix when the common exponent is about `exponent`, as [`Unsettled::settle`]
    /// does: were it open, a size between what the two layouts take could not be met. Says whether it is another than before.
    pub fn settle_layout(&mut self, exponent: f64) -> Result<bool> {
        let quantized = self.quantize_sample(exponent)?;
        let Self { tensor_path, sample, whole, options, .. } = &*self;
        let unsettled = Unsettled {
            tensor_path,
            matrix: sample,
            quantized: &quantized,
            whole: *whole,
            options: *options,
        };
        let settled = unsettled.settle()?;
        if settled.layout == self.options.layout {
            return Ok(false);
        }
        let [rows, cols] = self.whole;
        let tile = TileShape::choose(rows, cols, settled.layout, self.options.row_access);
        self.options = EncodeOptions { layout: settled.layout, tile: Some(tile), ..self.options };
        self.layout_reason = settled.reason;
        Ok(true)
    }

    /// Quantizes the whole `matrix` with the steps of the common exponent `exponent`.
    pub fn quantize(&self, matrix: &Matrix, exponent: f64) -> Result<Quantized> {
        let feedback = self.importance.as_ref().and_then(Importance::feedback);
        let steps = self.steps_of(0..matrix.shape[0], exponent);
        quantize_finite(matrix, &steps, feedback, &self.tensor_path)
    }

    /// Expected bits of the whole matrix, everything counted, when the common exponent is `exponent`.
    pub fn bits(&self, exponent: f64) -> Result<f64> {
        let Matrix { weights, shape, dtype } = &self.sample;
        let path = &self.tensor_path;
        let quantized = self.quantize_sample(exponent)?;
        let buffers = encode(path, &quantized.values, *shape, &quantized.scales, *dtype, self.options)?;
        Ok(whole_bits(&buffers.view(path)?, weights.len(), self.weights))
    }

    fn quantize_sample(&self, exponent: f64) -> Result<Quantized> {
        let steps = self.steps_of(self.rows.iter().copied(), exponent);
        let feedback = self.importance.as_ref().and_then(Importance::feedback);
        quantize_finite(&self.sample, &steps, feedback, &self.tensor_path)
    }
}

fn quantize_finite(
    matrix: &Matrix,
    steps: &[f32],
    feedback: Option<&Feedback>,
    subject: &str,
) -> Result<Quantized> {
    let cols = matrix.shape[1];
    let mut quantized = quantize_steps(&matrix.weights, cols, steps, feedback, subject)?;
    quantized.keep_finite(cols, |weight| matrix.dtype.holds(weight));
    Ok(quantized)
}

/// Bits of the whole matrix, from a sample's: header and tables once, the rest by the number of weights.
fn whole_bits(view: &View, sample_weights: usize, weights: usize) -> f64 {
    let fixed = HEADER_BYTES + view.header.tables_bytes;
    let rest = (view.total_bytes() - fixed) as f64 * (weights as f64 / sample_weights as f64);
    8.0 * (fixed as f64 + rest)
}

/// The `log_step` that half of the weights stay below: a matrix whose errors cost next to nothing does not move it.
fn middle_log_step(samples: &[RateSample]) -> f64 {
    let mut steps: Vec<(f64, usize)> =
        samples.iter().map(|sample| (sample.log_step, sample.weights)).collect();
    steps.sort_by(|a, b| a.0.total_cmp(&b.0));
    let total: usize = steps.iter().map(|step| step.1).sum();
    let mut below = 0;
    let middle = steps.iter().find(|step| {
        below += step.1;
        2 * below >= total
    });
    middle.map_or(0.0, |step| step.0)
}

/// The size that a model is to have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    /// Bytes beside the matrices.
    pub other_bytes: usize,
    /// Weights of the whole model.
    pub weights: usize,
    /// Bits a weight, everything counted.
    pub bits: f64,
}

impl Budget {
    /// Bits a weight too many.
    fn excess(&self, samples: &[RateSample], exponent: f64) -> Result<f64> {
        let coded: f64 =
            samples.par_iter().map(|sample| sample.bits(exponent)).collect::<Result<Vec<_>>>()?.iter().sum();
        Ok((coded + 8.0 * self.other_bytes as f64) / self.weights.max(1) as f64 - self.bits)
    }

    /// The common exponent at which `samples` meet the budget, all in the layout that was `asked` for, or each in the one that suits it.
    ///
    /// Errors as [`solve_exponent`].
    pub fn solve_in(&self, samples: &mut [RateSample], asked: Option<Layout>) -> Result<f64> {
        match asked {
            None => self.settle_and_solve(samples),
            Some(_) => self.solve(samples),
        }
    }

    /// The common exponent at which `samples` meet the budget.
    pub fn solve(&self, samples: &[RateSample]) -> Result<f64> {
        let (range, guess) = self.begin(samples)?;
        self.near(samples, guess, range, TOLERANCE_BITS)
    }

    /// The same after each of `samples` took the layout that suits it about there, for good ([`RateSample::settle_layout`]).
    ///
    /// Errors as [`solve_exponent`].
    pub fn settle_and_solve(&self, samples: &mut [RateSample]) -> Result<f64> {
        let (range, guess) = self.begin(samples)?;
        let rough = self.near(samples, guess, range, SETTLING_BITS)?;
        for sample in samples.iter_mut() {
            sample.settle_layout(rough)?;
        }
        self.near(samples, rough, range, TOLERANCE_BITS)
    }

    /// Between which exponents to look, and a first guess.
    fn begin(&self, samples: &[RateSample]) -> Result<([f64; 2], f64)> {
        let log_step = middle_log_step(samples);
        let range = EXPONENT_RANGE.map(|exponent| exponent - log_step);
        let least = self.excess(samples, range[1])?;
        if least > 0.0 {
            let (bits, least) = (self.bits, self.bits + least);
            return Err(Error::invalid(
                "--bits",
                format!("{bits} bits a weight cannot be met: this model takes at least {least:.2}"),
            ));
        }
        // One bit an octave is what the rate of any smooth distribution does; the Gaussian's offset is 2.05.
        Ok((range, (2.3 - self.bits - log_step).clamp(range[0], range[1])))
    }

    /// The exponent in a range at which the budget is met within `tolerance`, from a first guess.
    fn near(
        &self,
        samples: &[RateSample],
        mut exponent: f64,
        [mut fine, mut coarse]: [f64; 2],
        tolerance: f64,
    ) -> Result<f64> {
        for _ in 0..24 {
            let excess = self.excess(samples, exponent)?;
            if excess.abs() < tolerance {
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
}

/// The common exponent at which all matrices together, with `other_bytes` beside them, take `bits` for each of the
/// model's `weights`.
///
/// Errors where `bits` cannot be met because what does not depend on the step takes more.
///
/// Of matrices of each of which there is a [`RateSample`]; see its example.
pub fn solve_exponent(samples: &[RateSample], other_bytes: usize, weights: usize, bits: f64) -> Result<f64> {
    Budget { other_bytes, weights, bits }.solve(samples)
}
