//! Work that keeps a core busy for a while: as much of it at once as there are cores, and none for who has left.

use std::sync::{Arc, Weak};

use tokio::sync::Semaphore;
use tokio::task::{spawn_blocking, JoinError};
use tokio::time::error::Elapsed;
use tokio::time::{timeout_at, Instant};

/// Threads for such work. What finds none waits with who asked for it, and goes with them.
#[derive(Clone, Debug)]
pub(super) struct Workers {
    free: Arc<Semaphore>,
}

/// Who waits for a piece of work, as the work sees them.
#[derive(Debug)]
pub(super) struct Asker {
    waits: Weak<()>,
    deadline: Instant,
}

impl Asker {
    /// Whether nobody takes what the work would give.
    pub(super) fn has_left(&self) -> bool {
        self.waits.strong_count() == 0 || self.deadline <= Instant::now()
    }
}

impl Workers {
    /// One for each core.
    pub(super) fn new() -> Self {
        Self::of(std::thread::available_parallelism().map_or(1, usize::from))
    }

    fn of(count: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(count)) }
    }

    /// What `work` gives, if it does by `deadline`. It can't be stopped once it runs, so it should ask now and then whether the asker
    /// has left; until it ends, it keeps its worker.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        deadline: Instant,
        work: impl FnOnce(&Asker) -> T + Send + 'static,
    ) -> Result<Result<T, JoinError>, Elapsed> {
        let waits = Arc::new(());
        let asker = Asker { waits: Arc::downgrade(&waits), deadline };
        let running = async {
            // Nobody closes the semaphore.
            let worker = Arc::clone(&self.free).acquire_owned().await.ok();
            let work = move || {
                let _worker = worker;
                work(&asker)
            };
            spawn_blocking(work).await
        };
        timeout_at(deadline, running).await
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::sync::mpsc::{channel, Receiver, Sender};
    use std::sync::Mutex;
    use std::time::Duration;

    use super::*;

    fn on_a_runtime(work: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build();
        runtime.unwrap().block_on(work);
    }

    fn far() -> Instant {
        Instant::now() + Duration::from_secs(3600)
    }

    /// Work that tells when it begins, and ends when it is told to.
    fn held(began: &Sender<bool>, ends: &Arc<Mutex<Receiver<()>>>) -> impl FnOnce(&Asker) + Send + 'static {
        let (began, ends) = (began.clone(), Arc::clone(ends));
        move |asker| {
            let _ = began.send(asker.has_left());
            let _ = ends.lock().unwrap().recv();
        }
    }

    #[test]
    fn no_more_runs_than_there_are_workers_and_nothing_for_who_has_left() {
        on_a_runtime(async {
            let workers = Workers::of(2);
            let ((began, begins), (end, ends)) = (channel(), channel());
            let ends = Arc::new(Mutex::new(ends));
            let start = || {
                let (workers, work) = (workers.clone(), held(&began, &ends));
                tokio::spawn(async move { workers.run(far(), work).await.unwrap().unwrap() })
            };
            let running = [start(), start()];
            assert_eq!([begins.recv().unwrap(), begins.recv().unwrap()], [false; 2]);
            let left: Vec<_> = (0..50).map(|_| start()).collect();
            let stays = start();
            // Time enough for them to run, if they could.
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert!(begins.try_recv().is_err(), "a third runs");
            left.iter().for_each(|asked| asked.abort());
            for asked in left {
                assert!(asked.await.unwrap_err().is_cancelled());
            }
            (0..3).for_each(|_| end.send(()).unwrap());
            for asked in running.into_iter().chain([stays]) {
                asked.await.unwrap();
            }
            assert_eq!(begins.try_iter().collect::<Vec<_>>(), [false], "only who stayed was worked for");
        });
    }

    #[test]
    fn work_that_runs_learns_that_its_asker_has_left() {
        on_a_runtime(async {
            let (workers, (began, begins), (told, tells)) = (Workers::of(1), channel(), channel());
            let work = move |asker: &Asker| {
                began.send(asker.has_left()).unwrap();
                let start = Instant::now();
                while !asker.has_left() && start.elapsed() < Duration::from_secs(60) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                told.send(asker.has_left()).unwrap();
            };
            let asked = tokio::spawn({
                let workers = workers.clone();
                async move { workers.run(far(), work).await }
            });
            assert!(!begins.recv().unwrap());
            asked.abort();
            // It has its worker until it ends.
            workers.run(far(), |_| ()).await.unwrap().unwrap();
            assert!(tells.try_recv().unwrap());
        });
    }

    #[test]
    fn who_waits_too_long_for_a_worker_hears_so() {
        on_a_runtime(async {
            let (workers, (end, ends)) = (Workers::of(1), channel());
            let (began, begins) = channel();
            let work = held(&began, &Arc::new(Mutex::new(ends)));
            let running = tokio::spawn({
                let workers = workers.clone();
                async move { workers.run(far(), work).await.unwrap().unwrap() }
            });
            begins.recv().unwrap();
            let soon = Instant::now() + Duration::from_millis(20);
            assert!(workers.run(soon, |_| ()).await.is_err());
            end.send(()).unwrap();
            running.await.unwrap();
        });
    }
}
