//! What an engine has done and holds, in figures.

use serde::Serialize;

/// An engine's figures at one moment. Totals count from its start.
///
/// Given by an [`Engine`](super::Engine); see its example.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EngineStats {
    /// Whether it answers.
    pub state: EngineState,
    /// Requests being answered.
    pub running: usize,
    /// Requests that wait for a place.
    pub waiting: usize,
    /// Pages of the key-value cache that nobody has.
    pub pages_free: usize,
    /// All pages of the key-value cache.
    pub pages: usize,
    /// Tokens that a page has room for.
    pub page_tokens: usize,
    /// Most tokens of prompt and answer together.
    pub context: usize,
    /// Tokens of prompts, processed.
    pub prompt_tokens: u64,
    /// Tokens of answers.
    pub completion_tokens: u64,
    /// Requests by what became of them.
    pub requests: RequestCounts,
    /// Pieces of prompts processed.
    pub prefill_pieces: u64,
    /// Decoding steps.
    pub steps: u64,
    /// Answers that the last decoding step served.
    pub last_step_rows: usize,
    /// Tokens of answers a second, over the last five.
    pub tokens_per_second: f64,
    /// Seconds from a request's arrival to its first token.
    pub time_to_first_token: Histogram,
    /// Seconds of a decoding step.
    pub step_seconds: Histogram,
    /// Bytes of the weights.
    pub weight_bytes: usize,
    /// Bytes set aside for the key-value cache.
    pub cache_bytes: usize,
    /// Resident memory of the process, bytes, where the system says.
    pub rss_bytes: Option<u64>,
    /// The most of the GPU's memory that was seen occupied, by this process and others, as the driver counts it, where there is a GPU.
    pub peak_device_bytes: Option<u64>,
}

/// Whether an engine answers.
///
/// Given by an [`Engine`](super::Engine); see its example.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineState {
    /// It takes requests.
    Running,
    /// It completes what it has taken, and takes no more.
    ShuttingDown,
    /// It has ended as it was told to.
    Stopped,
    /// It has ended because of a defect, or because its device has failed again and again.
    Broken,
}

/// Requests by what became of them. Those that run or wait are in none of these.
///
/// Given by an [`Engine`](super::Engine); see its example.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RequestCounts {
    /// Ended by a stop token or a stop string.
    pub stopped: u64,
    /// Ended by their number of tokens or the context.
    pub length: u64,
    /// Ended by their deadline.
    pub deadline: u64,
    /// Cut off by the end of the engine.
    pub interrupted: u64,
    /// Left by who asked.
    pub left: u64,
    /// Failed.
    pub failed: u64,
    /// Refused because the queue was full.
    pub refused_queue_full: u64,
    /// Refused as impossible to answer.
    pub refused_invalid: u64,
    /// Refused because the engine was ending or had ended.
    pub refused_shutting_down: u64,
}

/// How often a quantity fell below each of some bounds, as Prometheus has it.
///
/// Given by an [`Engine`](super::Engine); see its example.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Histogram {
    /// Upper bounds (inclusive, `le`), ascending; one more bucket without bound follows, which `count` stands for.
    pub bounds: &'static [f64],
    /// For each bound, how many values were at most that: cumulative.
    pub counts: Vec<u64>,
    /// Sum of all values.
    pub sum: f64,
    /// Number of all values.
    pub count: u64,
}

impl Histogram {
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len()], sum: 0.0, count: 0 }
    }

    pub(super) fn add(&mut self, value: f64) {
        for (count, bound) in self.counts.iter_mut().zip(self.bounds) {
            *count += u64::from(value <= *bound);
        }
        self.sum += value;
        self.count += 1;
    }
}
