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
/// // SAFETY: the work allocates nothing, and `from` and `to` live until after the last replay.
/// let copy: Recording = unsafe {
///     recorder.record(|| {
///         to.copy_(&from);
///         Ok(())
///     })?
/// };
/// copy.replay()?; // warm
/// println!("{} s", copy.replay_seconds()?);
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Debug)]
pub struct Recorder {
    device: &'static Device,
    stream: Stream,
}

/// Recorded work: a replay goes to the memory of the tensors that it read and wrote, see [`Recorder::record`].
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
    ///
    /// # Safety
    /// All memory of the GPU that `work` reads or writes must belong to tensors that live, where they are, until the last replay has ended. Those
    /// that `work` makes itself must be kept, too, or be made in the first call only: after the recording, libtorch gives the memory of a
    /// dropped one to whoever asks next.
    pub unsafe fn record(&self, mut work: impl FnMut() -> Result<()>) -> Result<Recording> {
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
        let add = || count.f_add_scalar_(1.0).map(drop).about("count");
        // SAFETY: it adds in place to a tensor that lives until the end of the test.
        let recording = unsafe { recorder.record(add) }.unwrap();
        assert_eq!(seen.double_value(&[0]), 1.0);
        recording.replay().unwrap();
        assert_eq!(seen.double_value(&[0]), 2.0);
        let seconds = recording.replay_seconds().unwrap();
        assert!(seconds > 0.0 && seconds < 0.1, "{seconds}");
        assert_eq!(seen.double_value(&[0]), 4.0, "one replay runs ahead of the one that is timed");
        // SAFETY: it touches nothing.
        let error = unsafe { recorder.record(|| Err(Error::invalid("work", "refused"))) }.unwrap_err();
        assert_eq!(error.to_string(), "work: refused");
    }
}
