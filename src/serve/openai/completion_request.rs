//! The body of `POST /v1/completions`.

use serde_json::Value;

use super::fields::{wrong_type, Fields};
use super::parameters::Parameters;
use super::ApiError;
use crate::runtime::Prompt;

/// Most likeliest tokens told beside each token of the answer.
const MOST_LOGPROBS: usize = 5;
/// Most prompts of one request.
const MOST_PROMPTS: usize = 128;
/// Most answers of one request: prompts times choices.
const MOST_ANSWERS: usize = 128;
/// Most tokens of an answer where the request does not say.
const DEFAULT_MAX_TOKENS: usize = 16;
const WANTED: &str = "a string, a list of strings, a list of token ids, or a list of such lists";

/// Texts to continue.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CompletionRequest {
    pub(crate) model: Option<String>,
    pub(crate) prompts: Vec<Prompt>,
    pub(crate) parameters: Parameters,
    /// Tell each token's log probability, and those of this many likeliest.
    pub(crate) logprobs: Option<usize>,
}

impl CompletionRequest {
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let model = fields.text("model")?;
        let prompts = take_prompts(&mut fields)?;
        let mut parameters = Parameters::take(&mut fields)?;
        parameters.max_new_tokens = parameters.max_new_tokens.or(Some(DEFAULT_MAX_TOKENS));
        refuse_unsupported(&mut fields, parameters.choices)?;
        let answers = prompts.len().saturating_mul(parameters.choices);
        if answers > MOST_ANSWERS {
            let message =
                format!("asks for {answers} answers with these prompts, wanted at most {MOST_ANSWERS}");
            return Err(ApiError::parameter("n", message));
        }
        let logprobs = fields.count("logprobs", 0..=MOST_LOGPROBS)?;
        fields.finish(None)?;
        Ok(Self { model, prompts, parameters, logprobs })
    }
}

fn take_prompts(fields: &mut Fields) -> Result<Vec<Prompt>, ApiError> {
    let prompts = match fields.take("prompt") {
        None => return Err(ApiError::parameter("prompt", "is missing")),
        Some(Value::String(text)) => vec![Prompt::Text(text)],
        Some(Value::Array(list)) if list.first().is_some_and(Value::is_number) => vec![read_tokens(list)?],
        Some(Value::Array(list)) => list.into_iter().map(read_prompt).collect::<Result<_, _>>()?,
        Some(other) => return Err(wrong_type("prompt", &other, WANTED)),
    };
    match prompts.len() {
        1..=MOST_PROMPTS => Ok(prompts),
        count => Err(ApiError::parameter(
            "prompt",
            format_args!("has {count} prompts, wanted 1 to {MOST_PROMPTS}"),
        )),
    }
}

/// One prompt of a list.
fn read_prompt(prompt: Value) -> Result<Prompt, ApiError> {
    match prompt {
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(list) => read_tokens(list),
        other => Err(wrong_type("prompt", &other, WANTED)),
    }
}

fn read_tokens(list: Vec<Value>) -> Result<Prompt, ApiError> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids: Option<Vec<u32>> = list.iter().map(id).collect();
    ids.map(Prompt::Tokens).ok_or_else(|| ApiError::parameter("prompt", format_args!("wanted {WANTED}")))
}

fn refuse_unsupported(fields: &mut Fields, choices: usize) -> Result<(), ApiError> {
    let as_many = |value: &Value| value.as_u64() == Some(choices as u64);
    fields.refuse_unless("best_of", as_many, "leave it out and ask for n answers")?;
    fields.refuse_unless("echo", |value| value == false, "leave it out or send false")?;
    fields.refuse_unless("suffix", |value| value == "", "leave it out")
}
