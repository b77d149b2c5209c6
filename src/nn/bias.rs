//! The bias of a compressed layer: in a VarStore as bytes, so that no change of its dtype can round it; for an operator the tensor
//! that it was given.
//!
//! The bytes are: XXH3-64 of the rest (8 bytes), dtype code (1), zeros (7), the elements in their own dtype.

use std::sync::{PoisonError, RwLock};

use tch::{Kind, Tensor};
use xxhash_rust::xxh3::xxh3_64;

use super::byte_buffer::{restore_bytes, BufferVersion};
use crate::codec::{raw_bytes, SourceDtype};
use crate::error::{Error, Result, TorchContext};
use crate::ops::transformer::Launcher;

const PREFIX_BYTES: usize = 16;

/// The bias of a compressed layer.
#[derive(Debug)]
pub(crate) struct Bias {
    path: String,
    /// The registered tensor.
    registered: Tensor,
    form: Form,
    /// What it was read from, and the bias on its device. The lock also guards turning the buffer back into bytes.
    prepared: RwLock<Option<(BufferVersion, InEveryDtype)>>,
    len: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Bytes, as [`Bias::byte_vec`] makes them.
    Bytes,
    /// An ordinary float tensor, which a change of dtype may round.
    Floats,
}

/// The bias in FP32, FP16 and BF16, so that no forward has to convert it.
#[derive(Debug)]
struct InEveryDtype([Tensor; 3]);

impl InEveryDtype {
    fn of(bias: &Tensor, path: &str) -> Result<Self> {
        let to = |kind| bias.f_to_kind(kind).about(path);
        Ok(Self([to(Kind::Float)?, to(Kind::Half)?, to(Kind::BFloat16)?]))
    }

    fn tensor(&self, kind: Kind) -> Tensor {
        let [float, half, bfloat16] = &self.0;
        match kind {
            Kind::Half => half,
            Kind::BFloat16 => bfloat16,
            _ => float,
        }
        .shallow_clone()
    }
}

// SAFETY: a tch tensor is a counted reference to a libtorch tensor, whose count is atomic and whose reading functions may run on several
// threads at once. `registered` is only read, except where it is no bytes any more and is made bytes again, under the write lock of
// `prepared`; what others have then are the prepared tensors, which nobody writes.
unsafe impl Sync for Bias {}

impl Bias {
    /// Wraps the registered buffer `bytes` of a layer with `len` outputs and checks it.
    pub fn new(path: String, bytes: Tensor, len: usize) -> Result<Self> {
        let bias = Self { path, registered: bytes, form: Form::Bytes, prepared: RwLock::default(), len };
        bias.tensor(Kind::Float).map(|_| bias)
    }

    /// An ordinary tensor `[len]` that belongs to somebody else, for one call.
    pub fn of_floats(path: String, floats: Tensor) -> Self {
        let len = floats.numel();
        Self { path, registered: floats, form: Form::Floats, prepared: RwLock::default(), len }
    }

    /// The buffer of a float bias `[out_features]`.
    pub fn to_bytes(bias: &Tensor) -> Result<Tensor> {
        Tensor::f_from_slice(&Self::byte_vec(bias)?).about("bias")
    }

    /// The bytes of that buffer.
    pub fn byte_vec(bias: &Tensor) -> Result<Vec<u8>> {
        let dtype = SourceDtype::of_kind(bias.kind(), "bias")?;
        let raw = raw_bytes(bias, "bias")?;
        let mut rest = vec![0; 8];
        rest[0] = dtype.code();
        rest.extend(raw);
        let mut bytes = xxh3_64(&rest).to_le_bytes().to_vec();
        bytes.extend(rest);
        Ok(bytes)
    }

    /// The bias that a container's buffer holds, in its own dtype. `path` is its full name.
    pub fn from_bytes(path: &str, bytes: &[u8]) -> Result<Tensor> {
        let Some((checksum, rest)) = bytes.split_first_chunk::<8>().filter(|(_, rest)| rest.len() >= 8)
        else {
            return Err(Error::truncated(
                path,
                format!("bias has {} bytes, wanted at least {PREFIX_BYTES}", bytes.len()),
            ));
        };
        if u64::from_le_bytes(*checksum) != xxh3_64(rest) {
            return Err(Error::corrupt(path, "bias fails its checksum (file damaged?)"));
        }
        let dtype = SourceDtype::from_code(rest[0], path)?;
        let elements = &rest[8..];
        if rest[1..8] != [0; 7] || elements.len() % dtype.bytes() != 0 {
            return Err(Error::corrupt(path, "bias has reserved bytes set or a broken last element"));
        }
        let count = (elements.len() / dtype.bytes()) as i64;
        Tensor::f_from_data_size(elements, &[count], dtype.kind()).about(path)
    }

    /// Bytes of the registered tensor.
    pub fn bytes(&self) -> usize {
        let _readers = self.prepared.read().unwrap_or_else(PoisonError::into_inner);
        self.registered.numel() * self.registered.kind().elt_size_in_bytes()
    }

    /// Changes when the registered tensor is another or has been written to.
    pub fn version(&self) -> Result<BufferVersion> {
        let _readers = self.prepared.read().unwrap_or_else(PoisonError::into_inner);
        BufferVersion::of(&self.registered, &self.path)
    }

    /// The bias `[out_features]` as `kind` (FP32, FP16 or BF16) on the device where it is registered: read once and again only
    /// where it has changed.
    pub fn tensor(&self, kind: Kind) -> Result<Tensor> {
        if self.form == Form::Floats {
            // Nothing to gain, and not every way to write to such a tensor counts its versions.
            return self.registered.f_detach().and_then(|bias| bias.f_to_kind(kind)).about(&self.path);
        }
        {
            let prepared = self.prepared.read().unwrap_or_else(PoisonError::into_inner);
            let version = BufferVersion::of(&self.registered, &self.path)?;
            if let Some((_, bias)) = prepared.as_ref().filter(|(seen, _)| *seen == version) {
                return Ok(bias.tensor(kind));
            }
        }
        let mut prepared = self.prepared.write().unwrap_or_else(PoisonError::into_inner);
        let bias = self.read()?;
        let version = BufferVersion::of(&self.registered, &self.path)?;
        let every = InEveryDtype::of(&bias, &self.path)?;
        if bias.device().is_cuda() {
            // Other streams will read it, which know nothing of this one's copies.
            let launcher = Launcher::on(bias.device())?;
            launcher.device.synchronize(launcher.stream)?;
        }
        let tensor = every.tensor(kind);
        *prepared = Some((version, every));
        Ok(tensor)
    }

    /// The bias in its own dtype, on its device, from its bytes. The caller holds the write lock.
    fn read(&self) -> Result<Tensor> {
        restore_bytes(&self.registered, &self.path)?;
        let bias = Self::from_bytes(&self.path, &raw_bytes(&self.registered, &self.path)?)?;
        if bias.size() != [self.len as i64] {
            return Err(Error::corrupt(
                &*self.path,
                format!("bias has {} elements, the layer {} outputs", bias.numel(), self.len),
            ));
        }
        bias.f_to_device(self.registered.device()).about(&self.path)
    }
}
