//! One token's way through all linears of a real model, compressed and dense.

use std::path::Path;

use codecllm::checkpoint::{is_compressed, Reader};
use codecllm::codec::{solve_exponent, EncodeOptions, Matrix, RateSample, StepRule};
use codecllm::{Error, Result};
use serde::Serialize;
use tch::Tensor;

use super::layers::{crossover, ForwardTime, Layers};
use super::matrix::{compress_checked, Plan};

const EMBEDDING: &str = "model.embed_tokens.weight";

/// All figures of a model's linears together.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ModelReport {
    pub(super) linears: usize,
    pub(super) weights: usize,
    pub(super) bits_per_weight: f64,
    /// One pass through all linears, the head included.
    pub(super) forward: Vec<ForwardTime>,
    /// The smallest batch timed at which scratch beats fused.
    pub(super) scratch_wins_at: Option<usize>,
}

/// Compresses the linears of the model directory `dir` in memory and times them. `progress`: done, total, what is next.
pub(super) fn bench_model(
    dir: &Path,
    plan: &Plan,
    progress: &mut dyn FnMut(usize, usize, &str),
) -> Result<ModelReport> {
    if is_compressed(dir)? {
        return Err(Error::invalid(
            dir.display().to_string(),
            "is compressed, wanted the original: the dense layers are timed too",
        ));
    }
    let reader = Reader::open(dir)?;
    let names = linear_names(&reader);
    let total = names.len();
    let rules = rules(&reader, &names, plan, progress)?;
    let (mut compressed, mut dense) = (Vec::with_capacity(total), Vec::with_capacity(total));
    for (done, (name, rule)) in names.iter().zip(rules).enumerate() {
        progress(done, total, name);
        let weight = reader.read(name)?;
        compressed.push(compress_checked(name, &Matrix::of(name, &weight)?, rule, options(name, plan))?);
        dense.push(weight);
    }
    let weights: usize = dense.iter().map(Tensor::numel).sum();
    let bytes: usize = compressed.iter().map(|tensor| tensor.stats().compressed_bytes).sum();
    let layers = Layers::new(&compressed, dense)?;
    drop(compressed);
    let forward = layers.time(plan, &mut |next| progress(total, total, next))?;
    Ok(ModelReport {
        linears: total,
        weights,
        bits_per_weight: 8.0 * bytes as f64 / weights.max(1) as f64,
        scratch_wins_at: crossover(&forward),
        forward,
    })
}

/// Every matrix that is multiplied: the embedding only where it is the head too.
fn linear_names(reader: &Reader) -> Vec<String> {
    let untied = reader.info("lm_head.weight").is_some();
    reader
        .names()
        .filter(|name| name.ends_with(".weight") && !(untied && *name == EMBEDDING))
        .filter(|name| reader.info(name).is_some_and(|info| info.shape.len() == 2))
        .map(str::to_owned)
        .collect()
}

fn options(name: &str, plan: &Plan) -> EncodeOptions {
    EncodeOptions { row_access: name == EMBEDDING, ..plan.options }
}

/// INT8 by rows, or the steps that give all linears together their bits.
fn rules(
    reader: &Reader,
    names: &[String],
    plan: &Plan,
    progress: &mut dyn FnMut(usize, usize, &str),
) -> Result<Vec<StepRule>> {
    let Some(bits) = plan.bits else { return Ok(vec![StepRule::RowAbsmax; names.len()]) };
    let mut samples = Vec::with_capacity(names.len());
    for (done, name) in names.iter().enumerate() {
        progress(done, names.len(), name);
        samples.push(RateSample::new(name, &Matrix::of(name, &reader.read(name)?)?, options(name, plan))?);
    }
    let exponent = solve_exponent(&samples, 0, samples.iter().map(RateSample::weights).sum(), bits)?;
    Ok(samples.iter().map(|sample| StepRule::Step(sample.step(exponent))).collect())
}
