//! Independent jobs on libtorch's own CPU threads.

use std::ffi::c_void;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{atomic, Mutex};

use claims::Claims;

use crate::error::{Error, ErrorKind, Result};

mod claims;

#[cfg(not(miri))]
extern "C" {
    fn codecllm_parallel_for(
        count: i64,
        job: extern "C" fn(i64, i64, *mut c_void),
        context: *mut c_void,
    ) -> i32;
}

#[cfg(not(miri))]
fn most_threads() -> usize {
    usize::try_from(tch::get_num_threads()).unwrap_or(1)
}

#[cfg(miri)]
use without_libtorch::{codecllm_parallel_for, most_threads};

/// One thread's share of a loop: it claims indices from the iterator until none is left.
pub(super) type Job<'a> = dyn Fn(&mut dyn Iterator<Item = usize>) -> Result<()> + Sync + 'a;

struct Context<'a> {
    subject: &'a str,
    job: &'a Job<'a>,
    claims: Claims,
    first_error: Mutex<Option<Error>>,
}

/// Runs `job` on every thread, which together claim each index of `0..count` once, and gives the first error.
///
/// Indices are claimed as threads get to them, not split beforehand: where another process holds a core, the thread on the free one
/// does more of the work instead of waiting.
pub(super) fn parallel_for(count: usize, subject: &str, job: &Job<'_>) -> Result<()> {
    let threads = count.min(most_threads()).max(1);
    let first_error = Mutex::new(None);
    let context = Context { subject, job, claims: Claims::new(count, threads), first_error };
    let pointer = std::ptr::from_ref(&context).cast_mut().cast::<c_void>();
    // SAFETY: the call returns when all of its parts have, as the end of an OpenMP region waits for its threads (libtorch's packages are
    // built with OpenMP); until then the context is alive, and `run_part` reads it alone, and never unwinds into C++.
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
    // SAFETY: the pointer is the `Context` that `parallel_for` keeps alive until this returns. Several threads have it at once, all as
    // `&Context`, and it is `Sync`: a job that is, an atomic, and a lock.
    let context = unsafe { &*context.cast_const().cast::<Context>() };
    let mut own = 0..0;
    let mut claimed = std::iter::from_fn(|| {
        if own.is_empty() {
            own = context.claims.claim();
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

/// Miri has no libtorch: plain threads, each with one part of the loop, as `at::parallel_for` has them at most.
#[cfg(miri)]
mod without_libtorch {
    use std::ffi::c_void;

    pub(super) fn most_threads() -> usize {
        3
    }

    /// # Safety
    /// As its namesake in csrc/parallel.h: `job` may be called with `context` from several threads.
    pub(super) unsafe fn codecllm_parallel_for(
        count: i64,
        job: extern "C" fn(i64, i64, *mut c_void),
        context: *mut c_void,
    ) -> i32 {
        struct Shared(*mut c_void);
        // SAFETY: the caller's promise: all threads may have it.
        unsafe impl Sync for Shared {}
        let shared = &Shared(context);
        std::thread::scope(|scope| {
            (0..count).for_each(|part| drop(scope.spawn(move || job(part, part + 1, shared.0))));
        });
        0
    }
}
