//! What each choice would make of a model, before anything is written.

use std::path::Path;

use serde::Serialize;
use tch::Tensor;

use super::compress::{CompressOptions, Progress};
use super::selection::{select, EMBEDDING};
use super::Reader;
use crate::codec::{CompressedTensor, EncodeOptions, ExactMatrix, Matrix, StepRule, TensorStats};
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
    /// `lossless`, `int8`, or the step relative to each tensor's root mean square.
    pub choice: String,
    /// Bits a weight of the matrices, everything counted but the file's header.
    pub bits_per_weight: f64,
    /// Order-0 entropy of the grids, bits a weight.
    pub grid_entropy_bits: Option<f64>,
    /// For `lossless`: order-0 entropy of the exponents and all other bits, bits a weight.
    pub exponent_entropy_and_raw_bits: Option<f64>,
    /// Signal-to-noise ratio, dB.
    pub snr_db: f64,
}

/// Tries lossless, INT8 and a range of steps on a sample of every matrix of `dir` that `options` would compress.
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
    let mut lossless = Total::default();
    let (mut tensors, mut done_bytes, mut weights) = (Vec::new(), 0, 0);
    for name in names {
        let tensor = reader.read(name)?;
        let matrix = Matrix::of(name, &tensor)?;
        weights += matrix.weights.len() as u64;
        measure_exact(name, &tensor, &mut lossless)?;
        tensors.push(measure(name, &matrix, options, &mut totals)?);
        done_bytes += bytes_of(name);
        progress(Progress { stage: "measure", tensor_path: name, done_bytes, total_bytes });
    }
    let choices = std::iter::once("int8".to_owned())
        .chain(CURVE_EXPONENTS.iter().map(|exponent| format!("step {:.4} rms", exponent.exp2())));
    let grids = choices.zip(&totals).map(|(choice, total)| total.grid_point(choice));
    let curve = std::iter::once(lossless.lossless_point()).chain(grids).collect();
    Ok(StatsReport { weights, original_bytes: total_bytes, tensors, curve })
}

/// Adds a sample of the tensor bit for bit, or the whole of it as it is where it is stored so.
fn measure_exact(name: &str, tensor: &Tensor, total: &mut Total) -> Result<()> {
    let weights = tensor.numel() as f64;
    let Ok(matrix) = ExactMatrix::of(name, tensor)? else {
        total.add_plain(weights, 32.0);
        return Ok(());
    };
    let options = EncodeOptions { row_access: name == EMBEDDING, ..EncodeOptions::default() };
    let stats = *CompressedTensor::encode_exact(name, &matrix.sample(SAMPLE_WEIGHTS), options)?.stats();
    if stats.compressed_bytes < stats.original_bytes {
        total.add(&stats, weights / stats.weights as f64);
    } else {
        total.add_plain(weights, 8.0 * matrix.dtype.bytes() as f64);
    }
    Ok(())
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
        let entropy = stats.grid_entropy_bits.or(stats.exponent_entropy_and_raw_bits);
        self.entropy += entropy.unwrap_or_default() * weights;
        self.distortion.signal += stats.distortion.signal * factor;
        self.distortion.noise += stats.distortion.noise * factor;
    }

    /// Weights of a tensor that is stored as it is.
    fn add_plain(&mut self, weights: f64, bits: f64) {
        self.weights += weights;
        self.bits += bits * weights;
        self.entropy += bits * weights;
    }

    fn mean_entropy(&self) -> Option<f64> {
        (self.weights > 0.0).then(|| self.entropy / self.weights)
    }

    fn grid_point(&self, choice: String) -> CurvePoint {
        CurvePoint {
            choice,
            bits_per_weight: self.bits / self.weights.max(1.0),
            grid_entropy_bits: self.mean_entropy(),
            exponent_entropy_and_raw_bits: None,
            snr_db: self.distortion.snr_db(),
        }
    }

    fn lossless_point(&self) -> CurvePoint {
        CurvePoint {
            grid_entropy_bits: None,
            exponent_entropy_and_raw_bits: self.mean_entropy(),
            ..self.grid_point("lossless".to_owned())
        }
    }
}
