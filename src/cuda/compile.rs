//! Compiles device code with NVRTC, which needs neither a GPU nor a toolkit.

use std::ffi::{c_char, CString};
use std::sync::OnceLock;

use cudarc::nvrtc::result::{self, NvrtcError};
use cudarc::nvrtc::sys::{self, nvrtcProgram};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::architecture::{Target, ARCHITECTURES};
use super::kernels::{Source, ALL, HEADERS};
use super::library::beside_libtorch_cpu;
use crate::error::{Error, ErrorKind, Result};

/// Line numbers cost nothing at run time and name the line in a profiler and in `compute-sanitizer`.
pub(super) const OPTIONS: [&str; 2] = ["--std=c++17", "-lineinfo"];

/// A kernel file, compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// The file's name in `csrc/kernels`.
    pub name: &'static str,
    /// Machine code (an ELF file) or PTX.
    pub binary: Vec<u8>,
    /// What the compiler said: empty without warnings.
    pub log: String,
}

/// Compiles every kernel file for one of [`ARCHITECTURES`], on as many threads as the machine has cores.
///
/// ```
/// # if codecllm::cuda::has_compiler() {
/// for compiled in codecllm::cuda::compile_all("sm_90a")? {
///     println!("{}: {} bytes", compiled.name, compiled.binary.len());
/// }
/// # }
/// # Ok::<(), codecllm::Error>(())
/// ```
///
/// # Errors
/// [`ErrorKind::InvalidArgument`] for another architecture, [`ErrorKind::Unsupported`] without NVRTC, and
/// [`ErrorKind::Cuda`] with the compiler's message where a file does not compile.
pub fn compile_all(arch: &str) -> Result<Vec<Compiled>> {
    use rayon::prelude::*;
    let Some(arch) = ARCHITECTURES.into_iter().find(|known| *known == arch) else {
        return Err(Error::invalid(
            arch,
            format!("no architecture of ours, one of {ARCHITECTURES:?} is wanted"),
        ));
    };
    ALL.par_iter().map(|source| compile(source, HEADERS, &Target::Cubin(arch))).collect()
}

/// Whether NVRTC can be loaded. It comes with libtorch's CUDA packages.
pub fn has_compiler() -> bool {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    *PRESENT.get_or_init(|| {
        // SAFETY: loading NVRTC runs only its own initializers.
        let present = || unsafe { sys::is_culib_present() };
        present() || (load_beside_libtorch().is_some() && present())
    })
}

/// Loads the NVRTC that pip put beside libtorch, after which the linker finds it by its name alone.
fn load_beside_libtorch() -> Option<()> {
    let torch_lib = beside_libtorch_cpu()?;
    let packages = torch_lib.ancestors().nth(3)?;
    // SAFETY: as above.
    let library = unsafe {
        Library::open(Some(packages.join("nvidia/cu13/lib/libnvrtc.so.13")), RTLD_NOW | RTLD_LOCAL)
    }
    .ok()?;
    std::mem::forget(library);
    Some(())
}

/// NVRTC's version, major and minor.
pub(super) fn compiler_version() -> Result<(i32, i32)> {
    require_compiler()?;
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the pointers are to live integers.
    unsafe { sys::nvrtcVersion(&mut major, &mut minor) }.result().map_err(|error| failure("NVRTC", error))?;
    Ok((major, minor))
}

fn require_compiler() -> Result<()> {
    if has_compiler() {
        return Ok(());
    }
    Err(Error::unsupported(
        "NVRTC",
        "libnvrtc.so.13 does not load; install it (pip install nvidia-cuda-nvrtc, or scripts/setup.sh), or put its \
         folder into LD_LIBRARY_PATH",
    ))
}

/// Compiles one file; `headers` are what it may include.
pub(super) fn compile(source: &Source, headers: &[Source], target: &Target) -> Result<Compiled> {
    require_compiler()?;
    let program = Program::new(source, headers)?;
    let compiled = program.compile(target);
    let log = program.log();
    match compiled {
        Ok(()) => Ok(Compiled { name: source.name, binary: program.binary(target)?, log }),
        Err(error) => {
            let version =
                compiler_version().map_or_else(|_| String::new(), |(x, y)| format!("NVRTC {x}.{y}, "));
            let message = format!("does not compile for {}: {version}{error}\n{log}", target.name());
            Err(Error::new(ErrorKind::Cuda, source.name, message.trim_end()).with_source(error))
        }
    }
}

/// An NVRTC program; owns it. NVRTC keeps copies of the texts.
struct Program {
    name: &'static str,
    program: nvrtcProgram,
}

impl Program {
    fn new(source: &Source, headers: &[Source]) -> Result<Self> {
        let name = c_string(source.name, source.name)?;
        let text = c_string(source.name, source.text)?;
        let header_names: Vec<CString> =
            headers.iter().map(|header| c_string(header.name, header.name)).collect::<Result<_>>()?;
        let header_texts: Vec<CString> =
            headers.iter().map(|header| c_string(header.name, header.text)).collect::<Result<_>>()?;
        let (names, texts) = (pointers(&header_names), pointers(&header_texts));
        let count = i32::try_from(headers.len()).unwrap_or(i32::MAX);
        let mut program = std::ptr::null_mut();
        // SAFETY: NUL-terminated strings and arrays of `count` of them, all alive during the call.
        let status = unsafe {
            sys::nvrtcCreateProgram(
                &mut program,
                text.as_ptr(),
                name.as_ptr(),
                count,
                texts.as_ptr(),
                names.as_ptr(),
            )
        };
        status.result().map_err(|error| failure(source.name, error))?;
        Ok(Self { name: source.name, program })
    }

    fn compile(&self, target: &Target) -> std::result::Result<(), NvrtcError> {
        let mut options = vec![format!("--gpu-architecture={}", target.name())];
        options.extend(OPTIONS.map(str::to_owned));
        // SAFETY: the program is alive until drop.
        unsafe { result::compile_program(self.program, &options) }
    }

    /// What the compiler said, without the terminator.
    fn log(&self) -> String {
        // SAFETY: as above.
        let log = unsafe { result::get_program_log(self.program) }.unwrap_or_default();
        let bytes: Vec<u8> =
            log.into_iter().map(c_char::cast_unsigned).take_while(|byte| *byte != 0).collect();
        String::from_utf8_lossy(&bytes).trim().to_owned()
    }

    fn binary(&self, target: &Target) -> Result<Vec<u8>> {
        let binary = match target {
            Target::Cubin(_) => self.cubin(),
            Target::Ptx(_) => self.ptx(),
        };
        binary.map_err(|error| failure(self.name, error))
    }

    fn cubin(&self) -> std::result::Result<Vec<u8>, NvrtcError> {
        let mut bytes = 0;
        // SAFETY: the program is alive; the pointer is to a live integer.
        unsafe { sys::nvrtcGetCUBINSize(self.program, &mut bytes) }.result()?;
        let mut cubin = vec![0_u8; bytes];
        // SAFETY: the buffer has the size that NVRTC just asked for.
        unsafe { sys::nvrtcGetCUBIN(self.program, cubin.as_mut_ptr().cast()) }.result()?;
        Ok(cubin)
    }

    /// With its terminator, as the driver wants it.
    fn ptx(&self) -> std::result::Result<Vec<u8>, NvrtcError> {
        // SAFETY: the program is alive.
        let ptx = unsafe { result::get_ptx(self.program) }?;
        Ok(ptx.into_iter().map(c_char::cast_unsigned).collect())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: created by `new`, destroyed once.
        let _ = unsafe { result::destroy_program(self.program) };
    }
}

fn failure(subject: &str, error: NvrtcError) -> Error {
    Error::new(ErrorKind::Cuda, subject, format!("NVRTC failed: {error}")).with_source(error)
}

fn c_string(subject: &str, text: &str) -> Result<CString> {
    CString::new(text).map_err(|error| Error::invalid(subject, "has a NUL byte").with_source(error))
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).collect()
}
