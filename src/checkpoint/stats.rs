//! What each choice would make of a model, before anything is written.

use std::path::Path;

use serde::Serialize;

use super::compress::{CompressOptions, Progress};
use super::selection::{select, EMBEDDING};
use super::Reader;
use crate::codec::{CompressedTensor, EncodeOptions, Matrix, StepRule, TensorStats};
use crate::error::Result;
use crate::quantize::{check_finite, root_mean_square, Distortion};

/// Weights of a tensor that are tried.
const SAMPLE_WEIGHTS: usize = 1 << 18;
/// Relative steps of the curve, as powers of two of a tensor's root mean square.
const CURVE_EXPONENTS: [f64; 8] = [-6.0, -5.0, -4.0, -3.5, -3.0, -2.5, -2.0, -1.0];

/// A model before compression.
#[derive(Clone, Debug, Serialize)]
pub struct StatsReport {
    /// Weights of the matrices that would be compressed.
    pub weights: u64,
    /// Their bytes.
    pub original_bytes: u64,
    /// The matrices.
    pub tensors: Vec<StatsTensor>,
    /// What each choice gives over all of them, from samples.
    pub curve: Vec<CurvePoint>,
}

/// One matrix.
#[derive(Clone, Debug, Serialize)]
pub struct StatsTensor {
    /// Full name.
    pub tensor_path: String,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// Its dtype.
    pub dtype: String,
    /// Root mean square of its weights.
    pub rms: f64,
    /// Largest magnitude.
    pub absmax: f64,
    /// A sample of it at INT8.
    pub int8: TensorStats,
}

/// One choice.
#[derive(Clone, Debug, Serialize)]
pub struct CurvePoint {
    /// `int8`, or the step relative to each tensor's root mean square.
    pub choice: String,
    /// Bits a weight of the matrices, everything counted but the file's header.
    pub bits_per_weight: f64,
    /// Order-0 entropy of the grids, bits a weight.
    pub grid_entropy_bits: f64,
    /// Signal-to-noise ratio, dB.
    pub snr_db: f64,
}

/// Tries INT8 and a range of steps on a sample of every matrix of `dir` that `options` would compress.
///
/// # Errors
/// What [`Reader`] reports; `InvalidArgument` for a pattern that matches nothing or a weight that is not finite.
pub fn stats(
    dir: impl AsRef<Path>,
    options: &CompressOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<StatsReport> {
    let reader = Reader::open(dir)?;
    let selected = select(&reader, &options.include, &options.exclude)?;
    let names: Vec<&str> = reader.names().filter(|name| selected.contains(*name)).collect();
    let bytes_of = |name: &str| reader.info(name).map_or(0, |info| info.bytes as u64);
    let total_bytes = names.iter().map(|name| bytes_of(name)).sum();
    let mut totals = vec![Total::default(); CURVE_EXPONENTS.len() + 1];
    let (mut tensors, mut done_bytes, mut weights) = (Vec::new(), 0, 0);
    for name in names {
        let matrix = Matrix::of(name, &reader.read(name)?)?;
        weights += matrix.weights.len() as u64;
        tensors.push(measure(name, &matrix, options, &mut totals)?);
        done_bytes += bytes_of(name);
        progress(Progress { stage: "measure", tensor_path: name, done_bytes, total_bytes });
    }
    let choices = std::iter::once("int8".to_owned())
        .chain(CURVE_EXPONENTS.iter().map(|exponent| format!("step {:.4} rms", exponent.exp2())));
    let curve = choices.zip(&totals).map(|(choice, total)| total.point(choice)).collect();
    Ok(StatsReport { weights, original_bytes: total_bytes, tensors, curve })
}

fn measure(
    name: &str,
    matrix: &Matrix,
    options: &CompressOptions,
    totals: &mut [Total],
) -> Result<StatsTensor> {
    check_finite(&matrix.weights, matrix.shape[1], name)?;
    let rms = root_mean_square(&matrix.weights);
    let sample = matrix.sample(SAMPLE_WEIGHTS);
    let encode =
        EncodeOptions { layout: options.layout, row_access: name == EMBEDDING, allow_left: true, tile: None };
    let rules = std::iter::once(StepRule::RowAbsmax)
        .chain(CURVE_EXPONENTS.iter().map(|exponent| StepRule::Step((rms * exponent.exp2()) as f32)));
    let mut first = None;
    for (rule, total) in rules.zip(totals) {
        let quantized = rule.quantize(&sample, name)?;
        let stats = *CompressedTensor::encode(name, &sample, &quantized, encode)?.stats();
        total.add(&stats, matrix.weights.len() as f64 / stats.weights as f64);
        first.get_or_insert(stats);
    }
    let absmax = matrix.weights.iter().fold(0f32, |most, weight| most.max(weight.abs()));
    Ok(StatsTensor {
        tensor_path: name.to_owned(),
        shape: matrix.shape,
        dtype: format!("{:?}", matrix.dtype),
        rms,
        absmax: f64::from(absmax),
        int8: first.unwrap_or(TensorStats::EMPTY),
    })
}

/// Sums over tensors, each sample weighted to stand for its whole tensor.
#[derive(Clone, Copy, Default)]
struct Total {
    weights: f64,
    bits: f64,
    entropy: f64,
    distortion: Distortion,
}

impl Total {
    fn add(&mut self, stats: &TensorStats, factor: f64) {
        let weights = stats.weights as f64 * factor;
        self.weights += weights;
        self.bits += stats.bits_per_weight * weights;
        self.entropy += stats.grid_entropy_bits * weights;
        self.distortion.signal += stats.distortion.signal * factor;
        self.distortion.noise += stats.distortion.noise * factor;
    }

    fn point(&self, choice: String) -> CurvePoint {
        CurvePoint {
            choice,
            bits_per_weight: self.bits / self.weights.max(1.0),
            grid_entropy_bits: self.entropy / self.weights.max(1.0),
            snr_db: self.distortion.snr_db(),
        }
    }
}
