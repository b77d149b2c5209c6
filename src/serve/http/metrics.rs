//! The engine's and the server's figures, for Prometheus.

use super::exposition::Exposition;
use super::Server;
use crate::serve::engine::{EngineStats, Histogram, RequestCounts};

/// All figures of now.
pub(super) fn text(server: &Server) -> String {
    let stats = server.engine().stats();
    let mut text = Exposition::default();
    requests(&mut text, &stats);
    tokens(&mut text, &stats);
    memory(&mut text, &stats);
    let responses = server.counters().responses();
    text.counters("codecllm_http_responses_total", "HTTP responses by status.", "status", responses);
    text.finish()
}

fn requests(text: &mut Exposition, stats: &EngineStats) {
    text.gauge("codecllm_requests_running", "Requests being answered.", stats.running);
    text.gauge("codecllm_requests_waiting", "Requests that wait for a place.", stats.waiting);
    let RequestCounts {
        stopped,
        length,
        deadline,
        interrupted,
        left,
        failed,
        refused_queue_full,
        refused_invalid,
        refused_shutting_down,
    } = stats.requests;
    let outcomes = [
        ("stopped", stopped),
        ("length", length),
        ("deadline", deadline),
        ("interrupted", interrupted),
        ("left", left),
        ("failed", failed),
        ("refused_queue_full", refused_queue_full),
        ("refused_invalid", refused_invalid),
        ("refused_shutting_down", refused_shutting_down),
    ];
    text.counters("codecllm_requests_total", "Requests by what became of them.", "outcome", outcomes);
    let name = "codecllm_time_to_first_token_seconds";
    histogram(text, name, "From a request's arrival to its first token.", &stats.time_to_first_token);
}

fn tokens(text: &mut Exposition, stats: &EngineStats) {
    text.counter("codecllm_prompt_tokens_total", "Tokens of prompts, processed.", stats.prompt_tokens);
    text.counter("codecllm_completion_tokens_total", "Tokens of answers.", stats.completion_tokens);
    let help = "Tokens of answers a second, over the last five.";
    text.gauge("codecllm_completion_tokens_per_second", help, stats.tokens_per_second);
    text.counter("codecllm_prefill_pieces_total", "Pieces of prompts processed.", stats.prefill_pieces);
    text.counter("codecllm_decode_steps_total", "Decoding steps.", stats.steps);
    text.gauge(
        "codecllm_decode_step_rows",
        "Answers that the last decoding step served.",
        stats.last_step_rows,
    );
    histogram(text, "codecllm_decode_step_seconds", "Time of a decoding step.", &stats.step_seconds);
}

fn memory(text: &mut Exposition, stats: &EngineStats) {
    text.gauge("codecllm_cache_pages", "Pages of the key-value cache.", stats.pages);
    text.gauge(
        "codecllm_cache_pages_free",
        "Pages of the key-value cache that nobody has.",
        stats.pages_free,
    );
    text.gauge("codecllm_cache_bytes", "Bytes set aside for the key-value cache.", stats.cache_bytes);
    text.gauge("codecllm_weight_bytes", "Bytes of the weights.", stats.weight_bytes);
    if let Some(bytes) = stats.rss_bytes {
        text.gauge("codecllm_resident_bytes", "Resident memory of the process.", bytes);
    }
    if let Some(bytes) = stats.peak_device_bytes {
        text.gauge("codecllm_device_peak_bytes", "Most of the GPU's memory seen occupied.", bytes);
    }
}

fn histogram(text: &mut Exposition, name: &str, help: &str, histogram: &Histogram) {
    let buckets = histogram.bounds.iter().copied().zip(histogram.counts.iter().copied());
    text.histogram(name, help, buckets, histogram.sum, histogram.count);
}
