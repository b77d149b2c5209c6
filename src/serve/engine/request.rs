//! What is asked of an engine, and why it may refuse.

use std::fmt;
use std::time::Instant;

use crate::error::Error;
use crate::runtime::{GenerateOptions, Prompt};

/// A prompt to continue.
///
/// Answered by an [`Engine`](super::Engine); see its example.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// What to continue.
    pub prompt: Prompt,
    /// How, for this request alone: tokens, sampling and its seed, stop strings.
    pub options: GenerateOptions,
    /// With each token its log-probability, and those of so many of the likeliest tokens; `None` for neither.
    pub logprobs: Option<usize>,
    /// When the answer ends, complete or not, with [`StopReason::Deadline`](crate::runtime::StopReason::Deadline).
    pub deadline: Option<Instant>,
}

impl Request {
    /// The continuation of `prompt`, without log-probabilities or deadline.
    pub fn new(prompt: Prompt, options: GenerateOptions) -> Self {
        Self { prompt, options, logprobs: None, deadline: None }
    }
}

/// Why a request was not taken.
///
/// Said by an [`Engine`](super::Engine); see its example.
#[derive(Debug)]
pub enum Refusal {
    /// As many wait as may wait: try again later.
    QueueFull {
        /// How many wait.
        waiting: usize,
    },
    /// The engine ends and takes no more.
    ShuttingDown,
    /// The engine has stopped because of a defect; only a new one helps.
    Broken,
    /// It can never be answered: an empty prompt, one too long, options out of range.
    Invalid(Error),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::QueueFull { waiting } => {
                write!(f, "queue: {waiting} requests wait, and no more may; try again later")
            }
            Self::ShuttingDown => f.write_str("engine: is shutting down; try again later"),
            Self::Broken => f.write_str("engine: has stopped because of a defect; restart it"),
            Self::Invalid(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Refusal {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Invalid(error) => Some(error),
            _ => None,
        }
    }
}
