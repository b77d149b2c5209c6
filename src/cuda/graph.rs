//! A sequence of launches, captured once and replayed with one call.

use cudarc::driver::result::{graph, stream as driver_stream};
use cudarc::driver::sys::{CUgraph, CUgraphExec, CUgraphInstantiate_flags, CUstreamCaptureMode};

use super::device::Device;
use super::driver::DriverContext;
use super::stream::Stream;
use crate::error::{Error, Result};

/// What was launched during a capture, ready to be launched again on the same memory.
///
/// libtorch's allocator does not know of the capture: tensors that the work allocates are used again by others once
/// they are dropped. What a graph reads and writes must be allocated before and kept as long as the graph.
#[derive(Debug)]
pub(crate) struct Graph {
    device: &'static Device,
    executable: CUgraphExec,
}

// SAFETY: a handle, not memory: the driver takes it from any thread, one at a time. The type is not `Sync`.
unsafe impl Send for Graph {}

impl Graph {
    /// Captures what `work` launches on `stream`, which is libtorch's current stream meanwhile. Nothing runs.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) for the default stream, which can't be
    /// captured; the work's own error; [`ErrorKind::Cuda`](crate::ErrorKind::Cuda) where the work did what a capture
    /// does not allow, such as waiting for the device.
    pub(crate) fn capture(
        device: &'static Device,
        stream: Stream,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<Self> {
        if stream.is_default() {
            return Err(Error::invalid(
                "graph",
                "the default stream can't be captured; take one from the pool",
            ));
        }
        let _entered = device.enter()?;
        let captured = device.with_stream(stream, || {
            let capture = Capture::begin(stream)?;
            let outcome = work();
            // Ended also after an error, which is then the one to tell: the capture's own is but its consequence.
            let captured = capture.end();
            outcome.and(captured)
        })?;
        // SAFETY: the graph was just captured, and is alive until drop.
        let executable =
            unsafe { graph::instantiate(captured.0, CUgraphInstantiate_flags(0)) }.about("graph")?;
        Ok(Self { device, executable })
    }

    /// Puts everything on the stream.
    pub(crate) fn launch(&self, stream: Stream) -> Result<()> {
        let _entered = self.device.enter()?;
        // SAFETY: the executable is alive until drop, and libtorch's streams as long as the process.
        unsafe { graph::launch(self.executable, stream.handle()) }.about("graph")
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Ok(_entered) = self.device.enter() {
            // The driver frees it once what runs of it has run.
            // SAFETY: instantiated by `capture`, destroyed once.
            let _ = unsafe { graph::exec_destroy(self.executable) };
        }
    }
}

/// A capture that has begun, and ends also where the work panics.
struct Capture {
    stream: Stream,
    ended: bool,
}

impl Capture {
    fn begin(stream: Stream) -> Result<Self> {
        // Relaxed: libtorch may ask about events and memory meanwhile, on this thread or another.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: libtorch's streams live as long as the process.
        unsafe { driver_stream::begin_capture(stream.handle(), mode) }.about("graph capture")?;
        Ok(Self { stream, ended: false })
    }

    fn end(mut self) -> Result<Captured> {
        self.ended = true;
        // SAFETY: the stream is capturing since `begin`.
        unsafe { driver_stream::end_capture(self.stream.handle()) }.about("graph capture").map(Captured)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if !self.ended {
            // SAFETY: the stream is capturing since `begin`.
            let _ = unsafe { driver_stream::end_capture(self.stream.handle()) }.map(Captured);
        }
    }
}

/// A captured graph, destroyed once it is instantiated.
struct Captured(CUgraph);

impl Drop for Captured {
    fn drop(&mut self) {
        // SAFETY: ended by `cuStreamEndCapture`, which gives its ownership, or null, which the driver refuses.
        let _ = unsafe { graph::destroy(self.0) };
    }
}
