//! Loads one of the two models and generates with it.

use std::time::Instant;

use anyhow::{bail, Result};
use codecllm::cuda::PeakMemory;
use codecllm::model::{KvCache, Llama, LlamaConfig};
use codecllm::plan::ModelShape;
use codecllm::runtime::peak_rss_bytes;
use tch::{nn, Device, Kind, Tensor};

use super::decode::Decoder;
use super::report::{BatchFigures, ModelFigures, Which};
use super::weights::{RandomCompressed, RandomDense};
use super::DeviceArg;
use crate::cli::bench::torch_error;

/// How often each time is taken; the median counts.
const ROUNDS: usize = 3;

/// What to generate, and how.
#[derive(Clone, Debug)]
pub(super) struct Workload {
    pub(super) config: LlamaConfig,
    pub(super) bits: f64,
    pub(super) kind: Kind,
    pub(super) device: DeviceArg,
    /// Ascending: the peak of a batch is not that of a larger one before it.
    pub(super) batches: Vec<usize>,
    /// Of all sequences of a batch together.
    pub(super) prompt_tokens: usize,
    /// Of each sequence.
    pub(super) new_tokens: usize,
}

impl Workload {
    /// An error where prompt and answer do not fit the model.
    pub(super) fn check(&self) -> Result<()> {
        let (context, most) = (self.prompt_tokens + self.new_tokens, self.config.max_position_embeddings);
        if context > most {
            bail!(
                "--prompt: {} tokens and {} new ones, wanted at most {most} together",
                self.prompt_tokens,
                self.new_tokens
            );
        }
        Ok(())
    }

    /// Each sequence's share of the prompt.
    fn prompt_of_each(&self, batch: usize) -> usize {
        (self.prompt_tokens / batch).max(1)
    }
}

/// Measures one model. `progress`: done, total, what is next.
pub(super) fn measure(
    which: Which,
    workload: &Workload,
    progress: &mut dyn FnMut(usize, usize, &str),
) -> Result<ModelFigures> {
    let memory = workload.device.watch_memory()?;
    let total = workload.batches.len() + 1;
    progress(0, total, "make the weights");
    let start = Instant::now();
    let vs = nn::VarStore::new(workload.device.device());
    let model = load(which, &workload.config, workload.kind, workload.bits, &vs)?;
    synchronize(vs.device());
    let load_seconds = start.elapsed().as_secs_f64();
    let mut generation = Vec::new();
    for (done, &batch) in workload.batches.iter().enumerate() {
        progress(done + 1, total, &format!("batch {batch}"));
        generation.push(generate(&model, workload, batch, memory.as_ref())?);
    }
    let (weights, weight_bytes) = (ModelShape::of(&workload.config).weights(), model.weight_bytes());
    Ok(ModelFigures {
        weights,
        weight_bytes,
        bits_per_weight: 8.0 * weight_bytes as f64 / weights as f64,
        load_seconds,
        generation,
        peak_rss_bytes: peak_rss_bytes(),
        peak_device_bytes: memory.map(PeakMemory::finish),
    })
}

/// The random model of a shape in dtype `kind`, of `bits` a weight where it is compressed.
pub(in super::super) fn load(
    which: Which,
    config: &LlamaConfig,
    kind: Kind,
    bits: f64,
    vs: &nn::VarStore,
) -> codecllm::Result<Llama> {
    tch::manual_seed(0x5EED);
    match which {
        Which::Dense => Llama::load(&vs.root(), config, &RandomDense { kind }),
        Which::Compressed => Llama::load(&vs.root(), config, &RandomCompressed::new(kind, bits)),
    }
}

fn generate(
    model: &Llama,
    workload: &Workload,
    batch: usize,
    memory: Option<&PeakMemory>,
) -> Result<BatchFigures> {
    let device = workload.device.device();
    let (prompt_tokens, new_tokens) = (workload.prompt_of_each(batch), workload.new_tokens);
    let mut cache = KvCache::new(&workload.config, batch, prompt_tokens + new_tokens, workload.kind, device)?;
    let ids = prompt(batch, prompt_tokens, workload.config.vocab_size, device)?;
    let first = prefill(model, &ids, &mut cache)?; // the kernels compile and the scratch grows
    let first_token_seconds = median(|| {
        cache.truncate(0);
        timed(device, || prefill(model, &ids, &mut cache).map(drop))
    })?;
    let decoder = Decoder { model, first: &first, device };
    decoder.prepare(&mut cache)?;
    let seconds = median(|| {
        cache.truncate(prompt_tokens);
        timed(device, || decoder.generate(&mut cache, new_tokens))
    })?;
    // In the middle of the answer, where a step takes what it takes on average.
    cache.truncate(prompt_tokens + new_tokens / 2);
    let parts = decoder.parts(&mut cache)?;
    Ok(BatchFigures {
        batch,
        prompt_tokens,
        new_tokens,
        first_token_seconds,
        tokens_per_second: (batch * new_tokens) as f64 / seconds,
        step_us: seconds / new_tokens as f64 * 1e6,
        linears_us: parts.map(|parts| parts.linears_us),
        rest_us: parts.map(|parts| parts.rest_us),
        peak_device_bytes: memory.map(PeakMemory::peak_bytes),
    })
}

/// The first token of each sequence's answer.
fn prefill(model: &Llama, ids: &Tensor, cache: &mut KvCache) -> codecllm::Result<Vec<i64>> {
    let logits = model.prefill(ids, cache)?;
    let first = logits.f_argmax(-1, false).and_then(|ids| ids.f_view([-1]));
    first.and_then(Vec::<i64>::try_from).map_err(torch_error("logits"))
}

/// Token ids `[batch, tokens]`, the same every time and other ones at every place.
fn prompt(batch: usize, tokens: usize, vocab: usize, device: Device) -> codecllm::Result<Tensor> {
    let ids: Vec<i64> = (0..batch * tokens).map(|at| (at * 7919 % vocab) as i64).collect();
    Tensor::f_from_slice(&ids)
        .and_then(|ids| ids.f_view([batch as i64, tokens as i64]))
        .and_then(|ids| ids.f_to_device(device))
        .map_err(torch_error("--prompt"))
}

/// Seconds that `work` takes, with all that it puts on the device.
fn timed(device: Device, work: impl FnOnce() -> codecllm::Result<()>) -> codecllm::Result<f64> {
    synchronize(device);
    let start = Instant::now();
    work()?;
    synchronize(device);
    Ok(start.elapsed().as_secs_f64())
}

fn synchronize(device: Device) {
    if let Device::Cuda(ordinal) = device {
        tch::Cuda::synchronize(ordinal as i64);
    }
}

/// Of the seconds that [`ROUNDS`] rounds take.
pub(in super::super) fn median(mut sample: impl FnMut() -> codecllm::Result<f64>) -> codecllm::Result<f64> {
    let mut samples = [0.0; ROUNDS];
    for seconds in &mut samples {
        *seconds = sample()?;
    }
    samples.sort_by(f64::total_cmp);
    Ok(samples[ROUNDS / 2])
}
