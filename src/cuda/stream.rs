//! A CUDA stream: one of libtorch's, never our own.

use std::ffi::c_void;

use cudarc::driver::result::stream;
use cudarc::driver::sys::{CUstream, CUstreamCaptureStatus};

use super::device::Device;
use super::driver::DriverContext;
use crate::error::Result;

/// A stream of libtorch's, which lives as long as the process. Equal handles are the same stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Stream(CUstream);

// SAFETY: a handle, not memory: the driver's functions take it from any thread, and libtorch never destroys a stream of its own. One that
// C++ code made and gave to libtorch as its current stream has to live while work is launched there, for libtorch's own kernels as well.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    pub(super) fn new(handle: *mut c_void) -> Self {
        Self(handle.cast())
    }

    /// The driver's handle.
    pub(super) fn handle(self) -> CUstream {
        self.0
    }

    /// Whether this is the legacy default stream, which can't be captured.
    pub(crate) fn is_default(self) -> bool {
        self.0.is_null()
    }

    /// Whether what is launched on it is being captured into a graph. `device` is the stream's.
    pub(crate) fn is_capturing(self, device: &Device) -> Result<bool> {
        // The driver refuses to answer for the default stream while another one captures.
        if self.is_default() {
            return Ok(false);
        }
        let _entered = device.enter()?;
        // SAFETY: libtorch's streams live as long as the process.
        let status = unsafe { stream::is_capturing(self.0) }.about("stream")?;
        Ok(status != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
    }
}
