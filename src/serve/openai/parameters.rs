//! What requests for chats and for completions have in common.

use serde_json::Value;

use super::fields::{wrong_type, Fields};
use super::ApiError;
use crate::runtime::SamplerOptions;

/// Most choices of one request.
const MOST_CHOICES: usize = 128;
/// Most stop strings of one request.
const MOST_STOPS: usize = 16;
/// Most bytes of a stop string: every new piece of text is compared with all of them.
const MOST_STOP_BYTES: usize = 512;
/// Parameters of OpenAI's that say nothing about the answer.
const HARMLESS: [&str; 7] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
];

/// How to answer, and in which form.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Parameters {
    /// How tokens are picked; choice `i` uses seed `seed + i`.
    pub(crate) sampling: SamplerOptions,
    pub(crate) stop_strings: Vec<String>,
    /// Most tokens of each answer; `None` leaves that to the endpoint.
    pub(crate) max_new_tokens: Option<usize>,
    /// Answers to each prompt.
    pub(crate) choices: usize,
    pub(crate) stream: bool,
    /// The last chunk of a stream says how many tokens there were.
    pub(crate) include_usage: bool,
}

impl Parameters {
    /// Takes the common parameters, and refuses the common ones that this server does not do.
    pub(crate) fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        fields.ignore(&HARMLESS);
        refuse_unsupported(fields)?;
        let stream = fields.boolean("stream")?.unwrap_or(false);
        Ok(Self {
            sampling: take_sampling(fields)?,
            stop_strings: take_stops(fields)?,
            max_new_tokens: fields.count("max_tokens", 1..=usize::MAX)?,
            choices: fields.count("n", 1..=MOST_CHOICES)?.unwrap_or(1),
            stream,
            include_usage: take_include_usage(fields, stream)?,
        })
    }
}

fn take_sampling(fields: &mut Fields) -> Result<SamplerOptions, ApiError> {
    let top_p = fields.number("top_p", 0.0..=1.0)?;
    Ok(SamplerOptions {
        temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(1.0),
        top_k: fields.count("top_k", 1..=usize::MAX)?,
        // A nucleus of nothing is the likeliest token.
        top_p: top_p.map(|top_p| top_p.max(f64::MIN_POSITIVE)),
        // Another answer each time, unless the client wants the same one again.
        seed: fields.integer("seed")?.map_or_else(rand::random, i64::cast_unsigned),
    })
}

fn take_stops(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let wanted = "a string or a list of strings";
    let stops = match fields.take("stop") {
        None => Vec::new(),
        Some(Value::String(stop)) => vec![stop],
        Some(Value::Array(stops)) => (stops.into_iter())
            .map(|stop| match stop {
                Value::String(stop) => Ok(stop),
                other => Err(wrong_type("stop", &other, "a string in each place of the list")),
            })
            .collect::<Result<_, _>>()?,
        Some(other) => return Err(wrong_type("stop", &other, wanted)),
    };
    if stops.len() > MOST_STOPS {
        let message = format!("has {} strings, wanted at most {MOST_STOPS}", stops.len());
        return Err(ApiError::parameter("stop", message));
    }
    match stops.iter().map(String::len).find(|bytes| !(1..=MOST_STOP_BYTES).contains(bytes)) {
        None => Ok(stops),
        Some(bytes) => Err(ApiError::parameter(
            "stop",
            format_args!("has a string of {bytes} bytes, wanted 1 to {MOST_STOP_BYTES}"),
        )),
    }
}

fn take_include_usage(fields: &mut Fields, stream: bool) -> Result<bool, ApiError> {
    let Some(options) = fields.take("stream_options") else { return Ok(false) };
    if !stream {
        return Err(ApiError::parameter("stream_options", "matters only where stream is true; leave it out"));
    }
    let mut options = Fields::of(options, "stream_options")?;
    let include_usage = options.boolean("include_usage")?.unwrap_or(false);
    // Padding against eavesdroppers who count bytes: leaving it out is all that can be asked for here.
    options.refuse_unless("include_obfuscation", |value| value == false, "leave it out or send false")?;
    options.finish(Some("stream_options"))?;
    Ok(include_usage)
}

fn refuse_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    let zero = |value: &Value| value.as_f64() == Some(0.0);
    fields.refuse_unless("frequency_penalty", zero, "leave it out or send 0")?;
    fields.refuse_unless("presence_penalty", zero, "leave it out or send 0")?;
    fields.refuse_unless("logit_bias", is_empty, "leave it out or send an empty object")
}

/// Whether a list or an object has nothing in it.
pub(crate) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        _ => false,
    }
}
