//! `y = x W^T + bias` with a compressed weight.

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use half::{bf16, f16};
use tch::{nn, Device, Kind, Tensor};

use super::bias::Bias;
use super::byte_buffer::BufferVersion;
use super::compressed::{check_new, ChecksumPolicy, CompressedWeight, DecodeCounters};
use crate::codec::{Checksums, CompressedTensor, Layout};
use crate::error::{Error, Result, TorchContext};
use crate::ops::{decode_to_scratch, fused_linear, ScratchElement, WeightRef};

mod cuda;
pub(super) use cuda::Ready;
pub(crate) use cuda::SCRATCH_BYTES as GPU_SCRATCH_BYTES;

/// Rows of `x` up to which the fused path is taken on a CPU unless told otherwise.
///
/// Where the paths cross depends on how fast libtorch multiplies in the dtype (measured on two AVX-512 cores with
/// `codecllm bench`): a further row costs the fused path 0.02 ns a weight, libtorch 0.08 in FP16, 0.025 in FP32 and 0.008
/// in BF16, and decoding into scratch costs about 0.6 ns a weight once. In FP16 libtorch never catches up.
///
/// What a [`CompressedLinear`] goes by; see its example.
pub fn default_fused_rows(kind: Kind) -> usize {
    match kind {
        Kind::Half => 1024,
        Kind::BFloat16 => 16,
        _ => 48,
    }
}

/// Stands for [`default_fused_rows`].
pub(super) const BY_DTYPE: usize = usize::MAX - 1;

/// Most bytes of a scratch buffer: a wider weight is decoded and multiplied in stripes of rows.
pub(crate) const SCRATCH_BYTES: usize = 32 << 20;

/// A linear layer whose weight stays compressed in memory.
///
/// Few rows of `x` are multiplied while decoding (fused); for many, the weight is decoded into a scratch buffer, reused from
/// call to call, and libtorch multiplies. On a CPU every thread has its own buffer, on a GPU every stream.
///
/// ```
/// use codecllm::codec::{CompressedTensor, EncodeOptions, StepRule};
/// use codecllm::nn::{default_fused_rows, CompressedLinear, DecodeCounters};
/// use tch::{nn, nn::Module, Device, Kind, Tensor};
/// let vs = nn::VarStore::new(Device::Cpu);
/// let weight = Tensor::randn([96, 64], (Kind::Float, Device::Cpu));
/// let compressed = CompressedTensor::compress("fc.weight", &weight, StepRule::RowAbsmax, EncodeOptions::default())?;
/// let linear = CompressedLinear::new(&(vs.root() / "fc"), &compressed, None)?;
/// let x = Tensor::randn([2, 64], (Kind::Float, Device::Cpu));
/// assert_eq!(linear.try_forward(&x)?.size(), [2, 96]);
/// assert!((linear.forward(&x) - x.linear(&weight, None::<&Tensor>)).abs().max().double_value(&[]) < 1.0);
/// assert_eq!(vs.variables().len(), 5);
/// assert_eq!((linear.shape(), linear.tensor_path()), ([96, 64], "fc.weight"));
/// assert_eq!(linear.weight_bytes(), compressed.stats().compressed_bytes);
/// // Few rows are multiplied while decoding, many after it: bit for bit what libtorch makes of the decoded weight.
/// assert!(linear.is_fused(&x)? && default_fused_rows(Kind::Float) >= 2);
/// linear.set_fused_rows(0);
/// linear.set_counting(true);
/// let y = linear.try_forward(&x)?;
/// let decoded = weight.empty_like();
/// linear.decode_into(&decoded)?;
/// assert!(!linear.is_fused(&x)? && y == x.linear(&decoded, None::<&Tensor>));
/// let counted: DecodeCounters = linear.counters();
/// assert_eq!(counted.decodes, 2);
/// // From the buffers of a container.
/// let buffers: Vec<Tensor> = compressed.buffers().iter().map(|(_, bytes)| Tensor::from_slice(bytes)).collect();
/// let read = CompressedLinear::from_tensors(&(vs.root() / "read"), buffers.try_into().unwrap(), None)?;
/// assert_eq!(read.shape(), linear.shape());
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Debug)]
pub struct CompressedLinear {
    weight: Arc<CompressedWeight>,
    bias: Option<Arc<Bias>>,
    /// Shared by all handles to the layer.
    fused_rows: Arc<AtomicUsize>,
}

impl CompressedLinear {
    /// Registers `weight` and `bias` `[out_features]` as buffers under `path`: `weight.header`, ..., `bias`.
    pub fn new(path: &nn::Path, weight: &CompressedTensor, bias: Option<&Tensor>) -> Result<Self> {
        let bias = bias.map(Bias::to_bytes).transpose()?;
        Self::from_tensors(path, CompressedWeight::tensors(weight.buffers())?, bias)
    }

    /// Registers byte tensors read from a container, in the order of [`crate::codec::BUFFER_NAMES`]; `bias` is the container's.
    pub fn from_tensors(path: &nn::Path, buffers: [Tensor; 5], bias: Option<Tensor>) -> Result<Self> {
        Self::from_tensors_with(path, buffers, bias, Checksums::Verify.into())
    }

    /// As [`Self::from_tensors`], with the weight's checksum compared or not, as `policy` says.
    pub(crate) fn from_tensors_with(
        path: &nn::Path,
        buffers: [Tensor; 5],
        bias: Option<Tensor>,
        policy: ChecksumPolicy,
    ) -> Result<Self> {
        let weight = CompressedWeight::register(&(path / "weight"), buffers, policy)?;
        let bias = match bias {
            None => None,
            Some(bytes) => {
                check_new(path, "bias")?;
                let moved = bytes.f_to_device(path.device()).about(weight.tensor_path())?;
                let bytes = path.add("bias", moved, false);
                Some(Arc::new(Bias::new(path.path("bias"), bytes, weight.shape()[0])?))
            }
        };
        Ok(Self::with(Arc::new(weight), bias))
    }

    /// The head that shares an embedding's buffers.
    pub(super) fn tied(weight: Arc<CompressedWeight>) -> Self {
        Self::with(weight, None)
    }

    pub(super) fn with(weight: Arc<CompressedWeight>, bias: Option<Arc<Bias>>) -> Self {
        Self { weight, bias, fused_rows: Arc::new(AtomicUsize::new(BY_DTYPE)) }
    }

    /// Another handle to the same layer.
    pub(super) fn share(&self) -> Self {
        Self { weight: self.weight.clone(), bias: self.bias.clone(), fused_rows: self.fused_rows.clone() }
    }

    /// How the weight is coded, where it is on a GPU.
    pub(super) fn layout(&self) -> Result<Option<Layout>> {
        self.weight.layout_on_gpu()
    }

    /// `x` `[batch, in_features]` to `y` `[batch, out_features]` on `x`'s device, its rows any distance apart: on a GPU without
    /// allocating once the scratch is as large as it needs to be.
    pub(crate) fn forward_into(&self, x: &Tensor, y: &Tensor) -> Result<()> {
        let compute = || {
            self.check_input(x)?;
            super::check_output(self.weight.tensor_path(), x, y, self.weight.shape()[0])?;
            if x.device().is_cuda() {
                return self.forward_on_cuda(x, y);
            }
            let product = self.forward_without_grad(x)?;
            y.shallow_clone().f_copy_(&product).about(self.weight.tensor_path())
        };
        tch::no_grad(compute)
    }

    /// `x` `[..., in_features]` in FP32, FP16 or BF16 to `[..., out_features]` in the same dtype, on `x`'s device, which must be
    /// the weight's: a CPU or a CUDA device. There it runs on libtorch's current stream, without waiting for it.
    ///
    /// For inference only: no gradient flows through it.
    ///
    /// # Errors
    /// An input of another shape, dtype or device; a damaged weight; what libtorch and the CUDA driver report. By tensor path.
    pub fn try_forward(&self, x: &Tensor) -> Result<Tensor> {
        tch::no_grad(|| self.forward_without_grad(x))
    }

    fn forward_without_grad(&self, x: &Tensor) -> Result<Tensor> {
        self.check_input(x)?;
        let subject = self.weight.tensor_path();
        let [out_features, in_features] = self.weight.shape();
        let mut size = x.size();
        if let Some(last) = size.last_mut() {
            *last = out_features as i64;
        }
        if x.numel() == 0 {
            return Tensor::f_zeros(&size, (x.kind(), x.device())).about(subject);
        }
        if !x.device().is_cuda() {
            return self.forward_on_cpu(x)?.f_reshape(&size).about(subject);
        }
        let rows = x.f_reshape([-1, in_features as i64]).about(subject)?;
        let rows = with_neighboring_columns(&rows).about(subject)?;
        let shape = [rows.size()[0], out_features as i64];
        let y = Tensor::f_empty(shape, (x.kind(), x.device())).about(subject)?;
        self.forward_on_cuda(&rows, &y)?;
        y.f_reshape(&size).about(subject)
    }

    fn check_input(&self, x: &Tensor) -> Result<()> {
        let subject = self.weight.tensor_path();
        let in_features = self.weight.shape()[1];
        let size = x.size();
        if size.last() != Some(&(in_features as i64)) {
            return Err(Error::invalid(
                subject,
                format!("input has shape {size:?}, wanted [..., {in_features}]"),
            ));
        }
        let (kind, device) = (x.kind(), x.device());
        if !matches!(kind, Kind::Float | Kind::Half | Kind::BFloat16) {
            return Err(Error::invalid(
                subject,
                format!("input is {kind:?}, wanted Float, Half or BFloat16"),
            ));
        }
        if !matches!(device, Device::Cpu | Device::Cuda(_)) {
            return Err(Error::unsupported(
                subject,
                format!("input is on {device:?}, wanted a CPU or a CUDA device"),
            ));
        }
        if device != self.weight.device() {
            return Err(self.weight.elsewhere(device));
        }
        Ok(())
    }

    /// `x` is `[..., in_features]`.
    fn forward_on_cpu(&self, x: &Tensor) -> Result<Tensor> {
        let (kind, in_features) = (x.kind(), self.weight.shape()[1]);
        if x.numel() / in_features.max(1) <= self.fused_rows(kind) {
            let rows = x.f_reshape([-1, in_features as i64]).about(self.weight.tensor_path())?;
            let y = self.weight.decode_with(|weight| fused_linear(weight, &rows))?;
            return self.finish_fused(y, kind);
        }
        // `x` as it is: libtorch adds the bias in another way where it is not contiguous, and so must this.
        self.weight.decode_with(|weight| match kind {
            Kind::Half => self.through_scratch::<f16>(weight, x),
            Kind::BFloat16 => self.through_scratch::<bf16>(weight, x),
            _ => self.through_scratch::<f32>(weight, x),
        })
    }

    /// Decodes the weight into `out` `[out_features, in_features]`, in FP32, FP16 or BF16 and without gaps.
    ///
    /// # Errors
    /// An output of another shape, dtype or device; a damaged weight. By tensor path.
    pub fn decode_into(&self, out: &Tensor) -> Result<()> {
        if out.device().is_cuda() {
            return self.decode_on_cuda(out);
        }
        match out.kind() {
            Kind::Half => self.decode_elements::<f16>(out),
            Kind::BFloat16 => self.decode_elements::<bf16>(out),
            Kind::Float => self.decode_elements::<f32>(out),
            other => Err(Error::invalid(
                self.weight.tensor_path(),
                format!("output is {other:?}, wanted Float, Half or BFloat16"),
            )),
        }
    }

    fn decode_elements<T: ScratchElement>(&self, out: &Tensor) -> Result<()> {
        let subject = self.weight.tensor_path();
        let [rows, cols] = self.weight.shape();
        if out.size() != [rows as i64, cols as i64] || !out.is_contiguous() || out.device() != Device::Cpu {
            return Err(Error::invalid(
                subject,
                format!(
                    "output is {:?} on {:?}, wanted [{rows}, {cols}] without gaps on the weight's device",
                    out.size(),
                    out.device()
                ),
            ));
        }
        // SAFETY: contiguous, on the CPU, of T's dtype, and of this many elements, as was just seen. The caller lends it:
        // whoever writes a tensor while another thread does is wrong as with every tch operator.
        let elements = unsafe { std::slice::from_raw_parts_mut(out.data_ptr().cast::<T>(), rows * cols) };
        self.weight.decode_with(|weight| {
            decode_to_scratch(weight, 0..weight.view.header.grid.tiles_down(), elements)
        })
    }

    fn fused_rows(&self, kind: Kind) -> usize {
        match self.fused_rows.load(Ordering::Relaxed) {
            BY_DTYPE => default_fused_rows(kind),
            rows => rows,
        }
    }

    fn finish_fused(&self, y: Tensor, kind: Kind) -> Result<Tensor> {
        let y = match &self.bias {
            Some(bias) => y.f_add(&bias.tensor(Kind::Float)?),
            None => Ok(y),
        };
        y.and_then(|y| y.f_to_kind(kind)).about(self.weight.tensor_path())
    }

    /// Decodes into scratch, as many rows at a time as fit it, and multiplies.
    fn through_scratch<T: ScratchElement>(&self, weight: &WeightRef, x: &Tensor) -> Result<Tensor> {
        let subject = self.weight.tensor_path();
        let kind = x.kind();
        let bias = self.bias.as_ref().map(|bias| bias.tensor(kind)).transpose()?;
        let grid = weight.view.header.grid;
        let (cols, band_rows) = (weight.cols(), grid.tile_rows());
        let row_bytes = cols * std::mem::size_of::<T>();
        let bands_at_once = (SCRATCH_BYTES / (row_bytes * band_rows)).max(1);
        let mut stripes = Vec::new();
        for first in (0..grid.tiles_down()).step_by(bands_at_once) {
            let bands = first..grid.tiles_down().min(first + bands_at_once);
            let (start, end) = (bands.start * band_rows, weight.rows().min(bands.end * band_rows));
            let own_bias = bias.as_ref().map(|bias| bias.narrow(0, start as i64, (end - start) as i64));
            stripes.push(with_scratch(kind, (end - start) * cols, subject, |scratch| {
                // SAFETY: the scratch tensor is contiguous, of T's dtype, has this many elements, and is lent to
                // this call alone.
                let elements = unsafe {
                    std::slice::from_raw_parts_mut(scratch.data_ptr().cast::<T>(), (end - start) * cols)
                };
                decode_to_scratch(weight, bands, elements)?;
                let dense = scratch.f_view([(end - start) as i64, cols as i64]).about(subject)?;
                x.f_linear(&dense, own_bias.as_ref()).about(subject)
            })?);
        }
        match stripes.len() {
            1 => Ok(stripes.remove(0)),
            _ => Tensor::f_cat(&stripes, -1).about(subject),
        }
    }

    /// Whether [`CompressedLinear::try_forward`] of `x` multiplies while it decodes. On a GPU this may measure, as a forward may.
    ///
    /// # Errors
    /// As [`CompressedLinear::try_forward`].
    pub fn is_fused(&self, x: &Tensor) -> Result<bool> {
        self.check_input(x)?;
        let batch = x.numel() / self.weight.shape()[1].max(1);
        if x.device().is_cuda() {
            self.is_fused_on_cuda(x, batch)
        } else {
            Ok(batch <= self.fused_rows(x.kind()))
        }
    }

    /// The versions of weight and bias.
    pub(super) fn versions(&self) -> Result<Vec<BufferVersion>> {
        let mut versions = vec![self.weight.version()?];
        if let Some(bias) = &self.bias {
            versions.push(bias.version()?);
        }
        Ok(versions)
    }

    /// `[out_features, in_features]`.
    pub fn shape(&self) -> [usize; 2] {
        self.weight.shape()
    }

    /// The weight's full name.
    pub fn tensor_path(&self) -> &str {
        self.weight.tensor_path()
    }

    /// Bytes of the buffers.
    pub fn weight_bytes(&self) -> usize {
        self.weight.bytes() + self.bias.as_ref().map_or(0, |bias| bias.bytes())
    }

    /// Takes the fused path up to this many rows of `x`: 0 forces scratch, `usize::MAX` fused (on a GPU, where the kernel
    /// takes the weight). Without it a CPU goes by [`default_fused_rows`], a GPU by what it measured.
    pub fn set_fused_rows(&self, rows: usize) {
        self.fused_rows.store(rows, Ordering::Relaxed);
    }

    /// Counts decodes and their time from here on, or stops.
    pub fn set_counting(&self, on: bool) {
        self.weight.set_counting(on);
    }

    /// What was counted.
    pub fn counters(&self) -> DecodeCounters {
        self.weight.counters()
    }
}

impl nn::Module for CompressedLinear {
    /// # Panics
    /// Where [`CompressedLinear::try_forward`] gives an error: the trait leaves no other way.
    #[allow(clippy::panic)]
    fn forward(&self, x: &Tensor) -> Tensor {
        self.try_forward(x).unwrap_or_else(|error| panic!("{error}"))
    }
}

/// `rows` itself, or a copy where its columns are apart.
fn with_neighboring_columns(rows: &Tensor) -> std::result::Result<Tensor, tch::TchError> {
    if rows.stride().last() == Some(&1) {
        return Ok(rows.shallow_clone());
    }
    rows.f_contiguous()
}

thread_local! {
    /// One scratch buffer a thread and dtype, as large as the largest that was needed.
    static SCRATCH: RefCell<[Option<Tensor>; 3]> = const { RefCell::new([None, None, None]) };
}

/// Lends this thread's scratch of at least `len` elements of `kind`, cut to `len`.
fn with_scratch<R>(
    kind: Kind,
    len: usize,
    subject: &str,
    work: impl FnOnce(&Tensor) -> Result<R>,
) -> Result<R> {
    let index = match kind {
        Kind::Half => 0,
        Kind::BFloat16 => 1,
        _ => 2,
    };
    SCRATCH.with_borrow_mut(|scratch| {
        let slot = &mut scratch[index];
        let fitting = match slot.take().filter(|tensor| tensor.numel() >= len) {
            Some(tensor) => tensor,
            None => Tensor::f_empty([len as i64], (kind, tch::Device::Cpu)).about(subject)?,
        };
        let cut = fitting.f_narrow(0, 0, len as i64).about(subject);
        *slot = Some(fitting);
        work(&cut?)
    })
}
