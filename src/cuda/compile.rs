//! Compiles device code with NVRTC, which needs neither a GPU nor a toolkit.

use std::ffi::{c_char, CString};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cudarc::nvrtc::result::{self, NvrtcError};
use cudarc::nvrtc::sys::{self, nvrtcProgram, nvrtcResult};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::architecture::{Target, ARCHITECTURES};
use super::kernels::{Header, Source, ALL, HEADERS};
use super::library::mapped;
use crate::error::{Error, ErrorKind, Result};

pub(super) const LIBRARY: &str = "libnvrtc.so.13";
/// From pip's folder of packages.
const PACKAGED: &str = "nvidia/cu13/lib/libnvrtc.so.13";

/// Line numbers cost nothing at run time and name the line in a profiler and in `compute-sanitizer`.
pub(super) const OPTIONS: [&str; 2] = ["--std=c++17", "-lineinfo"];

/// Beside our own cache on disk one of NVRTC's is of no use, and its time would pass for the compiler's. Version 13.0 knows the
/// option, 12.8 does not. No part of the cache's key: it changes nothing in the binary.
const NO_CACHE: &str = "--no-cache";

/// A module, compiled: a kernel file, or one kernel of a file.
///
/// Made by [`compile_all`]; see its example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// The name of the file in `csrc/kernels`, or of the kernel.
    pub name: &'static str,
    /// Machine code (an ELF file) or PTX.
    pub binary: Vec<u8>,
    /// What the compiler said: empty without warnings.
    pub log: String,
}

/// Compiles every kernel for one of [`ARCHITECTURES`], on rayon's threads.
///
/// ```no_run
/// // Takes two cores a minute.
/// use codecllm::cuda::{compile_all, has_compiler, ARCHITECTURES};
/// if has_compiler() {
///     for compiled in compile_all(ARCHITECTURES[3])? {
///         assert!(compiled.binary.starts_with(b"\x7FELF") && compiled.log.is_empty(), "{}", compiled.name);
///     }
/// }
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
    // One at a time each: they differ in how long they take.
    ALL.par_iter().with_max_len(1).map(|source| compile(source, HEADERS, &Target::Cubin(arch))).collect()
}

/// Whether NVRTC can be loaded. It comes with libtorch's CUDA packages.
///
/// What [`compile_all`] needs; see its example.
pub fn has_compiler() -> bool {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    *PRESENT.get_or_init(load_compiler)
}

/// Loads NVRTC from where the linker finds it, else from where pip puts it beside libtorch. Once it is loaded, every
/// later load by its name finds this one.
fn load_compiler() -> bool {
    let beside_libtorch = mapped("libtorch_cpu.so")
        .and_then(|path| path.ancestors().nth(3).map(|packages| packages.join(PACKAGED)));
    let mut paths = std::iter::once(PathBuf::from(LIBRARY)).chain(beside_libtorch);
    paths.any(|path| keep_loaded(&path));
    // SAFETY: loading NVRTC runs only its own initializers.
    let present = unsafe { sys::is_culib_present() };
    if present {
        load_builtins();
    }
    present
}

/// NVRTC looks for its second library by name alone, where the linker looks: not beside itself.
fn load_builtins() {
    let Some(compiler) = mapped("libnvrtc.so") else { return };
    let entries = compiler.parent().and_then(|folder| std::fs::read_dir(folder).ok());
    for entry in entries.into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("libnvrtc-builtins.so.") {
            keep_loaded(&entry.path());
        }
    }
}

/// Loads a library of NVRTC's for the life of the process.
fn keep_loaded(path: &Path) -> bool {
    // SAFETY: loading NVRTC runs only its own initializers.
    unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map(std::mem::forget).is_ok()
}

/// NVRTC's version, major and minor.
fn compiler_version() -> Result<(i32, i32)> {
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
    let cure = "install it (scripts/setup.sh, or pip install nvidia-cuda-nvrtc), or put its folder into LD_LIBRARY_PATH";
    Err(Error::unsupported("NVRTC", format!("{LIBRARY} does not load; {cure}")))
}

/// Compiles one module; `headers` are what its file may include.
pub(super) fn compile(source: &Source, headers: &[Header], target: &Target) -> Result<Compiled> {
    require_compiler()?;
    let program = Program::new(source, headers)?;
    let compiled = program.compile(target, source.defines, NO_CACHE);
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
    fn new(source: &Source, headers: &[Header]) -> Result<Self> {
        let name = c_string(source.name, source.file)?;
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

    /// With the option `optional`, or without it where this NVRTC does not know it.
    fn compile(
        &self,
        target: &Target,
        defines: &[&str],
        optional: &str,
    ) -> std::result::Result<(), NvrtcError> {
        let architecture = format!("--gpu-architecture={}", target.name());
        let mut options = vec![architecture.as_str()];
        options.extend(OPTIONS.iter().chain(defines));
        options.push(optional);
        // SAFETY: the program is alive until drop.
        let compiled = unsafe { result::compile_program(self.program, &options) };
        if compiled != Err(NvrtcError(nvrtcResult::NVRTC_ERROR_INVALID_OPTION)) {
            return compiled;
        }
        options.pop();
        // SAFETY: as above.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// False, with a message, where there is no NVRTC.
    fn compiler_is_here() -> bool {
        if !has_compiler() {
            println!("SKIPPED: {}", require_compiler().unwrap_err());
        }
        has_compiler()
    }

    static CONVERSIONS: Source = Source::file(
        "conversions.cu",
        r#"
            #include "half.cuh"
            extern "C" __global__ void conversions(const u16* from, u16* to) {
                overlap_wait();
                const u64 at = u64(blockIdx.x) * blockDim.x + threadIdx.x;
                to[2 * at] = float_to_bf16(half_to_float(from[2 * at]));
                to[2 * at + 1] = float_to_half(bf16_to_float(from[2 * at + 1]));
                overlap_trigger();
            }
        "#,
    );

    #[test]
    fn the_headers_compile_for_every_architecture_without_a_warning() {
        if !compiler_is_here() {
            return;
        }
        for arch in ARCHITECTURES {
            let compiled = compile(&CONVERSIONS, HEADERS, &Target::Cubin(arch)).unwrap();
            assert_eq!(compiled.log, "", "{arch}");
            assert_eq!(&compiled.binary[..4], b"\x7fELF", "{arch}");
        }
    }

    #[test]
    fn ptx_is_a_terminated_text_for_its_architecture() {
        if !compiler_is_here() {
            return;
        }
        let compiled = compile(&CONVERSIONS, HEADERS, &Target::Ptx("compute_100".to_owned())).unwrap();
        let ptx = std::ffi::CStr::from_bytes_with_nul(&compiled.binary).unwrap().to_str().unwrap();
        assert!(ptx.contains(".target sm_100") && ptx.contains(".entry conversions("), "{ptx}");
    }

    #[test]
    fn an_option_that_the_compiler_does_not_know_is_left_out() {
        if !compiler_is_here() {
            return;
        }
        let target = Target::Cubin("sm_90a");
        let program = Program::new(&CONVERSIONS, HEADERS).unwrap();
        program.compile(&target, &[], "--of-another-version").unwrap();
        assert_eq!(program.log(), "");
        assert_eq!(&program.binary(&target).unwrap()[..4], b"\x7fELF");
        // Not so one that is not optional.
        let error = program.compile(&target, &["--of-another-version"], NO_CACHE).unwrap_err();
        assert_eq!(error.0, nvrtcResult::NVRTC_ERROR_INVALID_OPTION);
    }

    #[test]
    fn a_mistake_is_told_with_its_file_line_and_architecture() {
        if !compiler_is_here() {
            return;
        }
        static WRONG: Source = Source::file("wrong.cu", "extern \"C\" __global__ void f() {\n  g();\n}");
        let error = compile(&WRONG, &[], &Target::Cubin("sm_90a")).unwrap_err();
        assert_eq!((error.kind(), error.subject()), (ErrorKind::Cuda, "wrong.cu"));
        let text = error.to_string();
        assert!(text.starts_with("wrong.cu: does not compile for sm_90a: NVRTC "), "{text}");
        assert!(text.contains("wrong.cu(2): error: identifier \"g\" is undefined"), "{text}");
    }

    #[test]
    fn a_warning_is_in_the_log() {
        if !compiler_is_here() {
            return;
        }
        static UNUSED: Source =
            Source::file("unused.cu", "extern \"C\" __global__ void f() {\n  int unused = 1;\n}");
        let log = compile(&UNUSED, &[], &Target::Cubin("sm_90a")).unwrap().log;
        assert!(log.contains("unused.cu(2): warning"), "{log}");
    }

    #[test]
    fn texts_with_a_nul_are_refused() {
        if !compiler_is_here() {
            return;
        }
        static NUL: Source = Source::file("nul.cu", "\0");
        let error = compile(&NUL, &[], &Target::Cubin("sm_90a")).unwrap_err();
        assert_eq!(error.to_string(), "nul.cu: has a NUL byte");
    }

    #[test]
    fn architectures_of_others_are_refused() {
        let error = compile_all("sm_70").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().starts_with("sm_70: "), "{error}");
    }
}
