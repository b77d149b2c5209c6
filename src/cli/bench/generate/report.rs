//! The figures of both models, and how they compare.

use clap::ValueEnum;
use codecllm::cuda::DeviceInfo;
use serde::{Deserialize, Serialize};

use super::measure::Workload;
use crate::cli::bench::TORCH_VERSION;

/// Which of the two models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in super::super) enum Which {
    Dense,
    Compressed,
}

impl Which {
    pub(in super::super) fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Compressed => "compressed",
        }
    }
}

/// Everything about one model.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct ModelFigures {
    pub(super) weights: usize,
    pub(super) weight_bytes: usize,
    pub(super) bits_per_weight: f64,
    /// Making the weights included, and encoding.
    pub(super) load_seconds: f64,
    pub(super) generation: Vec<BatchFigures>,
    pub(super) peak_rss_bytes: Option<u64>,
    /// Over all batches, loading included.
    pub(super) peak_device_bytes: Option<u64>,
}

/// Generation of one batch.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct BatchFigures {
    pub(super) batch: usize,
    /// Of each sequence.
    pub(super) prompt_tokens: usize,
    /// Of each sequence.
    pub(super) new_tokens: usize,
    /// From the prompts to the first token of each.
    pub(super) first_token_seconds: f64,
    /// Of all sequences together.
    pub(super) tokens_per_second: f64,
    /// One token of each sequence.
    pub(super) step_us: f64,
    /// The linears of a step alone, the head included, as a graph of their own; `None` on the CPU.
    pub(super) linears_us: Option<f64>,
    /// All else of a step, likewise.
    pub(super) rest_us: Option<f64>,
    /// The most so far: this batch and the smaller ones before it, loading included.
    pub(super) peak_device_bytes: Option<u64>,
}

#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) config: &'static str,
    pub(super) device: Option<DeviceInfo>,
    pub(super) torch: &'static str,
    pub(super) bits: f64,
    pub(super) dtype: &'static str,
    pub(super) dense: ModelFigures,
    pub(super) compressed: ModelFigures,
    pub(super) ratios: Vec<Ratios>,
}

/// The compressed model's figures over the dense one's, at one batch: of speeds, more than 1 is faster.
#[derive(Debug, Serialize)]
pub(super) struct Ratios {
    pub(super) batch: usize,
    pub(super) tokens_per_second: f64,
    pub(super) first_token_speed: f64,
    pub(super) linears_speed: Option<f64>,
    /// Less than 1 is less memory.
    pub(super) peak_device_bytes: Option<f64>,
}

impl Report {
    pub(super) fn new(
        config: &'static str,
        device: Option<DeviceInfo>,
        dtype: &'static str,
        workload: &Workload,
        dense: ModelFigures,
        compressed: ModelFigures,
    ) -> Self {
        let pairs = dense.generation.iter().zip(&compressed.generation);
        let ratios = pairs.map(|(dense, compressed)| ratios(dense, compressed)).collect();
        Self { config, device, torch: TORCH_VERSION, bits: workload.bits, dtype, dense, compressed, ratios }
    }
}

fn ratios(dense: &BatchFigures, compressed: &BatchFigures) -> Ratios {
    let linears = dense.linears_us.zip(compressed.linears_us);
    let peaks = dense.peak_device_bytes.zip(compressed.peak_device_bytes);
    Ratios {
        batch: dense.batch,
        tokens_per_second: compressed.tokens_per_second / dense.tokens_per_second,
        first_token_speed: dense.first_token_seconds / compressed.first_token_seconds,
        linears_speed: linears.map(|(dense, compressed)| dense / compressed),
        peak_device_bytes: peaks.map(|(dense, compressed)| compressed as f64 / dense as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::{ratios, BatchFigures};

    #[test]
    fn more_is_faster_and_less_is_less_memory() {
        let figures = |scale: f64| BatchFigures {
            batch: 1,
            prompt_tokens: 1,
            new_tokens: 1,
            first_token_seconds: 3.0 * scale,
            tokens_per_second: 100.0 / scale,
            step_us: 10.0 * scale,
            linears_us: Some(8.0 * scale),
            rest_us: Some(2.0 * scale),
            peak_device_bytes: Some((1000.0 * scale) as u64),
        };
        let ratios = ratios(&figures(1.0), &figures(0.5));
        assert_eq!((ratios.tokens_per_second, ratios.first_token_speed), (2.0, 2.0));
        assert_eq!((ratios.linears_speed, ratios.peak_device_bytes), (Some(2.0), Some(0.5)));
    }
}
