//! Several linears that read the same input, as one.

use tch::Tensor;

use super::{CompressedLinear, DenseLinear, Linear};
use crate::error::{Result, TorchContext};

/// The outputs of several linears of the same input side by side: q, k and v, or gate and up.
///
/// A lone narrow linear can't fill a GPU. Dense weights are laid side by side in memory once, and the linears' own weights
/// become views of that: no second copy.
///
/// ```
/// use codecllm::codec::{CompressedTensor, EncodeOptions, StepRule};
/// use codecllm::nn::{CompressedLinear, Linear, MergedLinear};
/// use tch::{nn, Device, Kind, Tensor};
/// let vs = nn::VarStore::new(Device::Cpu);
/// let linear = |name: &str, rows| -> codecllm::Result<Linear> {
///     let weight = Tensor::randn([rows, 64], (Kind::Float, Device::Cpu));
///     let options = EncodeOptions::default();
///     let compressed = CompressedTensor::compress(name, &weight, StepRule::RowAbsmax, options)?;
///     Ok(Linear::Compressed(CompressedLinear::new(&(vs.root() / name), &compressed, None)?))
/// };
/// let (key, value) = (linear("key", 16)?, linear("value", 32)?);
/// let both = MergedLinear::new(&[&key, &value])?;
/// let x = Tensor::randn([2, 64], (Kind::Float, Device::Cpu));
/// let y = Tensor::zeros([2, 48], (Kind::Float, Device::Cpu));
/// both.forward_into(&x, &y)?;
/// assert_eq!(y, Tensor::cat(&[key.try_forward(&x)?, value.try_forward(&x)?], 1));
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Debug)]
pub enum MergedLinear {
    /// One weight.
    Dense(DenseLinear),
    /// One linear after the other, each into its own columns.
    Parts(Vec<Linear>),
}

impl MergedLinear {
    /// Merges `parts`, which must have the same number of inputs.
    ///
    /// # Errors
    /// `InvalidArgument` for no parts, or where some have a bias and some have none.
    pub fn new(parts: &[&Linear]) -> Result<Self> {
        match dense_parts(parts) {
            Some(dense) => DenseLinear::merge(&dense).map(Self::Dense),
            None => Ok(Self::Parts(parts.iter().map(|part| part.share()).collect())),
        }
    }

    /// Lays dense weights side by side, so that a later [`MergedLinear::new`] finds them so. Where a model is loaded layer by
    /// layer, what this sets free serves the next layer.
    pub(crate) fn lay_side_by_side(parts: &[&Linear]) -> Result<()> {
        dense_parts(parts).map_or(Ok(()), |dense| DenseLinear::merge(&dense).map(|_| ()))
    }

    /// `x` `[batch, in_features]` to `y` `[batch, sum of out_features]` on the current stream, without allocating.
    ///
    /// # Errors
    /// What the parts report, by tensor path.
    pub fn forward_into(&self, x: &Tensor, y: &Tensor) -> Result<()> {
        let parts = match self {
            Self::Dense(merged) => return merged.forward_into(x, y),
            Self::Parts(parts) => parts,
        };
        let mut start = 0;
        for part in parts {
            let width = part.shape()[0] as i64;
            part.forward_into(x, &y.f_narrow(1, start, width).about("merged linear")?)?;
            start += width;
        }
        Ok(())
    }

    /// As [`CompressedLinear::set_fused_rows`](super::CompressedLinear::set_fused_rows), for all compressed parts.
    pub fn set_fused_rows(&self, rows: usize) {
        self.compressed_parts().for_each(|part| part.set_fused_rows(rows));
    }

    /// Decodes the compressed parts into `out` `[sum of out_features, in_features]`, one below the other.
    ///
    /// # Errors
    /// As [`CompressedLinear::decode_into`](super::CompressedLinear::decode_into).
    pub fn decode_into(&self, out: &Tensor) -> Result<()> {
        let mut start = 0;
        for part in self.compressed_parts() {
            let rows = part.shape()[0] as i64;
            part.decode_into(&out.f_narrow(0, start, rows).about("merged linear")?)?;
            start += rows;
        }
        Ok(())
    }

    fn compressed_parts(&self) -> impl Iterator<Item = &CompressedLinear> {
        let parts = match self {
            Self::Dense(_) => &[],
            Self::Parts(parts) => parts.as_slice(),
        };
        parts.iter().filter_map(|part| match part {
            Linear::Dense(_) => None,
            Linear::Compressed(compressed) => Some(compressed),
        })
    }
}

/// The parts, if all of them are dense.
fn dense_parts<'a>(parts: &[&'a Linear]) -> Option<Vec<&'a DenseLinear>> {
    let dense = |part: &&'a Linear| match part {
        Linear::Dense(dense) => Some(dense),
        Linear::Compressed(_) => None,
    };
    parts.iter().map(dense).collect()
}
