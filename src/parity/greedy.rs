//! How long two models say the same.

use std::ops::ControlFlow;

use serde::Serialize;

use super::report::Options;
use super::text::first_difference;
use crate::error::Result;
use crate::runtime::{GenerateOptions, Generator, Message, Prompt};

/// How long the greedy answers to one prompt agree.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GreedyAgreement {
    /// The prompt.
    pub prompt: String,
    /// Tokens of the reference's answer.
    pub reference_tokens: usize,
    /// Tokens of the answers that agree before the first that does not.
    pub agreed_tokens: usize,
    /// Whether the answers are the same to the end.
    pub agrees: bool,
}

/// Lets both models answer `prompt` greedily, by the options' new tokens or fewer where they stop.
pub(super) fn greedy(
    [reference, compressed]: [&Generator; 2],
    prompt: &str,
    options: &Options,
) -> Result<GreedyAgreement> {
    let wanted = answer(reference, prompt, options)?;
    let got = answer(compressed, prompt, options)?;
    let difference = first_difference(&wanted, &got);
    Ok(GreedyAgreement {
        prompt: prompt.to_owned(),
        reference_tokens: wanted.len(),
        agreed_tokens: difference.unwrap_or(wanted.len()),
        agrees: difference.is_none(),
    })
}

fn answer(generator: &Generator, prompt: &str, options: &Options) -> Result<Vec<u32>> {
    let prompt = if options.raw || generator.chat().is_none() {
        Prompt::Text(prompt.to_owned())
    } else {
        Prompt::Chat(vec![Message::new("user", prompt)])
    };
    let options = GenerateOptions { max_new_tokens: options.new_tokens, ..GenerateOptions::default() };
    let mut answers = generator.generate(&[prompt], &options, &mut |_| ControlFlow::Continue(()))?;
    Ok(answers.pop().map(|answer| answer.token_ids).unwrap_or_default())
}
