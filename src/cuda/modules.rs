//! The modules that a device has loaded.

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUmodule};

use super::architecture::Target;
use super::cache::DiskCache;
use super::compile::compile;
use super::device::Device;
use super::driver::{self, DriverContext};
use super::kernel::Kernel;
use super::kernels::{Source, HEADERS};
use crate::error::{Error, Result};

/// Loaded modules and the kernels taken from them.
#[derive(Debug)]
pub(super) struct Modules {
    target: Target,
    cache: DiskCache,
    loaded: Mutex<HashMap<&'static str, Slot>>,
    kernels: Mutex<HashMap<(&'static str, &'static str), Kernel>>,
}

/// A lock of its own for each module: one compiles while others load, and nothing compiles twice.
type Slot = Arc<Mutex<Option<Module>>>;

#[derive(Clone, Copy, Debug)]
struct Module(CUmodule);

// SAFETY: a handle, not memory: the driver takes it from any thread.
unsafe impl Send for Module {}

impl Modules {
    pub(super) fn new(target: Target, cache: DiskCache) -> Self {
        Self { target, cache, loaded: Mutex::default(), kernels: Mutex::default() }
    }

    /// None loaded yet, for the same target.
    pub(super) fn anew(&self, cache: DiskCache) -> Self {
        Self::new(self.target.clone(), cache)
    }

    /// The kernel `symbol` of `source`.
    pub(super) fn kernel(
        &self,
        device: &'static Device,
        source: &'static Source,
        symbol: &'static str,
    ) -> Result<Kernel> {
        let key = (source.name, symbol);
        if let Some(kernel) = self.kernels.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(*kernel);
        }
        let module = self.load(device, source)?;
        let kernel = kernel_of(device, module, symbol)?;
        self.kernels.lock().unwrap_or_else(PoisonError::into_inner).insert(key, kernel);
        Ok(kernel)
    }

    /// Loads modules unless they are loaded, all at once on as many threads as the machine has cores.
    pub(super) fn prepare(&self, device: &Device, sources: &[&'static Source]) -> Result<()> {
        use rayon::prelude::*;
        // One at a time each: they differ in how long they take.
        sources.par_iter().with_max_len(1).try_for_each(|source| self.load(device, source).map(|_| ()))
    }

    fn load(&self, device: &Device, source: &'static Source) -> Result<Module> {
        let slot = Arc::clone(
            self.loaded.lock().unwrap_or_else(PoisonError::into_inner).entry(source.name).or_default(),
        );
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = *slot {
            return Ok(module);
        }
        let module = self.build(device, source)?;
        *slot = Some(module);
        Ok(module)
    }

    fn build(&self, device: &Device, source: &'static Source) -> Result<Module> {
        let driver = driver::version().about(source.name)?;
        let binary = self.cache.compiled(source, HEADERS, &self.target, driver, || {
            compile(source, HEADERS, &self.target).map(|compiled| compiled.binary)
        })?;
        let _entered = device.enter()?;
        // SAFETY: an ELF file, whose header tells the driver its size, or PTX with its terminator, as NVRTC made it.
        let module = unsafe { result::module::load_data(binary.as_ptr().cast()) }.about(source.name)?;
        load_functions(module).about(source.name)?;
        Ok(Module(module))
    }

    /// Unloads all modules.
    ///
    /// # Safety
    /// No kernel of them is used any more.
    pub(super) unsafe fn unload(self, device: &Device) -> Result<()> {
        let _entered = device.enter()?;
        for (name, slot) in self.loaded.into_inner().unwrap_or_else(PoisonError::into_inner) {
            let module = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(Module(module)) = module {
                // SAFETY: loaded by `build` in this context, and taken out of its slot; the rest is the caller's promise.
                unsafe { sys::cuModuleUnload(module) }.result().about(name)?;
            }
        }
        Ok(())
    }
}

/// The driver brings code to the device at its first use, which would be in the middle of the work, or of a capture.
fn load_functions(module: CUmodule) -> std::result::Result<(), result::DriverError> {
    let mut count = 0;
    // SAFETY: a loaded module, and a pointer to a live integer.
    unsafe { sys::cuModuleGetFunctionCount(&mut count, module) }.result()?;
    let mut functions = vec![std::ptr::null_mut(); count as usize];
    // SAFETY: a loaded module, and room for as many functions as are asked for.
    unsafe { sys::cuModuleEnumerateFunctions(functions.as_mut_ptr(), count, module) }.result()?;
    // SAFETY: functions of a loaded module.
    functions.into_iter().try_for_each(|function| unsafe { sys::cuFuncLoad(function) }.result())
}

fn kernel_of(device: &'static Device, module: Module, symbol: &'static str) -> Result<Kernel> {
    let name =
        CString::new(symbol).map_err(|error| Error::invalid(symbol, "has a NUL byte").with_source(error))?;
    let _entered = device.enter()?;
    // SAFETY: the modules of a device are never unloaded.
    let function = unsafe { result::module::get_function(module.0, name) }.about(symbol)?;
    Kernel::new(device, symbol, function)
}
