//! Errors in the form OpenAI's clients read.

use serde::Serialize;

use crate::error::{Error, ErrorKind};

/// An error as a client sees it: `{"error": {"message", "type", "param", "code"}}` with an HTTP status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    status: u16,
    body: ErrorBody,
    /// Seconds after which trying again may help.
    retry_after: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct ErrorBody {
    message: String,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<String>,
    code: Option<&'static str>,
}

/// The envelope around the body.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ErrorObject<'a> {
    error: &'a ErrorBody,
}

impl ApiError {
    fn new(status: u16, kind: &'static str, message: impl Into<String>) -> Self {
        let body = ErrorBody { message: message.into(), kind, param: None, code: None };
        Self { status, body, retry_after: None }
    }

    /// A request that is wrong in itself; sending it again does not help.
    pub(crate) fn refused(status: u16, message: impl Into<String>) -> Self {
        Self::new(status, "invalid_request_error", message)
    }

    /// 400 about the parameter `param`.
    pub(crate) fn parameter(param: impl Into<String>, message: impl std::fmt::Display) -> Self {
        let param = param.into();
        let mut error = Self::refused(400, format!("{param}: {message}"));
        error.body.param = Some(param);
        error
    }

    /// 404: the client asked for a model that is not the one served.
    pub(crate) fn no_such_model(asked: &str, served: &str) -> Self {
        let mut error =
            Self::refused(404, format!("model {asked:?} does not exist; this server has {served:?}"));
        error.body.param = Some("model".to_owned());
        error.with_code("model_not_found")
    }

    /// 400: the prompt leaves no room for an answer.
    pub(crate) fn prompt_too_long(param: &str, tokens: usize, most: usize) -> Self {
        let message =
            format!("is {tokens} tokens, wanted at most {most}, the context of this server; shorten it");
        Self::parameter(param, message).with_code("context_length_exceeded")
    }

    /// 401.
    pub(crate) fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(401, "authentication_error", message).with_code("invalid_api_key")
    }

    /// 429: as many requests wait as may.
    pub(crate) fn busy(message: impl Into<String>) -> Self {
        let mut error = Self::new(429, "rate_limit_error", message).with_code("queue_full");
        error.retry_after = Some(1);
        error
    }

    /// 503: the server ends.
    pub(crate) fn shutting_down() -> Self {
        Self::new(503, "server_error", "the server is shutting down").with_code("shutting_down")
    }

    /// 500: a fault of the server.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "server_error", message)
    }

    /// 504: the answer was not complete within the time a request may take.
    pub(crate) fn out_of_time(time: std::time::Duration) -> Self {
        let seconds = time.as_secs_f64();
        let message = format!(
            "the answer was not complete within {seconds} s, the limit of this server; ask for fewer tokens (max_tokens)"
        );
        Self::new(504, "server_error", message).with_code("time_limit")
    }

    /// The error with a word for programs.
    #[must_use]
    pub(crate) fn with_code(mut self, code: &'static str) -> Self {
        self.body.code = Some(code);
        self
    }

    /// The HTTP status.
    pub(crate) fn status(&self) -> u16 {
        self.status
    }

    /// Seconds after which trying again may help.
    pub(crate) fn retry_after(&self) -> Option<u32> {
        self.retry_after
    }

    /// Whether sending the same again would only do the same work again.
    pub(crate) fn is_final(&self) -> bool {
        self.body.code == Some("time_limit")
    }

    /// What goes out as JSON.
    pub(crate) fn object(&self) -> ErrorObject<'_> {
        ErrorObject { error: &self.body }
    }
}

/// What the engine says of a request: what the client can mend is 400, the rest is the server's fault.
impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        match error.kind() {
            ErrorKind::InvalidArgument => Self::refused(400, error.to_string()),
            _ => Self::internal(error.to_string()),
        }
    }
}
