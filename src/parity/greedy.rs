//! How long two models say the same.

use std::ops::ControlFlow;

use serde::Serialize;

use super::text::first_difference;
use crate::error::Result;
use crate::runtime::{GenerateOptions, Generation, Generator, Prompt};

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

/// Lets both models continue `prompt` greedily by `new_tokens`, or fewer where they stop.
pub(super) fn greedy(
    [reference, compressed]: [&Generator; 2],
    prompt: &str,
    new_tokens: usize,
) -> Result<GreedyAgreement> {
    let wanted = answer(reference, prompt, new_tokens)?;
    let got = answer(compressed, prompt, new_tokens)?;
    let difference = first_difference(&wanted, &got);
    Ok(GreedyAgreement {
        prompt: prompt.to_owned(),
        reference_tokens: wanted.len(),
        agreed_tokens: difference.unwrap_or(wanted.len()),
        agrees: difference.is_none(),
    })
}

fn answer(generator: &Generator, prompt: &str, max_new_tokens: usize) -> Result<Vec<u32>> {
    let options = GenerateOptions { max_new_tokens, ..GenerateOptions::default() };
    let prompts = [Prompt::Text(prompt.to_owned())];
    let answers = generator.generate(&prompts, &options, &mut |_| ControlFlow::Continue(()))?;
    Ok(answers.into_iter().next().map_or_else(Vec::new, |Generation { token_ids, .. }| token_ids))
}
