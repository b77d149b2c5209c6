//! Compression that follows what errors cost, and what that gains.

use std::collections::HashMap;
use std::path::Path;

use serde::Serialize;

use super::compress::{compress_from, CompressOptions, CompressReport, Job, Progress, Target};
use super::selection::select;
use super::Reader;
use crate::codec::Importance;
use crate::error::{Error, Result};

/// What calibration gained.
///
/// In what [`compress_calibrated`] gives; see its example.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CalibrationGain {
    /// Divergence of the next token over the calibration text, nats, expected to second order.
    pub expected_divergence: f64,
    /// The same without calibration at the same size.
    pub data_free_divergence: f64,
    /// `1 - expected_divergence / data_free_divergence`.
    pub gain: f64,
}

/// As [`compress`](super::compress()), with steps and rounding that follow what errors cost: `importance` by
/// tensor path, from [`calibrate`](crate::calibration::calibrate).
///
/// ```no_run
/// // Needs a model.
/// use codecllm::calibration::{calibrate, Options};
/// use codecllm::checkpoint::{compress_calibrated, CompressOptions, Target};
/// let calibration = calibrate("model", &Options::new("text.txt"), &mut |_, _| {})?;
/// let options = CompressOptions { target: Target::SMALL, ..CompressOptions::default() };
/// let report = compress_calibrated("model", "out", &options, &calibration.importance, &mut |_| {})?;
/// let gained = report.calibration.unwrap();
/// println!("{:.4} instead of {:.4} nats", gained.expected_divergence, gained.data_free_divergence);
/// # Ok::<(), codecllm::Error>(())
/// ```
///
/// # Errors
/// As [`compress`](super::compress()); `InvalidArgument` for a target that is not a size, or a matrix without importance.
pub fn compress_calibrated(
    dir: impl AsRef<Path>,
    out: impl AsRef<Path>,
    options: &CompressOptions,
    importance: &HashMap<String, Importance>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<CompressReport> {
    let Target::Bits(bits) = options.target else {
        let message =
            format!("calibration chooses steps, {} has its own; ask for a size instead", options.target);
        return Err(Error::invalid("--calibrate", message));
    };
    let reader = Reader::open(dir)?;
    let mut report = compress_from(&reader, out.as_ref(), options, Some(importance), progress)?;
    let selected = select(&reader, &options.include, &options.exclude)?;
    let job = Job { reader: &reader, selected: &selected, options, importance: None };
    let expected: f64 = report.tensors.iter().filter_map(|tensor| tensor.expected_divergence).sum();
    let data_free = job.data_free_divergence(bits, importance, progress)?;
    report.calibration = Some(CalibrationGain {
        expected_divergence: expected,
        data_free_divergence: data_free,
        gain: 1.0 - expected / data_free.max(f64::MIN_POSITIVE),
    });
    Ok(report)
}

/// The importance of one matrix.
pub(super) fn importance_of<'a>(all: &'a HashMap<String, Importance>, path: &str) -> Result<&'a Importance> {
    all.get(path).ok_or_else(|| {
        Error::invalid(path, "is no layer that the calibration text passed through (exclude this tensor)")
    })
}

impl Job<'_> {
    /// The divergence expected of `bits` a weight without calibration, as `importance` weighs it.
    fn data_free_divergence(
        &self,
        bits: f64,
        importance: &HashMap<String, Importance>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<f64> {
        let mut samples = self.samples(progress)?;
        let exponent = self.solve(&mut samples, bits)?;
        let mut sum = 0.0;
        for sample in &samples {
            let path = sample.tensor_path();
            let matrix = self.matrix(path)?;
            let quantized = sample.quantize(&matrix, exponent)?;
            sum += importance_of(importance, path)?.divergence(&matrix, &quantized, path)?;
        }
        Ok(sum)
    }
}
