//! How long it takes until all kernels can be launched: in the first run, and in later ones.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::cache::DiskCache;
use super::device::{device, Device};
use super::kernels::ALL;
use crate::error::{Error, Result};

/// Times to make every kernel ready on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct KernelPreparation {
    /// Modules that the kernels are compiled as. A model needs some of them.
    pub count: usize,
    /// Compiling all of them, each on a thread, and loading them.
    pub compile_seconds: f64,
    /// Loading all of them from the cache on disk.
    pub cached_seconds: f64,
}

/// Makes every kernel ready on the GPU with this number, first with an empty cache in a folder of its own, then again with what
/// that left there. What the process has loaded already is neither used nor changed, nor is the user's cache.
///
/// # Errors
/// As [`load`](super::load); [`ErrorKind::Io`](crate::ErrorKind::Io) without a place for temporary files, and what the compiler and
/// the driver report.
pub fn time_kernel_preparation(ordinal: usize) -> Result<KernelPreparation> {
    let device = device(ordinal)?;
    let folder = tempfile::tempdir().map_err(|error| Error::io(std::env::temp_dir(), error))?;
    let cache = DiskCache::in_folder(folder.path());
    let time = || prepare_all(device, cache.clone()).map(|time| time.as_secs_f64());
    Ok(KernelPreparation { count: ALL.len(), compile_seconds: time()?, cached_seconds: time()? })
}

fn prepare_all(device: &Device, cache: DiskCache) -> Result<Duration> {
    let modules = device.new_modules(cache);
    let start = Instant::now();
    modules.prepare(device, ALL)?;
    let time = start.elapsed();
    // SAFETY: no kernel was taken from them.
    unsafe { modules.unload(device) }?;
    Ok(time)
}
