//! One prompt's answer in the making: what each token does to it, and when it ends.

use super::generate::GenerateOptions;
use super::language::Language;
use super::sampler::Sampler;
use super::stop::{StopReason, StopStrings};
use super::tokenizer::{TextWindow, Tokenizer};
use crate::error::Result;

/// The state behind an answer: random numbers, incomplete text, tokens left. Whoever drives it ends with it: after an [`Ending`]
/// nothing more may be taken.
#[derive(Debug)]
pub(crate) struct Continuation {
    sampler: Sampler,
    window: TextWindow,
    stops: StopStrings,
    ignore_stop_tokens: bool,
    new_tokens: usize,
    max_new_tokens: usize,
}

/// What a token did to an answer.
#[derive(Debug)]
pub(crate) struct Taken {
    /// Whether it is part of the answer: all but stop tokens are.
    pub(crate) kept: bool,
    /// The text that it makes visible.
    pub(crate) text: String,
    /// Whether the answer ended by it.
    pub(crate) ending: Option<Ending>,
}

/// The end of an answer.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(crate) reason: StopReason,
    /// The text that was held back.
    pub(crate) text: String,
}

impl Continuation {
    /// The empty answer to `prompt`, with `seed` in place of the options' own.
    ///
    /// # Errors
    /// As [`Sampler::new`] and [`Tokenizer::decode`].
    pub(crate) fn after(
        tokenizer: &Tokenizer,
        prompt: &[u32],
        options: &GenerateOptions,
        seed: u64,
    ) -> Result<Self> {
        let mut sampling = options.sampling.clone();
        sampling.seed = seed;
        Ok(Self {
            sampler: Sampler::new(&sampling)?,
            window: TextWindow::after(tokenizer, prompt)?,
            stops: StopStrings::new(&options.stop_strings),
            ignore_stop_tokens: options.ignore_stop_tokens,
            new_tokens: 0,
            max_new_tokens: options.max_new_tokens,
        })
    }

    /// Whether it has all the tokens it may have.
    pub(crate) fn is_full(&self) -> bool {
        self.new_tokens >= self.max_new_tokens
    }

    /// Tokens of the answer so far.
    pub(crate) fn new_tokens(&self) -> usize {
        self.new_tokens
    }

    /// Picks the next token, as [`Sampler::sample`] does.
    pub(crate) fn pick(&mut self, logits: &[f32]) -> Result<u32> {
        self.sampler.sample(logits)
    }

    /// Takes in a token that was picked.
    pub(crate) fn take(&mut self, token: u32, language: &Language) -> Result<Taken> {
        if language.stop_tokens.contains(&token) && !self.ignore_stop_tokens {
            let ending = self.end(StopReason::StopToken(token), &language.tokenizer)?;
            return Ok(Taken { kept: false, text: String::new(), ending: Some(ending) });
        }
        self.new_tokens += 1;
        let (text, stop) = self.stops.push(&self.window.push(&language.tokenizer, token)?);
        let ending = match stop {
            Some(stop) => Some(Ending { reason: StopReason::StopString(stop), text: String::new() }),
            None if self.is_full() => Some(self.end(StopReason::MaxNewTokens, &language.tokenizer)?),
            None => None,
        };
        Ok(Taken { kept: true, text, ending })
    }

    /// Ends the answer for `reason`, unless the text held back completes a stop string.
    pub(crate) fn end(&mut self, reason: StopReason, tokenizer: &Tokenizer) -> Result<Ending> {
        let (mut text, stop) = self.stops.push(&self.window.finish(tokenizer)?);
        if let Some(stop) = stop {
            return Ok(Ending { reason: StopReason::StopString(stop), text });
        }
        text.push_str(&self.stops.finish());
        Ok(Ending { reason, text })
    }
}
