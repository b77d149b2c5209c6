//! What clients get: chats and completions, whole or in chunks.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::{json, Value};

use super::logprobs::{self, Token};

/// Under the same fingerprint, the same seed gives the same answer.
const FINGERPRINT: &str = concat!("codecllm-", env!("CARGO_PKG_VERSION"));

/// The two endpoints' forms of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Chat,
    Completion,
}

/// Why a choice ended, in OpenAI's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FinishReason {
    /// The model or a stop string ended it.
    Stop,
    /// The limit of new tokens or the context ended it.
    Length,
}

/// How many tokens went in and came out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TokenCounts {
    pub(crate) prompt: usize,
    pub(crate) completion: usize,
}

impl TokenCounts {
    fn json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        })
    }
}

/// A part of one choice, as it comes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) tokens: Vec<Token>,
    /// At which character of the answer each token's text begins.
    pub(crate) offsets: Vec<usize>,
}

impl Piece {
    /// Adds what comes behind it.
    pub(crate) fn append(&mut self, more: Self) {
        self.text.push_str(&more.text);
        self.tokens.extend(more.tokens);
        self.offsets.extend(more.offsets);
    }
}

/// One choice, complete.
#[derive(Clone, Debug)]
pub(crate) struct Choice {
    pub(crate) piece: Piece,
    pub(crate) finish_reason: FinishReason,
}

/// What every part of a response repeats.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    form: Form,
    id: String,
    created: u64,
    model: String,
    /// Tell log probabilities.
    logprobs: bool,
    /// Every chunk says `usage`, if only that it is not known yet.
    include_usage: bool,
}

impl Head {
    pub(crate) fn new(form: Form, model: &str, logprobs: bool, include_usage: bool) -> Self {
        let prefix = match form {
            Form::Chat => "chatcmpl",
            Form::Completion => "cmpl",
        };
        Self {
            form,
            id: format!("{prefix}-{:032x}", rand::random::<u128>()),
            created: unix_seconds(),
            model: model.to_owned(),
            logprobs,
            include_usage,
        }
    }

    /// The whole response.
    pub(crate) fn whole(&self, choices: &[Choice], counts: TokenCounts) -> Value {
        let choices = (choices.iter().enumerate())
            .map(|(i, choice)| self.choice(i, &choice.piece, Some(choice.finish_reason), "message"))
            .collect();
        let mut whole = self.envelope(false, choices);
        whole["usage"] = counts.json();
        whole
    }

    /// The chunk that begins a choice, where there is one.
    pub(crate) fn opening(&self, index: usize) -> Option<Value> {
        let delta = json!({ "role": "assistant", "content": "", "refusal": null });
        let choice = json!({ "index": index, "delta": delta, "logprobs": null, "finish_reason": null });
        (self.form == Form::Chat).then(|| self.chunk(vec![choice]))
    }

    /// A chunk with a part of a choice.
    pub(crate) fn piece(&self, index: usize, piece: &Piece) -> Value {
        self.chunk(vec![self.choice(index, piece, None, "delta")])
    }

    /// The chunk that ends a choice.
    pub(crate) fn ending(&self, index: usize, reason: FinishReason) -> Value {
        let choice = match self.form {
            Form::Chat => {
                json!({ "index": index, "delta": {}, "logprobs": null, "finish_reason": reason })
            }
            Form::Completion => {
                json!({ "index": index, "text": "", "logprobs": null, "finish_reason": reason })
            }
        };
        self.chunk(vec![choice])
    }

    /// The chunk behind all choices that says how many tokens there were, if it is wanted.
    pub(crate) fn counts(&self, counts: TokenCounts) -> Option<Value> {
        self.include_usage.then(|| {
            let mut chunk = self.chunk(Vec::new());
            chunk["usage"] = counts.json();
            chunk
        })
    }

    fn choice(&self, index: usize, piece: &Piece, reason: Option<FinishReason>, wrapper: &str) -> Value {
        match self.form {
            Form::Completion => json!({
                "index": index,
                "text": piece.text,
                "logprobs": self.logprobs.then(|| logprobs::completion(&piece.tokens, &piece.offsets)),
                "finish_reason": reason,
            }),
            Form::Chat => {
                let said = match reason {
                    None => json!({ "content": piece.text }),
                    Some(_) => json!({ "role": "assistant", "content": piece.text, "refusal": null }),
                };
                let logprobs = self.logprobs.then(|| logprobs::chat(&piece.tokens));
                json!({ "index": index, wrapper: said, "logprobs": logprobs, "finish_reason": reason })
            }
        }
    }

    fn chunk(&self, choices: Vec<Value>) -> Value {
        let mut chunk = self.envelope(true, choices);
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn envelope(&self, chunk: bool, choices: Vec<Value>) -> Value {
        let object = match (self.form, chunk) {
            (Form::Chat, false) => "chat.completion",
            (Form::Chat, true) => "chat.completion.chunk",
            (Form::Completion, _) => "text_completion",
        };
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
        })
    }
}

/// Seconds since 1970, as OpenAI's API counts time.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}
