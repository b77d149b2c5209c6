//! The figures that an engine keeps while it runs, in memory that does not grow.

use std::time::{Duration, Instant};

use super::job::Outcome;
use super::stats::{Histogram, RequestCounts};
use crate::runtime::StopReason;

/// Seconds to a first token: from at once to those that waited long.
const FIRST_TOKEN_BOUNDS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];
/// Seconds of a step: from a small model on a GPU to a large one on a CPU.
const STEP_BOUNDS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// Counters since the start, and some of now.
#[derive(Debug)]
pub(super) struct Figures {
    pub(super) running: usize,
    pub(super) free_pages: usize,
    pub(super) prompt_tokens: u64,
    pub(super) completion_tokens: u64,
    pub(super) requests: RequestCounts,
    pub(super) prefill_pieces: u64,
    pub(super) steps: u64,
    pub(super) last_step_rows: usize,
    pub(super) rate: Rate,
    pub(super) time_to_first_token: Histogram,
    pub(super) step_seconds: Histogram,
    pub(super) peak_device_bytes: Option<u64>,
}

impl Figures {
    pub(super) fn new(free_pages: usize) -> Self {
        Self {
            running: 0,
            free_pages,
            prompt_tokens: 0,
            completion_tokens: 0,
            requests: RequestCounts::default(),
            prefill_pieces: 0,
            steps: 0,
            last_step_rows: 0,
            rate: Rate::new(Instant::now()),
            time_to_first_token: Histogram::new(FIRST_TOKEN_BOUNDS),
            step_seconds: Histogram::new(STEP_BOUNDS),
            peak_device_bytes: None,
        }
    }

    /// Counts a token of an answer that began to be waited for at `arrived`.
    pub(super) fn count_token(&mut self, is_first: bool, arrived: Instant, now: Instant) {
        self.completion_tokens += 1;
        self.rate.add(now);
        if is_first {
            self.time_to_first_token.add(now.saturating_duration_since(arrived).as_secs_f64());
        }
    }

    /// Counts a request that is over.
    pub(super) fn count_outcome(&mut self, outcome: &Outcome) {
        let requests = &mut self.requests;
        let count = match outcome {
            Outcome::Left => &mut requests.left,
            Outcome::Failed(_) => &mut requests.failed,
            Outcome::Ended(ending) => match ending.reason {
                StopReason::StopToken(_) | StopReason::StopString(_) => &mut requests.stopped,
                StopReason::MaxNewTokens | StopReason::Context => &mut requests.length,
                StopReason::Interrupted => &mut requests.interrupted,
                StopReason::Deadline => &mut requests.deadline,
            },
        };
        *count += 1;
    }
}

/// Slots that the window of a [`Rate`] is divided into.
const SLOTS: usize = 20;
/// Time of a slot: five seconds together.
const SLOT: Duration = Duration::from_millis(250);

/// How many tokens a second, over the last five seconds.
#[derive(Debug)]
pub(super) struct Rate {
    start: Instant,
    /// Number of the newest slot since `start`, whose count is at that number modulo the window.
    newest: u128,
    counts: [u64; SLOTS],
}

impl Rate {
    fn new(start: Instant) -> Self {
        Self { start, newest: 0, counts: [0; SLOTS] }
    }

    /// Counts a token at `now`.
    fn add(&mut self, now: Instant) {
        self.advance(now);
        self.counts[slot(self.newest)] += 1;
    }

    /// Tokens a second over the window that ends `now`, or over the part of it since the first token in it.
    pub(super) fn per_second(&mut self, now: Instant) -> f64 {
        self.advance(now);
        let numbers = self.newest.saturating_sub(SLOTS as u128 - 1)..=self.newest;
        let Some(first) = numbers.clone().find(|&number| self.counts[slot(number)] > 0) else { return 0.0 };
        let begun = SLOT.as_secs_f64() * first as f64;
        let seconds = now.saturating_duration_since(self.start).as_secs_f64() - begun;
        self.counts.iter().sum::<u64>() as f64 / seconds.max(SLOT.as_secs_f64())
    }

    /// Forgets what is older than the window.
    fn advance(&mut self, now: Instant) {
        let number = now.saturating_duration_since(self.start).as_nanos() / SLOT.as_nanos();
        let passed = number.saturating_sub(self.newest).min(SLOTS as u128);
        for passed in 1..=passed {
            self.counts[slot(self.newest + passed)] = 0;
        }
        self.newest = self.newest.max(number);
    }
}

/// Where the count of the slot with this number is.
fn slot(number: u128) -> usize {
    (number % SLOTS as u128) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_forgets_what_is_older_than_five_seconds() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut rate = Rate::new(start);
        assert_eq!(rate.per_second(at(0)), 0.0);
        // One token each 10 ms for ten seconds.
        (0..1000).for_each(|i| rate.add(at(10 * i)));
        let steady = rate.per_second(at(9990));
        assert!((steady - 100.0).abs() < 6.0, "{steady}");
        // Two and a half seconds later half of the window is empty, six later all of it.
        let half = rate.per_second(at(12_490));
        assert!((half - 50.0).abs() < 6.0, "{half}");
        assert_eq!(rate.per_second(at(16_000)), 0.0);
        // A lonely second after a long rest is not thinned out over the rest.
        (0..100).for_each(|i| rate.add(at(100_000 + 10 * i)));
        let burst = rate.per_second(at(101_000));
        assert!((burst - 100.0).abs() < 26.0, "{burst}");
    }
}
