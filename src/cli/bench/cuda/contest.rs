//! Contenders timed in turn, so that a change of the clock or a neighbor's work meets all of them alike.

use std::time::{Duration, Instant};

use codecllm::cuda::{Recorder, Recording};
use codecllm::Result;
use serde::Serialize;

/// A recording takes at least about this long: the launch of the next one must be hidden behind it.
const LEAST_SECONDS: f64 = 1e-3;
/// What a GPU moves a second at most, and the least that it needs for a kernel, about: they say how many pieces of work
/// take that long.
const MOST_BYTES_PER_SECOND: f64 = 4e12;
const LEAST_PIECE_SECONDS: f64 = 2e-6;
/// How long all contenders together run before any counts.
const WARM_UP: Duration = Duration::from_millis(100);
/// Rounds at least, whatever the budget.
const LEAST_ROUNDS: usize = 7;
/// Rounds at most.
const MOST_ROUNDS: usize = 200;

/// Microseconds that one piece of work takes on the GPU.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct GpuTiming {
    /// Half of the replays took less.
    pub(super) median_us: f64,
    /// The fastest replay.
    pub(super) min_us: f64,
}

/// Recorded work, several pieces of it one behind the other.
pub(super) struct Contender {
    recording: Recording,
    pieces: usize,
}

impl Contender {
    /// Records `piece`, which gets its turn's number, in whole rounds through `copies`; each moves at least `bytes`.
    ///
    /// # Safety
    /// As for [`Recorder::record`]: what `piece` reads and writes lives until the contest is over.
    pub(super) unsafe fn record(
        recorder: &Recorder,
        copies: usize,
        bytes: usize,
        mut piece: impl FnMut(usize) -> Result<()>,
    ) -> Result<Self> {
        let piece_seconds = (bytes as f64 / MOST_BYTES_PER_SECOND).max(LEAST_PIECE_SECONDS);
        let rounds = (LEAST_SECONDS / (copies as f64 * piece_seconds)).ceil().max(1.0);
        let pieces = copies * rounds as usize;
        // SAFETY: the caller's promise.
        let recording = unsafe { recorder.record(|| (0..pieces).try_for_each(&mut piece)) }?;
        Ok(Self { recording, pieces })
    }
}

/// Replays all `contenders` in turn for about `budget` each.
pub(super) fn contest(contenders: &[Contender], budget: Duration) -> Result<Vec<GpuTiming>> {
    warm_up(contenders)?;
    let mut samples = vec![Vec::new(); contenders.len()];
    let (begin, budget) = (Instant::now(), budget.saturating_mul(contenders.len() as u32));
    for round in 0..MOST_ROUNDS {
        if round >= LEAST_ROUNDS && begin.elapsed() > budget {
            break;
        }
        for (samples, contender) in samples.iter_mut().zip(contenders) {
            samples.push(contender.recording.replay_seconds()? * 1e6 / contender.pieces as f64);
        }
    }
    Ok(samples.into_iter().map(timing).collect())
}

/// A GPU that had nothing to do has a slower clock.
fn warm_up(contenders: &[Contender]) -> Result<()> {
    let begin = Instant::now();
    loop {
        contenders.iter().try_for_each(|contender| contender.recording.replay())?;
        if begin.elapsed() > WARM_UP {
            return Ok(());
        }
    }
}

fn timing(mut samples: Vec<f64>) -> GpuTiming {
    samples.sort_by(f64::total_cmp);
    let at = |index: usize| samples.get(index).copied().unwrap_or(f64::NAN);
    GpuTiming { median_us: at(samples.len() / 2), min_us: at(0) }
}
