//! Where launches go, and the checks that make them sound.

use std::ffi::c_void;

use tch::{Kind, Tensor};

use crate::cuda::{self, Device, Kernel, Launch, Source, Stream};
use crate::error::{Error, Result};

/// libtorch's current stream of a device, for a run of launches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Launcher {
    pub(crate) device: &'static Device,
    pub(crate) stream: Stream,
}

/// A device address, as a kernel takes it.
pub(super) type Address = *mut c_void;

impl Launcher {
    /// Launches on the current stream of `device`, a CUDA one.
    pub(crate) fn on(device: tch::Device) -> Result<Self> {
        let tch::Device::Cuda(ordinal) = device else {
            return Err(Error::invalid("device", format!("{device:?}, wanted a CUDA device")));
        };
        let device = cuda::device(ordinal)?;
        Ok(Self { device, stream: device.current_stream()? })
    }

    /// The address of a contiguous tensor of this device with exactly this shape and dtype.
    pub(super) fn address(&self, what: &str, tensor: &Tensor, kind: Kind, shape: &[i64]) -> Result<Address> {
        let size = tensor.size();
        let device = tch::Device::Cuda(self.device.ordinal);
        if tensor.kind() == kind && size == shape && tensor.device() == device && tensor.is_contiguous() {
            return Ok(tensor.data_ptr());
        }
        let layout = if tensor.is_contiguous() { "" } else { ", not contiguous" };
        Err(Error::invalid(
            what,
            format!(
                "{:?} {size:?} on {:?}{layout}, wanted {kind:?} {shape:?} on {device:?}",
                tensor.kind(),
                tensor.device()
            ),
        ))
    }

    /// The kernel of a float dtype: `symbols` are those for FP32, FP16 and BF16.
    pub(super) fn kernel(
        &self,
        source: &'static Source,
        kind: Kind,
        symbols: [&'static str; 3],
    ) -> Result<Kernel> {
        self.device.kernel(source, by_kind(source.name, kind, symbols)?)
    }

    /// Launches behind what the stream has, overlapping its end where the device can: every kernel of this room waits before it
    /// touches what another may still be at.
    ///
    /// # Safety
    /// As for [`Kernel::launch`]: each wrapper shows it for the sizes. Of the rest, once for all of them: the tensors outlive the launch,
    /// since libtorch gives the memory of a dropped one only to later work of the same stream, and what a captured step goes to is
    /// owned by that step; two launches of a stream that touch the same memory run in their order; no output is an input but where
    /// the kernel is made for that.
    pub(super) unsafe fn launch(
        &self,
        kernel: Kernel,
        grid: [u32; 3],
        block: u32,
        args: &[Address],
    ) -> Result<()> {
        let launch = Launch { grid, block, shared_bytes: 0, overlap: true };
        // SAFETY: the caller's promise.
        unsafe { kernel.launch(self.stream, &launch, args) }
    }
}

/// What belongs to a float dtype, of what there is for FP32, FP16 and BF16.
pub(crate) fn by_kind<T>(subject: &str, kind: Kind, [f32, f16, bf16]: [T; 3]) -> Result<T> {
    match kind {
        Kind::Float => Ok(f32),
        Kind::Half => Ok(f16),
        Kind::BFloat16 => Ok(bf16),
        other => Err(Error::invalid(subject, format!("dtype {other:?}, wanted Float, Half or BFloat16"))),
    }
}

/// A size as the kernels take it.
pub(super) fn int(what: &str, size: i64) -> Result<i32> {
    i32::try_from(size).map_err(|_| Error::invalid(what, format!("{size}, wanted less than 2^31")))
}

/// Blocks along an axis of a grid.
pub(super) fn blocks(what: &str, count: i64) -> Result<u32> {
    // Axes y and z take no more.
    u32::try_from(count)
        .ok()
        .filter(|count| (1..=65_535).contains(count))
        .ok_or_else(|| Error::invalid(what, format!("{count}, wanted 1 to 65535")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_float_dtype_has_its_own_and_others_are_refused() {
        let of = |kind| by_kind("x", kind, ["f32", "f16", "bf16"]);
        let found = [Kind::Float, Kind::Half, Kind::BFloat16].map(|kind| of(kind).unwrap());
        assert_eq!(found, ["f32", "f16", "bf16"]);
        let error = of(Kind::Double).unwrap_err();
        assert_eq!(error.to_string(), "x: dtype Double, wanted Float, Half or BFloat16");
    }
}
