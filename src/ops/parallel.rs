//! Independent jobs on libtorch's own CPU threads.

use std::ffi::c_void;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Mutex;

use crate::error::{Error, ErrorKind, Result};

extern "C" {
    fn codecllm_parallel_for(
        count: i64,
        job: extern "C" fn(i64, i64, *mut c_void),
        context: *mut c_void,
    ) -> i32;
}

struct Context<'a> {
    job: &'a (dyn Fn(std::ops::Range<usize>) -> Result<()> + Sync),
    first_error: Mutex<Option<Error>>,
}

/// Runs `job` over disjoint parts of `0..count` and gives the first error.
pub(super) fn parallel_for(
    count: usize,
    subject: &str,
    job: &(dyn Fn(std::ops::Range<usize>) -> Result<()> + Sync),
) -> Result<()> {
    let context = Context { job, first_error: Mutex::new(None) };
    let pointer = std::ptr::from_ref(&context).cast_mut().cast::<c_void>();
    // SAFETY: `run_part` reads the context, which outlives the call, and never unwinds.
    let status = unsafe { codecllm_parallel_for(count as i64, run_part, pointer) };
    let error = context.first_error.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    match error {
        Some(error) => Err(error),
        None if status != 0 => {
            Err(Error::new(ErrorKind::Torch, subject, "libtorch's thread pool threw an exception"))
        }
        None => Ok(()),
    }
}

extern "C" fn run_part(begin: i64, end: i64, context: *mut c_void) {
    // SAFETY: the pointer is the `Context` that `parallel_for` keeps alive; it is only shared, and is `Sync`.
    let context = unsafe { &*context.cast_const().cast::<Context>() };
    let outcome = catch_unwind(AssertUnwindSafe(|| (context.job)(begin as usize..end as usize)))
        .unwrap_or_else(|_| Err(Error::new(ErrorKind::Corrupt, "a CPU thread", "panicked while decoding")));
    if let Err(error) = outcome {
        let mut first = context.first_error.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        first.get_or_insert(error);
    }
}
