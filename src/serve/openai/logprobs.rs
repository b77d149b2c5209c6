//! Log probabilities in the two forms of OpenAI's API.

use serde::Serialize;
use serde_json::{json, Map, Value};

/// What JSON has instead of minus infinity, by OpenAI's custom.
const LEAST: f32 = -9999.0;

/// A token and how likely it was.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Likely {
    /// Its text as bytes: a token may be a part of a character.
    pub(crate) bytes: Vec<u8>,
    pub(crate) logprob: f32,
}

/// A token of an answer and the likeliest ones in its place.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Token {
    pub(crate) chosen: Likely,
    pub(crate) top: Vec<Likely>,
}

/// A token in a chat's `logprobs`.
#[derive(Serialize)]
struct ChatLikely<'a> {
    token: std::borrow::Cow<'a, str>,
    logprob: f32,
    bytes: &'a [u8],
}

impl<'a> From<&'a Likely> for ChatLikely<'a> {
    fn from(likely: &'a Likely) -> Self {
        Self {
            token: String::from_utf8_lossy(&likely.bytes),
            logprob: likely.logprob.max(LEAST),
            bytes: &likely.bytes,
        }
    }
}

/// `logprobs` of a chat's choice.
pub(crate) fn chat(tokens: &[Token]) -> Value {
    let token = |token: &Token| {
        let mut value = json!(ChatLikely::from(&token.chosen));
        value["top_logprobs"] = token.top.iter().map(|likely| json!(ChatLikely::from(likely))).collect();
        value
    };
    json!({ "content": tokens.iter().map(token).collect::<Vec<_>>(), "refusal": null })
}

/// `logprobs` of a completion's choice. `offsets` says at which character of the answer each token's text begins.
pub(crate) fn completion(tokens: &[Token], offsets: &[usize]) -> Value {
    let top = |token: &Token| -> Map<String, Value> {
        let all = token.top.iter().chain([&token.chosen]);
        all.map(|likely| (spelled(&likely.bytes), json!(likely.logprob.max(LEAST)))).collect()
    };
    json!({
        "tokens": tokens.iter().map(|token| spelled(&token.chosen.bytes)).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|token| token.chosen.logprob.max(LEAST)).collect::<Vec<_>>(),
        "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
        "text_offset": offsets,
    })
}

/// A token as text; one that is a part of a character as `bytes:\xe2\x82`, so that different tokens stay different.
fn spelled(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |text, byte| format!("{text}\\x{byte:02x}")),
    }
}
