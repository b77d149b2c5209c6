//! The real model: a Llama with its keys and values in pages, and how many pages that is.

use tch::Device;

use super::options::{EngineOptions, ModelInfo};
use super::paged_model::{PagedModel, Scores};
use crate::cuda;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{BatchScores, PagedKvCache, PagedSequence};
use crate::nn::default_fused_rows;
use crate::runtime::{available_bytes, Model};

/// Tokens of a piece of a prompt where the options leave it open: a GPU decodes a compressed weight once for each piece, and a CPU
/// should not keep the others waiting for seconds.
const GPU_PREFILL_TOKENS: usize = 512;
const CPU_PREFILL_TOKENS: usize = 64;

/// What to do where there is no room for a cache.
const SMALLER: &str = "give the engine a smaller cache (--cache-tokens)";

/// A model and its cache.
#[derive(Debug)]
pub(super) struct PagedLlama {
    model: Model,
    cache: PagedKvCache,
}

impl PagedLlama {
    /// Takes memory for the cache, and sees to it that rows do not depend on how many there are.
    pub(super) fn new(model: Model, options: &EngineOptions) -> Result<Self> {
        let (kind, device) = (model.kind(), model.var_store().device());
        let mut cache = make_cache(&model, options).map_err(|error| error.with_cure(SMALLER))?;
        // Now rather than while others wait; and what it needs beside the cache is missed now.
        let prepared = model.llama().prepare_paged(options.max_batch, &mut cache);
        prepared.map_err(|error| error.with_cure(SMALLER))?;
        if device == Device::Cpu {
            // The fused path computes each row by itself, libtorch's multiplication of many rows does not.
            model.llama().set_fused_rows(default_fused_rows(kind).max(options.max_batch));
        }
        Ok(Self { model, cache })
    }

    pub(super) fn model(&self) -> &Model {
        &self.model
    }

    pub(super) fn cache_bytes(&self) -> usize {
        self.cache.bytes()
    }

    /// Tokens of a piece of a prompt.
    pub(super) fn prefill_tokens(&self, options: &EngineOptions) -> usize {
        let by_device = match self.model.var_store().device() {
            Device::Cpu => CPU_PREFILL_TOKENS,
            _ => GPU_PREFILL_TOKENS,
        };
        options.prefill_tokens.unwrap_or(by_device)
    }

    /// What handles on an engine with this model tell of it.
    pub(super) fn info(&self, options: &EngineOptions, chat_template: bool) -> ModelInfo {
        ModelInfo {
            context: self.model.context(),
            cache_tokens: self.cache.pages() * PagedKvCache::PAGE_TOKENS,
            vocab_size: self.model.llama().config().vocab_size,
            chat_template,
            max_batch: options.max_batch,
            max_queue: options.max_queue,
            device: device_name(self.model.var_store().device()),
            dtype: dtype_name(self.model.kind()),
        }
    }
}

/// A cache as the options have it.
fn make_cache(model: &Model, options: &EngineOptions) -> Result<PagedKvCache> {
    let (config, kind, device) = (model.llama().config(), model.kind(), model.var_store().device());
    let available = available_on(device);
    let Some(tokens) = options.cache_tokens else {
        let whole = PagedKvCache::pages_for(model.context());
        let room = available.map(|bytes| PagedKvCache::room_in(config, kind, device, bytes as usize));
        let pages = default_pages(whole, options.max_batch, room.map(PagedKvCache::pages_for), device);
        return PagedKvCache::new(config, pages, kind, device);
    };
    let mut cache = PagedKvCache::new(config, PagedKvCache::pages_for(tokens), kind, device)?;
    // On a GPU it is taken already.
    if device == Device::Cpu {
        reserve(&mut cache, available)?;
    }
    Ok(cache)
}

/// Pages for `max_batch` sequences of `whole` pages, a whole context each, or half of those that there is `room` for, but for one sequence
/// at least. On a CPU, pages take memory only once they are used; a GPU must have room for that one, or it has shorter ones.
fn default_pages(whole: usize, max_batch: usize, room: Option<usize>, device: Device) -> usize {
    let affordable = room.map_or(usize::MAX, |room| room / 2);
    let fits = device == Device::Cpu || room.is_none_or(|room| whole <= room);
    whole.saturating_mul(max_batch).min(affordable).max(if fits { whole } else { 1 })
}

/// Takes the memory that was asked for at once: it should not be missing when the server is busy. The system would rather end the process
/// than refuse it.
fn reserve(cache: &mut PagedKvCache, available: Option<u64>) -> Result<()> {
    match available {
        Some(free) if free < cache.bytes() as u64 => {
            Err(Error::new(ErrorKind::OutOfMemory, "cache-tokens", cache.need(free as usize)))
        }
        _ => cache.reserve(),
    }
}

/// Memory of `device` that is free, bytes, where that is known.
fn available_on(device: Device) -> Option<u64> {
    match device {
        Device::Cuda(ordinal) => cuda::free_bytes(ordinal).map(|free| free as u64),
        _ => available_bytes(),
    }
}

/// As the command line spells it.
fn device_name(device: Device) -> String {
    match device {
        Device::Cuda(ordinal) => format!("cuda:{ordinal}"),
        _ => "cpu".to_owned(),
    }
}

/// As the command line spells it.
fn dtype_name(kind: tch::Kind) -> String {
    let name = match kind {
        tch::Kind::Half => "fp16",
        tch::Kind::BFloat16 => "bf16",
        _ => "fp32",
    };
    name.to_owned()
}

impl PagedModel for PagedLlama {
    type Sequence = PagedSequence;
    type Scores = BatchScores;

    fn page_tokens(&self) -> usize {
        PagedKvCache::PAGE_TOKENS
    }

    fn pages(&self) -> usize {
        self.cache.pages()
    }

    fn free_pages(&self) -> usize {
        self.cache.free_pages()
    }

    fn sequence(&mut self, tokens: usize) -> Option<PagedSequence> {
        self.cache.sequence(tokens)
    }

    fn release(&mut self, sequence: PagedSequence) {
        self.cache.release(sequence);
    }

    fn prefill(&mut self, ids: &[u32], sequence: &mut PagedSequence) -> Result<BatchScores> {
        self.model.llama().prefill_paged(ids, sequence, &mut self.cache)
    }

    fn decode(&mut self, tokens: &[u32], sequences: &mut [&mut PagedSequence]) -> Result<BatchScores> {
        self.model.llama().decode_paged(tokens, sequences, &mut self.cache)
    }
}

impl Scores for BatchScores {
    fn likeliest(&self) -> Result<Vec<u32>> {
        BatchScores::likeliest(self)
    }

    fn logits(&self, row: usize) -> Result<Vec<f32>> {
        BatchScores::logits(self, row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_is_free_is_not_reserved() {
        let json = r#"{"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100}"#;
        let config = crate::model::LlamaConfig::from_json(json, "config.json").unwrap();
        let mut cache = PagedKvCache::new(&config, 3, tch::Kind::Float, Device::Cpu).unwrap();
        let needed = cache.bytes() as u64;
        let free = needed - 1;
        let error = reserve(&mut cache, Some(free)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfMemory);
        let wanted =
            format!("cache-tokens: needs {needed} bytes for 96 tokens, {free} are free: room for 64 tokens");
        assert_eq!(error.to_string(), wanted);
        assert!(reserve(&mut cache, Some(needed)).is_ok() && reserve(&mut cache, None).is_ok());
    }

    #[test]
    fn a_cache_is_as_large_as_there_is_room_for() {
        let (cpu, gpu) = (Device::Cpu, Device::Cuda(0));
        for device in [cpu, gpu] {
            // Eight whole contexts of ten pages; half of what there is room for; one whole context, in more than half.
            assert_eq!(default_pages(10, 8, Some(1000), device), 80);
            assert_eq!(default_pages(10, 8, None, device), 80);
            assert_eq!(default_pages(10, 8, Some(101), device), 50);
            assert_eq!(default_pages(10, 8, Some(11), device), 10);
        }
        // Too little for one: a CPU may never use it, a GPU would have to have it.
        assert_eq!(default_pages(10, 8, Some(9), cpu), 10);
        assert_eq!(default_pages(10, 8, Some(9), gpu), 4);
        assert_eq!(default_pages(10, 8, Some(0), gpu), 1);
    }
}
