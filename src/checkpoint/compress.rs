//! A model directory to a compressed one, tensor by tensor.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde::Serialize;
use tch::Tensor;

use super::budget_search::BudgetSearch;
use super::calibrated::{importance_of, CalibrationGain};
use super::container::{checksum, is_buffer, CHOICE_KEY, HEADER_KEY, NO_CHECKSUM, TENSOR_KEY, VERSION_KEY};
use super::files::{copy_other_files, FILE_KEY};
use super::selection::{select, EMBEDDING};
use super::{Reader, Writer};
use crate::codec::{
    Budget, CompressedTensor, EncodeOptions, ExactMatrix, GridRule, Importance, Layout, Matrix, RateSample,
    StepRule, TensorStats, Unsettled, BUDGET_RANGE, FORMAT_VERSION,
};
use crate::error::{Error, Result};
use crate::nn::Bias;
use crate::quantize::{Distortion, Quantized};

/// How far the size may be from a budget before the steps are corrected and everything is encoded again, bits a weight.
const BUDGET_TOLERANCE: f64 = 0.015;
/// How far it may be after the last correction, in a model of at least [`SMALL_MODEL`] weights.
const BUDGET_LIMIT: f64 = 0.02;
/// The same in a smaller model, which has no steps fine enough for every size.
const SMALL_MODEL_LIMIT: f64 = 0.05;
/// Weights.
const SMALL_MODEL: u64 = 1_000_000;
/// Times that everything is encoded.
pub(super) const BUDGET_ATTEMPTS: usize = 6;

/// What size or quality to aim for.
///
/// ```
/// use codecllm::checkpoint::Target;
/// assert_eq!("near".parse::<Target>()?, Target::NEAR);
/// assert_eq!("bits 5.3".parse::<Target>()?, Target::Bits(5.3));
/// assert_eq!(Target::Lossless.to_string(), "lossless");
/// let sizes = [Target::NEAR, Target::BALANCED, Target::SMALL].map(|target| match target {
///     Target::Bits(bits) => bits,
///     Target::Int8 | Target::Lossless => unreachable!("they have a name for a size"),
/// });
/// assert!(sizes[0] < 7.4 && sizes[1] < 6.2 && sizes[2] < 5.2);
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// One step per output row, its largest magnitude over 127.
    Int8,
    /// Every weight bit for bit: BF16, FP16, and FP32 where all of a tensor is exactly BF16 or FP16. Has layouts of its own.
    Lossless,
    /// This many bits a weight for the whole model, 2.5 to 8.5, everything counted.
    Bits(f64),
}

/// The named sizes stay below 7.4, 6.2 and 5.2 bits by what a budget may be missed by.
impl Target {
    /// No measurable loss: 7.38 bits.
    pub const NEAR: Self = Self::Bits(7.38);
    /// A loss that a benchmark shows and a reader does not: 6.18 bits.
    pub const BALANCED: Self = Self::Bits(6.18);
    /// A third of the size of 16 bits, for a calibrated model: 5.18 bits.
    pub const SMALL: Self = Self::Bits(5.18);

    /// Refuses a size that no steps give.
    pub(super) fn check(self) -> Result<()> {
        match self {
            Self::Bits(bits) if !BUDGET_RANGE.contains(&bits) => {
                Err(Error::invalid("--bits", format!("{bits}, wanted 2.5 to 8.5 bits a weight")))
            }
            _ => Ok(()),
        }
    }

    /// How far a model of so many weights may be from a size before it is encoded again, and after the last time.
    pub(super) fn budget_tolerance(weights: u64) -> [f64; 2] {
        match weights < SMALL_MODEL {
            true => [SMALL_MODEL_LIMIT; 2],
            false => [BUDGET_TOLERANCE, BUDGET_LIMIT],
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Int8 => write!(f, "int8"),
            Self::Lossless => write!(f, "lossless"),
            Self::Bits(bits) => write!(f, "bits {bits}"),
        }
    }
}

/// A name that the command line has for a target, or `bits B`.
impl std::str::FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let unknown = || {
            Error::invalid(
                "target",
                format!("{text:?}, wanted int8, lossless, near, balanced, small or bits B"),
            )
        };
        match text {
            "int8" => Ok(Self::Int8),
            "lossless" => Ok(Self::Lossless),
            "near" => Ok(Self::NEAR),
            "balanced" => Ok(Self::BALANCED),
            "small" => Ok(Self::SMALL),
            _ => {
                let bits = text.strip_prefix("bits ").ok_or_else(unknown)?;
                let target = Self::Bits(bits.trim().parse().map_err(|_| unknown())?);
                target.check().map(|()| target)
            }
        }
    }
}

/// How to compress a model.
///
/// Given to [`compress`]; see its example.
#[derive(Clone, Debug, PartialEq)]
pub struct CompressOptions {
    /// Size or quality to aim for.
    pub target: Target,
    /// Layout of the compressed weights: [`Layout::Fast`] or [`Layout::Small`]; `None` for `fast`, but `small` for a matrix where
    /// `fast` would take more than 0.40 bits a weight over the entropy of its grid. [`Target::Lossless`] does not ask.
    pub layout: Option<Layout>,
    /// Globs over tensor paths: compress only what one of them matches. Empty: every matrix.
    pub include: Vec<String>,
    /// Globs over tensor paths: leave these as they are.
    pub exclude: Vec<String>,
}

impl Default for CompressOptions {
    fn default() -> Self {
        Self { target: Target::Int8, layout: None, include: Vec::new(), exclude: Vec::new() }
    }
}

/// How far a long job is.
///
/// Told by [`compress`] on the way, and by others; see its example.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// `measure`, `compress`, `verify`, `decompress` or `import`.
    pub stage: &'a str,
    /// The tensor that was just finished.
    pub tensor_path: &'a str,
    /// Bytes of the source that are done in this stage.
    pub done_bytes: u64,
    /// Bytes of the source in this stage.
    pub total_bytes: u64,
}

/// One compressed tensor.
///
/// One for each matrix in what [`compress`] gives; see its example.
#[derive(Clone, Debug, Serialize)]
pub struct TensorReport {
    /// Full name.
    pub tensor_path: String,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// `fast`, `small`, `exact_bf16` or `exact_fp16`.
    pub layout: &'static str,
    /// Why it is not `fast`, where no layout was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layout_reason: Option<String>,
    /// What compression made of it.
    #[serde(flatten)]
    pub stats: TensorStats,
    /// What the errors add to the divergence of the next token, nats, expected from the calibration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_divergence: Option<f64>,
}

/// A tensor that was to be compressed and is stored as it is all the same.
///
/// In what [`compress`] gives, of a lossless target; see its example.
#[derive(Clone, Debug, Serialize)]
pub struct UncodedReport {
    /// Full name.
    pub tensor_path: String,
    /// Why.
    pub reason: String,
}

/// A compressed model.
///
/// Made by [`compress`]; see its example.
#[derive(Clone, Debug, Serialize)]
pub struct CompressReport {
    /// Parameters of the model, also those stored as they are.
    pub weights: u64,
    /// Bytes of the source's tensors.
    pub original_bytes: u64,
    /// Bytes of the safetensors files written, everything counted.
    pub compressed_bytes: u64,
    /// `8 * compressed_bytes / weights`.
    pub bits_per_weight: f64,
    /// `original_bytes / compressed_bytes`.
    pub ratio: f64,
    /// Order-0 entropy of the grids, bits a compressed weight; none where there is no grid.
    pub grid_entropy_bits: Option<f64>,
    /// Order-0 entropy of the exponents, and sign and mantissa as they are, bits a compressed weight, of a lossless target.
    pub exponent_entropy_and_raw_bits: Option<f64>,
    /// Signal-to-noise ratio over all compressed tensors, dB.
    pub snr_db: f64,
    /// Largest absolute error.
    pub max_error: f64,
    /// The compressed tensors.
    pub tensors: Vec<TensorReport>,
    /// Tensors stored as they are.
    pub kept: Vec<String>,
    /// Those of them that were to be compressed.
    pub uncoded: Vec<UncodedReport>,
    /// Of a calibrated compression.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration: Option<CalibrationGain>,
}

/// Compresses the model directory `dir` into the new directory `out`.
///
/// `out` appears when it is complete. Peak memory is a small multiple of the largest tensor.
///
/// ```
/// use codecllm::checkpoint::{compress, inspect, is_compressed, verify, CompressOptions, Progress, Target, Writer};
/// use tch::{Device, Kind, Tensor};
/// # let folder = tempfile::tempdir().unwrap();
/// # let [model, out, exact] = ["model", "out", "exact"].map(|name| folder.path().join(name));
/// // A model of one matrix.
/// let weights = Vec::<f32>::try_from(Tensor::randn([256 * 512], (Kind::Float, Device::Cpu))).unwrap();
/// let bytes: Vec<u8> = weights.into_iter().flat_map(f32::to_le_bytes).collect();
/// let mut writer = Writer::create(&model)?;
/// writer.add("fc.weight", safetensors::Dtype::F32, &[256, 512], &bytes)?;
/// writer.add("fc.bias", safetensors::Dtype::F32, &[256], &bytes[..4 * 256])?;
/// writer.finish()?;
///
/// let options = CompressOptions { target: Target::Int8, ..CompressOptions::default() };
/// let report = compress(&model, &out, &options, &mut |at: Progress| assert!(at.done_bytes <= at.total_bytes))?;
/// assert!(report.ratio > 4.0 && report.snr_db > 35.0);
/// assert_eq!((&*report.tensors[0].tensor_path, report.tensors[0].layout), ("fc.weight", "fast"));
/// assert!(is_compressed(&out)? && !is_compressed(&model)?);
/// // Nothing is damaged, and nothing else than the original was compressed.
/// let verified = verify(&out, Some(&model), &mut |_| {})?;
/// assert!(verified.ok && verified.tensors_checked == 2 && verified.snr_db.unwrap() > 35.0);
/// let inspected = inspect(&out)?;
/// assert_eq!((inspected.tensors[0].layout, inspected.tensors[1].layout), (Some("fast"), None));
///
/// // These numbers have more bits than a half: without loss they stay what they are, and the report says why.
/// let options = CompressOptions { target: Target::Lossless, ..options };
/// let report = compress(&model, &exact, &options, &mut |_| {})?;
/// assert!(report.tensors.is_empty() && report.uncoded[0].reason.contains("BF16"), "{}", report.uncoded[0].reason);
/// # Ok::<(), codecllm::Error>(())
/// ```
///
/// # Errors
/// What [`Reader`] and [`Writer`] report; `InvalidArgument` for a source that is compressed already, a pattern that
/// matches nothing, a budget outside 2.5 to 8.5 bits, or, unless the target is lossless, a weight that is not finite (by tensor
/// path and element); `Corrupt` where somebody wrote to `dir` meanwhile.
pub fn compress(
    dir: impl AsRef<Path>,
    out: impl AsRef<Path>,
    options: &CompressOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<CompressReport> {
    let reader = Reader::open(dir)?;
    compress_from(&reader, out.as_ref(), options, None, progress)
}

pub(super) fn compress_from(
    reader: &Reader,
    out: &Path,
    options: &CompressOptions,
    importance: Option<&HashMap<String, Importance>>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<CompressReport> {
    options.target.check()?;
    refuse_compressed(reader)?;
    let selected = select(reader, &options.include, &options.exclude)?;
    let job = Job { reader, selected: &selected, options, importance };
    let Target::Bits(bits) = options.target else {
        let coding = match options.target {
            Target::Lossless => Coding::Exact,
            _ => Coding::Grid(GridRule::Own(StepRule::RowAbsmax)),
        };
        let written = job.write(out, |_| Ok(coding), progress, |_| true)?;
        return written.ok_or_else(|| Error::invalid("--preset", "was not written"));
    };
    // Fail before the long work, not after.
    drop(Writer::create(out)?);
    let mut samples = job.samples(progress)?;
    let mut exponent = job.solve(&mut samples, bits)?;
    let [tolerance, limit] = Target::budget_tolerance(job.weights());
    let mut search = BudgetSearch::new(bits);
    let mut got = bits;
    for attempt in 1..=BUDGET_ATTEMPTS {
        let accept = |reached: f64| {
            got = reached;
            (reached - bits).abs() <= if attempt < BUDGET_ATTEMPTS { tolerance } else { limit }
        };
        if let Some(report) = job.write(out, |path| measured(&samples, path, exponent), progress, accept)? {
            return Ok(report);
        }
        exponent = search.next(exponent, got);
    }
    Err(missed_budget(bits, got, limit))
}

/// The matrix in the layout that was asked for or measured, or that suits it, and why it is another than `fast`.
pub(super) fn encode_grid(
    path: &str,
    rule: GridRule<'_>,
    matrix: &Matrix,
    quantized: &Quantized,
    options: EncodeOptions,
    asked: Option<Layout>,
) -> Result<(CompressedTensor, Option<String>)> {
    let (options, reason) = match rule {
        GridRule::Own(_) if asked.is_none() => {
            let unsettled = Unsettled { tensor_path: path, matrix, quantized, whole: matrix.shape, options };
            let settled = unsettled.settle()?;
            return Ok((settled.compressed, settled.reason));
        }
        GridRule::Own(_) => (options, None),
        GridRule::Measured(sample, _) => {
            (EncodeOptions { layout: sample.layout(), ..options }, sample.layout_reason())
        }
    };
    let compressed = CompressedTensor::encode(path, matrix, quantized, options)?;
    Ok((compressed, reason.map(str::to_owned)))
}

/// The matrix bit for bit, or why it is better left as it is.
pub(super) fn encode_exact(
    path: &str,
    weight: &Tensor,
    options: EncodeOptions,
) -> Result<std::result::Result<CompressedTensor, String>> {
    match ExactMatrix::of(path, weight)? {
        Ok(matrix) => CompressedTensor::encode_exact(path, &matrix, options).map(if_smaller),
        Err(inexact) => Ok(Err(inexact.to_string())),
    }
}

/// The tensor, or why it is better left as it is.
pub(super) fn if_smaller(compressed: CompressedTensor) -> std::result::Result<CompressedTensor, String> {
    let TensorStats { compressed_bytes, original_bytes, .. } = *compressed.stats();
    if compressed_bytes < original_bytes {
        return Ok(compressed);
    }
    Err(format!("coded it has {compressed_bytes} bytes, as it is {original_bytes}"))
}

pub(super) fn missed_budget(bits: f64, got: f64, limit: f64) -> Error {
    Error::invalid(
        "--bits",
        format!(
            "{bits} bits a weight were not met within {limit}, {got:.3} were (what is not compressed weighs too much, or \
             some weights are too large for a grid of 16 bits as fine as the others need)"
        ),
    )
}

fn measured<'a>(samples: &'a [RateSample], path: &str, exponent: f64) -> Result<Coding<'a>> {
    samples
        .iter()
        .find(|sample| sample.tensor_path() == path)
        .map(|sample| Coding::Grid(GridRule::Measured(sample, exponent)))
        .ok_or_else(|| Error::invalid(path, "was not measured"))
}

fn refuse_compressed(reader: &Reader) -> Result<()> {
    match reader.names().find(|name| is_buffer(name)) {
        None => Ok(()),
        Some(name) => Err(Error::invalid(
            name,
            format!("{} is compressed already; decompress it first", reader.dir().display()),
        )),
    }
}

/// How one tensor is coded.
#[derive(Clone, Copy)]
enum Coding<'a> {
    /// On a grid by this rule.
    Grid(GridRule<'a>),
    /// Bit for bit.
    Exact,
}

/// One compression: what from, and how.
pub(super) struct Job<'a> {
    pub(super) reader: &'a Reader,
    pub(super) selected: &'a HashSet<String>,
    pub(super) options: &'a CompressOptions,
    /// By tensor path, if the model was calibrated.
    pub(super) importance: Option<&'a HashMap<String, Importance>>,
}

impl Job<'_> {
    fn encode_options(&self, path: &str) -> EncodeOptions {
        EncodeOptions {
            layout: self.options.layout.unwrap_or(Layout::Fast),
            row_access: path == EMBEDDING,
            allow_left: true,
            tile: None,
        }
    }

    pub(super) fn matrix(&self, path: &str) -> Result<Matrix> {
        Matrix::of(path, &self.reader.read(path)?)
    }

    fn bytes_of(&self, path: &str) -> u64 {
        self.reader.info(path).map_or(0, |info| info.bytes as u64)
    }

    fn selected_in_order(&self) -> impl Iterator<Item = &str> {
        self.reader.names().filter(|name| self.selected.contains(*name))
    }

    /// Samples of all selected matrices.
    pub(super) fn samples(&self, progress: &mut dyn FnMut(Progress<'_>)) -> Result<Vec<RateSample>> {
        let total_bytes = self.selected_in_order().map(|path| self.bytes_of(path)).sum();
        let mut done_bytes = 0;
        let mut samples = Vec::new();
        for path in self.selected_in_order() {
            let (matrix, options) = (self.matrix(path)?, self.encode_options(path));
            samples.push(match self.importance {
                None => RateSample::new(path, &matrix, options)?,
                Some(all) => RateSample::calibrated(path, &matrix, options, importance_of(all, path)?)?,
            });
            done_bytes += self.bytes_of(path);
            progress(Progress { stage: "measure", tensor_path: path, done_bytes, total_bytes });
        }
        Ok(samples)
    }

    /// The common exponent at which the model takes `bits` a weight. Settles the layouts of `samples` on the way, where none was asked for.
    pub(super) fn solve(&self, samples: &mut [RateSample], bits: f64) -> Result<f64> {
        let budget = Budget { other_bytes: self.other_bytes(), weights: self.weights() as usize, bits };
        budget.solve_in(samples, self.options.layout)
    }

    /// Bytes of the output that no step changes: tensors stored as they are and, roughly, the file's header.
    pub(super) fn other_bytes(&self) -> usize {
        self.reader
            .names()
            .map(|name| match self.selected.contains(name) {
                // Five entries of about 60 bytes and the name.
                true => 5 * (name.len() + 60),
                false => self.bytes_of(name) as usize + 2 * name.len() + 110,
            })
            .sum()
    }

    /// Writes the output, or nothing (`None`) if `accept` refuses the bits a weight that were reached.
    fn write<'r>(
        &self,
        out: &Path,
        coding: impl Fn(&str) -> Result<Coding<'r>>,
        progress: &mut dyn FnMut(Progress<'_>),
        accept: impl FnOnce(f64) -> bool,
    ) -> Result<Option<CompressReport>> {
        let mut writer = Writer::create(out)?;
        writer.metadata("format", "pt");
        writer.metadata(VERSION_KEY, FORMAT_VERSION.to_string());
        writer.metadata(CHOICE_KEY, self.options.target.to_string());
        writer.metadata(HEADER_KEY, NO_CHECKSUM);
        for (name, sum) in copy_other_files(self.reader.dir(), &mut writer)? {
            writer.metadata(format!("{FILE_KEY}{name}"), sum.to_string());
        }
        let total_bytes = self.reader.names().map(|name| self.bytes_of(name)).sum();
        let mut done_bytes = 0;
        let mut done = Done::default();
        // Biases come after the weights: how one is stored depends on whether its weight was coded.
        let (weights, others): (Vec<&str>, Vec<&str>) =
            self.reader.names().partition(|name| self.selected.contains(*name));
        for path in weights.into_iter().chain(others) {
            if self.selected.contains(path) {
                self.compress_tensor(path, coding(path)?, &mut writer, &mut done)?;
            } else {
                self.keep_tensor(path, &mut writer, &mut done)?;
            }
            done_bytes += self.bytes_of(path);
            progress(Progress { stage: "compress", tensor_path: path, done_bytes, total_bytes });
        }
        let weights = self.weights();
        let coded: u64 = done.tensors.iter().map(|tensor| tensor.stats.compressed_bytes as u64).sum();
        let reached = 8.0 * (coded as f64 + self.other_bytes() as f64) / weights.max(1) as f64;
        if !accept(reached) {
            return Ok(None);
        }
        self.reader.check_unchanged()?;
        let compressed_bytes = writer.finish()?;
        Ok(Some(summarize(weights, total_bytes, compressed_bytes, done)))
    }

    pub(super) fn weights(&self) -> u64 {
        let count = |name| self.reader.info(name).map_or(0, |info| info.shape.iter().product::<usize>());
        self.reader.names().map(|name| count(name) as u64).sum()
    }

    /// Writes a selected tensor coded, or as it is where that is exact only so, or not larger.
    fn compress_tensor(
        &self,
        path: &str,
        coding: Coding<'_>,
        writer: &mut Writer,
        done: &mut Done,
    ) -> Result<()> {
        let (mut expected_divergence, mut layout_reason) = (None, None);
        let compressed = match coding {
            Coding::Grid(rule) => {
                let matrix = self.matrix(path)?;
                let quantized = rule.quantize(&matrix, path)?;
                if let Some(all) = self.importance {
                    expected_divergence =
                        Some(importance_of(all, path)?.divergence(&matrix, &quantized, path)?);
                }
                let (options, asked) = (self.encode_options(path), self.options.layout);
                let (compressed, reason) = encode_grid(path, rule, &matrix, &quantized, options, asked)?;
                layout_reason = reason;
                compressed
            }
            Coding::Exact => match self.compress_exact(path)? {
                Ok(compressed) => compressed,
                Err(reason) => {
                    done.uncoded.push(UncodedReport { tensor_path: path.to_owned(), reason });
                    return self.keep_tensor(path, writer, done);
                }
            },
        };
        for (name, bytes) in compressed.buffers().iter() {
            writer.add(&format!("{path}.{name}"), safetensors::Dtype::U8, &[bytes.len()], bytes)?;
        }
        let header = compressed.buffers().view(path)?.header;
        done.tensors.push(TensorReport {
            tensor_path: path.to_owned(),
            shape: [header.grid.rows(), header.grid.cols()],
            layout: header.layout.name(),
            layout_reason,
            stats: *compressed.stats(),
            expected_divergence,
        });
        Ok(())
    }

    /// The tensor bit for bit, or why it is better left as it is.
    fn compress_exact(&self, path: &str) -> Result<std::result::Result<CompressedTensor, String>> {
        encode_exact(path, &self.reader.read(path)?, self.encode_options(path))
    }

    /// Copies a tensor as it is; the bias of a compressed linear becomes its byte buffer.
    fn keep_tensor(&self, path: &str, writer: &mut Writer, done: &mut Done) -> Result<()> {
        let Some(info) = self.reader.info(path) else {
            return Err(Error::invalid(path, "no such tensor"));
        };
        done.kept.push(path.to_owned());
        let of_compressed = info.shape.len() == 1
            && path
                .strip_suffix(".bias")
                .is_some_and(|layer| done.tensors.iter().any(|t| t.tensor_path == format!("{layer}.weight")));
        if of_compressed {
            let bytes = Bias::byte_vec(&self.reader.read(path)?).map_err(|error| error.about(path))?;
            return writer.add(path, safetensors::Dtype::U8, &[bytes.len()], &bytes);
        }
        let bytes = self.reader.read_bytes(path)?;
        writer.metadata(format!("{TENSOR_KEY}{path}"), checksum(&bytes));
        writer.add(path, info.dtype, &info.shape, &bytes)
    }
}

/// What was written so far.
#[derive(Default)]
struct Done {
    tensors: Vec<TensorReport>,
    kept: Vec<String>,
    uncoded: Vec<UncodedReport>,
}

impl Done {
    /// The mean of `bits` over the weights of the coded tensors, if all have it.
    fn mean_bits(&self, bits: impl Fn(&TensorStats) -> Option<f64>) -> Option<f64> {
        let all = || self.tensors.iter().map(|tensor| &tensor.stats);
        let coded: f64 = all().map(|stats| stats.weights as f64).sum();
        let sum: f64 = all().map(|stats| Some(bits(stats)? * stats.weights as f64)).sum::<Option<f64>>()?;
        (coded > 0.0).then(|| sum / coded)
    }
}

fn summarize(weights: u64, original_bytes: u64, compressed_bytes: u64, done: Done) -> CompressReport {
    let distortion = done
        .tensors
        .iter()
        .map(|tensor| tensor.stats.distortion)
        .fold(Distortion::default(), Distortion::with);
    CompressReport {
        weights,
        original_bytes,
        compressed_bytes,
        bits_per_weight: 8.0 * compressed_bytes as f64 / weights.max(1) as f64,
        ratio: original_bytes as f64 / compressed_bytes.max(1) as f64,
        grid_entropy_bits: done.mean_bits(|stats| stats.grid_entropy_bits),
        exponent_entropy_and_raw_bits: done.mean_bits(|stats| stats.exponent_entropy_and_raw_bits),
        snr_db: distortion.snr_db(),
        max_error: distortion.max_error,
        tensors: done.tensors,
        kept: done.kept,
        uncoded: done.uncoded,
        calibration: None,
    }
}
