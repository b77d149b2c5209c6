//! What is continued, and what a model can continue.

use super::Message;
use crate::error::{Error, Result};
use crate::model::LlamaConfig;

/// What to continue.
///
/// Continued by a [`Generator`](super::Generator); see its example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// A text as it is.
    Text(String),
    /// A conversation, for the model to say the next turn of.
    Chat(Vec<Message>),
    /// Token ids.
    Tokens(Vec<u32>),
}

/// Which prompts a model can continue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PromptLimits {
    context: usize,
    most_context: usize,
    vocab_size: usize,
}

impl PromptLimits {
    /// Those of a model with `config` that runs with a context of `context` tokens.
    pub(crate) fn new(config: &LlamaConfig, context: usize) -> Self {
        Self { context, most_context: config.max_position_embeddings, vocab_size: config.vocab_size }
    }

    /// An error about `subject` unless `ids` can be continued.
    pub(crate) fn check(&self, subject: &str, ids: &[u32]) -> Result<()> {
        if ids.is_empty() {
            return Err(Error::invalid(subject, "is empty, wanted at least one token"));
        }
        let (context, most) = (self.context, self.most_context);
        if ids.len() > context {
            let cure = if context < most {
                format!("shorten it or raise the context (--context, at most {most} for this model)")
            } else {
                "shorten it".to_owned()
            };
            let message = format!("is {} tokens, wanted at most {context}, the context; {cure}", ids.len());
            return Err(Error::invalid(subject, message));
        }
        match ids.iter().find(|&&id| id as usize >= self.vocab_size) {
            None => Ok(()),
            Some(id) => Err(Error::invalid(
                subject,
                format!("has token {id}, wanted one below vocab_size = {}", self.vocab_size),
            )),
        }
    }
}
