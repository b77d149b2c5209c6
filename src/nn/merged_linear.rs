//! Several linears that read the same input, as one.

use tch::Tensor;

use super::{DenseLinear, Linear};
use crate::error::{Result, TorchContext};

/// The outputs of several linears of the same input side by side: q, k and v, or gate and up.
///
/// A lone narrow linear can't fill a GPU. Dense weights are laid side by side in memory once, and the linears' own weights
/// become views of that: no second copy.
#[derive(Debug)]
pub(crate) enum MergedLinear {
    /// One weight.
    Dense(DenseLinear),
    /// One linear after the other, each into its own columns.
    Parts(Vec<Linear>),
}

impl MergedLinear {
    /// Merges `parts`, which must have the same number of inputs.
    pub(crate) fn new(parts: &[&Linear]) -> Result<Self> {
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
    pub(crate) fn forward_into(&self, x: &Tensor, y: &Tensor) -> Result<()> {
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
}

/// The parts, if all of them are dense.
fn dense_parts<'a>(parts: &[&'a Linear]) -> Option<Vec<&'a DenseLinear>> {
    let dense = |part: &&'a Linear| match part {
        Linear::Dense(dense) => Some(dense),
        Linear::Compressed(_) => None,
    };
    parts.iter().map(dense).collect()
}
