//! What each preset makes of a model's weights.

use std::path::Path;

use serde::Serialize;
use tch::Kind;

use super::ModelShape;
use crate::checkpoint::{loaded_bytes, StatsReport, Target, PRESETS};
use crate::codec::SourceDtype;
use crate::error::Result;
use crate::model::LlamaConfig;

/// Bits of `int8`, everything counted: SmolLM2-135M, `codecllm compress MODEL -o OUT` (docs/quality.md, 2026-11-25).
const INT8_BITS: f64 = 7.30;
/// The same of `lossless`: the median of 27 matrices of a million weights or more, `cargo test --test lossless large -- --nocapture`
/// (docs/quality.md, 2026-11-25).
const LOSSLESS_BF16_BITS: f64 = 10.728;
const LOSSLESS_FP16_BITS: f64 = 13.708;

/// How a model's matrices lie in memory.
///
/// Given to [`plan`](super::plan()); see its example.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Coding {
    /// As floats.
    Dense,
    /// Compressed, on a grid.
    Grid,
    /// Compressed, bit for bit.
    Exact,
}

/// Where a size comes from.
///
/// Given to [`plan`](super::plan()); see its example.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Basis {
    /// Counted.
    Exact,
    /// Tried on samples of this model.
    Sampled,
    /// From what the preset gave for other models, or is held to.
    Estimate,
}

/// A model's weights in one form.
///
/// Given to [`plan`](super::plan()); see its example.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Choice {
    /// `dense`, a preset of `codecllm compress`, or `as it is`.
    pub name: String,
    /// How the matrices lie in memory.
    pub coding: Coding,
    /// Bits a weight, over all weights.
    pub bits_per_weight: f64,
    /// Bytes of all weights in memory.
    pub weight_bytes: u64,
    /// Where that comes from.
    pub basis: Basis,
}

impl Choice {
    fn of_bytes(shape: &ModelShape, name: &str, coding: Coding, weight_bytes: u64, basis: Basis) -> Self {
        let bits_per_weight = 8.0 * weight_bytes as f64 / shape.weights() as f64;
        Self { name: name.to_owned(), coding, bits_per_weight, weight_bytes, basis }
    }

    /// Matrices at `bits` a weight, all else in `kind`.
    fn of_bits(shape: &ModelShape, name: &str, coding: Coding, bits: f64, kind: Kind, basis: Basis) -> Self {
        let matrices = (shape.matrix_weights() as f64 * bits / 8.0).ceil() as u64;
        let others = shape.others.saturating_mul(kind.elt_size_in_bytes()) as u64;
        Self::of_bytes(shape, name, coding, matrices.saturating_add(others), basis)
    }

    /// Uncompressed, in the dtype computed in: exact for every model of the shape.
    fn dense(shape: &ModelShape, kind: Kind) -> Self {
        let bytes = shape.weights().saturating_mul(kind.elt_size_in_bytes()) as u64;
        Self::of_bytes(shape, "dense", Coding::Dense, bytes, Basis::Exact)
    }
}

/// `dense` and every preset of a model of `shape` that computes in `kind`, without looking at its weights: what they took in other
/// models, and what sizes are held to. `dtype` is the checkpoint's, which `lossless` depends on; BF16 where it is not known. Of an FP32
/// checkpoint `lossless` is left out: what it takes only the weights tell.
///
/// What [`plan`](super::plan()) is given; see its example.
pub fn estimates(shape: &ModelShape, kind: Kind, dtype: Option<SourceDtype>) -> Vec<Choice> {
    let of = |name: &str, target: Target| {
        let (coding, bits) = match (target, dtype) {
            (Target::Int8, _) => (Coding::Grid, INT8_BITS),
            (Target::Bits(bits), _) => (Coding::Grid, bits),
            (Target::Lossless, None | Some(SourceDtype::BF16)) => (Coding::Exact, LOSSLESS_BF16_BITS),
            (Target::Lossless, Some(SourceDtype::F16)) => (Coding::Exact, LOSSLESS_FP16_BITS),
            (Target::Lossless, Some(SourceDtype::F32)) => return None,
        };
        Some(Choice::of_bits(shape, name, coding, bits, kind, Basis::Estimate))
    };
    let presets = PRESETS.iter().filter_map(|(name, target)| of(name, *target));
    std::iter::once(Choice::dense(shape, kind)).chain(presets).collect()
}

/// As [`estimates`], with the sizes that [`checkpoint::stats`](crate::checkpoint::stats()) found on samples of this model.
///
/// ```no_run
/// // Needs a model.
/// use codecllm::checkpoint::{stats, CompressOptions};
/// use codecllm::model::LlamaConfig;
/// use codecllm::plan::{sampled, stored, ModelShape};
/// let shape = ModelShape::of(&LlamaConfig::from_dir("model")?);
/// let choices = match stored("model", tch::Kind::Half)? {
///     (Some(compressed), _) => vec![compressed], // there is nothing to choose
///     (None, _) => sampled(&shape, tch::Kind::Half, &stats("model", &CompressOptions::default(), &mut |_| {})?),
/// };
/// # Ok::<(), codecllm::Error>(())
/// ```
pub fn sampled(shape: &ModelShape, kind: Kind, stats: &StatsReport) -> Vec<Choice> {
    let of = |point: &crate::checkpoint::CurvePoint| {
        let coding = if point.choice == "lossless" { Coding::Exact } else { Coding::Grid };
        let sampled = stats.weights as f64 * point.bits_per_weight / 8.0;
        let rest = (shape.weights() as u64).saturating_sub(stats.weights);
        let rest_bytes = rest.saturating_mul(kind.elt_size_in_bytes() as u64);
        let bytes = (sampled.ceil() as u64).saturating_add(rest_bytes);
        Choice::of_bytes(shape, &point.choice, coding, bytes, Basis::Sampled)
    };
    std::iter::once(Choice::dense(shape, kind)).chain(stats.choices.iter().map(of)).collect()
}

/// The weights of the model directory `dir` as they would be loaded to compute in `kind`, if it is compressed; else `None`. With it the
/// dtype of what is not compressed. Reads headers only.
///
/// Asked before [`sampled`]; see its example.
///
/// # Errors
/// What [`LlamaConfig::from_dir`] and [`Reader::open`](crate::checkpoint::Reader::open) report.
pub fn stored(dir: impl AsRef<Path>, kind: Kind) -> Result<(Option<Choice>, Option<SourceDtype>)> {
    let config = LlamaConfig::from_dir(&dir)?;
    let loaded = loaded_bytes(dir, kind, config.tie_word_embeddings)?;
    let coding = if loaded.is_lossless { Coding::Exact } else { Coding::Grid };
    let shape = ModelShape::of(&config);
    let choice = loaded
        .is_compressed
        .then(|| Choice::of_bytes(&shape, "as it is", coding, loaded.bytes, Basis::Exact));
    Ok((choice, loaded.dtype))
}
