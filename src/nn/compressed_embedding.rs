//! An embedding table that stays compressed: a row is decoded with its own tile, not the table.

use std::sync::Arc;

use half::{bf16, f16};
use tch::{nn, Kind, Tensor};

use super::byte_buffer::BufferVersion;
use super::compressed::{ChecksumPolicy, CompressedWeight, DecodeCounters};
use super::compressed_linear::CompressedLinear;
use crate::codec::{Checksums, CompressedTensor, Layout};
use crate::error::{Error, Result, TorchContext};
use crate::ops::transformer::Launcher;
use crate::ops::{cuda, gather_rows, ScratchElement};

/// An embedding table `[vocab, hidden]` whose rows are decoded when they are looked up.
///
/// ```
/// use codecllm::codec::{CompressedTensor, EncodeOptions, StepRule};
/// use codecllm::nn::CompressedEmbedding;
/// use tch::{nn, Device, Kind, Tensor};
/// let vs = nn::VarStore::new(Device::Cpu);
/// let table = Tensor::randn([100, 64], (Kind::Half, Device::Cpu));
/// let options = EncodeOptions { row_access: true, ..EncodeOptions::default() };
/// let compressed = CompressedTensor::compress("embed.weight", &table, StepRule::RowAbsmax, options)?;
/// let embedding = CompressedEmbedding::new(&(vs.root() / "embed"), &compressed, Kind::Half)?;
/// let rows = embedding.try_forward(&Tensor::from_slice(&[7i64, 99]))?;
/// assert_eq!((rows.size(), rows.kind()), (vec![2, 64], Kind::Half));
/// assert_eq!((embedding.shape(), embedding.tensor_path()), ([100, 64], "embed.weight"));
/// assert_eq!(embedding.weight_bytes(), compressed.stats().compressed_bytes);
/// // A head on the same bytes; only its products decode all of the table.
/// embedding.set_counting(true);
/// assert_eq!(embedding.tied_head().try_forward(&rows)?.size(), [2, 100]);
/// assert_eq!(embedding.counters().decodes, 1);
/// // From the buffers of a container.
/// let buffers: Vec<Tensor> = compressed.buffers().iter().map(|(_, bytes)| Tensor::from_slice(bytes)).collect();
/// let read = CompressedEmbedding::from_tensors(&(vs.root() / "read"), buffers.try_into().unwrap(), Kind::Half)?;
/// assert_eq!(read.try_forward(&Tensor::from_slice(&[7i64, 99]))?, rows);
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Debug)]
pub struct CompressedEmbedding {
    weight: Arc<CompressedWeight>,
    kind: Kind,
}

fn check_kind(kind: Kind) -> Result<()> {
    match kind {
        Kind::Float | Kind::Half | Kind::BFloat16 => Ok(()),
        other => Err(Error::invalid("--dtype", format!("{other:?}, wanted Float, Half or BFloat16"))),
    }
}

impl CompressedEmbedding {
    /// Registers `weight` as buffers under `path`; rows come out as `kind` (FP32, FP16 or BF16).
    pub fn new(path: &nn::Path, weight: &CompressedTensor, kind: Kind) -> Result<Self> {
        Self::from_tensors(path, CompressedWeight::tensors(weight.buffers())?, kind)
    }

    /// Registers byte tensors read from a container.
    pub fn from_tensors(path: &nn::Path, buffers: [Tensor; 5], kind: Kind) -> Result<Self> {
        Self::from_tensors_with(path, buffers, kind, Checksums::Verify.into())
    }

    /// As [`Self::from_tensors`], with the checksum compared or not, as `policy` says.
    pub(crate) fn from_tensors_with(
        path: &nn::Path,
        buffers: [Tensor; 5],
        kind: Kind,
        policy: ChecksumPolicy,
    ) -> Result<Self> {
        check_kind(kind)?;
        Self::of_weight(CompressedWeight::register(&(path / "weight"), buffers, policy)?, kind)
    }

    pub(super) fn of_weight(weight: CompressedWeight, kind: Kind) -> Result<Self> {
        check_kind(kind)?;
        Ok(Self { weight: Arc::new(weight), kind })
    }

    /// Token ids (any shape, `Int64`) to vectors `[..., hidden]`, on their device, which must be the table's.
    ///
    /// # Errors
    /// Ids of another dtype or on another device; a damaged table; on a CPU, an id outside the table. On a GPU, which looks the
    /// ids up without the host, such an id gives a vector of NaN.
    pub fn try_forward(&self, ids: &Tensor) -> Result<Tensor> {
        if ids.kind() != Kind::Int64 {
            return Err(Error::invalid(
                self.weight.tensor_path(),
                format!("token ids have dtype {:?}, wanted Int64", ids.kind()),
            ));
        }
        if ids.device() != self.weight.device() {
            return Err(self.weight.elsewhere(ids.device()));
        }
        match self.kind {
            _ if ids.device().is_cuda() => self.rows_on_cuda(ids),
            Kind::Half => self.rows::<f16>(ids),
            Kind::BFloat16 => self.rows::<bf16>(ids),
            _ => self.rows::<f32>(ids),
        }
    }

    /// How the table is coded, where it is on a GPU.
    pub(super) fn layout(&self) -> Result<Option<Layout>> {
        self.weight.layout_on_gpu()
    }

    fn rows_on_cuda(&self, ids: &Tensor) -> Result<Tensor> {
        let subject = self.weight.tensor_path();
        let hidden = self.weight.shape()[1] as i64;
        let size: Vec<i64> = ids.size().into_iter().chain([hidden]).collect();
        let flat = ids.f_reshape([-1]).and_then(|flat| flat.f_contiguous()).about(subject)?;
        let shape = [flat.numel() as i64, hidden];
        let out = Tensor::f_empty(shape, (self.kind, ids.device())).about(subject)?;
        self.gather_on_cuda(&flat, &out)?;
        out.f_reshape(&size).about(subject)
    }

    fn gather_on_cuda(&self, tokens: &Tensor, out: &Tensor) -> Result<()> {
        let prepared = self.weight.prepared()?;
        let weight = prepared.device_weight().ok_or_else(|| self.weight.elsewhere(tokens.device()))?;
        cuda::keep(prepared.clone());
        cuda::gather_rows(&Launcher::on(tokens.device())?, weight, tokens, out)
    }

    fn rows<T: ScratchElement + Default>(&self, ids: &Tensor) -> Result<Tensor> {
        let subject = self.weight.tensor_path();
        let hidden = self.weight.shape()[1];
        let count = ids.numel();
        let size: Vec<i64> = ids.size().into_iter().chain([hidden as i64]).collect();
        if count == 0 {
            return Tensor::f_zeros(&size, (self.kind, tch::Device::Cpu)).about(subject);
        }
        let mut indices = vec![0i64; count];
        ids.f_contiguous().and_then(|ids| ids.f_copy_data(&mut indices, count)).about(subject)?;
        let out = Tensor::f_empty([(count * hidden) as i64], (self.kind, tch::Device::Cpu)).about(subject)?;
        // SAFETY: a fresh contiguous tensor of T's dtype with this many elements, not shared yet; every element is
        // written below before it is read.
        let elements = unsafe { std::slice::from_raw_parts_mut(out.data_ptr().cast::<T>(), count * hidden) };
        self.weight.with_ref(|weight| gather_rows(weight, &indices, elements))?;
        out.f_reshape(&size).about(subject)
    }

    /// The vectors of `tokens` `[batch]` (`Int64`) into `out` `[batch, hidden]` on their device; on a GPU without allocating.
    pub(crate) fn forward_into(&self, tokens: &Tensor, out: &Tensor) -> Result<()> {
        if tokens.device().is_cuda() {
            return self.gather_on_cuda(tokens, out);
        }
        let rows = self.try_forward(tokens)?;
        out.shallow_clone().f_copy_(&rows).about(self.weight.tensor_path())
    }

    /// Changes when the table is another or has been written to.
    pub(super) fn version(&self) -> Result<BufferVersion> {
        self.weight.version()
    }

    /// `[vocab, hidden]`.
    pub fn shape(&self) -> [usize; 2] {
        self.weight.shape()
    }

    /// The table's full name.
    pub fn tensor_path(&self) -> &str {
        self.weight.tensor_path()
    }

    /// Bytes of the buffers.
    pub fn weight_bytes(&self) -> usize {
        self.weight.bytes()
    }

    /// The head that shares these buffers (a tied `lm_head`): one copy.
    pub fn tied_head(&self) -> CompressedLinear {
        CompressedLinear::tied(self.weight.clone())
    }

    /// Counts decodes of the tied head from here on, or stops. A lookup of rows is not a decode of the weight.
    pub fn set_counting(&self, on: bool) {
        self.weight.set_counting(on);
    }

    /// What was counted.
    pub fn counters(&self) -> DecodeCounters {
        self.weight.counters()
    }
}
