//! What a server allows its clients.

use std::time::Duration;

use super::keys::ApiKeys;
use crate::error::{Error, Result};

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
    /// Most time that a client takes nothing of an answer that is ready for it; less for one that goes on taking less than a kilobyte a
    /// second.
    pub write_time: Duration,
    /// Most connections; further ones wait until one ends.
    pub max_connections: usize,
    /// Most time that running answers have to finish when the server is asked to end.
    pub shutdown_time: Duration,
}

impl ServerOptions {
    /// Most that any of the times may be, thirty years: the end of a clock is nearer than what a [`Duration`] can say.
    ///
    /// ```
    /// use codecllm::serve::ServerOptions;
    /// let options = ServerOptions { request_time: ServerOptions::MOST_TIME, ..ServerOptions::new("my-model") };
    /// assert!(options.read_time < ServerOptions::MOST_TIME);
    /// ```
    pub const MOST_TIME: Duration = Duration::from_secs(1_000_000_000);

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

    /// An error for what no server can do.
    pub(super) fn check(&self) -> Result<()> {
        if self.max_new_tokens == Some(0) {
            return Err(Error::invalid("max new tokens", "0, wanted 1 or more"));
        }
        let times = [
            ("request time", self.request_time),
            ("read time", self.read_time),
            ("write time", self.write_time),
            ("shutdown time", self.shutdown_time),
        ];
        let most = Self::MOST_TIME;
        match times.into_iter().find(|(_, time)| *time > most) {
            None => Ok(()),
            Some((name, time)) => {
                let (seconds, most) = (time.as_secs(), most.as_secs());
                Err(Error::invalid(name, format!("{seconds} s, wanted at most {most} s")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_beyond_any_clock_are_refused() {
        let usual = || ServerOptions::new("m");
        let refused = |change: fn(&mut ServerOptions)| {
            let mut options = usual();
            change(&mut options);
            options.check().unwrap_err().to_string()
        };
        assert!(usual().check().is_ok());
        let wanted = |name| format!("{name} time: {} s, wanted at most 1000000000 s", u64::MAX);
        assert_eq!(refused(|options| options.request_time = Duration::MAX), wanted("request"));
        assert_eq!(refused(|options| options.read_time = Duration::MAX), wanted("read"));
        assert_eq!(refused(|options| options.write_time = Duration::MAX), wanted("write"));
        assert_eq!(refused(|options| options.shutdown_time = Duration::MAX), wanted("shutdown"));
        assert_eq!(
            refused(|options| options.max_new_tokens = Some(0)),
            "max new tokens: 0, wanted 1 or more"
        );
        let longest = ServerOptions { request_time: ServerOptions::MOST_TIME, ..usual() };
        assert!(longest.check().is_ok());
        // What is done with it: no clock ends there.
        assert!(std::time::Instant::now().checked_add(ServerOptions::MOST_TIME * 2).is_some());
    }
}
