//! Scratch on the GPU, shared by all modules: one buffer for each device, stream and purpose, as large as the largest need.
//!
//! What is launched on one stream runs in order, so that one buffer serves every launch on it, provided that the launches that
//! write and read it are not mixed with those of another thread: a buffer is lent under a lock that is held while they are
//! launched (not while they run).
//!
//! A captured graph is launched on any stream, beside other graphs that were captured on the same one: it brings a
//! [`Workspace`] of its own, which also keeps what the graph knows by its address alone.

use std::any::Any;
use std::cell::RefCell;
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

/// Scratch for the launches of one graph, to be kept as long as the graph.
#[derive(Clone, Debug, Default)]
pub(crate) struct Workspace {
    slots: Arc<Mutex<HashMap<Key, Arc<Mutex<Slot>>>>>,
    kept: Arc<Mutex<Kept>>,
}

/// What the launches of a graph read beside scratch: tables and biases, whose owners may make new ones.
#[derive(Default)]
struct Kept(Vec<Box<dyn Any + Send>>);

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Kept").field(&self.0.len()).finish()
    }
}

thread_local! {
    /// Where this thread's launches get their scratch from, if not from what all share.
    static OWN: RefCell<Option<Workspace>> = const { RefCell::new(None) };
}

impl Workspace {
    /// Lets what `work` launches on this thread use this workspace.
    pub(crate) fn during<R>(&self, work: impl FnOnce() -> R) -> R {
        let _restore = Restore(OWN.replace(Some(self.clone())));
        work()
    }

    /// This thread's own, or the one that all share.
    fn current() -> Self {
        static SHARED: LazyLock<Workspace> = LazyLock::new(Workspace::default);
        OWN.with_borrow(|own| own.clone()).unwrap_or_else(|| SHARED.clone())
    }

    fn slot(&self, key: Key) -> Arc<Mutex<Slot>> {
        Arc::clone(self.slots.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default())
    }
}

/// Keeps `what` as long as the workspace that this thread's launches use now, if it is one of their own.
pub(crate) fn keep(what: impl Any + Send) {
    if let Some(own) = OWN.with_borrow(|own| own.clone()) {
        own.kept.lock().unwrap_or_else(PoisonError::into_inner).0.push(Box::new(what));
    }
}

/// Puts back what was before, also after a panic.
struct Restore(Option<Workspace>);

impl Drop for Restore {
    fn drop(&mut self) {
        OWN.set(self.0.take());
    }
}

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
    let slot = Workspace::current().slot(key);
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
    fn a_workspace_is_used_only_meanwhile() {
        let is = |workspace: &Workspace| Arc::ptr_eq(&Workspace::current().slots, &workspace.slots);
        let (outer, inner) = (Workspace::default(), Workspace::default());
        let shared = Workspace::current();
        outer.during(|| {
            assert!(is(&outer));
            inner.during(|| assert!(is(&inner)));
            assert!(is(&outer));
            std::thread::scope(|scope| scope.spawn(|| assert!(is(&shared))).join().unwrap());
        });
        assert!(is(&shared));
    }

    #[test]
    fn a_workspace_keeps_what_its_launches_read() {
        let (workspace, table) = (Workspace::default(), Arc::new(7));
        keep(table.clone());
        assert_eq!(Arc::strong_count(&table), 1, "what all share keeps nothing");
        workspace.during(|| keep(table.clone()));
        assert_eq!(Arc::strong_count(&table), 2);
        drop(workspace);
        assert_eq!(Arc::strong_count(&table), 1);
    }

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
