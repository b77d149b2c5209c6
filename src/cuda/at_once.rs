//! Independent work on threads of its own.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::error::Result;

/// Does `work` on each of `items`, begun in their order, on as many threads as the machine has cores, the calling one among
/// them. After an error nothing further is begun.
///
/// Not on rayon's threads: callers hold locks, and a thread of rayon's that waits takes up others' work, which may want them.
pub(super) fn at_once<T: Sync>(items: &[T], work: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    let share = || -> Result<()> {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            work(item).inspect_err(|_| next.store(items.len(), Ordering::Relaxed))?;
        }
        Ok(())
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(items.len());
    thread::scope(|scope| {
        // Where the system gives no further thread, those that are there do it all.
        let spawn = |_| thread::Builder::new().spawn_scoped(scope, share).ok();
        let others: Vec<_> = (1..threads).filter_map(spawn).collect();
        let own = share();
        others.into_iter().fold(own, |all, other| {
            all.and(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::sync::Mutex;
    use std::time::Duration;

    use super::*;
    use crate::error::Error;

    #[test]
    fn everything_is_done_once() {
        for count in [0, 1, 2, 100] {
            let done = Mutex::new(Vec::new());
            let items: Vec<usize> = (0..count).collect();
            at_once(&items, |&item| {
                done.lock().unwrap().push(item);
                Ok(())
            })
            .unwrap();
            let mut done = done.into_inner().unwrap();
            done.sort_unstable();
            assert_eq!(done, items);
        }
    }

    #[test]
    fn nothing_follows_an_error() {
        let (failed, begun) = (AtomicBool::new(false), AtomicUsize::new(0));
        let items: Vec<usize> = (0..10_000).collect();
        let error = at_once(&items, |&item| {
            begun.fetch_add(1, Ordering::Relaxed);
            if item == 0 {
                failed.store(true, Ordering::Relaxed);
                return Err(Error::invalid("item 0", "fails"));
            }
            while !failed.load(Ordering::Relaxed) {
                thread::yield_now();
            }
            thread::sleep(Duration::from_millis(1));
            Ok(())
        });
        assert_eq!(error.unwrap_err().subject(), "item 0");
        let begun = begun.into_inner();
        assert!(begun < items.len(), "{begun} begun");
    }

    #[test]
    fn a_waiting_thread_takes_up_no_work_of_others() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let (done, helped) = (AtomicBool::new(false), Mutex::new(Vec::new()));
        let caller = Mutex::new(None);
        // From outside of the pool, whose threads turn to this work when they have none of their own.
        pool.in_place_scope(|scope| {
            scope.spawn(|_| {
                let here = thread::current().id();
                // The longer part is not the caller's, who waits for it.
                let result = at_once(&[(); 8], |()| {
                    let milliseconds = if thread::current().id() == here { 1 } else { 100 };
                    thread::sleep(Duration::from_millis(milliseconds));
                    Ok(())
                });
                *caller.lock().unwrap() = Some((here, result));
                done.store(true, Ordering::Relaxed);
            });
            while !done.load(Ordering::Relaxed) {
                scope.spawn(|_| {
                    if !done.load(Ordering::Relaxed) {
                        helped.lock().unwrap().push(thread::current().id());
                    }
                });
                thread::sleep(Duration::from_millis(1));
            }
        });
        let (caller, result) = caller.into_inner().unwrap().unwrap();
        result.unwrap();
        assert!(!helped.into_inner().unwrap().contains(&caller));
    }
}
