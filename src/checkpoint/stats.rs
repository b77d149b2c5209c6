//! What each choice would make of a model, before anything is written.

mod chart;
mod curve;
mod measure;
mod tally;

use std::path::Path;

use serde::Serialize;

use self::curve::{at_budget, Missed, Position};
use self::measure::{measure, Measured, CURVE_EXPONENTS};
use self::tally::Tally;
use super::compress::{CompressOptions, Progress, Target};
use super::selection::select;
use super::Reader;
use crate::codec::Matrix;
use crate::error::Result;

pub use self::curve::bits_at_snr;

/// The named choices of `compress`, from the most bits to the fewest. Whoever adds one adds it here, and nowhere else.
pub(crate) const PRESETS: [(&str, Target); 5] = [
    ("lossless", Target::Lossless),
    ("near", Target::NEAR),
    ("int8", Target::Int8),
    ("balanced", Target::BALANCED),
    ("small", Target::SMALL),
];

/// A model before compression.
///
/// Made by [`stats`](stats()); see its example.
#[derive(Clone, Debug, Serialize)]
pub struct StatsReport {
    /// Weights of the matrices that would be compressed.
    pub weights: u64,
    /// Their bytes.
    pub original_bytes: u64,
    /// The matrices.
    pub tensors: Vec<StatsTensor>,
    /// What each preset, and a size that was asked for, gives over all of them, from samples.
    pub choices: Vec<CurvePoint>,
    /// Choices that cannot be met.
    pub unmet: Vec<UnmetChoice>,
    /// What steps from fine to coarse give over all of them, the same in every matrix relative to its root mean square.
    pub curve: Vec<CurvePoint>,
}

/// One matrix, from a sample.
///
/// Made by [`stats`](stats()); see its example.
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
    /// What each choice makes of it.
    pub choices: Vec<CurvePoint>,
    /// What steps from fine to coarse make of it.
    pub curve: Vec<CurvePoint>,
}

/// Bits and what they buy.
///
/// As [`bits_at_snr`] takes them; see its example.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CurvePoint {
    /// A preset, `bits B`, or the step relative to a matrix's root mean square.
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

/// A choice that this model cannot have.
///
/// Made by [`stats`](stats()); see its example.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UnmetChoice {
    /// Its name.
    pub choice: String,
    /// Why.
    pub reason: String,
}

/// Tries every preset, a range of steps, and the size that `options` ask for, if they do, on a sample of every matrix of `dir` that
/// `options` would compress.
///
/// ```
/// use codecllm::checkpoint::{stats, CompressOptions};
/// # use codecllm::checkpoint::Writer;
/// # use tch::{Device, Kind, Tensor};
/// # let folder = tempfile::tempdir().unwrap();
/// # let model = folder.path().join("model");
/// # let weights = Vec::<f32>::try_from(Tensor::randn([256 * 512], (Kind::Float, Device::Cpu))).unwrap();
/// # let bytes: Vec<u8> = weights.into_iter().flat_map(f32::to_le_bytes).collect();
/// # let mut writer = Writer::create(&model)?;
/// # writer.add("fc.weight", safetensors::Dtype::F32, &[256, 512], &bytes)?;
/// # writer.finish()?;
/// let report = stats(&model, &CompressOptions::default(), &mut |_| {})?;
/// for choice in &report.choices {
///     println!("{}: {:.2} bits, {:.1} dB", choice.choice, choice.bits_per_weight, choice.snr_db);
/// }
/// for unmet in &report.unmet {
///     println!("{}: {}", unmet.choice, unmet.reason);
/// }
/// let matrix = &report.tensors[0]; // a bell of width 1
/// assert!(matrix.tensor_path == "fc.weight" && (matrix.rms - 1.0).abs() < 0.02);
/// assert!(report.chart()?.starts_with("<svg"));
/// # Ok::<(), codecllm::Error>(())
/// ```
///
/// # Errors
/// What [`Reader`] reports; `InvalidArgument` for a pattern that matches nothing, a budget outside 2.5 to 8.5 bits, or a weight that is not
/// finite.
pub fn stats(
    dir: impl AsRef<Path>,
    options: &CompressOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<StatsReport> {
    let choices = choices(options.target)?;
    let reader = Reader::open(dir)?;
    let selected = select(&reader, &options.include, &options.exclude)?;
    let (names, others): (Vec<&str>, Vec<&str>) = reader.names().partition(|name| selected.contains(*name));
    let total_bytes = bytes_of(&reader, &names);
    let (mut measured, mut done_bytes) = (Vec::new(), 0);
    for name in names {
        let tensor = reader.read(name)?;
        measured.push(measure(name, &tensor, &Matrix::of(name, &tensor)?, options.layout, &choices)?);
        done_bytes += bytes_of(&reader, &[name]);
        progress(Progress { stage: "measure", tensor_path: name, done_bytes, total_bytes });
    }
    let rest = Rest { weights: weights_of(&reader, &others), bytes: bytes_of(&reader, &others) };
    Ok(report(measured, total_bytes, &choices, rest))
}

/// The presets, and the size that is asked for.
fn choices(target: Target) -> Result<Vec<(String, Target)>> {
    let presets = PRESETS.iter().map(|(name, target)| ((*name).to_owned(), *target));
    target.check()?;
    let asked = match target {
        Target::Bits(_) => Some((target.to_string(), target)),
        Target::Int8 | Target::Lossless => None,
    };
    Ok(presets.chain(asked).collect())
}

/// What is not compressed, and counts where a whole model is to meet a size.
#[derive(Clone, Copy)]
struct Rest {
    weights: u64,
    bytes: u64,
}

fn bytes_of(reader: &Reader, names: &[&str]) -> u64 {
    names.iter().filter_map(|name| reader.info(name)).map(|info| info.bytes as u64).sum()
}

fn weights_of(reader: &Reader, names: &[&str]) -> u64 {
    let infos = names.iter().filter_map(|name| reader.info(name));
    infos.map(|info| info.shape.iter().product::<usize>() as u64).sum()
}

fn report(
    mut measured: Vec<Measured>,
    original_bytes: u64,
    choices: &[(String, Target)],
    rest: Rest,
) -> StatsReport {
    let curve: Vec<Tally> = (0..CURVE_EXPONENTS.len())
        .map(|at| Tally::sum(measured.iter().map(|tensor| tensor.curve[at])))
        .collect();
    let (mut met, mut unmet) = (Vec::new(), Vec::new());
    for (index, (choice, target)) in choices.iter().enumerate() {
        let of_tensors: std::result::Result<Vec<Tally>, Missed> = match target {
            Target::Bits(bits) => position(&curve, *bits, rest)
                .map(|position| measured.iter().map(|tensor| position.on(&tensor.curve)).collect()),
            _ => Ok(measured.iter().map(|tensor| tensor.fixed[index]).collect()),
        };
        match of_tensors {
            Ok(tallies) => {
                met.push(Tally::sum(tallies.iter().copied()).point(choice));
                measured
                    .iter_mut()
                    .zip(tallies)
                    .for_each(|(tensor, tally)| tensor.stats.choices.push(tally.point(choice)));
            }
            Err(missed) => unmet.push(UnmetChoice { choice: choice.clone(), reason: missed.to_string() }),
        }
    }
    let steps = CURVE_EXPONENTS.iter().zip(&curve);
    StatsReport {
        weights: measured.iter().map(|tensor| tensor.weights).sum(),
        original_bytes,
        choices: met,
        unmet,
        curve: steps.map(|(exponent, tally)| tally.point(&measure::step_name(*exponent))).collect(),
        tensors: measured.into_iter().map(|tensor| tensor.stats).collect(),
    }
}

/// Where on the curve the whole model has `bits` a weight.
fn position(curve: &[Tally], bits: f64, rest: Rest) -> std::result::Result<Position, Missed> {
    let coded = curve.first().map_or(0.0, |tally| tally.weights);
    let whole_bits = bits * (coded + rest.weights as f64);
    at_budget(curve, (whole_bits - 8.0 * rest.bytes as f64) / coded.max(1.0))
}
