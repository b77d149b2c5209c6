//! What all launches of this room share.

use std::collections::HashSet;
use std::sync::{LazyLock, Mutex, PoisonError};

use tch::{Kind, Tensor};

use crate::cuda::{Kernel, Source};
use crate::error::{Error, Result};
use crate::ops::transformer::{by_kind, Launcher};

/// What a block can't have: the driver keeps some shared memory of every block for itself.
const RESERVED_SHARED_BYTES: usize = 1024;

/// How an element type of the kernels is counted, as `Element` of `dequantize.cuh`, and how their names end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element {
    F32 = 0,
    F16 = 1,
    BF16 = 2,
}

impl Element {
    pub(super) fn of(kind: Kind, subject: &str) -> Result<Self> {
        by_kind(subject, kind, [Self::F32, Self::F16, Self::BF16])
    }
}

/// What a device has for one launch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) multiprocessors: usize,
    /// Of a block.
    pub(super) shared_bytes: usize,
    /// Of all blocks of a multiprocessor, each of which also takes [`RESERVED_SHARED_BYTES`].
    pub(super) shared_bytes_per_multiprocessor: usize,
}

impl Limits {
    /// What an H100 and an H200 have, to plan where there is no GPU.
    #[cfg(test)]
    pub(super) const H200: Self =
        Self { multiprocessors: 132, shared_bytes: 226 << 10, shared_bytes_per_multiprocessor: 228 << 10 };

    pub(super) fn of(launcher: &Launcher) -> Self {
        let device = launcher.device;
        Self {
            multiprocessors: device.multiprocessors as usize,
            shared_bytes: device.shared_bytes_per_block.saturating_sub(RESERVED_SHARED_BYTES),
            shared_bytes_per_multiprocessor: device.shared_bytes_per_multiprocessor,
        }
    }

    /// Whether a multiprocessor has room for `blocks` blocks of `shared_bytes` each.
    pub(super) fn fits(&self, blocks: usize, shared_bytes: usize) -> bool {
        blocks * (shared_bytes + RESERVED_SHARED_BYTES) <= self.shared_bytes_per_multiprocessor
    }
}

/// A module's only kernel, which may be launched with all the shared memory a block can have. At the first launch all of `family`
/// are made ready, at once: the modules that the next launches are likely to need.
pub(super) fn kernel(
    launcher: &Launcher,
    source: &'static Source,
    family: impl FnOnce() -> Vec<&'static Source>,
) -> Result<Kernel> {
    static READY: LazyLock<Mutex<HashSet<(usize, &'static str)>>> = LazyLock::new(Mutex::default);
    let key = (launcher.device.ordinal, source.name);
    if READY.lock().unwrap_or_else(PoisonError::into_inner).contains(&key) {
        return launcher.device.kernel(source, source.name);
    }
    launcher.device.prepare(&family())?;
    let kernel = launcher.device.kernel(source, source.name)?;
    kernel.set_shared_bytes(Limits::of(launcher).shared_bytes)?;
    READY.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
    Ok(kernel)
}

/// A matrix that a kernel writes: its address and the distance of its rows in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rows {
    pub(super) address: u64,
    pub(super) stride: usize,
}

impl Rows {
    /// Checks that `tensor` is `[rows, cols]` on GPU `ordinal` with neighboring columns.
    pub(super) fn of(
        tensor: &Tensor,
        [rows, cols]: [usize; 2],
        device: tch::Device,
        subject: &str,
    ) -> Result<Self> {
        let (size, stride) = (tensor.size(), tensor.stride());
        let same_size = size == [rows as i64, cols as i64];
        if !same_size || tensor.device() != device || (cols > 1 && stride.get(1) != Some(&1)) {
            return Err(Error::invalid(
                subject,
                format!(
                    "output {size:?} with strides {stride:?} on {:?}, wanted [{rows}, {cols}] with neighboring columns on \
                     {device:?}",
                    tensor.device()
                ),
            ));
        }
        let stride = if rows == 1 { cols } else { stride.first().map_or(cols, |&stride| stride as usize) };
        if stride < cols {
            return Err(Error::invalid(
                subject,
                format!("output rows {stride} apart, wanted {cols} or more"),
            ));
        }
        Ok(Self { address: tensor.data_ptr() as u64, stride })
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn rows_may_be_apart_but_not_overlap() {
        let y = Tensor::zeros([4, 10], (Kind::Half, Device::Cpu));
        let rows = |y: &Tensor, shape| Rows::of(y, shape, Device::Cpu, "y");
        assert_eq!(rows(&y, [4, 10]).unwrap().stride, 10);
        assert_eq!(rows(&y.narrow(1, 3, 5), [4, 5]).unwrap().stride, 10);
        assert_eq!(rows(&y.narrow(1, 3, 5).narrow(0, 0, 1), [1, 5]).unwrap().stride, 5);
        assert!(rows(&y, [4, 9]).is_err());
        assert!(rows(&y.tr(), [10, 4]).is_err());
        assert!(rows(&y.narrow(0, 0, 1).expand([4, 10], false), [4, 10]).is_err());
        assert!(Rows::of(&y, [4, 10], Device::Cuda(0), "y").is_err());
    }

    #[test]
    fn blocks_share_a_multiprocessor() {
        let limits = Limits {
            multiprocessors: 1,
            shared_bytes: 226 << 10,
            shared_bytes_per_multiprocessor: 228 << 10,
        };
        assert!(limits.fits(2, 113 << 10));
        assert!(!limits.fits(2, (113 << 10) + 1));
    }
}
