//! Forward of a set of layers, fused, through scratch, and dense.

use std::collections::btree_map::Entry;
use std::collections::BTreeMap;

use codecllm::codec::CompressedTensor;
use codecllm::nn::{CompressedLinear, DenseLinear};
use codecllm::{Error, Result};
use serde::Serialize;
use tch::{nn, Device, Kind, TchError, Tensor};

use super::matrix::Plan;
use super::timing::{measure, Timing};
use super::torch_error;

/// Copies of a weight together take at least this much, so that none waits in a cache for its next turn.
const ROTATED_BYTES: usize = 96 << 20;
/// Most copies of a weight.
const MOST_COPIES: usize = 256;
/// The dtypes that the dense matmul is timed in.
const DENSE_KINDS: [(Kind, &str); 3] =
    [(Kind::Half, "fp16"), (Kind::BFloat16, "bf16"), (Kind::Float, "fp32")];

/// Time of one forward with `batch` rows through all layers of the set.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ForwardTime {
    /// `fused`, `scratch`, `dense fp16`, `dense bf16`, `dense fp32`.
    pub(super) path: String,
    pub(super) batch: usize,
    #[serde(flatten)]
    pub(super) timing: Timing,
    pub(super) ns_per_weight: f64,
}

/// How many copies of `bytes` are rotated.
pub(super) fn copies_of(bytes: usize) -> usize {
    ROTATED_BYTES.div_ceil(bytes.max(1)).clamp(1, MOST_COPIES)
}

/// A set of layers: dense, and several copies compressed.
pub(super) struct Layers {
    compressed: Vec<CompressedLinear>,
    copies: usize,
    dense: Vec<Tensor>,
    weights: usize,
    /// Owns the compressed layers' buffers.
    _vs: nn::VarStore,
}

impl Layers {
    /// A set of layers with the weights `compressed`, which were `dense`.
    pub(super) fn new(compressed: &[CompressedTensor], dense: Vec<Tensor>) -> Result<Self> {
        let vs = nn::VarStore::new(Device::Cpu);
        let copies = copies_of(compressed.iter().map(|tensor| tensor.buffers().total_bytes()).sum());
        let mut linears = Vec::with_capacity(copies * compressed.len());
        for copy in 0..copies {
            for (index, tensor) in compressed.iter().enumerate() {
                linears.push(CompressedLinear::new(&(vs.root() / copy / index), tensor, None)?);
            }
        }
        let weights = dense.iter().map(Tensor::numel).sum();
        Ok(Self { compressed: linears, copies, dense, weights, _vs: vs })
    }

    /// Times every path at every batch of `plan`.
    pub(super) fn time(&self, plan: &Plan, progress: &mut dyn FnMut(&str)) -> Result<Vec<ForwardTime>> {
        self.check(plan.kind)?;
        let mut times = Vec::new();
        for &batch in &plan.batches {
            progress(&format!("forward, batch {batch}"));
            times.push(self.time_compressed("fused", usize::MAX, batch, plan)?);
            times.push(self.time_compressed("scratch", 0, batch, plan)?);
        }
        for (kind, name) in DENSE_KINDS {
            progress(&format!("dense forward, {name}"));
            self.time_dense(kind, name, plan, &mut times)?;
        }
        times.sort_by_key(|time| time.batch);
        Ok(times)
    }

    /// Both paths must give the same, but for the rounding of the dtype.
    fn check(&self, kind: Kind) -> Result<()> {
        let x = self.activations(2, kind)?;
        for linear in &self.compressed[..self.dense.len()] {
            let x = &x[&linear.shape()[1]];
            linear.set_fused_rows(usize::MAX);
            let fused = linear.try_forward(x)?;
            linear.set_fused_rows(0);
            let scratch = linear.try_forward(x)?;
            let error = relative_error(&fused, &scratch).map_err(torch_error(linear.tensor_path()))?;
            if error.is_nan() || error > 0.02 {
                let message = format!("fused and scratch forward differ by {error:.4} of their size");
                return Err(Error::corrupt(linear.tensor_path(), message));
            }
        }
        Ok(())
    }

    fn time_compressed(
        &self,
        path: &str,
        fused_rows: usize,
        batch: usize,
        plan: &Plan,
    ) -> Result<ForwardTime> {
        self.compressed.iter().for_each(|linear| linear.set_fused_rows(fused_rows));
        let x = self.activations(batch, plan.kind)?;
        let timing = measure(plan.budget, || {
            self.compressed.iter().try_for_each(|linear| linear.try_forward(&x[&linear.shape()[1]]).map(drop))
        })?;
        Ok(self.forward_time(path.to_owned(), batch, timing.per(self.copies)))
    }

    fn time_dense(&self, kind: Kind, name: &str, plan: &Plan, times: &mut Vec<ForwardTime>) -> Result<()> {
        let copies = copies_of(self.weights * kind.elt_size_in_bytes());
        let mut linears = Vec::with_capacity(copies * self.dense.len());
        for weight in (0..copies).flat_map(|_| &self.dense) {
            linears.push(dense_copy(weight, kind)?);
        }
        for &batch in &plan.batches {
            let x = self.activations(batch, kind)?;
            let timing = measure(plan.budget, || {
                linears.iter().try_for_each(|linear| linear.try_forward(&x[&linear.shape()[1]]).map(drop))
            })?;
            times.push(self.forward_time(format!("dense {name}"), batch, timing.per(copies)));
        }
        Ok(())
    }

    fn forward_time(&self, path: String, batch: usize, timing: Timing) -> ForwardTime {
        let ns_per_weight = timing.median_seconds * 1e9 / self.weights.max(1) as f64;
        ForwardTime { path, batch, timing, ns_per_weight }
    }

    /// Random activations `[batch, in_features]` for every number of columns.
    fn activations(&self, batch: usize, kind: Kind) -> Result<BTreeMap<usize, Tensor>> {
        let mut activations = BTreeMap::new();
        for linear in &self.compressed {
            if let Entry::Vacant(entry) = activations.entry(linear.shape()[1]) {
                let size = [batch as i64, *entry.key() as i64];
                let x = Tensor::f_randn(size, (Kind::Float, Device::Cpu)).and_then(|x| x.f_to_kind(kind));
                entry.insert(x.map_err(torch_error("--batch"))?);
            }
        }
        Ok(activations)
    }
}

/// The norm of the difference over that of what was `wanted`.
pub(super) fn relative_error(got: &Tensor, wanted: &Tensor) -> std::result::Result<f64, TchError> {
    let (got, wanted) = (got.f_to_kind(Kind::Float)?, wanted.f_to_kind(Kind::Float)?);
    let error = got.f_sub(&wanted)?.f_norm()?.f_double_value(&[])?;
    Ok(error / wanted.f_norm()?.f_double_value(&[])?.max(f64::MIN_POSITIVE))
}

fn dense_copy(weight: &Tensor, kind: Kind) -> Result<DenseLinear> {
    // The product is a tensor of its own, where a conversion to the same dtype would share memory.
    let weight = weight.f_to_kind(kind).and_then(|weight| weight.f_mul_scalar(1.0));
    DenseLinear::new("dense", weight.map_err(torch_error("dense"))?, None)
}

/// The smallest batch at which scratch beats fused.
pub(super) fn crossover(times: &[ForwardTime]) -> Option<usize> {
    let of = |path: &str, batch| {
        times.iter().find(|t| t.path == path && t.batch == batch).map(|t| t.timing.median_seconds)
    };
    let batches = times.iter().filter(|time| time.path == "fused").map(|time| time.batch);
    batches.filter(|&batch| of("scratch", batch) < of("fused", batch)).min()
}
