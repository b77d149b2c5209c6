//! The body of `POST /v1/chat/completions`.

use serde_json::Value;

use super::fields::{wrong_type, Fields};
use super::parameters::{is_empty, Parameters};
use super::ApiError;
use crate::runtime::Message;

/// Most likeliest tokens told beside each token of the answer.
const MOST_TOP_LOGPROBS: usize = 20;

/// A conversation to answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ChatRequest {
    pub(crate) model: Option<String>,
    pub(crate) messages: Vec<Message>,
    pub(crate) parameters: Parameters,
    /// Tell each token's log probability, and those of this many likeliest.
    pub(crate) logprobs: Option<usize>,
}

impl ChatRequest {
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        refuse_unsupported(&mut fields)?;
        let model = fields.text("model")?;
        let messages = take_messages(&mut fields)?;
        let mut parameters = Parameters::take(&mut fields)?;
        parameters.max_new_tokens = take_max_tokens(&mut fields, parameters.max_new_tokens)?;
        let logprobs = take_logprobs(&mut fields)?;
        fields.finish(None)?;
        Ok(Self { model, messages, parameters, logprobs })
    }
}

/// `max_completion_tokens` is the newer name of `max_tokens`.
fn take_max_tokens(fields: &mut Fields, max_tokens: Option<usize>) -> Result<Option<usize>, ApiError> {
    match (max_tokens, fields.count("max_completion_tokens", 1..=usize::MAX)?) {
        (Some(old), Some(new)) if old != new => {
            let message = format!("is {new}, but max_tokens is {old}; send one of them");
            Err(ApiError::parameter("max_completion_tokens", message))
        }
        (old, new) => Ok(new.or(old)),
    }
}

fn take_logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let top = fields.count("top_logprobs", 0..=MOST_TOP_LOGPROBS)?;
    match (fields.boolean("logprobs")?.unwrap_or(false), top) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(ApiError::parameter("top_logprobs", "wants logprobs to be true")),
    }
}

fn take_messages(fields: &mut Fields) -> Result<Vec<Message>, ApiError> {
    let messages = match fields.take("messages") {
        Some(Value::Array(messages)) => messages,
        Some(other) => return Err(wrong_type("messages", &other, "a list of messages")),
        None => return Err(ApiError::parameter("messages", "is missing")),
    };
    if messages.is_empty() {
        return Err(ApiError::parameter("messages", "is empty, wanted at least one message"));
    }
    messages.into_iter().enumerate().map(|(i, message)| read_message(i, message)).collect()
}

fn read_message(index: usize, message: Value) -> Result<Message, ApiError> {
    let place = format!("messages[{index}]");
    let mut fields = Fields::of(message, &place)?;
    let role = take_role(&mut fields, &place)?;
    let content = take_content(&mut fields, &place)?;
    // Clients send the answers they got back as they got them.
    for name in ["tool_calls", "annotations"] {
        if let Some(value) = fields.take(name).filter(|value| !is_empty(value)) {
            return Err(wrong_type(&format!("{place}.{name}"), &value, "none: this server has no tools"));
        }
    }
    fields.finish(Some(&place))?;
    Ok(Message::new(role, content))
}

fn take_role(fields: &mut Fields, place: &str) -> Result<&'static str, ApiError> {
    let param = format!("{place}.role");
    match fields.take("role") {
        None => Err(ApiError::parameter(param, "is missing")),
        Some(role) => match role.as_str() {
            // What newer models of OpenAI's call the system.
            Some("system" | "developer") => Ok("system"),
            Some("user") => Ok("user"),
            Some("assistant") => Ok("assistant"),
            _ => Err(ApiError::parameter(param, "wanted system, developer, user or assistant")),
        },
    }
}

/// A string, or a list of parts that are texts.
fn take_content(fields: &mut Fields, place: &str) -> Result<String, ApiError> {
    let place = format!("{place}.content");
    match fields.take("content") {
        Some(Value::String(text)) => Ok(text),
        Some(Value::Array(parts)) => {
            parts.into_iter().enumerate().map(|(i, part)| read_part(&format!("{place}[{i}]"), part)).collect()
        }
        Some(other) => Err(wrong_type(&place, &other, "a string or a list of parts")),
        None => Err(ApiError::parameter(place, "is missing")),
    }
}

fn read_part(place: &str, part: Value) -> Result<String, ApiError> {
    let mut fields = Fields::of(part, place)?;
    let kind = fields.take("type");
    if kind.as_ref().and_then(Value::as_str) != Some("text") {
        let message = "wanted text: this server takes no images, sounds or files";
        return Err(ApiError::parameter(format!("{place}.type"), message));
    }
    let text = match fields.take("text") {
        Some(Value::String(text)) => text,
        _ => return Err(ApiError::parameter(format!("{place}.text"), "wanted a string")),
    };
    fields.finish(Some(place))?;
    Ok(text)
}

fn refuse_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    let plain = |value: &Value| value["type"] == "text" && value.as_object().is_some_and(|o| o.len() == 1);
    let none = |value: &Value| value == "none" || value == "auto";
    let text_only = |value: &Value| value.as_array().is_some_and(|list| list.iter().all(|v| v == "text"));
    fields.refuse_unless("tools", is_empty, "leave it out")?;
    fields.refuse_unless("tool_choice", none, "leave it out")?;
    fields.refuse_unless("functions", is_empty, "leave it out")?;
    fields.refuse_unless("function_call", none, "leave it out")?;
    fields.refuse_unless("response_format", plain, "leave it out or send {\"type\": \"text\"}")?;
    fields.refuse_unless("modalities", text_only, "leave it out or send [\"text\"]")?;
    for name in ["audio", "prediction", "reasoning_effort", "verbosity", "web_search_options"] {
        fields.refuse_unless(name, |_| false, "leave it out")?;
    }
    // Matters with tools only.
    fields.ignore(&["parallel_tool_calls"]);
    Ok(())
}
