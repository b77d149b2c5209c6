//! A registered buffer of bytes: whether it is still the one that was looked at, and how it becomes bytes again.

use tch::{Kind, Tensor};

use crate::error::{Result, TorchContext};

/// Tells whether a buffer is still the one that was prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BufferVersion {
    kind: Kind,
    address: usize,
    version: i64,
}

impl BufferVersion {
    /// The version of `buffer` now. `subject` is its path.
    pub(crate) fn of(buffer: &Tensor, subject: &str) -> Result<Self> {
        // Tensors made in Python's inference mode count no versions.
        let version = match buffer.f_is_inference().about(subject)? {
            true => 0,
            false => buffer.f_internal_version().about(subject)?,
        };
        Ok(Self { kind: buffer.kind(), address: buffer.data_ptr() as usize, version })
    }
}

/// Turns a buffer that a change of dtype converted back into bytes, in place: 0 to 255 are exact in every float dtype.
/// The caller keeps every reader away.
pub(super) fn restore_bytes(buffer: &Tensor, subject: &str) -> Result<()> {
    if buffer.kind() == Kind::Uint8 {
        return Ok(());
    }
    tch::no_grad(|| {
        let bytes = buffer.f_to_kind(Kind::Uint8)?;
        buffer.shallow_clone().f_set_data(&bytes)
    })
    .about(subject)
}
