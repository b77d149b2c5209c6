//! What a server allows its clients.

use std::time::Duration;

use super::keys::ApiKeys;

/// What a server is called and what it allows its clients.
///
/// ```
/// use codecllm::serve::ServerOptions;
/// let options = ServerOptions { max_new_tokens: Some(512), ..ServerOptions::new("my-model") };
/// assert!(options.keys.is_empty() && options.loopback_hosts_only);
/// ```
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// The model's id, as clients name it.
    pub model_id: String,
    /// Keys of which clients have to send one; if there are none, everybody may come.
    pub keys: ApiKeys,
    /// Answer only requests addressed to this machine's loopback names (`localhost`, `127.0.0.1`, `[::1]`), so that a page on
    /// the web which lets its name point here (DNS rebinding) gets nothing. Turn it off for a server that others reach.
    pub loopback_hosts_only: bool,
    /// Most bytes of a request's body.
    pub max_body_bytes: usize,
    /// Most tokens of an answer, whatever a request asks for; `None` is the model's context.
    pub max_new_tokens: Option<usize>,
    /// Most time from a request's arrival to the end of its answer, waiting included.
    pub request_time: Duration,
    /// Most time that a client takes to send a request's head, and again its body; and that a connection is kept without a request.
    pub read_time: Duration,
    /// Most time that a client takes nothing of an answer that is ready for it.
    pub write_time: Duration,
    /// Most connections; further ones wait until one ends.
    pub max_connections: usize,
    /// Most time that running answers have to finish when the server is asked to end.
    pub shutdown_time: Duration,
}

impl ServerOptions {
    /// The defaults for a server on the loopback device whose model is called `model_id`.
    pub fn new(model_id: impl Into<String>) -> Self {
        Self {
            model_id: model_id.into(),
            keys: ApiKeys::default(),
            loopback_hosts_only: true,
            max_body_bytes: 4 << 20,
            max_new_tokens: None,
            request_time: Duration::from_secs(600),
            read_time: Duration::from_secs(30),
            write_time: Duration::from_secs(30),
            max_connections: 512,
            shutdown_time: Duration::from_secs(30),
        }
    }
}
