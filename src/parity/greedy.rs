//! How long two models say the same.

use serde::Serialize;

use super::report::Options;
use super::side::Side;
use super::text::first_difference;
use crate::error::Result;

/// Tokens that are shown of each answer from where they part.
const SHOWN_TOKENS: usize = 12;

/// How long the greedy answers to one prompt agree.
///
/// In what [`compare`](super::compare) gives, one for each prompt; see its example.
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
    /// Where they first diverge; `None` where they agree.
    pub divergence: Option<FirstDivergence>,
}

/// What two answers say from where they part.
///
/// In what [`compare`](super::compare) gives of a prompt; see its example.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FirstDivergence {
    /// The token of the answer that first differs, from 0.
    pub token: usize,
    /// A few tokens of the reference's answer from there; nothing where it ends.
    pub reference: String,
    /// The same of the compressed model's.
    pub compressed: String,
}

/// Lets both models answer `prompt` greedily, by the options' new tokens or fewer where they stop.
pub(super) fn greedy(
    [reference, compressed]: [&Side; 2],
    prompt: &str,
    options: &Options,
) -> Result<GreedyAgreement> {
    let wanted = reference.answer(prompt, options)?;
    let got = compressed.answer(prompt, options)?;
    let divergence = first_difference(&wanted, &got).map(|token| {
        let shown = |ids: &[u32]| {
            let rest = ids.get(token..).unwrap_or_default();
            reference.decode(&rest[..rest.len().min(SHOWN_TOKENS)])
        };
        Ok(FirstDivergence { token, reference: shown(&wanted)?, compressed: shown(&got)? })
    });
    let divergence = divergence.transpose()?;
    Ok(GreedyAgreement {
        prompt: prompt.to_owned(),
        reference_tokens: wanted.len(),
        agreed_tokens: divergence.as_ref().map_or(wanted.len(), |divergence| divergence.token),
        agrees: divergence.is_none(),
        divergence,
    })
}
