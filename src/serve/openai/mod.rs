//! OpenAI's API as data: what clients send, checked, and what they get. No HTTP and no engine here.

mod chat_request;
mod completion_request;
mod error;
mod fields;
mod form;
mod logprobs;
mod parameters;

pub(crate) use chat_request::ChatRequest;
pub(crate) use completion_request::CompletionRequest;
pub(crate) use error::ApiError;
pub(crate) use fields::clip;
pub(crate) use form::{unix_seconds, Choice, FinishReason, Form, Head, Piece, TokenCounts};
pub(crate) use logprobs::{Likely, Token};
pub(crate) use parameters::Parameters;

#[cfg(test)]
mod tests;
