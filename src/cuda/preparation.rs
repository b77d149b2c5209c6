//! How long it takes until all kernels can be launched: in the first run, and in later ones.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::architecture::Target;
use super::cache::DiskCache;
use super::device::{device, Device};
use super::kernels::{Source, ALL};
use super::modules::{by_compiler, Compile};
use crate::error::{Error, ErrorKind, Result};

/// Times to make every kernel ready on a GPU.
///
/// Made by [`time_kernel_preparation`]; see its example.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct KernelPreparation {
    /// Modules that the kernels are compiled as. A model needs some of them.
    pub count: usize,
    /// Compiling all of them, on as many threads as the machine has cores, and loading them.
    pub compile_seconds: f64,
    /// Loading all of them from the cache on disk.
    pub cached_seconds: f64,
}

/// Makes every kernel ready on the GPU with this number, first with an empty cache in a folder of its own, then again with what
/// that left there. What the process has loaded already is neither used nor changed, nor is the user's cache.
///
/// ```no_run
/// // Needs a GPU.
/// let ready = codecllm::cuda::time_kernel_preparation(0)?;
/// println!("{} modules: {} s, then {} s", ready.count, ready.compile_seconds, ready.cached_seconds);
/// # Ok::<(), codecllm::Error>(())
/// ```
///
/// # Errors
/// As [`load`](super::load); [`ErrorKind::Io`](crate::ErrorKind::Io) without a place for temporary files or room in it, and what
/// the compiler and the driver report.
pub fn time_kernel_preparation(ordinal: usize) -> Result<KernelPreparation> {
    let device = device(ordinal)?;
    let folder = tempfile::tempdir().map_err(|error| Error::io(std::env::temp_dir(), error))?;
    let cache = DiskCache::in_folder(folder.path());
    let time = |compile| prepare_all(device, cache.clone(), compile).map(|time| time.as_secs_f64());
    Ok(KernelPreparation {
        count: ALL.len(),
        compile_seconds: time(by_compiler)?,
        cached_seconds: time(not_kept)?,
    })
}

/// Instead of the compiler, where everything should be in the cache: its time would pass for the cache's.
fn not_kept(source: &Source, _: &Target) -> Result<Vec<u8>> {
    let message = "was compiled, but is not in the cache on disk (is the folder for temporary files full?)";
    Err(Error::new(ErrorKind::Io, source.name, message))
}

fn prepare_all(device: &Device, cache: DiskCache, compile: Compile) -> Result<Duration> {
    let modules = device.new_modules(cache, compile);
    let start = Instant::now();
    let prepared = modules.prepare(device, ALL);
    let time = start.elapsed();
    // SAFETY: no kernel was taken from them.
    let unloaded = unsafe { modules.unload(device) };
    prepared.and(unloaded).map(|()| time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_that_keeps_nothing_is_an_error_and_no_time() {
        // A file in the folder's place: root, too, fails to write below it.
        let file = tempfile::NamedTempFile::new().unwrap();
        let (cache, target) = (DiskCache::in_folder(file.path()), Target::Cubin("sm_90a"));
        let ask = |compile: Compile| cache.compiled(ALL[0], &[], &target, 0, || compile(ALL[0], &target));
        assert_eq!(ask(|_, _| Ok(vec![1])).unwrap(), [1]);
        let error = ask(not_kept).unwrap_err();
        assert_eq!((error.kind(), error.subject()), (ErrorKind::Io, ALL[0].name));
    }
}
