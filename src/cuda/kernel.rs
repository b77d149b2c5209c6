//! A kernel and how it is launched.

use std::ffi::c_void;

use cudarc::driver::result::{function, occupancy};
use cudarc::driver::sys::{
    self, CUfunction, CUfunction_attribute, CUlaunchAttribute, CUlaunchAttributeID, CUlaunchAttributeValue,
    CUlaunchConfig, CUresult,
};

use super::device::Device;
use super::driver::DriverContext;
use super::stream::Stream;
use crate::error::{Error, Result};

/// A loaded `extern "C"` kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernel {
    device: &'static Device,
    symbol: &'static str,
    function: CUfunction,
    parameters: usize,
}

// SAFETY: a handle, not memory: the driver takes it from any thread, and it lives as long as its module, for ever.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

/// The shape of one launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Launch {
    /// Blocks in x, y and z.
    pub(crate) grid: [u32; 3],
    /// Threads of a block.
    pub(crate) block: u32,
    /// Dynamic shared memory of a block.
    pub(crate) shared_bytes: usize,
    /// Whether it may start while the kernel before it still runs, where the device can (compute capability 9.0).
    /// The kernel must call `overlap_wait()` before it reads what another kernel wrote or writes anything.
    pub(crate) overlap: bool,
}

/// The address of a kernel argument, for [`Kernel::launch`].
pub(crate) fn arg<T: Copy>(value: &T) -> *mut c_void {
    std::ptr::from_ref(value).cast_mut().cast()
}

impl Kernel {
    /// The device's context is current.
    pub(super) fn new(device: &'static Device, symbol: &'static str, function: CUfunction) -> Result<Self> {
        // The driver loads code at its first use, which a capture might not survive.
        // SAFETY: the function was just taken from a loaded module.
        unsafe { sys::cuFuncLoad(function) }.result().about(symbol)?;
        Ok(Self { device, symbol, function, parameters: parameter_count(function, symbol)? })
    }

    /// Allows launches with so much dynamic shared memory.
    pub(crate) fn set_shared_bytes(&self, bytes: usize) -> Result<()> {
        let limit = self.device.shared_bytes_per_block;
        let value = i32::try_from(bytes).ok().filter(|_| bytes <= limit).ok_or_else(|| {
            Error::invalid(
                self.symbol,
                format!("{bytes} bytes of shared memory, a block has {limit} at most"),
            )
        })?;
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let _entered = self.device.enter()?;
        // SAFETY: the function's module is never unloaded.
        unsafe { function::set_function_attribute(self.function, attribute, value) }.about(self.symbol)
    }

    /// How many blocks of this shape a multiprocessor holds at once.
    pub(crate) fn occupancy(&self, block_threads: u32, shared_bytes: usize) -> Result<u32> {
        let threads = i32::try_from(block_threads).unwrap_or(i32::MAX);
        let _entered = self.device.enter()?;
        // SAFETY: the function's module is never unloaded.
        let blocks =
            unsafe { occupancy::max_active_block_per_multiprocessor(self.function, threads, shared_bytes) }
                .about(self.symbol)?;
        Ok(u32::try_from(blocks).unwrap_or(0))
    }

    /// Puts a launch on the stream.
    ///
    /// # Safety
    /// `args` are the addresses of values of the kernel's parameter types, in order; what they point to on the device
    /// is valid for what the kernel does with it until the launch has run; the stream is of the kernel's device.
    pub(crate) unsafe fn launch(&self, stream: Stream, launch: &Launch, args: &[*mut c_void]) -> Result<()> {
        if args.len() != self.parameters {
            let (got, wanted) = (args.len(), self.parameters);
            return Err(Error::invalid(
                self.symbol,
                format!("{got} arguments, the kernel has {wanted} parameters"),
            ));
        }
        let mut overlap = overlap_attribute();
        let config = CUlaunchConfig {
            gridDimX: launch.grid[0],
            gridDimY: launch.grid[1],
            gridDimZ: launch.grid[2],
            blockDimX: launch.block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: u32::try_from(launch.shared_bytes).unwrap_or(u32::MAX),
            hStream: stream.handle(),
            attrs: &mut overlap,
            numAttrs: u32::from(launch.overlap && self.device.compute.0 >= 9),
        };
        let _entered = self.device.enter()?;
        // SAFETY: as many arguments as parameters, checked above, of the right types by the caller's promise; the driver
        // copies the values and writes to neither array.
        let status = unsafe {
            sys::cuLaunchKernelEx(&config, self.function, args.as_ptr().cast_mut(), std::ptr::null_mut())
        };
        status.result().about(self.symbol)
    }
}

/// Programmatic stream serialization: the launch may start before the one ahead of it has finished.
fn overlap_attribute() -> CUlaunchAttribute {
    CUlaunchAttribute {
        id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value: CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
    }
}

/// The driver answers for one parameter after the other, and says "invalid value" after the last.
fn parameter_count(function: CUfunction, symbol: &str) -> Result<usize> {
    let mut count = 0;
    loop {
        let (mut offset, mut bytes) = (0, 0);
        // SAFETY: a loaded function, and pointers to live integers.
        match unsafe { sys::cuFuncGetParamInfo(function, count, &mut offset, &mut bytes) } {
            CUresult::CUDA_SUCCESS => count += 1,
            CUresult::CUDA_ERROR_INVALID_VALUE => return Ok(count),
            status => status.result().about(symbol)?,
        }
    }
}
