//! Times work on the device by the device's own clock.

use std::time::Duration;

use cudarc::driver::result::event;
use cudarc::driver::sys::{CUevent, CUevent_flags};

use super::device::Device;
use super::driver::DriverContext;
use super::stream::Stream;
use crate::error::Result;

/// A pair of events that can be recorded again and again.
#[derive(Debug)]
pub(crate) struct EventTimer {
    start: Event,
    stop: Event,
}

#[derive(Debug)]
struct Event {
    device: &'static Device,
    handle: CUevent,
}

// SAFETY: a handle, not memory: the driver takes it from any thread.
unsafe impl Send for Event {}

impl EventTimer {
    pub(crate) fn new(device: &'static Device) -> Result<Self> {
        Ok(Self { start: Event::new(device)?, stop: Event::new(device)? })
    }

    /// Marks the begin on the stream.
    pub(crate) fn start(&self, stream: Stream) -> Result<()> {
        self.start.record(stream)
    }

    /// Marks the end on the stream.
    pub(crate) fn stop(&self, stream: Stream) -> Result<()> {
        self.stop.record(stream)
    }

    /// Waits for the end, and gives the time from the begin.
    pub(crate) fn elapsed(&self) -> Result<Duration> {
        let _entered = self.stop.device.enter()?;
        // SAFETY: the event is alive until drop.
        unsafe { event::synchronize(self.stop.handle) }.about("event")?;
        // SAFETY: as above.
        let milliseconds = unsafe { event::elapsed(self.start.handle, self.stop.handle) }.about("event")?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1000.0))
    }
}

impl Event {
    fn new(device: &'static Device) -> Result<Self> {
        let _entered = device.enter()?;
        let handle = event::create(CUevent_flags::CU_EVENT_DEFAULT).about("event")?;
        Ok(Self { device, handle })
    }

    fn record(&self, stream: Stream) -> Result<()> {
        let _entered = self.device.enter()?;
        // SAFETY: the event is alive until drop, and libtorch's streams as long as the process.
        unsafe { event::record(self.handle, stream.handle()) }.about("event")
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(_entered) = self.device.enter() {
            // SAFETY: created by `new`, destroyed once.
            let _ = unsafe { event::destroy(self.handle) };
        }
    }
}
