//! One thread that owns a model and answers many requests at once, token by token.

mod answer;
mod options;
mod request;
mod stats;

pub use answer::{Answer, Event, TokenLogprob, TokenLogprobs, Usage};
pub use options::{EngineOptions, ModelInfo};
pub use request::{Refusal, Request};
pub use stats::{EngineState, EngineStats, Histogram, RequestCounts};

use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::runtime::{Generator, Prompt};

/// A handle on the thread that owns a model and its key-value cache. Clones are handles on the same thread.
#[derive(Clone, Debug)]
pub struct Engine {
    info: Arc<ModelInfo>,
}

impl Engine {
    /// Starts the thread.
    ///
    /// # Errors
    /// `InvalidArgument` for options out of range, `Torch` if memory for the cache is short.
    pub fn start(generator: Generator, options: EngineOptions) -> Result<Self> {
        options.check()?;
        drop(generator);
        Err(Error::unsupported("engine", "its thread is not built yet"))
    }

    /// Asks for an answer: returns at once, before anything is computed but the prompt's tokens.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn submit(&self, request: Request) -> std::result::Result<Answer, Refusal> {
        drop(request);
        Err(Refusal::ShuttingDown)
    }

    /// The token ids of `prompt`, special tokens included, on the caller's thread.
    ///
    /// # Errors
    /// As [`Generator::encode`].
    pub fn encode(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        drop(prompt.clone());
        Err(Error::unsupported("engine", "its thread is not built yet"))
    }

    /// Figures of now.
    pub fn stats(&self) -> EngineStats {
        EngineStats {
            state: EngineState::Stopped,
            running: 0,
            waiting: 0,
            pages_free: 0,
            pages: 0,
            page_tokens: 0,
            context: self.info.context,
            prompt_tokens: 0,
            completion_tokens: 0,
            requests: RequestCounts::default(),
            prefill_pieces: 0,
            steps: 0,
            last_step_rows: 0,
            tokens_per_second: 0.0,
            time_to_first_token: Histogram::new(&[]),
            step_seconds: Histogram::new(&[]),
            weight_bytes: 0,
            cache_bytes: 0,
            rss_bytes: None,
            peak_device_bytes: None,
        }
    }

    /// What the model and this engine can do.
    pub fn model_info(&self) -> &ModelInfo {
        &self.info
    }

    /// Takes no more requests from here on, and returns at once. Those taken, running or waiting, are completed; what is not complete
    /// `within` that time is cut off, and the thread ends.
    pub fn begin_shut_down(&self, within: Duration) {
        let _ = within;
    }

    /// As [`Engine::begin_shut_down`], and waits for the thread to end: `within` and one step at most. It blocks; an async caller wants
    /// `tokio::task::spawn_blocking`.
    pub fn shut_down(&self, within: Duration) {
        self.begin_shut_down(within);
    }
}
