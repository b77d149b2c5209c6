//! tch modules whose weight is either dense or compressed; the model code above sees no difference.
//!
//! [`CompressedLinear`] is the one it is about; see its example.

mod bias;
mod byte_buffer;
mod compressed;
mod compressed_embedding;
mod compressed_linear;
#[cfg(test)]
mod cuda_tests;
mod dense;
mod merged_linear;
mod operator;
mod recorder;
mod switch_over;

pub(crate) use bias::Bias;
pub(crate) use byte_buffer::BufferVersion;
pub use compressed::DecodeCounters;
pub(crate) use compressed::{view_of, ChecksumPolicy};
pub use compressed_embedding::CompressedEmbedding;
pub use compressed_linear::{default_fused_rows, CompressedLinear};
pub(crate) use compressed_linear::{GPU_SCRATCH_BYTES, SCRATCH_BYTES};
pub use dense::{DenseEmbedding, DenseLinear};
pub use merged_linear::MergedLinear;
pub use operator::set_operator_fused_rows;
pub(crate) use recorder::{Passage, Recorder};
pub(crate) use switch_over::DEFAULT_ROWS as GPU_FUSED_ROWS;

use tch::Tensor;

use crate::codec::{Buffers, Layout};
use crate::error::{Error, Result};

/// A linear layer, `y = x W^T + bias`, with its weight dense or compressed.
///
/// Merged by a [`MergedLinear`]; see its example.
#[derive(Debug)]
pub enum Linear {
    /// The weight is an ordinary tensor.
    Dense(DenseLinear),
    /// The weight stays compressed.
    Compressed(CompressedLinear),
}

impl Linear {
    /// `x` `[..., in_features]` to `[..., out_features]`, in `x`'s dtype.
    pub fn try_forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(linear) => linear.try_forward(x),
            Self::Compressed(linear) => linear.try_forward(x),
        }
    }

    /// `x` `[batch, in_features]` to `y` `[batch, out_features]` on a GPU's current stream, without allocating.
    pub(crate) fn forward_into(&self, x: &Tensor, y: &Tensor) -> Result<()> {
        match self {
            Self::Dense(linear) => linear.forward_into(x, y),
            Self::Compressed(linear) => linear.forward_into(x, y),
        }
    }

    /// The versions of the buffers: others when the weight or the bias is another or has been written to.
    pub(crate) fn versions(&self) -> Result<Vec<BufferVersion>> {
        match self {
            Self::Dense(linear) => linear.versions(),
            Self::Compressed(linear) => linear.versions(),
        }
    }

    /// The layout that kernels meet: of a compressed weight on a GPU.
    pub(crate) fn layout(&self) -> Result<Option<Layout>> {
        match self {
            Self::Dense(_) => Ok(None),
            Self::Compressed(linear) => linear.layout(),
        }
    }

    /// As [`CompressedLinear::set_fused_rows`]; a dense weight has no such choice.
    pub fn set_fused_rows(&self, rows: usize) {
        match self {
            Self::Dense(_) => {}
            Self::Compressed(linear) => linear.set_fused_rows(rows),
        }
    }

    /// Another handle to the same weight.
    fn share(&self) -> Self {
        match self {
            Self::Dense(linear) => Self::Dense(linear.share()),
            Self::Compressed(linear) => Self::Compressed(linear.share()),
        }
    }

    /// `[out_features, in_features]`.
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Self::Dense(linear) => linear.shape(),
            Self::Compressed(linear) => linear.shape(),
        }
    }

    /// Bytes that the weight and bias occupy in memory.
    pub fn weight_bytes(&self) -> usize {
        match self {
            Self::Dense(linear) => linear.weight_bytes(),
            Self::Compressed(linear) => linear.weight_bytes(),
        }
    }
}

/// Compressed buffers as byte tensors, in the order of [`crate::codec::BUFFER_NAMES`].
pub(crate) fn buffer_tensors(buffers: &Buffers) -> Result<[Tensor; 5]> {
    compressed::CompressedWeight::tensors(buffers)
}

/// Refuses an output of another shape than `[rows of x, out_features]`, or elsewhere than `x`: libtorch would resize it, and where it
/// is columns of a wider tensor, write over its neighbors.
fn check_output(subject: &str, x: &Tensor, y: &Tensor, out_features: usize) -> Result<()> {
    let wanted = [x.size().first().copied().unwrap_or_default(), out_features as i64];
    if y.size() == wanted && y.device() == x.device() {
        return Ok(());
    }
    let (got, on) = (y.size(), y.device());
    Err(Error::invalid(subject, format!("output {got:?} on {on:?}, wanted {wanted:?} on {:?}", x.device())))
}

/// An embedding table, dense or compressed.
///
/// ```
/// use codecllm::nn::{DenseEmbedding, Embedding};
/// use tch::{Device, Kind, Tensor};
/// let table = Tensor::randn([100, 64], (Kind::Float, Device::Cpu));
/// let embedding = Embedding::Dense(DenseEmbedding::new("embed.weight", table)?);
/// assert_eq!((embedding.shape(), embedding.weight_bytes()), ([100, 64], 4 * 100 * 64));
/// let vectors = embedding.try_forward(&Tensor::from_slice(&[7i64]))?;
/// let scores = embedding.tied_head().try_forward(&vectors)?; // of all tokens for that vector
/// assert_eq!(scores.size(), [1, 100]);
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Debug)]
pub enum Embedding {
    /// The table is an ordinary tensor.
    Dense(DenseEmbedding),
    /// The table stays compressed.
    Compressed(CompressedEmbedding),
}

impl Embedding {
    /// Token ids (any shape, `Int64`) to vectors `[..., hidden]` in the model's dtype.
    pub fn try_forward(&self, ids: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(embedding) => embedding.try_forward(ids),
            Self::Compressed(embedding) => embedding.try_forward(ids),
        }
    }

    /// Changes when the table is another or has been written to.
    pub(crate) fn version(&self) -> Result<BufferVersion> {
        match self {
            Self::Dense(embedding) => embedding.version(),
            Self::Compressed(embedding) => embedding.version(),
        }
    }

    /// The vectors of `tokens` `[batch]` (`Int64`) into `out` `[batch, hidden]` on a GPU's current stream, without allocating.
    pub(crate) fn forward_into(&self, tokens: &Tensor, out: &Tensor) -> Result<()> {
        match self {
            Self::Dense(embedding) => embedding.forward_into(tokens, out),
            Self::Compressed(embedding) => embedding.forward_into(tokens, out),
        }
    }

    /// As [`Linear::layout`].
    pub(crate) fn layout(&self) -> Result<Option<Layout>> {
        match self {
            Self::Dense(_) => Ok(None),
            Self::Compressed(embedding) => embedding.layout(),
        }
    }

    /// `[vocab, hidden]`.
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Self::Dense(embedding) => embedding.shape(),
            Self::Compressed(embedding) => embedding.shape(),
        }
    }

    /// Bytes that the table occupies in memory.
    pub fn weight_bytes(&self) -> usize {
        match self {
            Self::Dense(embedding) => embedding.weight_bytes(),
            Self::Compressed(embedding) => embedding.weight_bytes(),
        }
    }

    /// The head that shares this table (a tied `lm_head`): the same memory, no copy.
    pub fn tied_head(&self) -> Linear {
        match self {
            Self::Dense(embedding) => Linear::Dense(embedding.tied_head()),
            Self::Compressed(embedding) => Linear::Compressed(embedding.tied_head()),
        }
    }
}
