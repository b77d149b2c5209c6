//! Forward of one layer at one batch: fused, through scratch, and dense in FP16 and BF16.

use codecllm::cuda::Recorder;
use codecllm::nn::MergedLinear;
use codecllm::Result;
use serde::Serialize;

use super::super::matrix::Plan;
use super::contest::{contest, Contender, GpuTiming};
use super::layer::Layer;

/// Rows of the activations that the fused kernel takes in one decode.
pub(super) const FUSED_ROWS: usize = 64;

/// Time of one forward with `batch` rows.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ForwardTime {
    pub(super) batch: usize,
    /// `fused`, `scratch`, `dense fp16`, `dense bf16`.
    pub(super) path: &'static str,
    #[serde(flatten)]
    pub(super) timing: GpuTiming,
    pub(super) tweights_per_second: f64,
    /// The time of dense FP16 over this one's: more than 1 is faster.
    pub(super) of_dense_fp16: f64,
}

/// Times every path at `batch`, in turn.
pub(super) fn time(
    layer: &Layer,
    recorder: &Recorder,
    batch: usize,
    plan: &Plan,
) -> Result<Vec<ForwardTime>> {
    let (x, y) = (layer.activations(batch, plan.kind)?, layer.results(batch, plan.kind)?);
    let mut paths = Vec::new();
    let mut contenders = Vec::new();
    let compressed = |path: &'static str| {
        layer.set_fused(path == "fused");
        let forward = |turn| turn_of(&layer.compressed, turn).forward_into(&x, &y);
        // SAFETY: layers, x and y live until the end of this function; scratch is the layers' own, and kept.
        unsafe { Contender::record(recorder, layer.compressed.len(), 2 * layer.weights(), forward) }
    };
    for path in ["fused", "scratch"] {
        if path == "scratch" || batch <= FUSED_ROWS {
            paths.push(path);
            contenders.push(compressed(path)?);
        }
    }
    let mut kept = Vec::new(); // a recording reads and writes them at every replay
    for dense in &layer.dense {
        let (x, y) = (layer.activations(batch, dense.kind)?, layer.results(batch, dense.kind)?);
        paths.push(dense.path);
        let forward = |turn| dense.forward_into(turn, &x, &y);
        // SAFETY: the weights are the layer's, x and y are kept until the contest is over; the products allocate nothing.
        contenders
            .push(unsafe { Contender::record(recorder, dense.weights.len(), 2 * layer.weights(), forward) }?);
        kept.push((x, y));
    }
    let timings = contest(&contenders, plan.budget)?;
    drop(kept);
    Ok(with_ratios(batch, layer.weights(), paths.into_iter().zip(timings)))
}

fn turn_of(linears: &[MergedLinear], turn: usize) -> &MergedLinear {
    &linears[turn % linears.len()]
}

fn with_ratios(
    batch: usize,
    weights: usize,
    timings: impl Iterator<Item = (&'static str, GpuTiming)> + Clone,
) -> Vec<ForwardTime> {
    let dense = timings.clone().find(|(path, _)| *path == "dense fp16");
    let dense_us = dense.map_or(f64::NAN, |(_, timing)| timing.median_us);
    let figures = timings.map(|(path, timing)| ForwardTime {
        batch,
        path,
        timing,
        tweights_per_second: weights as f64 / timing.median_us / 1e6,
        of_dense_fp16: dense_us / timing.median_us,
    });
    figures.collect()
}
