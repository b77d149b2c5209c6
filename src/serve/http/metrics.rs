//! The engine's and the server's figures, for Prometheus.

use super::exposition::Exposition;
use super::Server;

pub(super) fn text(server: &Server) -> String {
    let mut text = Exposition::default();
    let responses = server.counters().responses();
    text.counters("codecllm_http_responses_total", "HTTP responses by status.", "status", responses);
    text.finish()
}
