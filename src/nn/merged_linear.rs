//! Several linears that read the same input, as one.

use tch::Tensor;

use super::compressed_linear::Ready;
use super::{CompressedLinear, DenseLinear, Linear};
use crate::error::{Result, TorchContext};
use crate::ops::cuda::{fused_linear, should_merge};
use crate::ops::transformer::Launcher;

/// The outputs of several linears of the same input side by side: q, k and v, or gate and up.
///
/// A lone narrow linear can't fill a GPU. Dense weights are laid side by side in memory once, and the linears' own weights
/// become views of that: no second copy. Compressed weights stay as they are, and share a launch on a GPU.
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
/// assert_eq!((key.shape(), value.shape()), ([16, 64], [32, 64]));
/// assert!(value.weight_bytes() < 4 * 32 * 64);
/// // Both weights, one below the other; what many rows are multiplied with, and with no row fused all.
/// let weights = Tensor::zeros([48, 64], (Kind::Float, Device::Cpu));
/// both.decode_into(&weights)?;
/// both.set_fused_rows(0);
/// value.set_fused_rows(0); // the same: it shares its weight
/// both.forward_into(&x, &y)?;
/// assert!(y.allclose(&x.linear(&weights, None::<&Tensor>), 1e-4, 1e-4, false));
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Debug)]
pub enum MergedLinear {
    /// One weight.
    Dense(DenseLinear),
    /// Weights that one launch may multiply.
    Compressed(Vec<CompressedLinear>),
    /// One linear after the other, each into its own columns.
    Parts(Vec<Linear>),
}

impl MergedLinear {
    /// Merges `parts`, which must have the same number of inputs.
    ///
    /// # Errors
    /// `InvalidArgument` for no parts, or where some have a bias and some have none.
    pub fn new(parts: &[&Linear]) -> Result<Self> {
        if let Some(dense) = dense_parts(parts) {
            return DenseLinear::merge(&dense).map(Self::Dense);
        }
        let compressed = |part: &&Linear| match part {
            Linear::Dense(_) => None,
            Linear::Compressed(compressed) => Some(compressed.share()),
        };
        match parts.iter().map(compressed).collect() {
            Some(compressed) => Ok(Self::Compressed(compressed)),
            None => Ok(Self::apart(parts)),
        }
    }

    /// As [`MergedLinear::new`], but dense weights that do not lie side by side stay where they are, and are multiplied one after the
    /// other: another thread may be reading them.
    pub(crate) fn as_they_lie(parts: &[&Linear]) -> Result<Self> {
        match dense_parts(parts) {
            Some(dense) if !DenseLinear::lie_side_by_side(&dense) => Ok(Self::apart(parts)),
            _ => Self::new(parts),
        }
    }

    fn apart(parts: &[&Linear]) -> Self {
        Self::Parts(parts.iter().map(|part| part.share()).collect())
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
        match self {
            Self::Dense(merged) => merged.forward_into(x, y),
            Self::Compressed(parts) => {
                let outputs = side_by_side(x, y, parts.iter().map(CompressedLinear::shape))?;
                if x.device().is_cuda() && in_one_launch(parts, x, &outputs)? {
                    return Ok(());
                }
                parts.iter().zip(&outputs).try_for_each(|(part, y)| part.forward_into(x, y))
            }
            Self::Parts(parts) => {
                let outputs = side_by_side(x, y, parts.iter().map(Linear::shape))?;
                parts.iter().zip(&outputs).try_for_each(|(part, y)| part.forward_into(x, y))
            }
        }
    }

    /// As [`CompressedLinear::set_fused_rows`](super::CompressedLinear::set_fused_rows), for all compressed parts.
    pub fn set_fused_rows(&self, rows: usize) {
        self.compressed_parts().iter().for_each(|part| part.set_fused_rows(rows));
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

    fn compressed_parts(&self) -> Vec<&CompressedLinear> {
        match self {
            Self::Dense(_) => Vec::new(),
            Self::Compressed(parts) => parts.iter().collect(),
            Self::Parts(parts) => parts
                .iter()
                .filter_map(|part| match part {
                    Linear::Dense(_) => None,
                    Linear::Compressed(compressed) => Some(compressed),
                })
                .collect(),
        }
    }
}

/// The columns of `y` that belong to each of the parts, which must fill it.
fn side_by_side(
    x: &Tensor,
    y: &Tensor,
    shapes: impl Iterator<Item = [usize; 2]> + Clone,
) -> Result<Vec<Tensor>> {
    let widths = shapes.map(|[out_features, _]| out_features);
    super::check_output("merged linear", x, y, widths.clone().sum())?;
    let mut start = 0;
    widths
        .map(|width| {
            let own = y.f_narrow(1, start, width as i64).about("merged linear")?;
            start += width as i64;
            Ok(own)
        })
        .collect()
}

/// Multiplies all parts in one fused launch, if that is possible, pays, and each of them prefers to be fused; else does nothing
/// and says no.
fn in_one_launch(parts: &[CompressedLinear], x: &Tensor, outputs: &[Tensor]) -> Result<bool> {
    let launcher = Launcher::on(x.device())?;
    let ready: Vec<Ready> = parts.iter().map(|part| part.ready(&launcher)).collect::<Result<_>>()?;
    let weights = ready.iter().map(Ready::weight).collect::<Result<Vec<_>>>()?;
    let batch = x.size().first().map_or(0, |&batch| batch as usize);
    if !should_merge(&launcher, &weights, batch) {
        return Ok(false);
    }
    for part in &ready {
        if !part.prefers_fused(&launcher, batch, x.kind())? {
            return Ok(false);
        }
    }
    let fused = ready.iter().zip(outputs).map(|(part, y)| part.part(y)).collect::<Result<Vec<_>>>()?;
    // Each part was decoded once.
    let launch = || fused_linear(&launcher, x, &fused);
    counted(&ready, &launch)?;
    Ok(true)
}

/// Runs `launch`, counted as a decode of each of `parts`.
fn counted(parts: &[Ready], launch: &dyn Fn() -> Result<()>) -> Result<()> {
    match parts.split_first() {
        None => launch(),
        Some((first, rest)) => first.compressed().counted(|| counted(rest, launch)),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{CompressedTensor, EncodeOptions, StepRule};
    use crate::nn::CompressedLinear;
    use tch::{nn, Device, Kind};

    fn random(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    /// Linears of 3, 5 and 2 outputs of 7 inputs, registered as a model's are.
    fn dense(vs: &nn::Path<'_>, bias: bool) -> Vec<Linear> {
        let linear = |(index, width): (usize, i64)| {
            let weight = vs.add(&format!("weight{index}"), random(&[width, 7]), false);
            let bias = bias.then(|| random(&[width]));
            Linear::Dense(DenseLinear::new(format!("part{index}"), weight, bias).unwrap())
        };
        [3, 5, 2].into_iter().enumerate().map(linear).collect()
    }

    fn check(parts: &[Linear], merged: &MergedLinear) {
        let inputs = parts[0].shape()[1] as i64;
        let x = random(&[4, inputs]);
        let separate: Vec<_> = parts.iter().map(|part| part.try_forward(&x).unwrap()).collect();
        let wanted = Tensor::cat(&separate, 1);
        let y = Tensor::full(wanted.size(), f64::NAN, (Kind::Float, Device::Cpu));
        merged.forward_into(&x, &y).unwrap();
        let error = (y - wanted).abs().max().double_value(&[]);
        assert!(error < 1e-5, "{error}");
    }

    #[test]
    fn outputs_of_another_shape_are_refused_and_left_alone() {
        let vs = nn::VarStore::new(Device::Cpu);
        let parts = dense(&vs.root(), false);
        let compressed: Vec<Linear> = [3, 5, 2]
            .into_iter()
            .map(|width| {
                let weight = random(&[width, 7]);
                let options = EncodeOptions::default();
                let weight = CompressedTensor::compress("w", &weight, StepRule::RowAbsmax, options).unwrap();
                let path = vs.root() / format!("compressed{width}");
                Linear::Compressed(CompressedLinear::new(&path, &weight, None).unwrap())
            })
            .collect();
        let x = random(&[4, 7]);
        for parts in [
            vec![&parts[0], &parts[1], &parts[2]],
            compressed.iter().collect(),
            vec![&parts[0], &compressed[1]],
        ] {
            let width: i64 = parts.iter().map(|part| part.shape()[0] as i64).sum();
            let merged = MergedLinear::new(&parts).unwrap();
            for size in [[5, width], [3, width], [4, width + 1], [4, width - 1]] {
                let y = Tensor::full(size, 7.0, (Kind::Float, Device::Cpu));
                let error = merged.forward_into(&x, &y).unwrap_err();
                assert_eq!(error.kind(), crate::ErrorKind::InvalidArgument, "{error}");
                assert_eq!(y, Tensor::full(size, 7.0, (Kind::Float, Device::Cpu)));
            }
        }
    }

    #[test]
    fn dense_parts_become_views_of_one_weight() {
        for bias in [false, true] {
            let vs = nn::VarStore::new(Device::Cpu);
            let parts = dense(&vs.root(), bias);
            let parts_of: Vec<&Linear> = parts.iter().collect();
            let before: Vec<Tensor> = (0..3).map(|i| vs.variables()[&format!("weight{i}")].copy()).collect();
            MergedLinear::lay_side_by_side(&parts_of).unwrap();
            let merged = MergedLinear::new(&parts_of).unwrap();
            check(&parts, &merged);
            let MergedLinear::Dense(whole) = &merged else { panic!("dense parts were not merged") };
            assert_eq!(whole.shape(), [10, 7]);
            // The VarStore's own tensors are the views: no second copy, and what is loaded into them arrives.
            let variables: Vec<Tensor> =
                (0..3).map(|i| vs.variables()[&format!("weight{i}")].shallow_clone()).collect();
            assert_eq!(variables, before);
            let MergedLinear::Dense(again) = MergedLinear::new(&parts_of).unwrap() else { panic!() };
            assert_eq!(again.weight_address(), whole.weight_address());
            assert_eq!(variables[0].data_ptr() as usize, whole.weight_address());
            let _ = tch::no_grad(|| variables[1].shallow_clone().fill_(2.0));
            check(&parts, &merged);
        }
    }

    #[test]
    fn weights_that_are_apart_stay_where_they_are_if_asked() {
        let vs = nn::VarStore::new(Device::Cpu);
        let parts = dense(&vs.root(), true);
        let parts_of: Vec<&Linear> = parts.iter().collect();
        let addresses = || [0, 1, 2].map(|i| vs.variables()[&format!("weight{i}")].data_ptr() as usize);
        let before = addresses();
        let merged = MergedLinear::as_they_lie(&parts_of).unwrap();
        assert!(matches!(merged, MergedLinear::Parts(_)), "{merged:?}");
        assert_eq!(addresses(), before);
        check(&parts, &merged);
        MergedLinear::lay_side_by_side(&parts_of).unwrap();
        let merged = MergedLinear::as_they_lie(&parts_of).unwrap();
        assert!(matches!(merged, MergedLinear::Dense(_)), "{merged:?}");
        check(&parts, &merged);
    }

    #[test]
    fn neighbors_of_separate_memory_are_copied() {
        let whole = random(&[8, 7]);
        let cut = |first| {
            let weight = whole.narrow(0, first, 4);
            Linear::Dense(DenseLinear::new("part", weight, None).unwrap())
        };
        // In the wrong order they are no neighbors.
        let parts = [cut(4), cut(0)];
        check(&parts, &MergedLinear::new(&[&parts[0], &parts[1]]).unwrap());
    }

    #[test]
    fn compressed_parts_keep_to_their_columns() {
        let vs = nn::VarStore::new(Device::Cpu);
        let linear = |name: &str, width: i64| {
            let options = EncodeOptions::default();
            let compressed =
                CompressedTensor::compress(name, &random(&[width, 24]), StepRule::RowAbsmax, options)
                    .unwrap();
            let bias = random(&[width]);
            let path = vs.root() / name;
            Linear::Compressed(CompressedLinear::new(&path, &compressed, Some(&bias)).unwrap())
        };
        let parts = [linear("a", 40), linear("b", 8)];
        check(&parts, &MergedLinear::new(&[&parts[0], &parts[1]]).unwrap());
    }

    #[test]
    fn a_bias_on_some_parts_alone_is_an_error() {
        let part =
            |bias: Option<Tensor>| Linear::Dense(DenseLinear::new("p", random(&[2, 3]), bias).unwrap());
        let parts = [part(None), part(Some(random(&[2])))];
        assert!(MergedLinear::new(&[&parts[0], &parts[1]]).is_err());
    }
}
