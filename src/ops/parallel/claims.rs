//! Which thread does which index of a loop.

// The parent's: `std::sync::atomic`, or in `tests/claims.rs` that of loom, which tries every order in which threads can run.
use super::atomic::{AtomicUsize, Ordering};

/// Indices `0..count`, each to be claimed once, by one of `threads` threads.
pub(super) struct Claims {
    next: AtomicUsize,
    count: usize,
    threads: usize,
}

impl Claims {
    pub(super) fn new(count: usize, threads: usize) -> Self {
        Self { next: AtomicUsize::new(0), count, threads }
    }

    /// Takes the next indices: a run of neighbours while many are left, single ones towards the end, none after it.
    ///
    /// Relaxed: a claim says who works on what, and carries no data from thread to thread. What the work wrote is seen by whoever
    /// waits for all threads to end.
    pub(super) fn claim(&self) -> std::ops::Range<usize> {
        let mut start = self.next.load(Ordering::Relaxed);
        loop {
            let left = self.count.saturating_sub(start);
            let end = start + (left / (4 * self.threads)).max(1).min(left);
            match self.next.compare_exchange_weak(start, end, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return start..end,
                Err(now) => start = now,
            }
        }
    }
}
