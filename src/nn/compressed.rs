//! A compressed weight as registered buffers, and the layers on it.
//!
//! All buffers are U8 variables of the VarStore, so a change of dtype of the whole store converts them too. Bytes
//! survive that (0 to 255 are exact in every float dtype), and the next use turns them back.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Instant;

use tch::{nn, Device, Kind, Tensor};

use super::byte_buffer::{restore_bytes, BufferVersion};
use crate::codec::{Buffers, Checksums, DecodeTables, Layout, View, BUFFER_NAMES};
use crate::error::{Error, Result, TorchContext};
use crate::ops::cuda::{CheckedWeight, DeviceWeight};
use crate::ops::transformer::Launcher;
use crate::ops::WeightRef;

/// How often and for how long a weight was decoded.
///
/// What a [`CompressedLinear`](super::CompressedLinear) counts; see its example.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DecodeCounters {
    /// Decodes of the whole weight: fused or into scratch.
    pub decodes: u64,
    /// Time spent in them, multiplication included where it is fused; on a GPU, time to launch them.
    pub nanoseconds: u64,
}

/// A compressed matrix whose bytes are buffers of a VarStore.
#[derive(Debug)]
pub(crate) struct CompressedWeight {
    tensor_path: String,
    buffers: [Tensor; 5],
    /// `None` until the buffers were first read.
    shape: Option<[usize; 2]>,
    /// Whether buffers are held against their checksum the next time they are prepared.
    checksums: Checksums,
    prepared: Arc<PreparedSlot>,
    counting: AtomicBool,
    decodes: AtomicU64,
    nanoseconds: AtomicU64,
}

// SAFETY: a tch tensor is a counted reference to a libtorch tensor, whose count is atomic and whose reading functions
// may run on several threads at once. This type only reads its tensors, under the read lock of `prepared`, except in
// `restore_bytes`, which holds the write lock and runs only where the buffers are not bytes: before any reader has an
// `Arc<Prepared>` of them, and no later one can be using them. Changing
// the VarStore (load, set_kind, set_device) while another thread is in a forward is as wrong here as for any tch module:
// `VarStore`'s methods for it take `&mut self`.
unsafe impl Sync for CompressedWeight {}

/// Whether buffers are held against their checksum when they are first prepared, and when they have changed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChecksumPolicy {
    pub first: Checksums,
    pub later: Checksums,
}

impl From<Checksums> for ChecksumPolicy {
    fn from(always: Checksums) -> Self {
        Self { first: always, later: always }
    }
}

/// What was last prepared. An operator's calls share one, since each comes with handles of its own to the buffers.
pub(crate) type PreparedSlot = RwLock<Option<Arc<Prepared>>>;

/// What is made of the buffers once, and the buffers it was made of.
#[derive(Debug)]
pub(crate) struct Prepared {
    versions: [BufferVersion; 5],
    form: Form,
}

/// What decoding takes beside the buffers, where they are.
#[derive(Debug)]
enum Form {
    /// The header's bytes go with it: they hold a checksum of all others.
    Host {
        tables: DecodeTables,
        scales: Vec<f32>,
        header: Vec<u8>,
    },
    Device(DeviceWeight),
}

impl Prepared {
    /// The weight on its GPU, if it is on one.
    pub(super) fn device_weight(&self) -> Option<&DeviceWeight> {
        match &self.form {
            Form::Host { .. } => None,
            Form::Device(weight) => Some(weight),
        }
    }
}

impl CompressedWeight {
    /// Registers `buffers` under `path`, which is the tensor path, and checks them.
    pub fn register(path: &nn::Path, buffers: [Tensor; 5], policy: ChecksumPolicy) -> Result<Self> {
        let tensor_path = path_of(path);
        for (name, buffer) in BUFFER_NAMES.iter().zip(&buffers) {
            check_new(path, name)?;
            if buffer.kind() != Kind::Uint8 || buffer.dim() != 1 {
                return Err(Error::invalid(
                    path.path(name),
                    format!(
                        "buffer is {:?} {:?}, wanted bytes (Uint8) in one dimension",
                        buffer.kind(),
                        buffer.size()
                    ),
                ));
            }
        }
        // What is about to leave the CPU is checked here: fetching it back would cost time and memory.
        let leaves = path.device().is_cuda() && buffers.iter().all(|buffer| buffer.device() == Device::Cpu);
        let checked =
            leaves.then(|| CheckedWeight::of(&view_of(&tensor_path, &buffers)?, policy.first)).transpose()?;
        let mut moved = Vec::with_capacity(buffers.len());
        for buffer in buffers {
            moved.push(buffer.f_to_device(path.device()).about(&tensor_path)?);
        }
        let registered =
            BUFFER_NAMES.iter().zip(moved).map(|(name, buffer)| path.add(name, buffer, false)).collect();
        let unread = Self::unread(tensor_path, five(registered)?, Arc::default());
        let mut weight = Self { checksums: policy.first, ..unread };
        let Some(checked) = checked else {
            return Ok(Self { checksums: policy.later, ..weight.read()? });
        };
        let shape = checked.shape();
        let prepared = Prepared { versions: weight.versions()?, form: weight.on_device(checked)? };
        weight.prepared = Arc::new(RwLock::new(Some(Arc::new(prepared))));
        Ok(Self { shape: Some(shape), checksums: policy.later, ..weight })
    }

    /// Handles to buffers that are registered somewhere else, checked where `prepared` is not of them as they are now.
    pub fn of_buffers(tensor_path: &str, buffers: [Tensor; 5], prepared: Arc<PreparedSlot>) -> Result<Self> {
        Self::unread(tensor_path.to_owned(), buffers, prepared).read()
    }

    fn unread(tensor_path: String, buffers: [Tensor; 5], prepared: Arc<PreparedSlot>) -> Self {
        Self {
            tensor_path,
            buffers,
            shape: None,
            checksums: Checksums::Verify,
            prepared,
            counting: AtomicBool::new(false),
            decodes: AtomicU64::new(0),
            nanoseconds: AtomicU64::new(0),
        }
    }

    fn read(self) -> Result<Self> {
        let shape = self.prepared()?.shape(&self)?;
        Ok(Self { shape: Some(shape), ..self })
    }

    /// The buffers of `compressed` as byte tensors.
    pub fn tensors(buffers: &Buffers) -> Result<[Tensor; 5]> {
        let mut tensors = Vec::with_capacity(5);
        for (name, bytes) in buffers.iter() {
            tensors.push(Tensor::f_from_slice(bytes).about(name)?);
        }
        five(tensors)
    }

    pub fn tensor_path(&self) -> &str {
        &self.tensor_path
    }

    pub fn shape(&self) -> [usize; 2] {
        self.shape.unwrap_or_default()
    }

    /// Bytes of the buffers.
    pub fn bytes(&self) -> usize {
        let _readers = self.prepared.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.buffers.iter().map(Tensor::numel).sum()
    }

    /// Where the buffers are.
    pub fn device(&self) -> Device {
        // Another thread may be turning them back into bytes.
        let _readers = self.prepared.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.device_under_lock()
    }

    /// As [`Self::device`], for who holds the lock.
    fn device_under_lock(&self) -> Device {
        let [.., payload] = &self.buffers;
        payload.device()
    }

    /// Changes when the payload is another or has been written to.
    pub fn version(&self) -> Result<BufferVersion> {
        let _readers = self.prepared.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let [.., payload] = &self.buffers;
        BufferVersion::of(payload, &self.tensor_path)
    }

    /// How it is coded, where it is on a GPU.
    pub(super) fn layout_on_gpu(&self) -> Result<Option<Layout>> {
        Ok(self.prepared()?.device_weight().map(|weight| weight.profile().0))
    }

    /// Calls `work` with the checked weight, which is on the CPU; makes tables and scales first where the buffers have changed.
    pub fn with_ref<T>(&self, work: impl FnOnce(&WeightRef) -> Result<T>) -> Result<T> {
        let prepared = self.prepared()?;
        let Form::Host { tables, scales, .. } = &prepared.form else {
            return Err(self.elsewhere(Device::Cpu));
        };
        let view = view_of(&self.tensor_path, &self.buffers)?;
        work(&WeightRef { view, tables, scales })
    }

    /// The error for a weight that is not where its input is.
    pub fn elsewhere(&self, wanted: Device) -> Error {
        Error::invalid(
            &*self.tensor_path,
            format!("weight is on {:?}, its input on {wanted:?} (move one to the other)", self.device()),
        )
    }

    /// As [`Self::with_ref`], counted as one decode.
    pub fn decode_with<T>(&self, work: impl FnOnce(&WeightRef) -> Result<T>) -> Result<T> {
        self.counted(|| self.with_ref(work))
    }

    /// Runs `work` and counts it as one decode.
    pub fn counted<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        if !self.counting.load(Ordering::Relaxed) {
            return work();
        }
        let start = Instant::now();
        let result = work();
        self.decodes.fetch_add(1, Ordering::Relaxed);
        self.nanoseconds.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        result
    }

    pub fn set_counting(&self, on: bool) {
        self.counting.store(on, Ordering::Relaxed);
    }

    pub fn counters(&self) -> DecodeCounters {
        DecodeCounters {
            decodes: self.decodes.load(Ordering::Relaxed),
            nanoseconds: self.nanoseconds.load(Ordering::Relaxed),
        }
    }

    fn versions(&self) -> Result<[BufferVersion; 5]> {
        let [a, b, c, d, e] = &self.buffers;
        Ok([
            BufferVersion::of(a, &self.tensor_path)?,
            BufferVersion::of(b, &self.tensor_path)?,
            BufferVersion::of(c, &self.tensor_path)?,
            BufferVersion::of(d, &self.tensor_path)?,
            BufferVersion::of(e, &self.tensor_path)?,
        ])
    }

    /// What decoding takes beside the buffers; made anew where they have changed.
    pub(super) fn prepared(&self) -> Result<Arc<Prepared>> {
        {
            // The buffers are looked at under the lock too: another thread may be turning them back into bytes.
            let slot = self.prepared.read().unwrap_or_else(std::sync::PoisonError::into_inner);
            let versions = self.versions()?;
            if let Some(prepared) = slot.as_ref().filter(|prepared| prepared.is_of(&versions, &self.buffers))
            {
                return Ok(prepared.clone());
            }
        }
        let mut slot = self.prepared.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.buffers.iter().try_for_each(|buffer| restore_bytes(buffer, &self.tensor_path))?;
        let versions = self.versions()?;
        if let Some(prepared) = slot.clone().filter(|prepared| prepared.is_of(&versions, &self.buffers)) {
            return Ok(prepared);
        }
        let form = self.form()?;
        let prepared = Prepared { versions, form };
        let shape = prepared.shape(self)?;
        if self.shape.is_some_and(|registered| registered != shape) {
            return Err(Error::corrupt(
                &*self.tensor_path,
                format!("buffers now hold shape {shape:?}, registered was {:?}", self.shape()),
            ));
        }
        let prepared = Arc::new(prepared);
        *slot = Some(prepared.clone());
        Ok(prepared)
    }

    /// Checks the buffers, wherever they are.
    fn form(&self) -> Result<Form> {
        if !self.device_under_lock().is_cuda() {
            let view = view_of(&self.tensor_path, &self.buffers)?;
            view.check(self.checksums)?;
            return Ok(Form::Host {
                tables: DecodeTables::new(&view)?,
                scales: view.scales()?,
                header: bytes_of(&self.tensor_path, &self.buffers[0])?.to_vec(),
            });
        }
        let mut fetched = Vec::with_capacity(self.buffers.len());
        for buffer in &self.buffers {
            fetched.push(buffer.f_to_device(Device::Cpu).about(&self.tensor_path)?);
        }
        let checked = CheckedWeight::of(&view_of(&self.tensor_path, &fetched)?, self.checksums)?;
        self.on_device(checked)
    }

    fn on_device(&self, checked: CheckedWeight) -> Result<Form> {
        let weight = DeviceWeight::new(checked, &self.buffers)?;
        // Kernels read weights before they wait for the launches ahead of them, and on streams that know nothing of this one's
        // copies.
        let launcher = Launcher::on(self.device_under_lock())?;
        launcher.device.synchronize(launcher.stream)?;
        Ok(Form::Device(weight))
    }
}

impl Prepared {
    /// Whether it was made of these buffers as they are now. Versions do not count what is written through `Tensor.data` in Python or
    /// in inference mode; on a CPU another header tells that.
    fn is_of(&self, versions: &[BufferVersion; 5], buffers: &[Tensor; 5]) -> bool {
        let same_header = match &self.form {
            Form::Host { header, .. } => bytes_of("", &buffers[0]).is_ok_and(|bytes| bytes == header),
            Form::Device(_) => true,
        };
        self.versions == *versions && same_header
    }

    fn shape(&self, weight: &CompressedWeight) -> Result<[usize; 2]> {
        match &self.form {
            Form::Device(weight) => Ok(weight.shape()),
            Form::Host { .. } => {
                let grid = view_of(&weight.tensor_path, &weight.buffers)?.header.grid;
                Ok([grid.rows(), grid.cols()])
            }
        }
    }
}

fn five(tensors: Vec<Tensor>) -> Result<[Tensor; 5]> {
    <[Tensor; 5]>::try_from(tensors).map_err(|_| Error::invalid("buffers", "wanted five"))
}

/// Looks at `buffers`, which are on the CPU, as a tensor.
pub(crate) fn view_of<'a>(tensor_path: &str, buffers: &'a [Tensor]) -> Result<View<'a>> {
    let mut slices: [&[u8]; 5] = [&[]; 5];
    for (slice, buffer) in slices.iter_mut().zip(buffers) {
        *slice = bytes_of(tensor_path, buffer)?;
    }
    View::new(tensor_path, slices)
}

/// The bytes of `buffer`, which is on the CPU.
fn bytes_of<'a>(tensor_path: &str, buffer: &'a Tensor) -> Result<&'a [u8]> {
    if buffer.device() != Device::Cpu {
        return Err(Error::unsupported(
            tensor_path,
            format!("a buffer is on {:?}, the others on the CPU (move them together)", buffer.device()),
        ));
    }
    if buffer.kind() != Kind::Uint8 || !buffer.is_contiguous() {
        return Err(Error::corrupt(tensor_path, "a buffer is not contiguous bytes"));
    }
    if buffer.numel() == 0 {
        return Ok(&[]);
    }
    if buffer.data_ptr().is_null() {
        return Err(Error::corrupt(tensor_path, "a buffer has no memory (file damaged?)"));
    }
    // SAFETY: a contiguous CPU tensor of `numel` bytes that the borrow keeps alive, and that nobody writes while it is shared (see the
    // argument for `Sync`).
    Ok(unsafe { std::slice::from_raw_parts(buffer.data_ptr().cast_const().cast(), buffer.numel()) })
}

/// The full name that `path` stands for.
pub(crate) fn path_of(path: &nn::Path) -> String {
    path.components().collect::<Vec<_>>().join(".")
}

/// Refuses to register a name twice: tch would rename the second.
pub(crate) fn check_new(path: &nn::Path, name: &str) -> Result<()> {
    if path.get(name).is_some() {
        return Err(Error::invalid(path.path(name), "is registered already (patched twice?)"));
    }
    Ok(())
}
