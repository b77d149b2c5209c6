//! An answer on its way from the engine to who asked.

use serde::Serialize;
use tokio::sync::mpsc::{unbounded_channel, UnboundedReceiver, UnboundedSender};

use crate::error::{Error, ErrorKind};
use crate::runtime::StopReason;

/// What happens to a request, in this order: at most one `Started`, tokens, and one `Ended` or `Failed`.
///
/// What an [`Engine`](super::Engine) answers; see its example.
#[derive(Debug)]
pub enum Event {
    /// The request has a place, and its prompt is being processed.
    Started {
        /// Tokens of the prompt.
        prompt_tokens: usize,
    },
    /// The answer goes on by one token.
    Token {
        /// Which.
        id: u32,
        /// The text that became visible, often empty: a character may be incomplete, or the start of a stop string.
        text: String,
        /// Its log-probability and the likeliest tokens', where the request wants them.
        logprobs: Option<TokenLogprobs>,
    },
    /// The answer is complete. Nothing follows.
    Ended {
        /// Why it ended.
        reason: StopReason,
        /// The text that had been held back.
        text: String,
        /// What it took.
        usage: Usage,
    },
    /// The answer could not be completed. Nothing follows.
    Failed(Error),
}

/// What an answer took.
///
/// At the end of what an [`Engine`](super::Engine) answers; see its example.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the answer, without a stop token.
    pub completion_tokens: usize,
}

/// How likely a token of an answer was, and which ones were likeliest.
///
/// Asked of an [`Engine`](super::Engine) with a request; see its example.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenLogprobs {
    /// The token of the answer.
    pub chosen: TokenLogprob,
    /// As many of the likeliest as the request wants, likeliest first.
    pub top: Vec<TokenLogprob>,
}

/// A token and its log-probability: the model's own, before temperature and the like.
///
/// What an [`Engine`](super::Engine) says of a token; see its example.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenLogprob {
    /// Which.
    pub id: u32,
    /// Its text; what is no whole character is shown as U+FFFD.
    pub text: String,
    /// The bytes it stands for.
    pub bytes: Vec<u8>,
    /// The natural logarithm of its probability.
    pub logprob: f32,
}

/// Receives the events of one request. Dropping it tells the engine that nobody listens, and the request's place is free within a step.
///
/// Events wait here until they are taken: at most one for each token of the answer.
///
/// Given by an [`Engine`](super::Engine); see its example.
#[derive(Debug)]
pub struct Answer {
    events: UnboundedReceiver<Event>,
    complete: bool,
}

impl Answer {
    /// The two ends of an answer. The sender learns from [`UnboundedSender::is_closed`] that the answer was dropped.
    pub(super) fn channel() -> (UnboundedSender<Event>, Self) {
        let (sender, events) = unbounded_channel();
        (sender, Self { events, complete: false })
    }

    /// The next event; `None` behind the last one, which is always `Ended` or `Failed`.
    ///
    /// Nothing is lost if the future is dropped before it is ready. In an async function; see `examples/serve_app.rs`.
    pub async fn next(&mut self) -> Option<Event> {
        if self.complete {
            return None;
        }
        let event = self.events.recv().await;
        Some(self.note(event))
    }

    /// As [`Answer::next`], for threads outside an async runtime.
    ///
    /// # Panics
    /// On a thread of an async runtime, which must not be blocked.
    pub fn next_blocking(&mut self) -> Option<Event> {
        if self.complete {
            return None;
        }
        let event = self.events.blocking_recv();
        Some(self.note(event))
    }

    /// The next event if it is there already.
    #[cfg(test)]
    pub(super) fn try_next(&mut self) -> Option<Event> {
        use tokio::sync::mpsc::error::TryRecvError;
        match self.events.try_recv() {
            _ if self.complete => None,
            Err(TryRecvError::Empty) => None,
            event => Some(self.note(event.ok())),
        }
    }

    /// Notices the last event, and makes one up where the engine went away without.
    fn note(&mut self, event: Option<Event>) -> Event {
        let event = event.unwrap_or_else(|| {
            let message = "stopped before the answer was complete; restart it and ask again";
            Event::Failed(Error::new(ErrorKind::Torch, "engine", message))
        });
        self.complete = matches!(event, Event::Ended { .. } | Event::Failed(_));
        event
    }
}
