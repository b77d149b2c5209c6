//! One layer of the model on the device: several copies compressed, several dense, to be used in turn.

use codecllm::codec::CompressedTensor;
use codecllm::nn::{CompressedLinear, Linear, MergedLinear};
use codecllm::{Error, Result};
use tch::{nn, Device, Kind, TchError, Tensor};

use super::super::layers::relative_error;
use super::super::random::SIGMA;
use super::super::torch_error;
use crate::cli::device::ORDINAL;

/// Where everything is.
pub(super) const DEVICE: Device = Device::Cuda(ORDINAL);
/// The copies of a weight fill the L2 cache at least this often, so that none is still there at its next turn: what a cache
/// throws out is not always the oldest, so a little more than its size would not do.
const L2_TURNS: usize = 8;
/// Most copies of a weight.
const MOST_COPIES: usize = 1024;
/// How far fused and scratch may be apart, relative to the result: they round differently.
const TOLERANCE: f64 = 0.02;

/// A layer that is one launch: several weights that read the same activations.
#[derive(Clone, Debug)]
pub(super) struct LayerSpec {
    pub(super) name: String,
    /// Output features of each weight.
    pub(super) parts: Vec<usize>,
    pub(super) in_features: usize,
    /// How often a step of the 8B model runs it.
    pub(super) per_step: usize,
}

impl LayerSpec {
    /// `[out_features, in_features]` of all parts together.
    pub(super) fn shape(&self) -> [usize; 2] {
        [self.parts.iter().sum(), self.in_features]
    }

    /// The same of each part.
    pub(super) fn part_shapes(&self) -> impl Iterator<Item = [usize; 2]> + '_ {
        self.parts.iter().map(|&rows| [rows, self.in_features])
    }

    fn weights(&self) -> usize {
        self.shape().iter().product()
    }
}

/// The layers of Llama-3.1-8B, or one for each of `shapes`.
pub(super) fn specs(shapes: &[[usize; 2]]) -> Vec<LayerSpec> {
    let spec = |name: &str, parts: &[usize], in_features, per_step| LayerSpec {
        name: name.to_owned(),
        parts: parts.to_vec(),
        in_features,
        per_step,
    };
    if shapes.is_empty() {
        return vec![
            spec("qkv", &[4096, 1024, 1024], 4096, 32),
            spec("o", &[4096], 4096, 32),
            spec("gate_up", &[14336, 14336], 4096, 32),
            spec("down", &[4096], 14336, 32),
            spec("head", &[128_256], 4096, 1),
        ];
    }
    shapes.iter().map(|&[rows, cols]| spec(&format!("{rows}x{cols}"), &[rows], cols, 0)).collect()
}

/// The copies of one layer.
pub(super) struct Layer {
    pub(super) spec: LayerSpec,
    pub(super) compressed: Vec<MergedLinear>,
    pub(super) dense: [DenseCopies; 2],
    compressed_bytes: usize,
    l2_bytes: usize,
    /// Owns the compressed buffers.
    _vs: nn::VarStore,
}

/// The dense opponents in one dtype, `[out_features, in_features]` each.
pub(super) struct DenseCopies {
    pub(super) path: &'static str,
    pub(super) kind: Kind,
    pub(super) weights: Vec<Tensor>,
}

impl Layer {
    /// Copies of a layer whose weights are `parts`, and of dense ones of the same shape.
    pub(super) fn new(spec: &LayerSpec, parts: &[&CompressedTensor], l2_bytes: usize) -> Result<Self> {
        let vs = nn::VarStore::new(DEVICE);
        let bytes = parts.iter().map(|tensor| tensor.buffers().total_bytes()).sum();
        let copies = copies_of(bytes, l2_bytes);
        let mut compressed = Vec::with_capacity(copies);
        for copy in 0..copies {
            let mut linears = Vec::with_capacity(parts.len());
            for (index, tensor) in parts.iter().enumerate() {
                linears.push(Linear::Compressed(CompressedLinear::new(
                    &(vs.root() / copy / index),
                    tensor,
                    None,
                )?));
            }
            compressed.push(MergedLinear::new(&linears.iter().collect::<Vec<_>>())?);
        }
        let dense = |path, kind| DenseCopies::new(spec, path, kind, l2_bytes);
        Ok(Self {
            spec: spec.clone(),
            compressed,
            dense: [dense("dense fp16", Kind::Half)?, dense("dense bf16", Kind::BFloat16)?],
            compressed_bytes: bytes,
            l2_bytes,
            _vs: vs,
        })
    }

    pub(super) fn weights(&self) -> usize {
        self.spec.weights()
    }

    /// Everything counted.
    pub(super) fn bits_per_weight(&self) -> f64 {
        8.0 * self.compressed_bytes as f64 / self.weights() as f64
    }

    /// How many tensors of `bytes` pass the cache.
    pub(super) fn copies_of(&self, bytes: usize) -> usize {
        copies_of(bytes, self.l2_bytes)
    }

    /// Takes the fused path, or the scratch path, from here on.
    pub(super) fn set_fused(&self, fused: bool) {
        let rows = if fused { usize::MAX } else { 0 };
        self.compressed.iter().for_each(|linear| linear.set_fused_rows(rows));
    }

    /// Random activations `[batch, in_features]`.
    pub(super) fn activations(&self, batch: usize, kind: Kind) -> Result<Tensor> {
        let size = [batch as i64, self.spec.in_features as i64];
        Tensor::f_randn(size, (Kind::Float, DEVICE))
            .and_then(|x| x.f_to_kind(kind))
            .map_err(torch_error("--batch"))
    }

    /// Room for the results `[batch, out_features]`.
    pub(super) fn results(&self, batch: usize, kind: Kind) -> Result<Tensor> {
        let size = [batch as i64, self.spec.shape()[0] as i64];
        Tensor::f_zeros(size, (kind, DEVICE)).map_err(torch_error("--batch"))
    }

    /// A figure of a wrong result is worth nothing: both paths must give the same, but for the rounding.
    pub(super) fn check(&self, kind: Kind) -> Result<()> {
        let x = self.activations(2, kind)?;
        let (fused, scratch) = (self.results(2, kind)?, self.results(2, kind)?);
        for linear in &self.compressed {
            linear.set_fused_rows(usize::MAX);
            linear.forward_into(&x, &fused)?;
            linear.set_fused_rows(0);
            linear.forward_into(&x, &scratch)?;
            let error = relative_error(&fused, &scratch).map_err(torch_error(&self.spec.name))?;
            if error.is_nan() || error > TOLERANCE {
                let message = format!("fused and scratch forward differ by {error:.4} of their size");
                return Err(Error::corrupt(&*self.spec.name, message));
            }
        }
        Ok(())
    }
}

impl DenseCopies {
    fn new(spec: &LayerSpec, path: &'static str, kind: Kind, l2_bytes: usize) -> Result<Self> {
        let copies = copies_of(spec.weights() * kind.elt_size_in_bytes(), l2_bytes);
        let weights = (0..copies).map(|_| random_weight(spec.shape(), kind));
        let weights = weights.collect::<std::result::Result<Vec<_>, _>>().map_err(torch_error(path))?;
        Ok(Self { path, kind, weights })
    }

    /// `x W^T` into `y` with the weight whose turn it is.
    pub(super) fn forward_into(&self, turn: usize, x: &Tensor, y: &Tensor) -> Result<()> {
        let weight = &self.weights[turn % self.weights.len()];
        let product = weight.f_tr().and_then(|transposed| x.f_mm_out(y, &transposed));
        product.map(drop).map_err(torch_error(self.path))
    }
}

/// A Gaussian matrix made where it stays, without a second one beside it.
fn random_weight([rows, cols]: [usize; 2], kind: Kind) -> std::result::Result<Tensor, TchError> {
    let mut weight = Tensor::f_empty([rows as i64, cols as i64], (kind, DEVICE))?;
    weight.f_normal_(0.0, SIGMA)
}

fn copies_of(bytes: usize, l2_bytes: usize) -> usize {
    (L2_TURNS * l2_bytes / bytes.max(1) + 1).min(MOST_COPIES)
}
