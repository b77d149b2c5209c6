//! The source files that a device has loaded.

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::result;
use cudarc::driver::sys::CUmodule;

use super::architecture::Target;
use super::cache::{DiskCache, Versions};
use super::compile::{compile, compiler_version};
use super::device::Device;
use super::driver::{self, DriverContext};
use super::kernel::Kernel;
use super::kernels::{Source, HEADERS};
use crate::error::{Error, Result};

/// Loaded source files and the kernels taken from them, never unloaded.
#[derive(Debug)]
pub(super) struct Modules {
    target: Target,
    loaded: Mutex<HashMap<&'static str, Slot>>,
    kernels: Mutex<HashMap<(&'static str, &'static str), Kernel>>,
}

/// A lock of its own for each file: one compiles while others load, and nothing compiles twice.
type Slot = Arc<Mutex<Option<Module>>>;

#[derive(Clone, Copy, Debug)]
pub(super) struct Module(CUmodule);

// SAFETY: a handle, not memory: the driver takes it from any thread, and it is never unloaded.
unsafe impl Send for Module {}

impl Modules {
    pub(super) fn new(target: Target) -> Self {
        Self { target, loaded: Mutex::default(), kernels: Mutex::default() }
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

    /// Loads a file unless it is loaded.
    pub(super) fn load(&self, device: &Device, source: &'static Source) -> Result<Module> {
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
        let versions =
            Versions { compiler: compiler_version()?, driver: driver::version().about(source.name)? };
        let binary = DiskCache::of_user().compiled(source, HEADERS, &self.target, versions, || {
            compile(source, HEADERS, &self.target).map(|compiled| compiled.binary)
        })?;
        let _entered = device.enter()?;
        // SAFETY: an ELF file, whose header tells the driver its size, or PTX with its terminator, as NVRTC made it.
        let module = unsafe { result::module::load_data(binary.as_ptr().cast()) }.about(source.name)?;
        Ok(Module(module))
    }
}

fn kernel_of(device: &'static Device, module: Module, symbol: &'static str) -> Result<Kernel> {
    let name =
        CString::new(symbol).map_err(|error| Error::invalid(symbol, "has a NUL byte").with_source(error))?;
    let _entered = device.enter()?;
    // SAFETY: modules are never unloaded.
    let function = unsafe { result::module::get_function(module.0, name) }.about(symbol)?;
    Kernel::new(device, symbol, function)
}
