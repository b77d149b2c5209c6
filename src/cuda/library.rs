//! `libtorch_cuda`, loaded at run time, and the C functions of it that are called here.

use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use super::driver;
use crate::error::{Error, ErrorKind, Result};

const FILE: &str = "libtorch_cuda.so";

/// Loads the CUDA part of libtorch, before libtorch is first asked about CUDA. Later calls repeat the first answer.
///
/// ```
/// use codecllm::cuda;
/// match cuda::load() {
///     Ok(()) => println!("{}", cuda::device_info(0)?.name),
///     Err(error) => println!("{error}"), // CUDA: no NVIDIA driver here (...); install one, or use the CPU
/// }
/// assert_eq!(cuda::is_available(), cuda::load().is_ok());
/// # Ok::<(), codecllm::Error>(())
/// ```
///
/// # Errors
/// [`ErrorKind::Unsupported`] where there is no driver, no GPU or no `libtorch_cuda`, or where libtorch was asked about
/// CUDA before: the message says which, and the cure.
pub fn load() -> Result<()> {
    torch().map(|_| ())
}

/// Whether CUDA can be used; loads it.
///
/// The answer of [`load`] without its words; see its example.
pub fn is_available() -> bool {
    load().is_ok()
}

/// What a function of libtorch's C interface returns: zero for success.
type Status = i32;

/// An opaque `CUDAStreamGuardOpaque*`.
pub(super) type StreamGuardHandle = *mut c_void;

/// libtorch's C functions, declared in its `torch/csrc/inductor/aoti_torch/c/shim.h` and `torch/csrc/stable/c/shim.h`.
pub(super) struct TorchCuda {
    current_stream: unsafe extern "C" fn(i32, *mut *mut c_void) -> Status,
    stream_from_pool: unsafe extern "C" fn(bool, i32, *mut *mut c_void) -> Status,
    create_stream_guard: unsafe extern "C" fn(*mut c_void, i32, *mut StreamGuardHandle) -> Status,
    delete_stream_guard: unsafe extern "C" fn(StreamGuardHandle) -> Status,
}

/// The loaded library.
pub(super) fn torch() -> Result<&'static TorchCuda> {
    static TORCH: OnceLock<std::result::Result<TorchCuda, String>> = OnceLock::new();
    driver::initialize()?;
    let torch = TORCH.get_or_init(TorchCuda::load);
    torch.as_ref().map_err(|reason| Error::unsupported("CUDA", reason.clone()))
}

impl TorchCuda {
    fn load() -> std::result::Result<Self, String> {
        let library = open()?;
        let torch =
            Self::resolve(&library).map_err(|error| format!("{FILE}: {error}; libtorch 2.11 is needed"))?;
        // Never unloaded: libtorch keeps pointers into it.
        std::mem::forget(library);
        if tch::Cuda::is_available() {
            Ok(torch)
        } else {
            Err("libtorch says that it has no CUDA; call codecllm::cuda::load() before anything else asks libtorch, \
                 and see that the driver is new enough for this libtorch"
                .to_owned())
        }
    }

    fn resolve(library: &Library) -> std::result::Result<Self, libloading::Error> {
        // SAFETY: the types are those of the declarations in libtorch's C headers.
        unsafe {
            Ok(Self {
                current_stream: *library.get(c"aoti_torch_get_current_cuda_stream")?,
                stream_from_pool: *library.get(c"torch_get_cuda_stream_from_pool")?,
                create_stream_guard: *library.get(c"aoti_torch_create_cuda_stream_guard")?,
                delete_stream_guard: *library.get(c"aoti_torch_delete_cuda_stream_guard")?,
            })
        }
    }

    /// The calling thread's current stream of the device.
    pub(super) fn current_stream(&self, device: i32) -> Result<*mut c_void> {
        let mut stream = std::ptr::null_mut();
        // SAFETY: the pointer is to a live pointer; an unknown device is an error of libtorch's.
        check("current stream", unsafe { (self.current_stream)(device, &mut stream) })?;
        Ok(stream)
    }

    /// One of libtorch's own streams, which it hands out in turn.
    pub(super) fn stream_from_pool(&self, device: i32) -> Result<*mut c_void> {
        let mut stream = std::ptr::null_mut();
        // SAFETY: as above.
        check("stream from the pool", unsafe { (self.stream_from_pool)(false, device, &mut stream) })?;
        Ok(stream)
    }

    /// Makes `stream` current until the guard is deleted, on this thread.
    ///
    /// # Safety
    /// `stream` is a stream of `device`, and lives as long as the guard.
    pub(super) unsafe fn create_stream_guard(
        &self,
        stream: *mut c_void,
        device: i32,
    ) -> Result<StreamGuardHandle> {
        let mut guard = std::ptr::null_mut();
        // SAFETY: the caller's promise; the last pointer is to a live pointer.
        check("stream guard", unsafe { (self.create_stream_guard)(stream, device, &mut guard) })?;
        Ok(guard)
    }

    /// Puts back the stream that was current before.
    ///
    /// # Safety
    /// `guard` comes from `create_stream_guard` on this thread, and is used no more.
    pub(super) unsafe fn delete_stream_guard(&self, guard: StreamGuardHandle) {
        // Nothing useful can be done about a failure here, and libtorch prints it.
        // SAFETY: the caller's promise.
        let _ = unsafe { (self.delete_stream_guard)(guard) };
    }
}

/// libtorch prints the exception behind a failure to the standard error stream.
fn check(subject: &str, status: Status) -> Result<()> {
    match status {
        0 => Ok(()),
        _ => Err(Error::new(ErrorKind::Torch, subject, "libtorch failed, see its message on standard error")),
    }
}

/// Opens the library where the linker finds it, else beside the `libtorch_cpu` that runs.
fn open() -> std::result::Result<Library, String> {
    let mut tried = Vec::new();
    for path in std::iter::once(PathBuf::from(FILE)).chain(beside_libtorch_cpu()) {
        // Global: the CUDA backends register themselves with `libtorch_cpu` and find each other's symbols.
        // SAFETY: the initializers are libtorch's own, which register its CUDA backend.
        match unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) } {
            Ok(library) => return Ok(library),
            Err(error) => tried.push(reason(&error)),
        }
    }
    tried.dedup();
    Err(format!(
        "{FILE} does not load: {}; install libtorch's CUDA packages (scripts/setup.sh cuda), or put their folders \
         into LD_LIBRARY_PATH",
        tried.join("; ")
    ))
}

/// What the dynamic linker said.
fn reason(error: &libloading::Error) -> String {
    use std::error::Error as _;
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

/// Where `libtorch_cuda` is when a program brought its own libtorch by another way than the linker's.
fn beside_libtorch_cpu() -> Option<PathBuf> {
    Some(mapped("libtorch_cpu.so")?.with_file_name(FILE))
}

/// The path of a library that this process has loaded, by the begin of its file name.
pub(super) fn mapped(file: &str) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let paths = maps.lines().filter_map(|line| line.get(line.find('/')?..));
    let path = paths
        .map(Path::new)
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(file)))?;
    Some(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_gpu_the_reason_is_told_again_and_again() {
        let Err(first) = load() else {
            println!("SKIPPED: CUDA is here");
            return;
        };
        let second = load().unwrap_err();
        assert_eq!((first.kind(), second.kind()), (ErrorKind::Unsupported, ErrorKind::Unsupported));
        assert_eq!(first.to_string(), second.to_string());
        assert!(first.to_string().starts_with("CUDA: "), "{first}");
        assert!(!is_available());
        println!("{first}");
    }

    #[test]
    fn a_library_that_does_not_load_is_told_with_the_cure() {
        // Where the CUDA packages are missing, as in the CPU set of libtorch, or on a machine without a driver.
        let Err(reason) = open() else {
            println!("SKIPPED: libtorch_cuda loads");
            return;
        };
        println!("{reason}");
        assert!(reason.starts_with("libtorch_cuda.so does not load: "), "{reason}");
        assert!(reason.contains("LD_LIBRARY_PATH"), "{reason}");
    }

    #[test]
    fn libtorch_cuda_is_looked_for_beside_the_loaded_libtorch() {
        assert!(tch::get_num_threads() > 0, "libtorch runs");
        let path = beside_libtorch_cpu().unwrap();
        assert!(path.ends_with("lib/libtorch_cuda.so"), "{path:?}");
    }
}
