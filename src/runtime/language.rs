//! What of a model directory turns text into tokens and back.

use std::path::Path;

use super::chat::ChatTemplate;
use super::prompt::Prompt;
use super::stop::stop_tokens;
use super::tokenizer::Tokenizer;
use crate::error::{Error, Result};

/// Tokenizer, chat template and the tokens that end an answer.
#[derive(Debug)]
pub(crate) struct Language {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) chat: Option<ChatTemplate>,
    pub(crate) stop_tokens: Vec<u32>,
}

impl Language {
    /// # Errors
    /// As [`Tokenizer::from_dir`], [`ChatTemplate::from_dir`] and [`stop_tokens`].
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let (tokenizer, chat) = (Tokenizer::from_dir(dir)?, ChatTemplate::from_dir(dir)?);
        Ok(Self { tokenizer, chat, stop_tokens: stop_tokens(dir)? })
    }

    /// The token ids of `prompt`, special tokens included.
    pub(crate) fn encode(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        match prompt {
            Prompt::Tokens(ids) => Ok(ids.clone()),
            Prompt::Text(text) => self.tokenizer.encode(text, true),
            Prompt::Chat(messages) => {
                let template = self.chat.as_ref().ok_or_else(|| {
                    Error::invalid("chat", "the model has no chat template; give a plain prompt instead")
                })?;
                // The template writes the special tokens itself.
                self.tokenizer.encode(&template.render(messages, true)?, false)
            }
        }
    }
}
