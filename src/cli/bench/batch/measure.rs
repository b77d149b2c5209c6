//! Loads one of the two models and answers clients with it.

use std::time::Instant;

use codecllm::model::{Llama, LlamaConfig, PagedKvCache, PagedSequence};
use codecllm::{Error, Result};
use tch::{nn, Kind};

use super::super::generate::{load, median, Which};
use super::super::DeviceArg;
use super::{ClientFigures, ModelFigures};

/// Whom to answer, and how.
#[derive(Clone, Debug)]
pub(super) struct Workload {
    pub(super) config: LlamaConfig,
    pub(super) bits: f64,
    pub(super) kind: Kind,
    pub(super) device: DeviceArg,
    /// Ascending.
    pub(super) clients: Vec<usize>,
    /// Of each client.
    pub(super) prompt_tokens: usize,
    /// Of each client.
    pub(super) new_tokens: usize,
}

/// Measures one model. `progress`: done, total, what is next.
pub(super) fn measure(
    which: Which,
    workload: &Workload,
    progress: &mut dyn FnMut(usize, usize, &str),
) -> Result<ModelFigures> {
    let total = workload.clients.len() + 1;
    progress(0, total, "make the weights");
    let vs = nn::VarStore::new(workload.device.device());
    let model = load(which, &workload.config, workload.kind, workload.bits, &vs)?;
    let mut clients: Vec<ClientFigures> = Vec::new();
    for (done, &count) in workload.clients.iter().enumerate() {
        progress(done + 1, total, &format!("{count} clients"));
        let mut figures = answer(&model, workload, count)?;
        let fewest = clients.first().unwrap_or(&figures);
        figures.gain = figures.tokens_per_second / fewest.tokens_per_second;
        clients.push(figures);
    }
    Ok(ModelFigures { weight_bytes: model.weight_bytes(), clients })
}

/// Clients with pages of one cache.
struct Clients<'a> {
    model: &'a Llama,
    cache: PagedKvCache,
    sequences: Vec<PagedSequence>,
    /// The token that each was given last.
    last: Vec<u32>,
}

fn answer(model: &Llama, workload: &Workload, count: usize) -> Result<ClientFigures> {
    let &Workload { ref config, kind, device, prompt_tokens, new_tokens, .. } = workload;
    let tokens = prompt_tokens + new_tokens;
    let pages = count * PagedKvCache::pages_for(tokens);
    let cache = PagedKvCache::new(config, pages, kind, device.device())?;
    let cache_bytes = cache.bytes();
    let mut clients = Clients { model, cache, sequences: Vec::new(), last: Vec::new() };
    // Kernels compile, scratch grows, steps are captured.
    clients.admit(count, tokens, prompt_tokens)?;
    clients.step()?;
    let mut prompts = 0.0;
    let seconds = median(|| {
        let start = Instant::now();
        clients.admit(count, tokens, prompt_tokens)?;
        prompts = start.elapsed().as_secs_f64();
        let start = Instant::now();
        (0..new_tokens).try_for_each(|_| clients.step())?;
        Ok(start.elapsed().as_secs_f64())
    })?;
    Ok(ClientFigures {
        clients: count,
        prompt_seconds: prompts / count as f64,
        tokens_per_second: (count * new_tokens) as f64 / seconds,
        step_us: seconds / new_tokens as f64 * 1e6,
        gain: 1.0,
        cache_bytes,
    })
}

impl Clients<'_> {
    /// Others leave, these come with their prompts, one by one.
    fn admit(&mut self, count: usize, tokens: usize, prompt_tokens: usize) -> Result<()> {
        self.sequences.clear();
        self.last.clear();
        let vocab = self.model.config().vocab_size;
        for client in 0..count {
            let full = || Error::invalid("--clients", format!("{count} have too few pages"));
            let mut sequence = self.cache.sequence(tokens).ok_or_else(full)?;
            let at = |place: usize| ((client * prompt_tokens + place) * 7919 % vocab) as u32;
            let prompt: Vec<u32> = (0..prompt_tokens).map(at).collect();
            let scores = self.model.prefill_paged(&prompt, &mut sequence, &mut self.cache)?;
            self.last.extend(scores.likeliest()?);
            self.sequences.push(sequence);
        }
        Ok(())
    }

    /// One token for each.
    fn step(&mut self) -> Result<()> {
        let mut sequences: Vec<_> = self.sequences.iter_mut().collect();
        let scores = self.model.decode_paged(&self.last, &mut sequences, &mut self.cache)?;
        self.last = scores.likeliest()?;
        Ok(())
    }
}
