//! Work on the GPU recorded once as a CUDA graph, and replayed by the GPU's own clock: how to time a kernel of a few
//! microseconds, which the launch from the host would hide.

use super::device::{device, Device};
use super::event::EventTimer;
use super::graph::Graph;
use super::stream::Stream;
use crate::error::Result;

/// Records work on one stream of its own.
///
/// ```no_run
/// // Needs a GPU.
/// use codecllm::cuda::{self, Recorder, Recording};
/// use tch::{Device, Kind, Tensor};
/// cuda::load()?;
/// let from = Tensor::zeros([1 << 28], (Kind::Float, Device::Cuda(0)));
/// let mut to = from.empty_like();
/// let recorder = Recorder::new(0)?;
/// let copy: Recording = recorder.record(|| {
///     to.copy_(&from);
///     Ok(())
/// })?;
/// copy.replay()?; // warm
/// println!("{} s", copy.replay_seconds()?);
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Debug)]
pub struct Recorder {
    device: &'static Device,
    stream: Stream,
}

/// Recorded work. The tensors that it reads and writes must outlive it: a replay goes to their memory, whoever owns that
/// by then.
///
/// Made by a [`Recorder`]; see its example.
#[derive(Debug)]
pub struct Recording {
    device: &'static Device,
    stream: Stream,
    graph: Graph,
    timer: EventTimer,
}

impl Recorder {
    /// A recorder for the GPU `ordinal`, with a stream from libtorch's pool.
    ///
    /// # Errors
    /// Where there is no such GPU.
    pub fn new(ordinal: usize) -> Result<Self> {
        let device = device(ordinal)?;
        Ok(Self { device, stream: device.pool_stream()? })
    }

    /// Runs `work` once, which compiles kernels and allocates what they keep, and then records what it does on libtorch's
    /// current stream. What the caller prepared on its own stream is finished first.
    ///
    /// # Errors
    /// What `work` reports; `Cuda` where it waits for the GPU or does something else that no graph can hold.
    pub fn record(&self, mut work: impl FnMut() -> Result<()>) -> Result<Recording> {
        let (device, stream) = (self.device, self.stream);
        device.synchronize(device.current_stream()?)?;
        let graph = device.with_stream(stream, || {
            let rehearsed = work();
            // Also after an error: what is on its way may write to memory that the caller gives back now.
            let done = device.synchronize(stream);
            rehearsed.and(done)?;
            Graph::capture(device, stream, &mut work)
        })?;
        Ok(Recording { device, stream, graph, timer: EventTimer::new(device)? })
    }
}

impl Recording {
    /// Replays the work and waits for its end.
    ///
    /// # Errors
    /// What the driver reports.
    pub fn replay(&self) -> Result<()> {
        self.graph.launch(self.stream)?;
        self.device.synchronize(self.stream)
    }

    /// Seconds that a replay takes on the GPU.
    ///
    /// One replay runs ahead of the one that is timed, so that the GPU never waits for the host's launch: the work should
    /// be long enough for that, a tenth of a millisecond at least.
    ///
    /// # Errors
    /// What the driver reports.
    pub fn replay_seconds(&self) -> Result<f64> {
        self.graph.launch(self.stream)?;
        self.timer.start(self.stream)?;
        self.graph.launch(self.stream)?;
        self.timer.stop(self.stream)?;
        Ok(self.timer.elapsed()?.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};

    use super::Recorder;
    use crate::error::{Error, TorchContext};

    #[test]
    fn a_recording_runs_once_beforehand_and_at_every_replay() {
        if let Err(error) = crate::cuda::load() {
            println!("SKIPPED: {error}");
            return;
        }
        let mut count = Tensor::zeros([1], (Kind::Float, tch::Device::Cuda(0)));
        let seen = count.shallow_clone();
        let recorder = Recorder::new(0).unwrap();
        let recording = recorder.record(|| count.f_add_scalar_(1.0).map(drop).about("count")).unwrap();
        assert_eq!(seen.double_value(&[0]), 1.0);
        recording.replay().unwrap();
        assert_eq!(seen.double_value(&[0]), 2.0);
        let seconds = recording.replay_seconds().unwrap();
        assert!(seconds > 0.0 && seconds < 0.1, "{seconds}");
        assert_eq!(seen.double_value(&[0]), 4.0, "one replay runs ahead of the one that is timed");
        let error = recorder.record(|| Err(Error::invalid("work", "refused"))).unwrap_err();
        assert_eq!(error.to_string(), "work: refused");
    }
}
