//! What the engine's handles and its thread share: the queue, the figures, and whether it goes on.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::figures::Figures;
use super::job::Job;
use super::request::Refusal;
use super::stats::EngineState;

/// One lock for all of it: it is held for moments only, never during a step.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// Woken when a request comes and when the state changes.
    changed: Condvar,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) waiting: VecDeque<Job>,
    /// Requests of the queue that will not have to wait, as far as the thread knew after its last look.
    pub(super) open_places: usize,
    pub(super) engine: EngineState,
    /// When what is not complete is cut off.
    pub(super) end_by: Option<Instant>,
    pub(super) figures: Figures,
}

impl Shared {
    /// Of an engine with so many places and free pages.
    pub(super) fn new(max_batch: usize, free_pages: usize) -> Self {
        let state = State {
            waiting: VecDeque::new(),
            open_places: max_batch,
            engine: EngineState::Running,
            end_by: None,
            figures: Figures::new(free_pages),
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// No code that holds the lock panics halfway through a change.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a request into the queue, unless `max_queue` wait already.
    pub(super) fn enqueue(&self, job: Job, max_queue: usize) -> Result<(), Refusal> {
        let mut state = self.lock();
        if let Some(refusal) = state.refusal(max_queue) {
            state.count_refusal(&refusal);
            return Err(refusal);
        }
        state.waiting.push_back(job);
        self.changed.notify_all();
        Ok(())
    }

    /// Waits until there is a request in the queue or the engine is told to end. Whether there is a request.
    pub(super) fn wait_for_work(&self) -> bool {
        let state = self.lock();
        let idle = |state: &mut State| state.waiting.is_empty() && state.engine == EngineState::Running;
        let state = self.changed.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
        !state.waiting.is_empty()
    }

    /// Takes no more requests; `within` is the time until what is not complete is cut off, without end if `None`.
    pub(super) fn begin_shut_down(&self, within: Option<Duration>) {
        let mut state = self.lock();
        if let Some(end_by) = within.and_then(|within| Instant::now().checked_add(within)) {
            // The most impatient of several wishes counts.
            state.end_by = Some(state.end_by.map_or(end_by, |earlier| earlier.min(end_by)));
        }
        if state.engine == EngineState::Running {
            state.engine = EngineState::ShuttingDown;
        }
        self.changed.notify_all();
    }

    /// Waits until the thread has ended.
    pub(super) fn wait_for_end(&self) {
        let state = self.lock();
        let goes_on =
            |state: &mut State| matches!(state.engine, EngineState::Running | EngineState::ShuttingDown);
        drop(self.changed.wait_while(state, goes_on));
    }

    /// Notes that the thread has ended; requests that wait still are given up, which their answers tell.
    pub(super) fn end(&self, engine: EngineState) {
        let mut state = self.lock();
        state.engine = engine;
        let given_up = std::mem::take(&mut state.waiting);
        let figures = &mut state.figures;
        // What ran when the thread broke has been dropped with it.
        figures.requests.failed += (given_up.len() + figures.running) as u64;
        figures.running = 0;
        self.changed.notify_all();
    }
}

impl State {
    /// Why one more request may not come in.
    fn refusal(&self, max_queue: usize) -> Option<Refusal> {
        let waiting = self.waiting.len();
        match self.engine {
            EngineState::Running if waiting < max_queue.saturating_add(self.open_places) => None,
            EngineState::Running => Some(Refusal::QueueFull { waiting }),
            EngineState::ShuttingDown | EngineState::Stopped => Some(Refusal::ShuttingDown),
            EngineState::Broken => Some(Refusal::Broken),
        }
    }

    pub(super) fn count_refusal(&mut self, refusal: &Refusal) {
        let requests = &mut self.figures.requests;
        *match refusal {
            Refusal::QueueFull { .. } => &mut requests.refused_queue_full,
            Refusal::Invalid(_) => &mut requests.refused_invalid,
            Refusal::ShuttingDown | Refusal::Broken => &mut requests.refused_shutting_down,
        } += 1;
    }

    /// Whether the time to complete what was taken is over.
    pub(super) fn is_cut_off(&self, now: Instant) -> bool {
        self.end_by.is_some_and(|end_by| end_by <= now)
    }
}

/// Tells the handles that the thread has ended, also where it ends by a panic.
#[derive(Debug)]
pub(super) struct EndOfThread {
    shared: Arc<Shared>,
    engine: EngineState,
}

impl EndOfThread {
    /// Of a thread that would end by a panic.
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, engine: EngineState::Broken }
    }

    /// It ends as `engine` says.
    pub(super) fn is_now(&mut self, engine: EngineState) {
        self.engine = engine;
    }
}

impl Drop for EndOfThread {
    fn drop(&mut self) {
        self.shared.end(self.engine);
    }
}
