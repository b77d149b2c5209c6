//! Scratch on the GPU, shared by all modules: one buffer for each device, stream and purpose, as large as the largest need.
//!
//! What is launched on one stream runs in order, so that one buffer serves every launch on it, provided that the launches that
//! write and read it are not mixed with those of another thread: a buffer is lent under a lock that is held while they are
//! launched (not while they run).

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use tch::{Kind, Tensor};

use crate::cuda::Stream;
use crate::error::{Result, TorchContext};
use crate::ops::transformer::Launcher;

/// What a buffer is for. Each has its own, so that lending one while another is held never waits for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Purpose {
    /// A weight, decoded.
    Weight,
    /// Rows of x as the fused kernel reads them.
    Activations,
}

type Key = (usize, Stream, Purpose);

#[derive(Debug, Default)]
struct Slot {
    buffer: Option<Tensor>,
    /// Whether a graph that was captured knows the buffer's address.
    captured: bool,
    /// Outgrown buffers that graphs still use.
    kept: Vec<Tensor>,
}

static SLOTS: LazyLock<Mutex<HashMap<Key, Arc<Mutex<Slot>>>>> = LazyLock::new(Mutex::default);

/// Lends at least `bytes` bytes, on the launcher's device and to be used on its stream alone, while `work` launches. The buffer
/// begins at a multiple of 512. `subject` names what needs it.
pub(crate) fn lend<R>(
    launcher: &Launcher,
    purpose: Purpose,
    bytes: usize,
    subject: &str,
    work: impl FnOnce(&Tensor) -> Result<R>,
) -> Result<R> {
    let key = (launcher.device.ordinal, launcher.stream, purpose);
    let slot = Arc::clone(SLOTS.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default());
    let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
    let capturing = launcher.stream.is_capturing(launcher.device)?;
    slot.ensure(tch::Device::Cuda(launcher.device.ordinal), bytes, subject)?;
    slot.captured |= capturing;
    match &slot.buffer {
        Some(buffer) => work(&buffer.f_narrow(0, 0, bytes as i64).about(subject)?),
        None => work(&Tensor::new()),
    }
}

impl Slot {
    /// Makes the buffer large enough. libtorch's allocator keeps what is dropped here for the same stream, on which whatever
    /// still uses it comes first.
    fn ensure(&mut self, device: tch::Device, bytes: usize, subject: &str) -> Result<()> {
        if self.buffer.as_ref().is_some_and(|buffer| buffer.numel() >= bytes) {
            return Ok(());
        }
        let outgrown = self.buffer.take();
        if std::mem::take(&mut self.captured) {
            self.kept.extend(outgrown);
        } else {
            drop(outgrown);
        }
        self.buffer = Some(Tensor::f_empty([bytes as i64], (Kind::Uint8, device)).about(subject)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: tch::Device = tch::Device::Cpu;

    #[test]
    fn a_buffer_grows_and_never_shrinks() {
        let mut slot = Slot::default();
        slot.ensure(CPU, 100, "t").unwrap();
        slot.ensure(CPU, 50, "t").unwrap();
        assert_eq!(slot.buffer.as_ref().unwrap().numel(), 100);
        slot.ensure(CPU, 200, "t").unwrap();
        assert_eq!((slot.buffer.as_ref().unwrap().numel(), slot.kept.len()), (200, 0));
    }

    #[test]
    fn what_a_graph_knows_is_kept() {
        let mut slot = Slot::default();
        slot.ensure(CPU, 100, "t").unwrap();
        slot.captured = true;
        let address = slot.buffer.as_ref().unwrap().data_ptr();
        slot.ensure(CPU, 200, "t").unwrap();
        assert_eq!((slot.kept.len(), slot.kept[0].data_ptr()), (1, address));
        assert!(!slot.captured);
        slot.ensure(CPU, 300, "t").unwrap();
        assert_eq!(slot.kept.len(), 1);
    }
}
