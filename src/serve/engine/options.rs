//! How an engine is set up, and what it says of itself.

use serde::Serialize;

use crate::error::{Error, Result};
use crate::model::PagedKvCache;

/// How much an engine takes on at once.
///
/// Given to an [`Engine`](super::Engine); see its example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Most requests that are answered at once: rows of a decoding step, [`PagedKvCache::MOST_SEQUENCES`] at most.
    pub max_batch: usize,
    /// Most requests that wait for a place; one more is refused with [`Refusal::QueueFull`](super::Refusal::QueueFull).
    pub max_queue: usize,
    /// Tokens that the key-value cache has room for, all requests together. `None` for `max_batch` times the model's context, or as much
    /// less as half of the memory that is free holds, but for one whole context where there is room for it; on a CPU, pages then take
    /// memory only once they are used. What is asked for here is taken at the start, and refused where there is less.
    pub cache_tokens: Option<usize>,
    /// Most tokens of a prompt that are processed at once, between two decoding steps of the others: more are faster, and keep the others
    /// waiting longer. `None` for 512 on a GPU and 64 on a CPU.
    pub prefill_tokens: Option<usize>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { max_batch: 32, max_queue: 128, cache_tokens: None, prefill_tokens: None }
    }
}

impl EngineOptions {
    pub(super) fn check(&self) -> Result<()> {
        let positive = [
            ("max-batch", Some(self.max_batch)),
            ("cache-tokens", self.cache_tokens),
            ("prefill-tokens", self.prefill_tokens),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == Some(0)) {
            return Err(Error::invalid(*name, "0, wanted 1 or more"));
        }
        let most = PagedKvCache::MOST_SEQUENCES;
        match self.max_batch > most {
            true => Err(Error::invalid("max-batch", format!("{}, wanted 1 to {most}", self.max_batch))),
            false => Ok(()),
        }
    }
}

/// What an engine can do, fixed when it starts.
///
/// Said by an [`Engine`](super::Engine); see its example.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModelInfo {
    /// Most tokens of prompt and answer together.
    pub context: usize,
    /// Most tokens of prompt and answer together for which the cache has pages: less than `context` where the cache is small.
    pub cache_tokens: usize,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Whether conversations ([`Prompt::Chat`](crate::runtime::Prompt::Chat)) can be answered.
    pub chat_template: bool,
    /// Most requests that are answered at once.
    pub max_batch: usize,
    /// Most requests that wait.
    pub max_queue: usize,
    /// The device, such as `cpu` or `cuda:0`.
    pub device: String,
    /// The dtype computed in, such as `fp16`.
    pub dtype: String,
}

impl ModelInfo {
    /// Most tokens that a prompt can have and get at least one token of an answer.
    pub fn max_prompt_tokens(&self) -> usize {
        self.context.min(self.cache_tokens)
    }
}
