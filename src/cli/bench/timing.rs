//! Repeated timing of one piece of work.

use std::time::{Duration, Instant};

use serde::Serialize;

/// Repetitions at least, whatever the budget.
const LEAST_SAMPLES: usize = 5;
/// Repetitions at most.
const MOST_SAMPLES: usize = 2000;

/// Seconds that one piece of work takes.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Timing {
    /// Half of the runs took less.
    pub(super) median_seconds: f64,
    /// The fastest run: what a machine shared with others would give alone.
    pub(super) min_seconds: f64,
}

impl Timing {
    /// The same for one of `parts` equal pieces.
    pub(super) fn per(self, parts: usize) -> Self {
        let parts = parts.max(1) as f64;
        Self { median_seconds: self.median_seconds / parts, min_seconds: self.min_seconds / parts }
    }

    /// `amount` a second, at the median.
    pub(super) fn rate(self, amount: usize) -> f64 {
        amount as f64 / self.median_seconds.max(f64::MIN_POSITIVE)
    }
}

/// Runs `work` once to warm up and then for about `budget`.
pub(super) fn measure<E>(budget: Duration, mut work: impl FnMut() -> Result<(), E>) -> Result<Timing, E> {
    work()?;
    let mut samples = Vec::new();
    let begin = Instant::now();
    while samples.len() < LEAST_SAMPLES || (begin.elapsed() < budget && samples.len() < MOST_SAMPLES) {
        let start = Instant::now();
        work()?;
        samples.push(start.elapsed().as_secs_f64());
    }
    samples.sort_by(f64::total_cmp);
    Ok(Timing { median_seconds: samples[samples.len() / 2], min_seconds: samples[0] })
}
