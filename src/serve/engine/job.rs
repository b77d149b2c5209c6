//! A request that was taken: first it waits, then it runs.

use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;

use super::answer::{Event, Usage};
use crate::error::Error;
use crate::runtime::{Continuation, Ending, Language, StopReason};

/// A request with the state of its answer.
#[derive(Debug)]
pub(super) struct Job {
    /// The prompt.
    pub(super) ids: Vec<u32>,
    pub(super) continuation: Continuation,
    /// Whether the likeliest token is all it needs to know of the scores.
    pub(super) likeliest_only: bool,
    pub(super) logprobs: Option<usize>,
    /// Most tokens of prompt and answer, which pages are taken for.
    pub(super) most_tokens: usize,
    pub(super) deadline: Option<Instant>,
    pub(super) arrived: Instant,
    pub(super) events: UnboundedSender<Event>,
}

impl Job {
    /// Whether nobody listens any more.
    pub(super) fn is_left(&self) -> bool {
        self.events.is_closed()
    }

    pub(super) fn is_late(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// Sends an event. That nobody listens is noticed before the next step.
    pub(super) fn send(&self, event: Event) {
        let _ = self.events.send(event);
    }

    /// Ends the answer for `reason`.
    pub(super) fn end(&mut self, reason: StopReason, language: &Language) -> Outcome {
        match self.continuation.end(reason, &language.tokenizer) {
            Ok(ending) => Outcome::Ended(ending),
            Err(error) => Outcome::Failed(error),
        }
    }

    /// The event that tells of `outcome`, if there is anyone to tell.
    pub(super) fn last_event(&self, outcome: Outcome) -> Option<Event> {
        let usage =
            Usage { prompt_tokens: self.ids.len(), completion_tokens: self.continuation.new_tokens() };
        match outcome {
            Outcome::Ended(Ending { reason, text }) => Some(Event::Ended { reason, text, usage }),
            Outcome::Failed(error) => Some(Event::Failed(error)),
            Outcome::Left => None,
        }
    }
}

/// What became of a request.
#[derive(Debug)]
pub(super) enum Outcome {
    Ended(Ending),
    Failed(Error),
    /// Nobody listens.
    Left,
}
