//! Who is served when: requests join and leave between steps, prompts advance a piece at a time between the steps of the others.
//!
//! One turn is: requests that are over leave, those that wait join in their order as places and pages allow, the oldest unfinished
//! prompt advances by one piece, and every answer advances by one token. A turn's last events are sent when its pages and figures are
//! up to date, so that who has seen an answer end finds its place free.

use std::sync::Arc;
use std::time::Instant;

use super::answer::Event;
use super::job::{Job, Outcome};
use super::logprobs::token_logprobs;
use super::paged_model::{PagedModel, Scores};
use super::shared::{Shared, State};
use super::stats::EngineState;
use crate::error::{Error, ErrorKind, Result};
use crate::runtime::{Language, StopReason};

/// Pieces and steps one after the other that fail inside libtorch or CUDA, none of them well, after which the engine takes the device for
/// lost: a broken context makes everything fail that comes after.
const MOST_FAILURES: usize = 8;

/// Runs the turns of an engine.
#[derive(Debug)]
pub(super) struct Scheduler<M: PagedModel> {
    model: M,
    shared: Arc<Shared>,
    language: Arc<Language>,
    max_batch: usize,
    prefill_tokens: usize,
    /// In the order they came.
    running: Vec<Running<M::Sequence>>,
    /// Requests that are over, to be told at the end of the turn.
    over: Vec<(Job, Outcome)>,
    /// Pieces and steps that failed on the device since the last that went well.
    failures: usize,
}

/// A request that has a place.
#[derive(Debug)]
struct Running<S> {
    job: Job,
    sequence: S,
    /// Tokens that the sequence holds.
    held: usize,
    /// The newest token of the answer, which the next step puts behind them; none while the prompt is processed.
    newest: Option<u32>,
    /// What became of it in this turn.
    outcome: Option<Outcome>,
}

impl<M: PagedModel> Scheduler<M> {
    pub(super) fn new(
        model: M,
        shared: Arc<Shared>,
        language: Arc<Language>,
        max_batch: usize,
        prefill_tokens: usize,
    ) -> Self {
        let (running, over) = (Vec::new(), Vec::new());
        Self { model, shared, language, max_batch, prefill_tokens, running, over, failures: 0 }
    }

    /// Serves until the engine is told to end, or can't go on; says which.
    pub(super) fn run(mut self) -> EngineState {
        while !self.running.is_empty() || self.shared.wait_for_work() {
            self.turn();
            if self.failures >= MOST_FAILURES {
                return EngineState::Broken;
            }
        }
        EngineState::Stopped
    }

    /// One turn.
    pub(super) fn turn(&mut self) {
        self.dismiss();
        self.admit();
        self.advance_prompt();
        self.advance_answers();
        self.settle();
    }

    /// Ends what nobody waits for any more, or not so long.
    fn dismiss(&mut self) {
        let now = Instant::now();
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        let cut_off = state.is_cut_off(now);
        for running in &mut self.running {
            running.outcome = verdict(&mut running.job, cut_off, now, &self.language);
        }
        for _ in 0..state.waiting.len() {
            let Some(mut job) = state.waiting.pop_front() else { break };
            match verdict(&mut job, cut_off, now, &self.language) {
                None => state.waiting.push_back(job),
                Some(outcome) => self.over.push((job, outcome)),
            }
        }
        drop(state);
        self.remove_ended();
    }

    /// Gives requests places in their order, until places or pages run out.
    fn admit(&mut self) {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        let mut pages_are_short = false;
        while self.running.len() < self.max_batch {
            let Some(job) = state.waiting.pop_front() else { break };
            let Some(sequence) = self.model.sequence(job.most_tokens) else {
                if self.running.is_empty() {
                    self.over.push((job, Outcome::Failed(pages_lost())));
                    continue;
                }
                // It is the next, however small the ones behind it are: no request waits for ever.
                state.waiting.push_front(job);
                pages_are_short = true;
                break;
            };
            job.send(Event::Started { prompt_tokens: job.ids.len() });
            self.running.push(Running { job, sequence, held: 0, newest: None, outcome: None });
        }
        self.note_places(&mut state, pages_are_short);
    }

    /// Notes which places are taken. None is open to a newcomer while the first of the queue waits for pages.
    fn note_places(&self, state: &mut State, pages_are_short: bool) {
        state.open_places = if pages_are_short { 0 } else { self.max_batch - self.running.len() };
        state.figures.running = self.running.len();
        state.figures.free_pages = self.model.free_pages();
    }

    /// Processes one piece of the oldest unfinished prompt. Pieces begin at multiples of their length, whoever else is there.
    fn advance_prompt(&mut self) {
        let Some(at) = self.running.iter().position(|running| running.newest.is_none()) else { return };
        let running = &mut self.running[at];
        if running.job.continuation.is_full() {
            running.outcome = Some(running.job.end(StopReason::MaxNewTokens, &self.language));
            return;
        }
        let end = running.job.ids.len().min(running.held + self.prefill_tokens);
        let piece = &running.job.ids[running.held..end];
        let pieced = self.model.prefill(piece, &mut running.sequence);
        let tokens = piece.len();
        running.held = end;
        note(&mut self.failures, &pieced);
        match pieced {
            Err(error) => running.outcome = Some(Outcome::Failed(error)),
            Ok(scores) if end == running.job.ids.len() => self.take_tokens(&[at], &scores),
            Ok(_) => (),
        }
        let mut state = self.shared.lock();
        state.figures.prefill_pieces += 1;
        state.figures.prompt_tokens += tokens as u64;
    }

    /// Decodes one token of every answer.
    fn advance_answers(&mut self) {
        let start = Instant::now();
        let (mut rows, mut tokens, mut sequences) = (Vec::new(), Vec::new(), Vec::new());
        for (at, running) in self.running.iter_mut().enumerate() {
            if let (Some(token), None) = (running.newest, &running.outcome) {
                rows.push(at);
                tokens.push(token);
                sequences.push(&mut running.sequence);
                running.held += 1;
            }
        }
        if rows.is_empty() {
            return;
        }
        let decoded = self.model.decode(&tokens, &mut sequences);
        note(&mut self.failures, &decoded);
        match decoded {
            Ok(scores) => self.take_tokens(&rows, &scores),
            Err(error) => {
                let again = || Error::new(error.kind(), "decoding step", error.to_string());
                rows.iter().for_each(|&at| self.running[at].outcome = Some(Outcome::Failed(again())));
            }
        }
        let mut state = self.shared.lock();
        state.figures.steps += 1;
        state.figures.last_step_rows = rows.len();
        state.figures.step_seconds.add(start.elapsed().as_secs_f64());
    }

    /// Picks the next token of the answers at `rows` of the running ones, whose scores are in this order.
    fn take_tokens(&mut self, rows: &[usize], scores: &M::Scores) {
        // On a GPU only these travel, not the logits. Where one row is damaged it is found below, and the others go on.
        let any = rows.iter().any(|&at| self.running[at].job.likeliest_only);
        let likeliest = any.then(|| scores.likeliest().ok()).flatten();
        for (row, &at) in rows.iter().enumerate() {
            let likeliest = likeliest.as_ref().and_then(|tokens| tokens.get(row)).copied();
            let result = self.take_token(at, row, likeliest, scores);
            if let Err(error) = result {
                self.running[at].outcome = Some(Outcome::Failed(error));
            }
        }
    }

    /// Picks the next token of the answer at `at` from row `row`, and tells who asked.
    fn take_token(
        &mut self,
        at: usize,
        row: usize,
        likeliest: Option<u32>,
        scores: &M::Scores,
    ) -> Result<()> {
        let Running { job, held, newest, outcome, .. } = &mut self.running[at];
        let (token, logprobs) = match likeliest.filter(|_| job.likeliest_only) {
            Some(token) => (token, None),
            None => {
                let logits = scores.logits(row)?;
                let token = job.continuation.pick(&logits)?;
                let logprobs = |top| token_logprobs(&logits, token, top, &self.language.tokenizer);
                (token, job.logprobs.map(logprobs).transpose()?)
            }
        };
        let taken = job.continuation.take(token, &self.language)?;
        if taken.kept {
            let (is_first, now) = (newest.is_none(), Instant::now());
            self.shared.lock().figures.count_token(is_first, job.arrived, now);
            job.send(Event::Token { id: token, text: taken.text, logprobs });
        }
        *newest = Some(token);
        *outcome = match taken.ending {
            Some(ending) => Some(Outcome::Ended(ending)),
            None if *held == job.most_tokens => Some(job.end(StopReason::Context, &self.language)),
            None => None,
        };
        Ok(())
    }

    /// Takes back the places and pages of requests that are over.
    fn remove_ended(&mut self) {
        let mut at = 0;
        while let Some(running) = self.running.get(at) {
            if running.outcome.is_none() {
                at += 1;
                continue;
            }
            let Running { job, sequence, outcome, .. } = self.running.remove(at);
            self.model.release(sequence);
            self.over.extend(outcome.map(|outcome| (job, outcome)));
        }
    }

    /// Brings the figures up to date, then tells whose requests are over.
    fn settle(&mut self) {
        self.remove_ended();
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        self.over.iter().for_each(|(_, outcome)| state.figures.count_outcome(outcome));
        // What waits still will be given places before any newcomer.
        let first_in_line_waits = !state.waiting.is_empty();
        self.note_places(&mut state, first_in_line_waits);
        drop(state);
        for (job, outcome) in self.over.drain(..) {
            if let Some(event) = job.last_event(outcome) {
                job.send(event);
            }
        }
    }
}

/// Counts the failures of a device without a success between them. What a request did wrong or had no room is none.
fn note<T>(failures: &mut usize, done: &Result<T>) {
    match done.as_ref().map_err(Error::kind) {
        Ok(_) => *failures = 0,
        Err(ErrorKind::Cuda | ErrorKind::Torch) => *failures += 1,
        Err(_) => (),
    }
}

/// Whether a request is over before its answer is complete.
fn verdict(job: &mut Job, cut_off: bool, now: Instant, language: &Language) -> Option<Outcome> {
    if job.is_left() {
        Some(Outcome::Left)
    } else if job.is_late(now) {
        Some(job.end(StopReason::Deadline, language))
    } else if cut_off {
        Some(job.end(StopReason::Interrupted, language))
    } else {
        None
    }
}

/// Requests that could never have pages are refused when they come.
fn pages_lost() -> Error {
    Error::new(ErrorKind::Corrupt, "key-value cache", "has lost pages; restart the engine")
}
