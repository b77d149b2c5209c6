//! What an error of a matrix costs, as a calibration text shows it.
//!
//! To second order, an error `e` of a matrix raises the divergence of the next token by
//! `1/2 sum_i rows[i] sum_jk moments[j, k] e[i, j] e[i, k]`: `moments` are the second moments of the inputs, `rows` the mean
//! squared derivatives by the outputs, and the two are taken as independent.

use std::sync::Arc;

use tch::{Kind, TchError, Tensor};

use super::tensor::Matrix;
use crate::error::{Error, Result, TorchContext};
use crate::quantize::{Feedback, Quantized};

/// Share of the mean moment added to each column's own, so that directions that the text never showed count too.
const DAMPING: f64 = 0.01;
/// A row counts at least as much as this share of the mean: another text may use it more.
const LEAST_ROW: f64 = 0.1;
/// Steps of rows follow their importance to this power; one half would be optimal for the calibration text itself.
const ROW_POWER: f64 = 0.25;
/// Bits of a row's scale.
const SCALE_BITS: f64 = 16.0;
/// Steps of rows must save this many times the bits of their scales.
const ROWS_MUST_SAVE: f64 = 2.0;

/// Second moments of a layer's inputs, `E[x_j x_k]`, and what follows from them for rounding.
///
/// Half of an [`Importance`]; see its example.
#[derive(Clone, Debug, PartialEq)]
pub struct InputMoments {
    features: usize,
    /// Row-major, square; the diagonal alone where the layer is too wide for more.
    moments: Vec<f32>,
    feedback: Option<Feedback>,
    /// Mean over the columns of the moment that error feedback cannot make up for.
    residual: f64,
}

impl InputMoments {
    /// From the square matrix of moments, row-major, or its diagonal. `subject` is the tensor path of a layer that reads the inputs.
    ///
    /// Errors where there are neither `features` nor `features` squared moments, or where one is not finite.
    pub fn new(features: usize, moments: Vec<f32>, subject: &str) -> Result<Self> {
        if moments.iter().any(|moment| !moment.is_finite()) {
            return Err(Error::corrupt(subject, "moments of the inputs are not finite (overflow?)"));
        }
        if moments.len() == features {
            let residual = mean(moments.iter().map(|&moment| f64::from(moment)));
            return Ok(Self { features, moments, feedback: None, residual });
        }
        if moments.len() != features * features {
            let message = format!("{} moments, wanted {features} or the square of {features}", moments.len());
            return Err(Error::invalid(subject, message));
        }
        let (feedback, residual) = factor(&moments, features, subject)?;
        Ok(Self { features, moments, feedback, residual })
    }
}

/// What an error of each weight of one matrix costs.
///
/// ```
/// use std::sync::Arc;
/// use codecllm::codec::{EncodeOptions, Importance, InputMoments, Matrix, RateSample, StepRule};
/// use codecllm::quantize::{quantize_steps, Feedback};
/// use tch::{Device, Kind, Tensor};
/// let (rows, cols) = (64, 32);
/// // Inputs of which each has much in common with its neighbours.
/// let moment = |j: usize, k: usize| 0.9f32.powi(j.abs_diff(k) as i32);
/// let moments = (0..cols * cols).map(|at| moment(at / cols, at % cols)).collect();
/// let importance = Importance::new(vec![1.0; rows], Arc::new(InputMoments::new(cols, moments, "w")?));
/// assert_eq!(importance.shape(), [rows, cols]);
/// // Rounding that knows the inputs costs less than rounding to the nearest.
/// let matrix = Matrix::of("w", &Tensor::randn([rows as i64, cols as i64], (Kind::Float, Device::Cpu)))?;
/// let nearest = StepRule::Step(0.25).quantize(&matrix, "w")?;
/// let feedback: Option<&Feedback> = importance.feedback();
/// let fed_back = quantize_steps(&matrix.weights, cols, &[0.25], feedback, "w")?;
/// assert!(importance.divergence(&matrix, &fed_back, "w")? < importance.divergence(&matrix, &nearest, "w")?);
/// // So does a budget, in `checkpoint::compress_calibrated`.
/// let sample = RateSample::calibrated("w", &matrix, EncodeOptions::default(), &importance)?;
/// assert!(importance.divergence(&matrix, &sample.quantize(&matrix, 0.0)?, "w")?.is_finite());
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Importance {
    rows: Vec<f32>,
    inputs: Arc<InputMoments>,
}

/// The steps of a matrix, but for a factor that all matrices share.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum RelativeSteps {
    Matrix(f64),
    Rows(Vec<f64>),
}

impl Importance {
    /// `rows` are the mean squared derivatives of the divergence by the outputs, one a row.
    pub fn new(rows: Vec<f32>, inputs: Arc<InputMoments>) -> Self {
        Self { rows, inputs }
    }

    /// Rows and columns of the matrix.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows.len(), self.inputs.features]
    }

    /// Rounding that the inputs make up for; `None` where only the inputs' squares are known.
    pub fn feedback(&self) -> Option<&Feedback> {
        self.inputs.feedback.as_ref()
    }

    /// Steps at which a further bit saves the same divergence in every matrix; per row where that pays its scales.
    pub(super) fn relative_steps(&self) -> RelativeSteps {
        let average = mean(self.rows.iter().map(|&row| f64::from(row)));
        // A matrix whose errors cost nothing still gets a step.
        let unit = |cost: f64| 1.0 / cost.max(f64::MIN_POSITIVE).sqrt();
        if average <= 0.0 {
            return RelativeSteps::Matrix(unit(0.0));
        }
        let relative: Vec<f64> =
            self.rows.iter().map(|&row| (f64::from(row) / average).max(LEAST_ROW)).collect();
        let factors: Vec<f64> = relative.iter().map(|row| row.powf(-ROW_POWER)).collect();
        let cost = mean(relative.iter().zip(&factors).map(|(row, factor)| row * factor * factor));
        let log_factor = mean(factors.iter().map(|factor| factor.log2()));
        let saved_bits = 0.5 * (mean(relative.iter().copied()) / cost).log2() + log_factor;
        if saved_bits * self.inputs.features as f64 > ROWS_MUST_SAVE * SCALE_BITS {
            let unit = unit(average * cost * self.inputs.residual);
            RelativeSteps::Rows(factors.iter().map(|factor| unit * factor).collect())
        } else {
            RelativeSteps::Matrix(unit(average * self.inputs.residual))
        }
    }

    /// What the errors of `quantized` add to the divergence of the next token, nats, to second order.
    pub fn divergence(&self, matrix: &Matrix, quantized: &Quantized, tensor_path: &str) -> Result<f64> {
        let [rows, cols] = self.shape();
        if matrix.shape != [rows, cols] {
            let message = format!("shape {:?}, wanted {:?} as calibrated", matrix.shape, [rows, cols]);
            return Err(Error::invalid(tensor_path, message));
        }
        let mut errors = vec![0f32; matrix.weights.len()];
        let of_rows = errors.chunks_exact_mut(cols).zip(matrix.weights.chunks_exact(cols));
        for (row, ((errors, weights), values)) in of_rows.zip(quantized.values.chunks_exact(cols)).enumerate()
        {
            let scale = quantized.scale(row);
            for ((error, weight), &value) in errors.iter_mut().zip(weights).zip(values) {
                *error = weight - f32::from(value) * scale;
            }
        }
        self.cost(&errors).about(tensor_path)
    }

    fn cost(&self, errors: &[f32]) -> std::result::Result<f64, TchError> {
        let cols = self.inputs.features as i64;
        let errors = Tensor::f_from_slice(errors)?.f_view([-1, cols])?;
        let moments = Tensor::f_from_slice(&self.inputs.moments)?;
        let seen = match self.inputs.feedback {
            Some(_) => errors.f_matmul(&moments.f_view([cols, cols])?)?,
            None => errors.f_mul(&moments)?,
        };
        let by_row = seen.f_mul(&errors)?.f_sum_dim_intlist([-1i64].as_slice(), false, Kind::Double)?;
        let rows = Tensor::f_from_slice(&self.rows)?.f_to_kind(Kind::Double)?;
        by_row.f_mul(&rows)?.f_sum(Kind::Double)?.f_double_value(&[]).map(|cost| 0.5 * cost)
    }
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len().max(1) as f64;
    values.sum::<f64>() / count
}

/// The order of rounding, how errors spread, and the mean moment that stays; without inputs there is nothing to spread.
fn factor(moments: &[f32], features: usize, subject: &str) -> Result<(Option<Feedback>, f64)> {
    let own = |column: usize| f64::from(moments[column * (features + 1)]);
    let average = mean((0..features).map(own));
    if average <= 0.0 {
        return Ok((Some(Feedback::new((0..features).collect(), vec![0.0; moments.len()])), 0.0));
    }
    let mut order: Vec<usize> = (0..features).collect();
    // The greatest first: most columns are left to make up for their errors.
    order.sort_by(|&a, &b| own(b).total_cmp(&own(a)));
    let upper = upper_factor(moments, &order, DAMPING * average).about(subject)?;
    let diagonal = |column: usize| upper[column * (features + 1)];
    let residual = mean((0..features).map(|column| diagonal(column).powi(-2)));
    let spread =
        upper.iter().enumerate().map(|(at, entry)| (entry / diagonal(at / features)) as f32).collect();
    Ok((Some(Feedback::new(order, spread)), residual))
}

/// The upper Cholesky factor of the inverse of the moments, columns in `order`, with `damping` added to the diagonal.
fn upper_factor(moments: &[f32], order: &[usize], damping: f64) -> std::result::Result<Vec<f64>, TchError> {
    let features = order.len() as i64;
    let index: Vec<i64> = order.iter().map(|&column| column as i64).collect();
    let index = Tensor::f_from_slice(&index)?;
    let moments = Tensor::f_from_slice(moments)?.f_view([features, features])?.f_to_kind(Kind::Double)?;
    let ordered = moments.f_index_select(0, &index)?.f_index_select(1, &index)?;
    let damped =
        ordered.f_add(&Tensor::f_eye(features, (Kind::Double, tch::Device::Cpu))?.f_mul_scalar(damping)?)?;
    let inverse = damped.f_linalg_cholesky(false)?.f_cholesky_inverse(false)?;
    let upper = inverse.f_linalg_cholesky(true)?;
    Vec::<f64>::try_from(upper.f_contiguous()?.f_view([-1])?)
}

#[cfg(test)]
mod tests {
    use super::super::SourceDtype;
    use super::*;
    use crate::quantize::quantize_steps;

    const COLS: usize = 24;

    /// Moments of inputs of which many go together, and a matrix.
    fn inputs_and_matrix(rows: i64) -> (Arc<InputMoments>, Matrix) {
        tch::manual_seed(5);
        let options = (Kind::Float, tch::Device::Cpu);
        let mixed = Tensor::randn([400, 6], options).matmul(&Tensor::randn([6, COLS as i64], options));
        let inputs: Tensor = mixed + 0.3 * Tensor::randn([400, COLS as i64], options);
        let moments = inputs.tr().matmul(&inputs) / 400.0;
        let moments = Vec::<f32>::try_from(moments.reshape([-1])).unwrap();
        let weights = Vec::<f32>::try_from(Tensor::randn([rows * COLS as i64], options)).unwrap();
        let matrix = Matrix { weights, shape: [rows as usize, COLS], dtype: SourceDtype::F32 };
        (Arc::new(InputMoments::new(COLS, moments, "w").unwrap()), matrix)
    }

    #[test]
    fn feedback_halves_what_rounding_costs() {
        let (inputs, matrix) = inputs_and_matrix(40);
        let importance = Importance::new(vec![1.0; 40], inputs);
        let cost = |feedback| {
            let quantized = quantize_steps(&matrix.weights, COLS, &[0.2], feedback, "w").unwrap();
            importance.divergence(&matrix, &quantized, "w").unwrap()
        };
        let (plain, fed_back) = (cost(None), cost(importance.feedback()));
        assert!(fed_back < 0.5 * plain, "{fed_back} with feedback, {plain} without");
        // A rounding error is uniform: step^2 / 12, and feedback leaves the residual of the moments.
        let expected = 0.5 * 40.0 * COLS as f64 * 0.2f64.powi(2) / 12.0 * importance.inputs.residual;
        assert!((fed_back / expected - 1.0).abs() < 0.2, "{fed_back}, expected {expected}");
    }

    #[test]
    fn the_cost_is_the_quadratic_form() {
        let moments = vec![2.0, 1.0, 1.0, 3.0];
        let inputs = Arc::new(InputMoments::new(2, moments, "w").unwrap());
        let importance = Importance::new(vec![1.0, 10.0], inputs);
        let matrix = Matrix { weights: vec![0.25, 0.0, 0.0, -0.5], shape: [2, 2], dtype: SourceDtype::F32 };
        let quantized = Quantized { values: vec![0, 0, 0, 0], scales: vec![half::bf16::ONE] };
        let cost = importance.divergence(&matrix, &quantized, "w").unwrap();
        assert!((cost - 0.5 * (0.25 * 0.25 * 2.0 + 10.0 * 0.25 * 3.0)).abs() < 1e-6, "{cost}");
        let other = Matrix { shape: [1, 4], ..matrix };
        let error = importance.divergence(&other, &quantized, "w").unwrap_err();
        assert_eq!(error.to_string(), "w: shape [1, 4], wanted [2, 2] as calibrated");
    }

    #[test]
    fn what_costs_four_times_as_much_gets_half_the_step() {
        let (inputs, _) = inputs_and_matrix(1);
        let step = |cost: f32| match Importance::new(vec![cost; 8], inputs.clone()).relative_steps() {
            RelativeSteps::Matrix(step) => step,
            RelativeSteps::Rows(_) => panic!("equal rows need no steps of their own"),
        };
        assert!((step(1.0) / step(4.0) - 2.0).abs() < 1e-6);
    }

    #[test]
    fn rows_get_steps_where_that_pays_their_scales() {
        let wide = |costs: Vec<f32>| {
            let inputs = Arc::new(InputMoments::new(1000, vec![1.0; 1000], "w").unwrap());
            Importance::new(costs, inputs).relative_steps()
        };
        let RelativeSteps::Rows(steps) = wide(vec![1.0, 0.0, 0.0, 16.0]) else { panic!("one step") };
        assert!(steps[3] < steps[0] && steps[0] < steps[1] && steps[1] == steps[2], "{steps:?}");
        assert!(matches!(wide(vec![1.0, 1.1]), RelativeSteps::Matrix(_)));
    }

    #[test]
    fn inputs_that_never_come_are_no_error() {
        let inputs = InputMoments::new(2, vec![0.0; 4], "w").unwrap();
        let importance = Importance::new(vec![0.0, 0.0], Arc::new(inputs));
        let RelativeSteps::Matrix(step) = importance.relative_steps() else { panic!("steps of rows") };
        assert!(step.is_finite() && step > 0.0);
        let error = InputMoments::new(2, vec![f32::NAN; 4], "w").unwrap_err();
        assert_eq!(error.to_string(), "w: moments of the inputs are not finite (overflow?)");
        assert!(InputMoments::new(2, vec![0.0; 3], "w").is_err());
    }
}
