//! A TorchScript module: tch's own hides its handle and casts integer buffers when it moves.

use std::borrow::Borrow;
use std::ffi::{c_char, c_int, c_void, CString};
use std::path::Path;

use tch::{Device, IValue, Tensor};
use torch_sys::{CIValue, C_tensor};

use super::ivalue::Value;
use super::text::{check, path_to_c, take, to_c};
use crate::error::{Error, Result};

/// `codecllm_module`.
#[repr(C)]
pub(super) struct RawModule {
    _private: [u8; 0],
}

extern "C" {
    fn codecllm_module_load(path: *const c_char, device: c_int, out: *mut *mut RawModule) -> *mut c_char;
    fn codecllm_module_save(module: *const RawModule, path: *const c_char) -> *mut c_char;
    fn codecllm_module_free(module: *mut RawModule);
    fn codecllm_module_to(module: *mut RawModule, device: c_int) -> *mut c_char;
    fn codecllm_module_run(
        module: *const RawModule,
        method: *const c_char,
        arguments: *const *const CIValue,
        count: usize,
        out: *mut *mut CIValue,
    ) -> *mut c_char;
    fn codecllm_module_tensors(
        module: *const RawModule,
        which: c_int,
        visit: extern "C" fn(*mut c_void, *const c_char, *const C_tensor),
        context: *mut c_void,
    ) -> *mut c_char;
}

const PARAMETERS: c_int = 0;
const BUFFERS: c_int = 1;

/// A TorchScript module, patched or not, with the extra files of its archive.
///
/// The methods that run it are named as those of [`tch::CModule`] and may be called from several threads at once.
///
/// ```
/// use codecllm::torchscript::Module;
/// use tch::{CModule, Device, Kind, Tensor};
/// # let folder = tempfile::tempdir().unwrap();
/// # let [file, copy] = ["model.pt", "copy.pt"].map(|name| folder.path().join(name));
/// let x = Tensor::ones([2, 3], (Kind::Float, Device::Cpu));
/// let traced = CModule::create_by_tracing("Model", "forward", &[x.shallow_clone()], &mut |inputs: &[Tensor]| vec![&inputs[0] * 2.0]);
/// traced.and_then(|traced| traced.save(&file)).unwrap();
///
/// let mut module = Module::load(&file, Device::Cpu)?;
/// assert!(module.origin().ends_with("model.pt"));
/// assert_eq!(module.forward_ts(&[&x])?, module.method_ts("forward", &[&x])?);
/// let tch::IValue::Tensor(y) = module.method_is("forward", &[tch::IValue::Tensor(x)])? else { panic!("one tensor was wanted") };
/// assert_eq!(y.double_value(&[0, 0]), 2.0);
/// // This one has neither weights nor buffers.
/// assert!(module.named_parameters()?.is_empty() && module.named_buffers()?.is_empty());
/// assert_eq!(module.tensor_bytes()?, 0);
/// module.to_device(Device::Cpu)?;
/// module.save(&copy)?;
/// assert!(copy.exists());
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Debug)]
pub struct Module {
    raw: *mut RawModule,
    /// The file it came from, for messages.
    origin: String,
}

// SAFETY: a handle to reference-counted objects of libtorch, whose counts are atomic.
unsafe impl Send for Module {}
// SAFETY: `&self` reads the object and runs its methods, which libtorch allows from several threads (its interpreter's state is per
// call); what changes the object takes `&mut self`. A method of the module's own that changes its attributes is as much of a race here
// as everywhere in libtorch.
unsafe impl Sync for Module {}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: owned, and not used after this.
        unsafe { codecllm_module_free(self.raw) };
    }
}

impl Module {
    /// Loads the TorchScript file `path` with everything on `device`.
    ///
    /// # Errors
    /// `Io` where the file can't be read, `Truncated` where its end is missing, `Corrupt` where libtorch can't load it, by path;
    /// `Unsupported` where `device` is not there.
    pub fn load(path: impl AsRef<Path>, device: Device) -> Result<Self> {
        let path = path.as_ref();
        let origin = path.display().to_string();
        let mut magic = [0; 4];
        std::fs::File::open(path)
            .and_then(|mut file| std::io::Read::read(&mut file, &mut magic))
            .map_err(|e| Error::io(path, e))?;
        let number = device_number(device, &origin)?;
        let mut raw = std::ptr::null_mut();
        let c_path = path_to_c(path)?;
        // SAFETY: a terminated path, and a place for the module.
        let message = unsafe { codecllm_module_load(c_path.as_ptr(), number, &raw mut raw) };
        match take(message) {
            None => Ok(Self { raw, origin }),
            Some(message) => Err(load_error(&origin, magic, &message)),
        }
    }

    pub(super) fn raw(&self) -> *const RawModule {
        self.raw
    }

    pub(super) fn raw_mut(&mut self) -> *mut RawModule {
        self.raw
    }

    /// The file it was loaded from.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Writes the module to `path`, over a file that is there: in one step, so that a failure leaves what was.
    ///
    /// # Errors
    /// `Io` and `Torch` where it can't be written, by path.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let part = tempfile::Builder::new()
            .prefix(".codecllm.")
            .suffix(".partial")
            .tempfile_in(folder)
            .map_err(|e| Error::io(path, e))?;
        let c_path = path_to_c(part.path())?;
        // SAFETY: a module that is alive and a terminated path.
        check(unsafe { codecllm_module_save(self.raw, c_path.as_ptr()) }, &path.display().to_string())?;
        part.as_file().sync_all().map_err(|e| Error::io(path, e))?;
        let kept = part.persist(path).map_err(|e| Error::io(path, e.error))?;
        // The temporary file was its owner's alone.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        kept.set_permissions(mode).map_err(|e| Error::io(path, e))
    }

    /// Moves parameters and buffers to `device`. No dtype changes.
    ///
    /// # Errors
    /// What libtorch reports.
    pub fn to_device(&mut self, device: Device) -> Result<()> {
        let number = device_number(device, &self.origin)?;
        // SAFETY: a module that is alive, and not shared while it is borrowed mutably.
        check(unsafe { codecllm_module_to(self.raw, number) }, &self.origin)
    }

    /// Runs `forward` on tensors; its result must be one.
    ///
    /// # Errors
    /// As [`Module::method_is`].
    pub fn forward_ts<T: Borrow<Tensor>>(&self, tensors: &[T]) -> Result<Tensor> {
        self.method_ts("forward", tensors)
    }

    /// Runs `forward`.
    ///
    /// # Errors
    /// As [`Module::method_is`].
    pub fn forward_is<T: Borrow<IValue>>(&self, values: &[T]) -> Result<IValue> {
        self.method_is("forward", values)
    }

    /// Runs `method` on tensors; its result must be one.
    ///
    /// # Errors
    /// As [`Module::method_is`].
    pub fn method_ts<T: Borrow<Tensor>>(&self, method: &str, tensors: &[T]) -> Result<Tensor> {
        let values: Vec<IValue> =
            tensors.iter().map(|tensor| IValue::Tensor(tensor.borrow().shallow_clone())).collect();
        match self.method_is(method, &values)? {
            IValue::Tensor(tensor) => Ok(tensor),
            other => Err(Error::invalid(
                format!("{} {method}", self.origin),
                format!("returned {other:?}, wanted one tensor (call method_is)"),
            )),
        }
    }

    /// Runs `method`.
    ///
    /// # Errors
    /// `Torch`: no such method, arguments that its signature does not take, what it throws. `Unsupported`: objects of TorchScript
    /// classes as arguments or result.
    pub fn method_is<T: Borrow<IValue>>(&self, method: &str, values: &[T]) -> Result<IValue> {
        let subject = format!("{} {method}", self.origin);
        let c_method: CString = to_c(method, &subject)?;
        let values: Vec<Value> =
            values.iter().map(|value| Value::of(value.borrow(), &subject)).collect::<Result<_>>()?;
        let pointers: Vec<*const CIValue> = values.iter().map(Value::as_ptr).collect();
        let mut out = std::ptr::null_mut();
        // SAFETY: a module, a text and values that outlive the call, and a place for the result.
        let message = unsafe {
            codecllm_module_run(self.raw, c_method.as_ptr(), pointers.as_ptr(), pointers.len(), &raw mut out)
        };
        check(message, &subject)?;
        Value::own(out, &subject)?.to_tch(&subject)
    }

    /// The parameters with their full names.
    ///
    /// # Errors
    /// What libtorch reports.
    pub fn named_parameters(&self) -> Result<Vec<(String, Tensor)>> {
        self.tensors(PARAMETERS)
    }

    /// The buffers with their full names. Of a compressed weight these are `NAME_header`, `NAME_scales`, `NAME_tables`, `NAME_tiles`
    /// and `NAME_payload`, bytes that no change of dtype must round, and `NAME_like`, which is empty and has the dtype and the shape
    /// `[rows, 0, columns]`.
    ///
    /// # Errors
    /// What libtorch reports.
    pub fn named_buffers(&self) -> Result<Vec<(String, Tensor)>> {
        self.tensors(BUFFERS)
    }

    /// Bytes of parameters and buffers; memory that several share counts once.
    ///
    /// # Errors
    /// What libtorch reports.
    pub fn tensor_bytes(&self) -> Result<usize> {
        let mut seen = std::collections::HashSet::new();
        let tensors = self.named_parameters()?.into_iter().chain(self.named_buffers()?);
        Ok(tensors
            .filter(|(_, tensor)| tensor.numel() > 0 && seen.insert(tensor.data_ptr() as usize))
            .map(|(_, tensor)| tensor.numel() * tensor.kind().elt_size_in_bytes())
            .sum())
    }

    fn tensors(&self, which: c_int) -> Result<Vec<(String, Tensor)>> {
        let mut found: Vec<(String, Tensor)> = Vec::new();
        let context = (&raw mut found).cast::<c_void>();
        // SAFETY: `visit` reads the context as the vector that it is, which lives until after the call.
        check(unsafe { codecllm_module_tensors(self.raw, which, visit, context) }, &self.origin)?;
        Ok(found)
    }
}

extern "C" fn visit(context: *mut c_void, name: *const c_char, tensor: *const C_tensor) {
    // SAFETY: the vector of `Module::tensors`, which nobody else holds during the call.
    let found = unsafe { &mut *context.cast::<Vec<(String, Tensor)>>() };
    // SAFETY: a terminated text and a tensor, borrowed for this call.
    found.push(unsafe { (super::text::copy(name), Tensor::clone_from_ptr(tensor.cast_mut())) });
}

fn device_number(device: Device, subject: &str) -> Result<c_int> {
    match device {
        Device::Cpu => Ok(-1),
        Device::Cuda(index) => {
            crate::cuda::load()?;
            c_int::try_from(index).map_err(|e| {
                Error::invalid(subject, format!("device {index}, wanted a small number")).with_source(e)
            })
        }
        other => Err(Error::unsupported(subject, format!("device {other:?}, wanted a CPU or a CUDA device"))),
    }
}

/// The first bytes of a zip archive, which a TorchScript file is.
const ZIP: [u8; 4] = *b"PK\x03\x04";

fn load_error(origin: &str, magic: [u8; 4], message: &str) -> Error {
    let message = message.trim_end();
    if magic != ZIP {
        return Error::corrupt(origin, "is not a TorchScript file: wanted what torch.jit.save writes");
    }
    if message.contains("central directory") {
        return Error::truncated(origin, "the end of the file is missing (copy it again)");
    }
    Error::corrupt(
        origin,
        format!("libtorch can't load it as TorchScript (wanted what torch.jit.save writes): {message}"),
    )
}
