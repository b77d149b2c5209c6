//! Float matrix to integer grid and scales: the lossy step.
//!
//! The grid is symmetric: a weight is a whole number times a scale. Scales are BF16, so a scale takes 16 bits and
//! has the range of FP32, and a grid value of up to 16 bits times a scale is exact in FP32.
//!
//! [`quantize_tensor`] takes one step for a matrix, [`quantize_rows`] one a row; see its example.

mod feedback;

pub use feedback::Feedback;

use half::bf16;
use rayon::prelude::*;

use crate::error::{Error, Result};

/// The largest magnitude of a grid value.
///
/// What [`quantize_tensor`] raises a step for; see its example.
pub const MAX_MAGNITUDE: i16 = i16::MAX;

/// A matrix on its grid.
///
/// Made by [`quantize_tensor`]; see its example.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// Row-major grid values.
    pub values: Vec<i16>,
    /// One scale, or one a row.
    pub scales: Vec<bf16>,
}

/// How far a quantized matrix is from the original.
///
/// Given by [`Quantized::distortion`] in what [`quantize_tensor`] shows; see its example.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Distortion {
    /// Sum of squared weights.
    pub signal: f64,
    /// Sum of squared errors.
    pub noise: f64,
    /// Largest absolute error.
    pub max_error: f64,
}

impl Distortion {
    /// Signal-to-noise ratio in dB, `10 log10(signal / noise)`; infinite where there is no error.
    pub fn snr_db(&self) -> f64 {
        if self.noise == 0.0 {
            f64::INFINITY
        } else {
            10.0 * (self.signal / self.noise).log10()
        }
    }

    /// Both matrices taken together.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self {
            signal: self.signal + other.signal,
            noise: self.noise + other.noise,
            max_error: self.max_error.max(other.max_error),
        }
    }
}

impl Quantized {
    /// The scale of `row`.
    pub fn scale(&self, row: usize) -> f32 {
        row_scale(&self.scales, row)
    }

    /// These `rows` of the matrix, which must be its own.
    #[must_use]
    pub(crate) fn take_rows(&self, rows: &[usize], cols: usize) -> Self {
        let values =
            rows.iter().flat_map(|row| &self.values[row * cols..(row + 1) * cols]).copied().collect();
        let scales = match self.scales.as_slice() {
            [scale] => vec![*scale],
            scales => rows.iter().map(|&row| scales[row]).collect(),
        };
        Self { values, scales }
    }

    /// Brings values whose weight would round to infinity in its own dtype (`is_finite` says of an FP32 weight whether
    /// it would not) towards zero. Only rows at the very edge of a dtype's range have any.
    pub fn keep_finite(&mut self, cols: usize, is_finite: impl Fn(f32) -> bool) {
        for (row, values) in self.values.chunks_exact_mut(cols).enumerate() {
            let scale = row_scale(&self.scales, row);
            let largest = values.iter().map(|value| value.unsigned_abs()).max().unwrap_or(0);
            if is_finite(f32::from(largest) * scale) {
                continue;
            }
            for value in values {
                while *value != 0 && !is_finite(f32::from(*value) * scale) {
                    *value -= value.signum();
                }
            }
        }
    }

    /// Compares with the `weights` `[.., cols]` that the matrix was made from.
    pub fn distortion(&self, weights: &[f32], cols: usize) -> Distortion {
        let rows: Vec<Distortion> = weights
            .par_chunks(cols)
            .zip(self.values.par_chunks(cols))
            .enumerate()
            .map(|(row, (weights, values))| row_distortion(weights, values, self.scale(row)))
            .collect();
        rows.into_iter().fold(Distortion::default(), Distortion::with)
    }
}

fn row_scale(scales: &[bf16], row: usize) -> f32 {
    scales.get(row).or(scales.first()).map_or(0.0, |scale| scale.to_f32())
}

fn row_distortion(weights: &[f32], values: &[i16], scale: f32) -> Distortion {
    let mut sum = Distortion::default();
    for (&weight, &value) in weights.iter().zip(values) {
        let error = f64::from(weight) - f64::from(f32::from(value) * scale);
        sum.signal += f64::from(weight) * f64::from(weight);
        sum.noise += error * error;
        sum.max_error = sum.max_error.max(error.abs());
    }
    sum
}

/// Refuses a matrix with a NaN or an infinity, naming the element.
///
/// ```
/// let error = codecllm::quantize::check_finite(&[1.0, 2.0, f32::NAN, 4.0], 2, "fc.weight").unwrap_err();
/// assert_eq!(error.subject(), "fc.weight");
/// assert!(error.to_string().contains("NaN"));
/// ```
pub fn check_finite(weights: &[f32], cols: usize, subject: &str) -> Result<()> {
    match weights.iter().position(|weight| !weight.is_finite()) {
        None => Ok(()),
        Some(at) => Err(Error::invalid(
            subject,
            format!(
                "element [{}, {}] is {}; a compressed weight must be finite (repair or exclude the tensor)",
                at / cols,
                at % cols,
                weights[at]
            ),
        )),
    }
}

/// One step per row: the row's largest magnitude becomes `levels` (127 is the classical INT8).
///
/// Errors where a weight is not finite. `subject` is the tensor path.
///
/// ```
/// let q = codecllm::quantize::quantize_rows(&[127.0, -63.4, 0.0, 254.0, 2.0, -254.0], 3, 127, "w")?;
/// assert_eq!(q.values, [127, -63, 0, 127, 1, -127]);
/// assert_eq!((q.scale(0), q.scale(1)), (1.0, 2.0));
/// # Ok::<(), codecllm::Error>(())
/// ```
pub fn quantize_rows(weights: &[f32], cols: usize, levels: i16, subject: &str) -> Result<Quantized> {
    check_finite(weights, cols, subject)?;
    let scales: Vec<bf16> =
        weights.par_chunks(cols).map(|row| round_up(absmax(row) / f32::from(levels))).collect();
    Ok(Quantized { values: divide(weights, cols, &scales), scales })
}

/// One step for the whole matrix. A step so small that a weight would pass the grid's 16 bits is raised.
///
/// Errors where a weight or the step is not finite. `subject` is the tensor path.
///
/// ```
/// use codecllm::quantize::{dequantize_row, quantize_tensor, root_mean_square, MAX_MAGNITUDE};
/// let weights = [3.0f32, -1.0, 0.6, 0.0];
/// let mut grid = quantize_tensor(&weights, 2, 0.5, "w")?;
/// assert_eq!((&grid.values[..], grid.scale(1)), (&[6, -2, 1, 0][..], 0.5));
/// let mut row = [0.0; 2];
/// dequantize_row(&grid.values[2..], grid.scale(1), &mut row);
/// assert_eq!(row, [0.5, 0.0]);
/// let distortion = grid.distortion(&weights, 2);
/// assert!((distortion.max_error - 0.1).abs() < 1e-6);
/// assert!((distortion.snr_db() - 20.0 * (2.0 * root_mean_square(&weights) / 0.1).log10()).abs() < 1e-4);
/// assert_eq!(distortion.with(distortion).snr_db(), distortion.snr_db());
/// // A step too small for 16 bits is raised.
/// assert!(quantize_tensor(&weights, 2, 1e-9, "w")?.values.iter().all(|value| value.abs() <= MAX_MAGNITUDE));
/// grid.keep_finite(2, |weight| weight.abs() < 3.0); // were 2.5 the largest weight of a dtype
/// assert_eq!(grid.values, [5, -2, 1, 0]);
/// # Ok::<(), codecllm::Error>(())
/// ```
pub fn quantize_tensor(weights: &[f32], cols: usize, step: f32, subject: &str) -> Result<Quantized> {
    quantize_steps(weights, cols, &[step], None, subject)
}

/// One step for the whole matrix, or one a row, as [`quantize_tensor`]; with `feedback` what rounding does to the layer's
/// output is made up for.
///
/// Errors where a weight or a step is not finite, or where there are neither one step nor one a row.
///
/// ```
/// use codecllm::quantize::quantize_steps;
/// let grid = quantize_steps(&[1.0, 2.0, 3.0, 8.0], 2, &[0.5, 1.0], None, "w")?; // an Importance has feedback
/// assert_eq!(grid.values, [2, 4, 3, 8]);
/// # Ok::<(), codecllm::Error>(())
/// ```
pub fn quantize_steps(
    weights: &[f32],
    cols: usize,
    steps: &[f32],
    feedback: Option<&Feedback>,
    subject: &str,
) -> Result<Quantized> {
    check_finite(weights, cols, subject)?;
    if let Some(step) = steps.iter().find(|step| !bf16::from_f32(**step).is_finite()) {
        return Err(Error::invalid(subject, format!("step {step}, wanted a number that BF16 can hold")));
    }
    let rows = weights.len() / cols.max(1);
    let scales: Vec<bf16> = match steps {
        [step] => vec![scale_for(*step, weights)],
        steps if steps.len() == rows => {
            weights.par_chunks(cols).zip(steps).map(|(row, step)| scale_for(*step, row)).collect()
        }
        _ => {
            let message = format!("{} steps for {rows} rows, wanted 1 or {rows}", steps.len());
            return Err(Error::invalid(subject, message));
        }
    };
    let values = match feedback {
        Some(feedback) => feedback.round(weights, &scales),
        None => divide(weights, cols, &scales),
    };
    Ok(Quantized { values, scales })
}

/// The scale for `step`, or the least at which all `weights` fit the grid.
fn scale_for(step: f32, weights: &[f32]) -> bf16 {
    let least = absmax(weights) / f32::from(MAX_MAGNITUDE);
    let scale = bf16::from_f32(step);
    // Rounding to BF16 may have gone below the least step.
    if step > least && scale.to_f32() >= least {
        scale
    } else {
        round_up(least)
    }
}

/// Root of the mean square.
///
/// Of a matrix as in [`quantize_tensor`]; see its example.
pub fn root_mean_square(weights: &[f32]) -> f64 {
    let sum: f64 = weights.iter().map(|&weight| f64::from(weight) * f64::from(weight)).sum();
    (sum / weights.len().max(1) as f64).sqrt()
}

fn absmax(weights: &[f32]) -> f32 {
    weights.iter().fold(0.0, |most, weight| most.max(weight.abs()))
}

/// The smallest BF16 that is not below `value`, so that no quotient passes the grid.
fn round_up(value: f32) -> bf16 {
    let near = bf16::from_f32(value);
    if near.to_f32() >= value || !near.is_finite() {
        near
    } else {
        bf16::from_bits(near.to_bits() + 1)
    }
}

/// Rounds every weight to the nearest grid value (ties to even).
fn divide(weights: &[f32], cols: usize, scales: &[bf16]) -> Vec<i16> {
    let mut values = vec![0; weights.len()];
    values.par_chunks_mut(cols).zip(weights.par_chunks(cols)).enumerate().for_each(
        |(row, (values, weights))| {
            let scale = row_scale(scales, row);
            if scale > 0.0 {
                for (value, weight) in values.iter_mut().zip(weights) {
                    // The cast saturates; only a step of a subnormal scale could get there.
                    *value = ((weight / scale).round_ties_even() as i16).max(-MAX_MAGNITUDE);
                }
            }
        },
    );
    values
}

/// Grid values back to FP32, into `weights`.
///
/// Undoes [`quantize_tensor`]; see its example.
pub fn dequantize_row(values: &[i16], scale: f32, weights: &mut [f32]) {
    for (weight, &value) in weights.iter_mut().zip(values) {
        *weight = f32::from(value) * scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rows_stay_within_half_a_step(
            rows in proptest::collection::vec(proptest::collection::vec(-1e3f32..1e3, 7), 1..20),
            magnitude in prop_oneof![Just(1e-30f32), Just(1.0), Just(1e30)],
        ) {
            let weights: Vec<f32> = rows.concat().iter().map(|w| w * magnitude).collect();
            let q = quantize_rows(&weights, 7, 127, "w").unwrap();
            for (index, (&weight, &value)) in weights.iter().zip(&q.values).enumerate() {
                let scale = q.scale(index / 7);
                prop_assert!(value.unsigned_abs() <= 127);
                prop_assert!((f64::from(weight) - f64::from(value) * f64::from(scale)).abs() <= 0.5001 * f64::from(scale));
            }
        }

        #[test]
        fn no_step_is_too_small(weights in proptest::collection::vec(-1e6f32..1e6, 1..50), step in 1e-9f32..10.0) {
            let q = quantize_tensor(&weights, weights.len(), step, "w").unwrap();
            let worst = q.distortion(&weights, weights.len()).max_error;
            prop_assert!(worst <= 0.5001 * f64::from(q.scale(0)));
        }
    }

    #[test]
    fn nan_and_infinity_name_the_element() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = quantize_rows(&[0.0, 1.0, 2.0, bad], 2, 127, "model.w").unwrap_err();
            assert!(error.to_string().starts_with("model.w: element [1, 1] is "), "{error}");
            assert!(quantize_tensor(&[bad], 1, 0.1, "model.w").is_err());
        }
    }

    #[test]
    fn zero_rows_are_zero() {
        let q = quantize_rows(&[0.0; 6], 3, 127, "w").unwrap();
        assert_eq!(q.values, [0; 6]);
        assert_eq!(q.distortion(&[0.0; 6], 3).snr_db(), f64::INFINITY);
    }
}
