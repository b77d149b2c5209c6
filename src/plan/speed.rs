//! How fast a model would generate: from measured kernels where there are any, else a bound.

use serde::Serialize;

use super::choice::{Choice, Coding};
use super::machine::{Gpu, Machine, Place};
use super::memory::Workload;
use super::shape::ModelShape;
use crate::model::LlamaConfig;

/// How a speed was found.
///
/// Said by [`expected`]; see its example.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SpeedBasis {
    /// From figures of this device's kernels at sizes beside this one.
    Measured,
    /// From figures of its kernels at sizes further away.
    Extrapolated,
    /// The memory can't be read faster: a limit, not an expectation. Nobody measured the kernels on this device.
    Bound,
}

/// Tokens a second of all sequences together, with a full context.
///
/// Given by [`expected`]; see its example.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Speed {
    /// Tokens a second.
    pub tokens_per_second: f64,
    /// How that was found.
    pub basis: SpeedBasis,
}

/// All linears of one step of a model of Llama-3.1-8B's shape.
struct Figure {
    coding: Coding,
    bits: f64,
    batch: usize,
    milliseconds: f64,
}

const fn figure(coding: Coding, bits: f64, batch: usize, milliseconds: f64) -> Figure {
    Figure { coding, bits, batch, milliseconds }
}

/// NVIDIA H100 80GB HBM3, driver 580.159.04, libtorch 2.11.0, 2026-11-25. `codecllm bench --device cuda --bits 5.3 --batch 1,8,16
/// --seconds 0.1`, the same with `--bits 6.2 --batch 1`, and `codecllm bench --device cuda --lossless --dtype bf16 --batch 1`; a day later with
/// `--batch 1,8,16,32,64 --seconds 0.05` for the grid from batch 16 on and for all beyond it.
const H100: [Figure; 12] = [
    figure(Coding::Dense, 16.0, 1, 5.51),
    figure(Coding::Dense, 16.0, 8, 5.49),
    figure(Coding::Dense, 16.0, 16, 5.60),
    figure(Coding::Dense, 16.0, 32, 5.64),
    figure(Coding::Dense, 16.0, 64, 5.76),
    figure(Coding::Grid, 5.31, 1, 2.94),
    figure(Coding::Grid, 5.31, 8, 3.13),
    figure(Coding::Grid, 5.31, 16, 3.84),
    figure(Coding::Grid, 5.31, 32, 4.73),
    figure(Coding::Grid, 5.31, 64, 7.06),
    figure(Coding::Grid, 6.22, 1, 3.32),
    figure(Coding::Exact, 10.65, 1, 4.86),
];

/// NVIDIA H200, the same versions and commands, 2026-11-26; at batch 8 from `codecllm bench generate --config 8b --bits 5.3 --batch 1,8
/// --prompt 2048 --new 128` less what else a step takes; beyond it from `codecllm bench --device cuda --bits 5.3 --batch 16,32,64 --seconds
/// 0.01`.
const H200: [Figure; 12] = [
    figure(Coding::Dense, 16.0, 1, 3.91),
    figure(Coding::Dense, 16.0, 8, 4.01),
    figure(Coding::Dense, 16.0, 16, 4.12),
    figure(Coding::Dense, 16.0, 32, 4.18),
    figure(Coding::Dense, 16.0, 64, 4.31),
    figure(Coding::Grid, 5.31, 1, 2.95),
    figure(Coding::Grid, 5.31, 8, 3.16),
    figure(Coding::Grid, 5.31, 16, 3.83),
    figure(Coding::Grid, 5.31, 32, 4.68),
    figure(Coding::Grid, 5.31, 64, 7.14),
    figure(Coding::Grid, 6.22, 1, 3.33),
    figure(Coding::Exact, 10.65, 1, 4.73),
];

/// Weights and launches of those linears.
const FIGURE_WEIGHTS: f64 = 7_504_658_432.0;
const FIGURE_LAUNCHES: f64 = 129.0;

/// What a launch of a linear takes beside its weights: of a compressed one 5 to 7 us (docs/kernels.md), of a dense one 2 to 4 (the same
/// run: q, k, v 20.5 us, o 15.4, down 43.2, each less its weights at the rate of head and gate and up).
const LAUNCH_MS: f64 = 0.005;
const DENSE_LAUNCH_MS: f64 = 0.0026;

/// What else a layer takes: norms, rotary embedding, attention but the reading of the cache, and the waits between. A step of
/// `codecllm bench generate --config 8b` less its linears and its cache, over 32 layers: 21 to 25 us on H100 and H200.
const LAYER_MS: f64 = 0.023;

/// Bits that a figure stands for on either side; beyond, it is stretched, up to `FURTHEST_BITS`.
const NEAR_BITS: f64 = 0.5;
const FURTHEST_BITS: f64 = 1.5;

/// How fast `choice` of the model with `config` generates on `machine`; `None` where neither kernels nor memory were measured.
///
/// ```
/// use codecllm::{model::LlamaConfig, plan::{estimates, expected, Gpu, Machine, ModelShape, Speed, SpeedBasis, Workload}};
/// let config = LlamaConfig::llama_3_1_8b();
/// let dense = &estimates(&ModelShape::of(&config), tch::Kind::Half, None)[0];
/// let on = |gpu| -> Speed {
///     expected(&config, dense, &Workload::default(), &Machine::gpu(Some(gpu), None)).unwrap()
/// };
/// assert_eq!(on(Gpu::H100).basis, SpeedBasis::Measured);
/// assert_eq!(on(Gpu::Rtx4090).basis, SpeedBasis::Bound);
/// ```
pub fn expected(
    config: &LlamaConfig,
    choice: &Choice,
    workload: &Workload,
    machine: &Machine,
) -> Option<Speed> {
    if machine.place == Place::Cpu {
        return None;
    }
    let bandwidth = machine.bytes_per_second?;
    let cache_ms = cache_bytes(config, workload) / bandwidth * 1e3;
    let measured = || {
        let figures: &[Figure] = match machine.gpu? {
            Gpu::H100 => &H100,
            Gpu::H200 => &H200,
            _ => return None,
        };
        let (milliseconds, basis) = linears(figures, config, choice, workload)?;
        Some((milliseconds + config.num_hidden_layers as f64 * LAYER_MS, basis))
    };
    let (milliseconds, basis) = measured().unwrap_or_else(|| {
        let read = step_bytes(&ModelShape::of(config), choice);
        (read / bandwidth * 1e3, SpeedBasis::Bound)
    });
    Some(Speed { tokens_per_second: workload.batch as f64 * 1e3 / (milliseconds + cache_ms), basis })
}

/// Milliseconds that the linears of a step take, from figures of the same coding.
fn linears(
    figures: &[Figure],
    config: &LlamaConfig,
    choice: &Choice,
    workload: &Workload,
) -> Option<(f64, SpeedBasis)> {
    // FP32 was not measured.
    if workload.kind == tch::Kind::Float {
        return None;
    }
    let bits = choice.bits_per_weight;
    let same: Vec<&Figure> = figures.iter().filter(|figure| figure.coding == choice.coding).collect();
    let single: Vec<[f64; 2]> = same
        .iter()
        .filter(|figure| figure.batch == 1)
        .map(|figure| [figure.bits, figure.milliseconds])
        .collect();
    let nearest = single.iter().map(|[at, _]| (at - bits).abs()).min_by(f64::total_cmp)?;
    if nearest > FURTHEST_BITS {
        return None;
    }
    let reference = single.first()?[0];
    let by_batch: Vec<[f64; 2]> = same
        .iter()
        .filter(|figure| figure.bits == reference)
        .map(|figure| [figure.batch as f64, figure.milliseconds])
        .collect();
    let batch = workload.batch as f64;
    if batch > by_batch.last()?[0] {
        return None;
    }
    let at_batch = between(&by_batch, batch)? / between(&by_batch, 1.0)?;
    let launch = if choice.coding == Coding::Dense { DENSE_LAUNCH_MS } else { LAUNCH_MS };
    let per_weight = (between(&single, bits)? * at_batch - FIGURE_LAUNCHES * launch) / FIGURE_WEIGHTS;
    let shape = ModelShape::of(config);
    let milliseconds = shape.step_weights() as f64 * per_weight + shape.launches() as f64 * launch;
    let basis = if nearest <= NEAR_BITS { SpeedBasis::Measured } else { SpeedBasis::Extrapolated };
    Some((milliseconds, basis))
}

/// The value at `x` on the line through the two of `points` (ascending) beside it, or through the last two beyond them.
fn between(points: &[[f64; 2]], x: f64) -> Option<f64> {
    let [first, rest @ ..] = points else { return None };
    let after = rest.iter().position(|[at, _]| x <= *at).unwrap_or(rest.len().saturating_sub(1));
    let Some(right) = rest.get(after) else { return Some(first[1]) };
    let left = if after == 0 { first } else { &rest[after - 1] };
    Some(left[1] + (x - left[0]) / (right[0] - left[0]) * (right[1] - left[1]))
}

/// Keys and values of all sequences at a full context.
fn cache_bytes(config: &LlamaConfig, workload: &Workload) -> f64 {
    let planes = [2, config.num_hidden_layers, config.num_key_value_heads, config.head_dim];
    let elements: f64 = planes.iter().map(|&count| count as f64).product();
    elements * workload.kind.elt_size_in_bytes() as f64 * workload.context as f64 * workload.batch as f64
}

/// What a step reads of the weights.
fn step_bytes(shape: &ModelShape, choice: &Choice) -> f64 {
    choice.bits_per_weight / 8.0 * shape.step_weights() as f64
}

#[cfg(test)]
mod tests {
    use super::between;

    #[test]
    fn a_line_goes_through_its_points_and_on() {
        let points = [[1.0, 10.0], [3.0, 20.0], [4.0, 50.0]];
        let at = |x| between(&points, x).unwrap();
        assert_eq!([1.0, 2.0, 3.0, 3.5, 5.0, 0.0].map(at), [10.0, 15.0, 20.0, 35.0, 80.0, 5.0]);
        assert_eq!(between(&points[..1], 7.0), Some(10.0));
        assert_eq!(between(&[], 7.0), None);
    }
}
