//! Independent jobs on libtorch's own CPU threads.

use std::ffi::c_void;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;

use crate::error::{Error, ErrorKind, Result};

extern "C" {
    fn codecllm_parallel_for(
        count: i64,
        job: extern "C" fn(i64, i64, *mut c_void),
        context: *mut c_void,
    ) -> i32;
}

/// One thread's share of a loop: it claims indices from the iterator until none is left.
pub(super) type Job<'a> = dyn Fn(&mut dyn Iterator<Item = usize>) -> Result<()> + Sync + 'a;

struct Context<'a> {
    subject: &'a str,
    job: &'a Job<'a>,
    count: usize,
    threads: usize,
    next: AtomicUsize,
    first_error: Mutex<Option<Error>>,
}

impl Context<'_> {
    /// Takes the next indices: a run of neighbours while many are left, single ones towards the end.
    fn claim(&self) -> std::ops::Range<usize> {
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

/// Runs `job` on every thread, which together claim each index of `0..count` once, and gives the first error.
///
/// Indices are claimed as threads get to them, not split beforehand: where another process holds a core, the thread on the free one
/// does more of the work instead of waiting.
pub(super) fn parallel_for(count: usize, subject: &str, job: &Job<'_>) -> Result<()> {
    let threads = count.min(usize::try_from(tch::get_num_threads()).unwrap_or(1)).max(1);
    let first_error = Mutex::new(None);
    let context = Context { subject, job, count, threads, next: AtomicUsize::new(0), first_error };
    let pointer = std::ptr::from_ref(&context).cast_mut().cast::<c_void>();
    // SAFETY: `run_part` reads the context, which outlives the call, and never unwinds.
    let status = unsafe { codecllm_parallel_for(threads as i64, run_part, pointer) };
    let error = context.first_error.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    match error {
        Some(error) => Err(error),
        None if status != 0 => {
            Err(Error::new(ErrorKind::Torch, subject, "libtorch's thread pool threw an exception"))
        }
        None => Ok(()),
    }
}

extern "C" fn run_part(_begin: i64, _end: i64, context: *mut c_void) {
    // SAFETY: the pointer is the `Context` that `parallel_for` keeps alive; it is only shared, and is `Sync`.
    let context = unsafe { &*context.cast_const().cast::<Context>() };
    let mut own = 0..0;
    let mut claimed = std::iter::from_fn(|| {
        if own.is_empty() {
            own = context.claim();
        }
        own.next()
    });
    let outcome = catch_unwind(AssertUnwindSafe(|| (context.job)(&mut claimed))).unwrap_or_else(|_| {
        Err(Error::new(ErrorKind::Corrupt, context.subject, "a thread panicked while decoding"))
    });
    if let Err(error) = outcome {
        let mut first = context.first_error.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        first.get_or_insert(error);
    }
}
