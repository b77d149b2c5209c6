//! Everything that lies in memory while a model generates.
//!
//! Every line is counted from the code that allocates it, but two: what CUDA's context and what libtorch and its libraries take are
//! measured, since nobody can count them.

use serde::Serialize;
use tch::Kind;

use super::choice::{Choice, Coding};
use super::machine::Place;
use super::shape::{count, ModelShape};
use crate::model::llama::{GPU_PREFILL_TOKENS, PREFILL_TOKENS};
use crate::model::LlamaConfig;
use crate::nn::{default_fused_rows, GPU_FUSED_ROWS, GPU_SCRATCH_BYTES, SCRATCH_BYTES};

/// A GPU's primary context: what `nvidia-smi` shows after `cuDevicePrimaryCtxRetain` alone and not before (H200, driver 580.159.04,
/// 2026-11-26: 527 MiB).
const CONTEXT_BYTES: u64 = 527 << 20;

/// libtorch, cuBLAS with its workspaces, and the compiled kernels: what is left of the peaks of `codecllm bench generate --config 8b
/// --bits 5.3` when everything else here is taken off, which is 0.35 and 0.37 GB of the dense model, 0.43 and 0.42 of the compressed
/// one, with contexts of 2176 and 2304 tokens (H100, driver 580.159, libtorch 2.11.0, 2026-11-25).
const GPU_LIBRARY_BYTES: u64 = 400_000_000;

/// The process with libtorch and a tokenizer of 49,152 tokens: what is left of the peaks of `make demo` (2026-11-25, README.md)
/// without weights: 156 to 158 MB.
const CPU_LIBRARY_BYTES: u64 = 157_000_000;

/// Tables of a compressed matrix, at most: eight of 8 KiB on a grid, four of 16 KiB of floats.
const TABLE_BYTES: u64 = 64 << 10;

/// What is to be generated.
///
/// Counted by [`Memory`]; see its example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Tokens of each sequence, prompt and answer together. The prompt may be as long.
    pub context: usize,
    /// Sequences at once.
    pub batch: usize,
    /// The dtype to compute in.
    pub kind: Kind,
}

impl Default for Workload {
    /// One sequence of 4096 tokens in FP16.
    fn default() -> Self {
        Self { context: 4096, batch: 1, kind: Kind::Half }
    }
}

/// Bytes of everything, none of it twice.
///
/// ```
/// use codecllm::{model::LlamaConfig, plan::{estimates, Memory, ModelShape, Place, Workload}};
/// let config = LlamaConfig::llama_3_1_8b();
/// let dense = &estimates(&ModelShape::of(&config), tch::Kind::Half, None)[0];
/// let workload = Workload { context: 1000, batch: 3, ..Workload::default() };
/// let memory = Memory::of(&config, dense, &workload, Place::Gpu);
/// // Keys and values, 32 layers, eight heads of 128, FP16.
/// assert_eq!(memory.cache_bytes, 2 * 32 * 8 * 128 * 2 * 1000 * 3);
/// assert!(memory.total() > memory.weight_bytes + memory.cache_bytes);
/// assert_eq!(memory.total_without_context(), memory.total() - memory.context_bytes);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// The weights.
    pub weight_bytes: u64,
    /// Keys and values of all tokens of all sequences.
    pub cache_bytes: u64,
    /// What compressed weights are decoded into for many rows at once.
    pub scratch_bytes: u64,
    /// Activations while a prompt is read, or where that is more, a layer's dense weights that are laid side by side while loading.
    pub prefill_bytes: u64,
    /// Activations and logits of a decoding step.
    pub step_bytes: u64,
    /// Decode tables of compressed weights.
    pub table_bytes: u64,
    /// What libtorch's allocator rounds up, on a GPU.
    pub rounding_bytes: u64,
    /// libtorch, its libraries and the kernels; measured.
    pub library_bytes: u64,
    /// CUDA's context; measured.
    pub context_bytes: u64,
}

impl Memory {
    /// What `choice` of the model with `config` takes.
    pub fn of(config: &LlamaConfig, choice: &Choice, workload: &Workload, place: Place) -> Self {
        let counter = Counter { config, choice, workload, place, shape: ModelShape::of(config) };
        let gpu = place == Place::Gpu;
        Self {
            weight_bytes: choice.weight_bytes,
            cache_bytes: counter.cache(),
            scratch_bytes: counter.scratch(),
            prefill_bytes: counter.prefill().max(counter.merging()),
            step_bytes: counter.step(),
            table_bytes: counter.tables(),
            rounding_bytes: if gpu { counter.rounding() } else { 0 },
            library_bytes: if gpu { GPU_LIBRARY_BYTES } else { CPU_LIBRARY_BYTES },
            context_bytes: if gpu { CONTEXT_BYTES } else { 0 },
        }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.total_without_context().saturating_add(self.context_bytes)
    }

    /// All but CUDA's context: what [`PeakMemory`](crate::cuda::PeakMemory) measures.
    pub fn total_without_context(&self) -> u64 {
        sum([
            self.weight_bytes,
            self.cache_bytes,
            self.scratch_bytes,
            self.prefill_bytes,
            self.step_bytes,
            self.table_bytes,
            self.rounding_bytes,
            self.library_bytes,
        ])
    }
}

/// What no memory could hold is the largest number.
fn sum(counts: impl IntoIterator<Item = u64>) -> u64 {
    counts.into_iter().fold(0, u64::saturating_add)
}

/// So many of each, all together.
fn weighted<const N: usize>(counts: [(u64, u64); N]) -> u64 {
    sum(counts.map(|(times, count)| times.saturating_mul(count)))
}

/// Counts; what no memory could hold is the largest number.
struct Counter<'a> {
    config: &'a LlamaConfig,
    choice: &'a Choice,
    workload: &'a Workload,
    place: Place,
    shape: ModelShape,
}

impl Counter<'_> {
    fn element(&self) -> u64 {
        self.workload.kind.elt_size_in_bytes() as u64
    }

    fn bytes(&self, elements: usize) -> u64 {
        (elements as u64).saturating_mul(self.element())
    }

    fn is_compressed(&self) -> bool {
        self.choice.coding != Coding::Dense
    }

    /// Queries, keys and values of a token.
    fn heads(&self) -> [u64; 2] {
        [self.config.num_attention_heads, self.config.num_key_value_heads]
            .map(|count| count.saturating_mul(self.config.head_dim) as u64)
    }

    /// One plane of a layer's cache: `[batch, num_key_value_heads, context, head_dim]`, FP32 on a CPU.
    fn cache_plane(&self) -> u64 {
        let element = if self.place == Place::Cpu { 4 } else { self.element() };
        self.heads()[1]
            .saturating_mul(element)
            .saturating_mul(self.workload.context as u64)
            .saturating_mul(self.workload.batch as u64)
    }

    fn cache(&self) -> u64 {
        self.cache_plane().saturating_mul(2 * self.config.num_hidden_layers as u64)
    }

    /// Tokens of all sequences that pass through the model at once while prompts are read.
    fn prefill_tokens(&self) -> u64 {
        let (context, batch) = (self.workload.context as u64, self.workload.batch as u64);
        match self.place {
            Place::Cpu => context.min(PREFILL_TOKENS as u64).saturating_mul(batch),
            Place::Gpu => context.saturating_mul(batch).min((GPU_PREFILL_TOKENS as u64).max(batch)),
        }
    }

    /// The buffer for one matrix, or for as much of it as the limit lets; on a GPU a second one for captured steps of many sequences.
    fn scratch(&self) -> u64 {
        if !self.is_compressed() {
            return 0;
        }
        let (limit, fused_rows) = match self.place {
            Place::Cpu => (SCRATCH_BYTES, default_fused_rows(self.workload.kind)),
            Place::Gpu => (GPU_SCRATCH_BYTES, GPU_FUSED_ROWS),
        };
        let widest = self.shape.layer.iter().flatten().chain(&self.shape.tables);
        let widest = widest.map(|matrix| self.bytes(count(&[*matrix]))).max().unwrap_or(0);
        let buffer = widest.min(limit as u64);
        let prompts = if self.prefill_tokens() > fused_rows as u64 { buffer } else { 0 };
        let steps = if self.place == Place::Gpu && self.workload.batch > GPU_FUSED_ROWS { buffer } else { 0 };
        prompts + steps
    }

    /// The most that lies about in a layer: in the feed-forward layer the stream before and after attention, what attention gave, the
    /// norm, gate and up; in attention stream, norm, queries, keys and values, and queries and keys four times while they turn.
    fn prefill(&self) -> u64 {
        let (hidden, wide) = (self.config.hidden_size as u64, self.config.intermediate_size as u64);
        let [query, key] = self.heads();
        let element = self.element();
        let feed_forward = weighted([(4 * element, hidden), (2 * element, wide)]);
        // Queries and keys are there once and four times more, values once.
        let attention = weighted([(2 * element, hidden), (5 * element, query), (6 * element, key)]);
        let token = match self.place {
            Place::Gpu => feed_forward.max(attention),
            // The fused product of compressed weights comes in FP32; attention is computed in FP32.
            Place::Cpu => sum([feed_forward, 4 * wide]).max(weighted([(1, attention), (8, query)])),
        };
        self.prefill_tokens().saturating_mul(token).saturating_add(self.scores())
    }

    /// What attention takes beside: mask, repeated keys and values, and on a CPU where heads share keys, all scores.
    fn scores(&self) -> u64 {
        let (tokens, context) = (self.prefill_tokens(), self.workload.context as u64);
        let pairs = tokens.saturating_mul(context);
        let [query, key] = self.heads();
        let shared = query != key;
        let masked = self.workload.batch > 1 || context > GPU_PREFILL_TOKENS as u64;
        let repeated =
            query.saturating_mul(context).saturating_mul(2).saturating_mul(self.workload.batch as u64);
        let heads = self.config.num_attention_heads as u64;
        match self.place {
            Place::Gpu if !masked => 0,
            Place::Gpu => {
                let mask = pairs.saturating_mul(2 * self.element() + 3);
                mask.saturating_add(if shared { repeated.saturating_mul(self.element()) } else { 0 })
            }
            Place::Cpu if !shared => pairs.saturating_mul(2 * 4 + 3),
            Place::Cpu => {
                pairs.saturating_mul(8 * heads + 2 * 4 + 3).saturating_add(repeated.saturating_mul(4))
            }
        }
    }

    /// Dense weights of a layer that read the same input are copied side by side on a GPU; the copies of the last layer are free, and
    /// stay libtorch's.
    fn merging(&self) -> u64 {
        if self.is_compressed() || self.place == Place::Cpu {
            return 0;
        }
        let merged = self.shape.layer.iter().filter(|group| group.len() > 1);
        sum(merged.map(|group| self.bytes(count(group))))
    }

    /// The buffers of a step: logits (a second time in FP32 where tokens are picked), the stream three times, queries, keys, values and
    /// what attention gives, gate and up and their product.
    fn step(&self) -> u64 {
        let (hidden, wide) = (self.config.hidden_size as u64, self.config.intermediate_size as u64);
        let [query, key] = self.heads();
        let element = self.element();
        let row =
            weighted([(3 * element, hidden), (2 * element, query), (2 * element, key), (3 * element, wide)]);
        let logits = self.config.vocab_size as u64 * (element + 4);
        row.saturating_add(logits).saturating_mul(self.workload.batch as u64)
    }

    fn matrices(&self) -> u64 {
        let in_layer: usize = self.shape.layer.iter().map(Vec::len).sum();
        (in_layer * self.shape.layers + self.shape.tables.len()) as u64
    }

    fn tables(&self) -> u64 {
        if self.is_compressed() {
            TABLE_BYTES * self.matrices()
        } else {
            0
        }
    }

    fn rounding(&self) -> u64 {
        let bits = 8.0 * self.choice.weight_bytes as f64 / self.shape.weights() as f64;
        let bytes = |weights: usize| (weights as f64 * bits / 8.0) as u64;
        let lost = |bytes: u64| allocated(bytes) - bytes;
        let of_each =
            |matrices: &[[usize; 2]]| sum(matrices.iter().map(|matrix| lost(bytes(count(&[*matrix])))));
        let layer = sum(self.shape.layer.iter().map(|group| match self.is_compressed() {
            true => of_each(group),
            false => lost(bytes(count(group))),
        }));
        let planes = 2 * self.config.num_hidden_layers as u64;
        weighted([
            (self.shape.layers as u64, layer),
            (1, of_each(&self.shape.tables)),
            (planes, lost(self.cache_plane())),
        ])
    }
}

/// What libtorch's allocator takes of a GPU for `bytes`: up to 1 MiB rounded to 512 bytes, below 10 MiB a share of 20 MiB, from there on
/// rounded to 2 MiB.
fn allocated(bytes: u64) -> u64 {
    const MIB: u64 = 1 << 20;
    match bytes {
        0 => 0,
        small if small <= MIB => small.next_multiple_of(512),
        medium if medium < 10 * MIB => 20 * MIB / (20 * MIB / medium.next_multiple_of(512)).max(1),
        large => large.checked_next_multiple_of(2 * MIB).unwrap_or(u64::MAX),
    }
}
