//! The most memory of a GPU that was occupied, as the driver counts it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use super::device::{device, Device};
use crate::error::{Error, Result};

/// How often the driver is asked.
const INTERVAL: Duration = Duration::from_millis(5);

/// Watches a GPU's memory from its start on. What was occupied before does not count, the driver's own context neither.
///
/// ```
/// use codecllm::cuda::{is_available, PeakMemory};
/// if is_available() {
///     let peak = PeakMemory::start(0)?;
///     // load a model ...
///     println!("{} bytes to load it", peak.peak_bytes());
///     // generate ...
///     println!("{} bytes", peak.finish());
/// }
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Debug)]
pub struct PeakMemory {
    watch: Arc<Watch>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Watch {
    device: &'static Device,
    used_before: u64,
    peak: AtomicU64,
    stop: AtomicBool,
}

impl PeakMemory {
    /// Starts to watch the GPU with this number.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) without CUDA,
    /// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) where there is no such GPU.
    pub fn start(ordinal: usize) -> Result<Self> {
        let device = device(ordinal)?;
        let watch = Arc::new(Watch {
            device,
            used_before: used_bytes(device)?,
            peak: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        });
        let watched = Arc::clone(&watch);
        let thread = std::thread::Builder::new()
            .name("peak memory".to_owned())
            .spawn(move || watched.run())
            .map_err(|error| Error::io("thread \"peak memory\"", error))?;
        Ok(Self { watch, thread: Some(thread) })
    }

    /// The most so far, bytes.
    pub fn peak_bytes(&self) -> u64 {
        self.watch.sample();
        self.watch.peak.load(Ordering::Relaxed)
    }

    /// Stops, and gives the most there was, bytes.
    pub fn finish(self) -> u64 {
        self.peak_bytes()
    }
}

impl Drop for PeakMemory {
    fn drop(&mut self) {
        self.watch.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It only fails if the thread panicked, and then there is nothing more to stop.
            let _ = thread.join();
        }
    }
}

impl Watch {
    fn run(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            self.sample();
            std::thread::park_timeout(INTERVAL);
        }
    }

    /// A failure is passed over: the next call on the device will tell of it.
    fn sample(&self) {
        if let Ok(used) = used_bytes(self.device) {
            self.peak.fetch_max(used.saturating_sub(self.used_before), Ordering::Relaxed);
        }
    }
}

fn used_bytes(device: &Device) -> Result<u64> {
    let (free, total) = device.free_and_total_bytes()?;
    Ok(total.saturating_sub(free) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_gpu_it_says_so() {
        if let Err(reason) = crate::cuda::load() {
            let error = PeakMemory::start(0).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Unsupported);
            assert_eq!(error.to_string(), reason.to_string());
        } else {
            println!("SKIPPED: CUDA is here");
        }
    }
}
