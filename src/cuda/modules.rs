//! The modules that a device has loaded.

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Mutex, PoisonError};

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUmodule};

use super::architecture::Target;
use super::at_once::at_once;
use super::cache::DiskCache;
use super::compile::compile;
use super::device::Device;
use super::driver::{self, DriverContext};
use super::kernel::Kernel;
use super::kernels::{Source, HEADERS};
use super::slots::Slots;
use crate::error::{Error, Result};

/// Loaded modules and the kernels taken from them.
#[derive(Debug)]
pub(super) struct Modules {
    target: Target,
    cache: DiskCache,
    compile: Compile,
    loaded: Slots<Module>,
    kernels: Mutex<HashMap<(&'static str, &'static str), Kernel>>,
}

/// Makes the binary of a module that the cache does not have.
pub(super) type Compile = fn(&Source, &Target) -> Result<Vec<u8>>;

/// From the embedded source.
pub(super) fn by_compiler(source: &Source, target: &Target) -> Result<Vec<u8>> {
    compile(source, HEADERS, target).map(|compiled| compiled.binary)
}

#[derive(Clone, Copy, Debug)]
struct Module(CUmodule);

// SAFETY: a handle, not memory: the driver takes it from any thread.
unsafe impl Send for Module {}

impl Modules {
    pub(super) fn new(target: Target, cache: DiskCache, compile: Compile) -> Self {
        Self { target, cache, compile, loaded: Slots::default(), kernels: Mutex::default() }
    }

    /// None loaded yet, for the same target.
    pub(super) fn anew(&self, cache: DiskCache, compile: Compile) -> Self {
        Self::new(self.target.clone(), cache, compile)
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

    /// Loads modules unless they are loaded, all at once on as many threads as the machine has cores, begun in this order.
    pub(super) fn prepare(&self, device: &Device, sources: &[&'static Source]) -> Result<()> {
        let mut wanted: Vec<&'static Source> = Vec::new();
        for &source in sources {
            if !self.loaded.has(source.name) && !wanted.iter().any(|other| other.name == source.name) {
                wanted.push(source);
            }
        }
        at_once(&wanted, |&source| self.load(device, source).map(|_| ()))
    }

    fn load(&self, device: &Device, source: &'static Source) -> Result<Module> {
        self.loaded.get_or_make(source.name, || self.build(device, source))
    }

    fn build(&self, device: &Device, source: &'static Source) -> Result<Module> {
        let driver = driver::version().about(source.name)?;
        let binary = self
            .cache
            .compiled(source, HEADERS, &self.target, driver, || (self.compile)(source, &self.target))?;
        let _entered = device.enter()?;
        // SAFETY: an ELF file, whose header tells the driver its size, or PTX with its terminator: as NVRTC made it now, or made it once and the
        // cache kept it, which checks both its checksum and that it has such an end.
        let module = unsafe { result::module::load_data(binary.as_ptr().cast()) }.about(source.name)?;
        if let Err(error) = load_functions(module) {
            // Its own failure would tell less than the one before.
            // SAFETY: loaded above, known to nobody else.
            let _ = unsafe { sys::cuModuleUnload(module) };
            return Err(error).about(source.name);
        }
        Ok(Module(module))
    }

    /// Unloads all modules, also after one that fails: the first failure is told.
    ///
    /// # Safety
    /// No kernel of them is used any more.
    pub(super) unsafe fn unload(self, device: &Device) -> Result<()> {
        let _entered = device.enter()?;
        let mut all = Ok(());
        for (name, Module(module)) in self.loaded.into_values() {
            // SAFETY: loaded by `build` in this context, and taken out of its slot; the rest is the caller's promise.
            all = all.and(unsafe { sys::cuModuleUnload(module) }.result().about(name));
        }
        all
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
