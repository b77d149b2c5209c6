//! Where a generation ends, and `generation_config.json`.

use serde_json::{json, Value as Json};

use super::vocabulary::{SpecialIds, TokenKind, Vocabulary};
use crate::error::{Error, Result};

/// How models spell the tokens that end a turn or a text. A GGUF has one such token by its role, models often end with others too.
const ENDS: [&str; 9] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<EOT>",
    "</s>",
];

/// The tokens at which a generation ends: those with that role, the control tokens that are spelled as such, and those spelled as in
/// `wanted`.
pub(super) fn stop_tokens(
    vocabulary: Option<&Vocabulary<'_>>,
    ids: SpecialIds,
    wanted: &[String],
    named: &dyn Fn(&str) -> Option<u32>,
) -> Result<Vec<u32>> {
    let mut stops: Vec<u32> = [ids.eos, ids.end_of_turn, ids.end_of_message].into_iter().flatten().collect();
    if let Some(vocabulary) = vocabulary {
        let ends =
            vocabulary.iter().filter(|(_, text, kind)| *kind == TokenKind::Control && ENDS.contains(text));
        stops.extend(ends.map(|(id, ..)| id));
    }
    for text in wanted {
        let id = named(text).ok_or_else(|| {
            Error::invalid(
                "--stop-token",
                format!("{text:?} is no token of the model, wanted one of its tokens"),
            )
        })?;
        stops.push(id);
    }
    let mut seen = std::collections::HashSet::new();
    stops.retain(|id| seen.insert(*id));
    Ok(stops)
}

/// `generation_config.json`.
pub(super) fn generation_config(ids: SpecialIds, stops: &[u32]) -> Json {
    json!({ "bos_token_id": ids.bos, "eos_token_id": stops, "pad_token_id": ids.pad })
}
