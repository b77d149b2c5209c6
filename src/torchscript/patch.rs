//! Compresses the linears of a module in place.

use serde::Serialize;
use tch::{Device, Tensor};

use super::module::Module;
use super::survey::{Found, Survey};
use crate::checkpoint::{compress_matrices, MatrixToCompress, PathFilter, Target};
use crate::codec::{Layout, TensorStats};
use crate::error::{Error, Result, TorchContext};
use crate::nn::buffer_tensors;

/// What to compress, and how.
///
/// Given to [`patch_linears`]; see its example.
#[derive(Clone, Debug, PartialEq)]
pub struct PatchOptions {
    /// Size or quality to aim for; a size is of the patched matrices, without what stays as it is.
    pub target: Target,
    /// Layout of weights on a grid: [`Layout::Fast`] or [`Layout::Small`]; none for the one that suits each matrix.
    pub layout: Option<Layout>,
    /// Globs over full tensor paths such as `layers.0.attention.wq.weight`: patch only what one of them matches. Empty: all.
    pub include: Vec<String>,
    /// Globs over tensor paths: leave these as they are.
    pub exclude: Vec<String>,
    /// Leave matrices with fewer weights as they are.
    pub min_weights: usize,
    /// Compress tables whose rows are only looked up, too. A table that is a head's weight as well is compressed with it.
    pub embeddings: bool,
}

impl Default for PatchOptions {
    fn default() -> Self {
        Self {
            target: Target::Int8,
            layout: None,
            include: Vec::new(),
            exclude: Vec::new(),
            min_weights: 0,
            embeddings: false,
        }
    }
}

/// One compressed matrix.
///
/// In what [`patch_linears`] gives; see its example.
#[derive(Clone, Debug, Serialize)]
pub struct PatchedMatrix {
    /// The full names of all attributes that held it.
    pub paths: Vec<String>,
    /// Rows (`out_features`) and columns.
    pub shape: [usize; 2],
    /// What compression made of it.
    #[serde(flatten)]
    pub stats: TensorStats,
}

/// One matrix that stays as it is.
///
/// In what [`patch_linears`] gives; see its example.
#[derive(Clone, Debug, Serialize)]
pub struct SkippedMatrix {
    /// The full names of all attributes that hold it.
    pub paths: Vec<String>,
    /// Why.
    pub reason: String,
}

/// What was patched.
///
/// In what [`patch_linears`] gives; see its example.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PatchReport {
    /// The compressed matrices.
    pub patched: Vec<PatchedMatrix>,
    /// All other matrices of the module.
    pub skipped: Vec<SkippedMatrix>,
    /// Weights of the compressed matrices.
    pub weights: u64,
    /// Bytes of the compressed matrices before.
    pub original_bytes: u64,
    /// Bytes of their buffers.
    pub compressed_bytes: u64,
}

impl PatchReport {
    /// Bits a weight of the compressed matrices, everything counted.
    pub fn bits_per_weight(&self) -> f64 {
        8.0 * self.compressed_bytes as f64 / self.weights.max(1) as f64
    }
}

/// Compresses every linear of `module`: submodules of `torch.nn.Linear`, and in traced and frozen modules whatever multiplies by an
/// attribute or a constant. They are found by what the methods do with their weights, not by name.
///
/// The module's methods, their signatures, its other tensors and the training flag stay as they are. A weight that several
/// submodules share is compressed once. On an error the module is unchanged.
///
/// ```
/// use codecllm::nn::set_operator_fused_rows;
/// use codecllm::torchscript::{compare, patch_linears, InputSet, Module, PatchOptions, TorchscriptParity};
/// use tch::{CModule, Device, Kind, Tensor};
/// // A module that multiplies by two matrices, traced, in a file.
/// let random = |rows, cols| Tensor::randn([rows, cols], (Kind::Float, Device::Cpu));
/// let (wide, narrow, x) = (random(256, 512), random(4, 256), random(2, 512));
/// let mut forward = |inputs: &[Tensor]| {
///     vec![inputs[0].linear(&wide, None::<&Tensor>).relu().linear(&narrow, None::<&Tensor>)]
/// };
/// let folder = tempfile::tempdir().unwrap();
/// let file = folder.path().join("model.pt");
/// let traced = CModule::create_by_tracing("Model", "forward", &[x.shallow_clone()], &mut forward);
/// traced.and_then(|traced| traced.save(&file)).unwrap();
///
/// let (dense, mut module) = (Module::load(&file, Device::Cpu)?, Module::load(&file, Device::Cpu)?);
/// let options = PatchOptions { min_weights: 2048, ..PatchOptions::default() };
/// let report = patch_linears(&mut module, &options)?;
/// assert_eq!((report.patched.len(), report.patched[0].shape), (1, [256, 512]));
/// assert!(report.bits_per_weight() < 8.5);
/// assert_eq!(report.skipped.len(), 1);
/// println!("{:?}: {}", report.skipped[0].paths, report.skipped[0].reason);
///
/// let inputs = [InputSet { name: "random".to_owned(), arguments: vec![x.shallow_clone()] }];
/// let parity: TorchscriptParity = compare(&dense, &module, &inputs)?;
/// assert!(parity.outputs[0].relative_error < 0.05 && !parity.is_exact());
/// set_operator_fused_rows(Some(0)); // of a lossless patch the outputs would be exact with it
/// assert_eq!(module.forward_ts(&[x])?.size(), [2, 4]);
/// # Ok::<(), codecllm::Error>(())
/// ```
///
/// # Errors
/// `InvalidArgument`: the module is patched already; a pattern of `include` or `exclude` that matches no matrix that could be
/// patched; a size that can't be met. What compression reports, by tensor path.
pub fn patch_linears(module: &mut Module, options: &PatchOptions) -> Result<PatchReport> {
    let mut survey = Survey::of(module)?;
    if let Some(at) = survey.patched() {
        return Err(Error::invalid(
            module.origin(),
            format!("is patched already ({at} calls codecllm's operators); patch the dense module instead"),
        ));
    }
    let found = survey.matrices();
    let mut report = PatchReport::default();
    let selected = select(&found, options, &mut report)?;
    let items: Vec<MatrixToCompress<'_>> = selected.iter().map(|&number| item(&found[number])).collect();
    let compressed = compress_matrices(&items, options.target, options.layout)?;
    let mut chosen = Vec::new();
    for (&number, outcome) in selected.iter().zip(compressed) {
        let Found { paths, weight, .. } = &found[number];
        match outcome {
            Err(reason) => report.skip(paths, reason),
            Ok(tensor) => {
                chosen.push((number, on(weight.device(), buffer_tensors(tensor.buffers())?, &paths[0])?));
                report.patch(paths, weight, *tensor.stats());
            }
        }
    }
    if chosen.is_empty() {
        return Ok(report);
    }
    survey.patch(module, &chosen)?;
    Ok(report)
}

impl PatchReport {
    fn skip(&mut self, paths: &[String], reason: impl Into<String>) {
        self.skipped.push(SkippedMatrix { paths: paths.to_vec(), reason: reason.into() });
    }

    fn patch(&mut self, paths: &[String], weight: &Tensor, stats: TensorStats) {
        self.weights += stats.weights as u64;
        self.original_bytes += stats.original_bytes as u64;
        self.compressed_bytes += stats.compressed_bytes as u64;
        let shape = [0, 1].map(|dim| weight.size().get(dim).map_or(0, |&size| size as usize));
        self.patched.push(PatchedMatrix { paths: paths.to_vec(), shape, stats });
    }
}

/// The numbers of the matrices to compress; the others go to the report.
fn select(found: &[Found], options: &PatchOptions, report: &mut PatchReport) -> Result<Vec<usize>> {
    let obstacles: Vec<Option<String>> = found.iter().map(|matrix| obstacle(matrix, options)).collect();
    let open = found.iter().zip(&obstacles).filter(|(_, obstacle)| obstacle.is_none());
    let candidates: Vec<&str> =
        open.flat_map(|(matrix, _)| matrix.paths.iter().map(String::as_str)).collect();
    let filter = PathFilter::new(&options.include, &options.exclude, &candidates)?;
    let mut selected = Vec::new();
    for (number, (matrix, obstacle)) in found.iter().zip(obstacles).enumerate() {
        let reason = obstacle.or_else(|| {
            let excluded = matrix.paths.iter().any(|path| filter.excludes(path));
            let included = matrix.paths.iter().any(|path| filter.includes(path));
            match (excluded, included) {
                (true, _) => Some("excluded".to_owned()),
                (false, false) => Some("not included".to_owned()),
                (false, true) => None,
            }
        });
        match reason {
            Some(reason) => report.skip(&matrix.paths, reason),
            None => selected.push(number),
        }
    }
    Ok(selected)
}

/// Why `matrix` is not even a candidate.
fn obstacle(matrix: &Found, options: &PatchOptions) -> Option<String> {
    let weights = matrix.weight.numel();
    let kind = matrix.weight.kind();
    if let Some(obstacle) = &matrix.obstacle {
        return Some(obstacle.clone());
    }
    if !matches!(kind, tch::Kind::Float | tch::Kind::Half | tch::Kind::BFloat16) {
        return Some(format!("is {kind:?}, wanted Float, Half or BFloat16"));
    }
    if !matrix.is_linear && !options.embeddings {
        return Some("is an embedding's table, and embeddings were not asked for".to_owned());
    }
    (weights < options.min_weights)
        .then(|| format!("has {weights} weights, fewer than the {} asked for", options.min_weights))
}

fn item(found: &Found) -> MatrixToCompress<'_> {
    MatrixToCompress { path: &found.paths[0], weight: &found.weight, row_access: found.is_embedding }
}

/// `buffers` where the weight was.
fn on(device: Device, buffers: [Tensor; 5], subject: &str) -> Result<[Tensor; 5]> {
    let mut moved = buffers;
    for buffer in &mut moved {
        *buffer = buffer.f_to_device(device).about(subject)?;
    }
    Ok(moved)
}
