//! One GPU: its limits, libtorch's streams on it, and its kernels.

use std::sync::{PoisonError, RwLock};

use cudarc::driver::result::{self, ctx, primary_ctx};
use cudarc::driver::sys::{CUcontext, CUdevice, CUdevice_attribute};

use super::architecture::Target;
use super::cache::DiskCache;
use super::driver::{self, DriverContext};
use super::kernel::Kernel;
use super::kernels::Source;
use super::library::{self, StreamGuardHandle, TorchCuda};
use super::modules::{by_compiler, Compile, Modules};
use super::stream::Stream;
use crate::error::{Error, Result};

/// A GPU that is used. There is one value a process and GPU, alive until the process ends.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) ordinal: usize,
    /// Compute capability, major and minor.
    pub(crate) compute: (u32, u32),
    pub(crate) multiprocessors: u32,
    /// The most that one block may have, after asking for it by `Kernel::set_shared_bytes`.
    pub(crate) shared_bytes_per_block: usize,
    pub(crate) shared_bytes_per_multiprocessor: usize,
    context: Context,
    modules: Modules,
}

/// The device's primary context, which is libtorch's own.
#[derive(Clone, Copy, Debug)]
struct Context(CUcontext);

// SAFETY: a handle, not memory: the driver takes it from any thread, and it is never released.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// The GPU with this number, as libtorch counts them. Loads CUDA at the first call.
pub(crate) fn device(ordinal: usize) -> Result<&'static Device> {
    static DEVICES: RwLock<Vec<&'static Device>> = RwLock::new(Vec::new());
    let find = |devices: &[&'static Device]| devices.iter().copied().find(|device| device.ordinal == ordinal);
    if let Some(device) = find(&DEVICES.read().unwrap_or_else(PoisonError::into_inner)) {
        return Ok(device);
    }
    let mut devices = DEVICES.write().unwrap_or_else(PoisonError::into_inner);
    if let Some(device) = find(&devices) {
        return Ok(device);
    }
    // Leaked: kernels and graphs refer to it, and it holds the context until the process ends.
    let device: &'static Device = Box::leak(Box::new(Device::open(ordinal)?));
    devices.push(device);
    Ok(device)
}

/// The driver's handle of a device that exists.
pub(super) fn handle(ordinal: usize) -> Result<CUdevice> {
    let count = driver::initialize()?;
    match i32::try_from(ordinal) {
        Ok(number) if number < count => result::device::get(number).about(&subject(ordinal)),
        _ => {
            Err(Error::invalid(subject(ordinal), format!("no such GPU, {count} found (cuda:0 is the first)")))
        }
    }
}

pub(super) fn subject(ordinal: usize) -> String {
    format!("cuda:{ordinal}")
}

/// An attribute of a device; all that are asked for are counts and sizes.
pub(super) fn attribute(handle: CUdevice, attribute: CUdevice_attribute) -> Result<u32> {
    // SAFETY: the handle comes from `handle`.
    let value = unsafe { result::device::get_attribute(handle, attribute) }.about("device attribute")?;
    Ok(u32::try_from(value).unwrap_or(0))
}

impl Device {
    fn open(ordinal: usize) -> Result<Self> {
        use CUdevice_attribute as Attribute;
        library::load()?;
        let handle = handle(ordinal)?;
        let number = |which| attribute(handle, which);
        let compute = (
            number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        let target = Target::for_compute(compute)?;
        // SAFETY: the handle comes from the driver.
        let context = unsafe { primary_ctx::retain(handle) }.about(&subject(ordinal))?;
        Ok(Self {
            ordinal,
            compute,
            multiprocessors: number(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_bytes_per_block: number(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?
                as usize,
            shared_bytes_per_multiprocessor: number(
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR,
            )? as usize,
            context: Context(context),
            modules: Modules::new(target, DiskCache::of_user(), by_compiler),
        })
    }

    /// Makes the device's context current on this thread until the guard is dropped.
    pub(super) fn enter(&self) -> Result<Entered> {
        let previous = ctx::get_current().about("current context")?;
        if previous == Some(self.context.0) {
            return Ok(Entered { restore: None });
        }
        // SAFETY: the context was retained when the device was opened, and never released.
        unsafe { ctx::set_current(self.context.0) }.about(&self.subject())?;
        Ok(Entered { restore: Some(previous.unwrap_or(std::ptr::null_mut())) })
    }

    /// A kernel of a module, compiled (or read from the cache on disk) and loaded at the first call.
    pub(crate) fn kernel(&'static self, source: &'static Source, symbol: &'static str) -> Result<Kernel> {
        self.modules.kernel(self, source, symbol)
    }

    /// Compiles and loads several modules at once, so that no later call waits for the compiler.
    pub(crate) fn prepare(&'static self, sources: &[&'static Source]) -> Result<()> {
        self.modules.prepare(self, sources)
    }

    /// Modules of its own, none loaded yet.
    pub(super) fn new_modules(&self, cache: DiskCache, compile: Compile) -> Modules {
        self.modules.anew(cache, compile)
    }

    /// libtorch's current stream on this thread.
    pub(crate) fn current_stream(&self) -> Result<Stream> {
        Ok(Stream::new(library::torch()?.current_stream(self.number()?)?))
    }

    /// A stream of libtorch's pool, other than the default stream.
    pub(crate) fn pool_stream(&self) -> Result<Stream> {
        let _entered = self.enter()?;
        Ok(Stream::new(library::torch()?.stream_from_pool(self.number()?)?))
    }

    /// Runs `work` with `stream` as libtorch's current stream and this device as its current device, on this thread.
    pub(crate) fn with_stream<T>(&self, stream: Stream, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let _entered = self.enter()?;
        let torch = library::torch()?;
        // SAFETY: a `Stream` is one of libtorch's, which live as long as the process.
        let handle = unsafe { torch.create_stream_guard(stream.handle().cast(), self.number()?) }?;
        let _guard = StreamGuard { torch, handle };
        work()
    }

    /// Waits until everything on the stream has run.
    pub(crate) fn synchronize(&self, stream: Stream) -> Result<()> {
        let _entered = self.enter()?;
        // SAFETY: a `Stream` is one of libtorch's, which live as long as the process.
        unsafe { result::stream::synchronize(stream.handle()) }.about(&self.subject())
    }

    /// Memory of the device that no process occupies, and all of it.
    pub(crate) fn free_and_total_bytes(&self) -> Result<(usize, usize)> {
        let _entered = self.enter()?;
        result::mem_get_info().about(&self.subject())
    }

    /// `cuda:0` and so on.
    pub(super) fn subject(&self) -> String {
        subject(self.ordinal)
    }

    /// The ordinal as libtorch's C functions take it.
    fn number(&self) -> Result<i32> {
        i32::try_from(self.ordinal)
            .map_err(|error| Error::invalid(self.subject(), "no such GPU").with_source(error))
    }
}

/// Puts back the context that was current before: libtorch's current device is the current context.
#[derive(Debug)]
pub(super) struct Entered {
    restore: Option<CUcontext>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Some(previous) = self.restore {
            // SAFETY: it was current on this thread when the guard was made, or is null, which means none.
            let _ = unsafe { ctx::set_current(previous) };
        }
    }
}

/// Puts back the stream that was current before, also after an error or a panic.
struct StreamGuard {
    torch: &'static TorchCuda,
    handle: StreamGuardHandle,
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        // SAFETY: made by `create_stream_guard` on this thread: the guard never leaves `with_stream`.
        unsafe { self.torch.delete_stream_guard(self.handle) };
    }
}
