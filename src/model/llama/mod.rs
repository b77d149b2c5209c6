//! Llama: embedding, layers of attention and feed-forward, norm, head.
//!
//! [`Llama`] is all of it; see its example.

mod attention;
mod batch_scores;
mod cache_memory;
mod decode_step;
mod kernels;
mod kv_cache;
mod layer;
mod mlp;
mod norm;
mod page_pool;
mod paged_cache;
mod paged_forward;
mod paged_graphs;
mod rope;
mod step;
mod step_graph;
mod step_launches;

pub use batch_scores::BatchScores;
pub use decode_step::{DecodeStep, StepPart};
pub use kv_cache::KvCache;
pub use paged_cache::{PagedKvCache, PagedSequence};

use std::sync::atomic::{AtomicU64, Ordering};

use tch::{nn, Kind, Tensor};

use self::attention::Context;
use self::layer::Layer;
use self::norm::RmsNorm;
use self::rope::Rope;
use self::step::Step;
use super::LlamaConfig;
use crate::checkpoint::WeightSource;
use crate::error::{Error, Result, TorchContext};
use crate::nn::{BufferVersion, Embedding, Linear};
use crate::ops::transformer::Launcher;

/// Tokens of a prompt that pass through the model at once: enough for the matmuls, and a bound on memory.
pub(crate) const PREFILL_TOKENS: i64 = 512;
/// The same on a GPU, of all sequences together: a compressed weight is decoded once for each piece.
pub(crate) const GPU_PREFILL_TOKENS: i64 = 8192;

/// Which positions of a forward pass get logits; the head is the widest layer of a small model.
///
/// Asked of a [`Llama`]; see its example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitsOf {
    /// Every position: `[batch, seq, vocab]`.
    All,
    /// The last position only: `[batch, 1, vocab]`.
    Last,
}

/// Sees the residual stream `[batch, seq, hidden]` after each layer: `(layer, hidden)`.
///
/// Called by a [`Llama`]; see its example.
pub type Observer<'a> = &'a mut dyn FnMut(usize, &Tensor);

/// A Llama with its weights, dense or compressed.
///
/// ```
/// use codecllm::checkpoint::WeightSource;
/// use codecllm::model::{KvCache, Llama, LlamaConfig, LogitsOf, Observer};
/// use codecllm::nn::{DenseEmbedding, DenseLinear, Embedding, Linear};
/// use tch::{nn, Device, Kind, Tensor};
///
/// /// Weights from nowhere; `CheckpointWeights` has those of a model directory.
/// struct Random;
///
/// impl WeightSource for Random {
///     fn linear(&self, vs: &nn::Path<'_>, shape: [usize; 2], _bias: bool) -> codecllm::Result<Linear> {
///         Ok(Linear::Dense(DenseLinear::new("linear", self.tensor(vs, &shape)?, None)?))
///     }
///     fn embedding(&self, vs: &nn::Path<'_>, shape: [usize; 2]) -> codecllm::Result<Embedding> {
///         Ok(Embedding::Dense(DenseEmbedding::new("table", self.tensor(vs, &shape)?)?))
///     }
///     fn tensor(&self, vs: &nn::Path<'_>, shape: &[usize]) -> codecllm::Result<Tensor> {
///         let shape: Vec<i64> = shape.iter().map(|&length| length as i64).collect();
///         Ok(vs.var("weight", &shape, nn::Init::Randn { mean: 0.0, stdev: 0.2 }).detach())
///     }
/// }
///
/// let json = r#"{"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
///     "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100}"#;
/// let config = LlamaConfig::from_json(json, "config.json")?;
/// let vs = nn::VarStore::new(Device::Cpu);
/// let llama = Llama::load(&vs.root(), &config, &Random)?;
/// assert!(llama.weight_bytes() > 4 * 2 * 100 * 64 && llama.config().num_hidden_layers == 2);
///
/// let mut cache = KvCache::new(&config, 1, 32, Kind::Float, Device::Cpu)?;
/// let ids = Tensor::from_slice(&[1i64, 7, 42]).unsqueeze(0);
/// let last = llama.prefill(&ids, &mut cache)?; // a prompt of any length
/// let next = llama.forward(&last.argmax(-1, false), &mut cache, LogitsOf::Last)?; // and behind it
/// assert_eq!((next.size(), cache.len()), (vec![1, 1, 100], 4));
///
/// // From the beginning, watched: what each layer makes of what the one before it gave.
/// cache.truncate(0);
/// let mut streams = vec![llama.embed(&ids)?];
/// let watch: Observer = &mut |_layer, stream| streams.push(stream.shallow_clone());
/// let logits = llama.forward_observed(&ids, &mut cache, LogitsOf::All, watch)?;
/// assert!(logits.size() == [1, 3, 100] && logits.allclose(&llama.head(&streams[2])?, 1e-4, 1e-4, false));
/// cache.truncate(0);
/// llama.forward_apart(&streams[..2], &mut cache, &mut |layer, stream| {
///     assert!(stream.allclose(&streams[layer + 1], 1e-4, 1e-4, false));
/// })?;
/// llama.set_fused_rows(0); // of compressed weights, which these are not
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Debug)]
pub struct Llama {
    /// Another one for each model of the process.
    id: u64,
    config: LlamaConfig,
    embedding: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    /// Shares the embedding's table where the config ties them.
    head: Linear,
    rope: Rope,
}

// SAFETY: what keeps the compiler from saying so itself is that tch's tensors are raw pointers. They are counted references to libtorch
// tensors, whose counts are atomic and whose reading functions may run on several threads at once. `&self` only reads the weights: each
// forward makes its own intermediate tensors, a key-value cache comes from the caller by `&mut`, scratch is of a thread, and what layers
// remember (prepared weights, recorded passages) is behind locks; weights are laid side by side while the model is loaded, by whoever
// alone has it, and nowhere else. Writing to the weights through their VarStore while another thread is
// in a forward is as wrong here as for any tch module.
unsafe impl Sync for Llama {}

impl Llama {
    /// Builds the model under `vs` (the root of a VarStore) with the weights of `source`.
    ///
    /// # Errors
    /// What `source` reports of a tensor, by its full path; on a GPU what compiler and driver report of the kernels that compressed
    /// weights need.
    pub fn load(vs: &nn::Path<'_>, config: &LlamaConfig, source: &dyn WeightSource) -> Result<Self> {
        let model = vs.sub("model");
        let table = [config.vocab_size, config.hidden_size];
        let embedding = source.embedding(&model.sub("embed_tokens"), table)?;
        let mut layers = Vec::new();
        for i in 0..config.num_hidden_layers {
            layers.push(Layer::load(&model.sub("layers").sub(i), config, source, i)?);
        }
        let norm = RmsNorm::load(&model.sub("norm"), config, source)?;
        let head = match config.tie_word_embeddings {
            true => embedding.tied_head(),
            false => source.linear(&vs.sub("lm_head"), table, false)?,
        };
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let llama =
            Self { id, config: config.clone(), embedding, layers, norm, head, rope: Rope::new(config) };
        // Dense weights need none before the first step, which prepares its own.
        if vs.device().is_cuda() && llama.has_compressed()? {
            llama.prepare_kernels(Launcher::on(vs.device())?.device)?;
        }
        Ok(llama)
    }

    /// The model's settings.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Bytes of all weights held in memory; a table shared by embedding and head counts once.
    pub fn weight_bytes(&self) -> usize {
        let layers: usize = self.layers.iter().map(Layer::weight_bytes).sum();
        let head = if self.config.tie_word_embeddings { 0 } else { self.head.weight_bytes() };
        self.embedding.weight_bytes() + layers + self.norm.weight_bytes() + head
    }

    /// As [`CompressedLinear::set_fused_rows`](crate::nn::CompressedLinear::set_fused_rows), for every compressed linear of the model: 0
    /// forces scratch, where a lossless model computes bit for bit what the dense one does.
    pub fn set_fused_rows(&self, rows: usize) {
        let linears = self.layers.iter().flat_map(Layer::linears).chain([&self.head]);
        linears.for_each(|linear| linear.set_fused_rows(rows));
    }

    /// Runs `ids` `[batch, seq]` (`Int64`) behind what `cache` holds, appends them to it, and returns logits
    /// in the model's dtype.
    ///
    /// One token a sequence on a GPU is a [`DecodeStep`] where that fits: one call, captured at the first with this cache.
    ///
    /// # Errors
    /// `InvalidArgument` if the batch differs from the cache's or the tokens do not fit into it.
    pub fn forward(&self, ids: &Tensor, cache: &mut KvCache, logits: LogitsOf) -> Result<Tensor> {
        if logits == LogitsOf::Last && ids_size(ids)?.1 == 1 && DecodeStep::fits(self, cache) {
            return DecodeStep::new(self, cache)?.forward(ids);
        }
        self.logits(&self.hidden_states(ids, cache, None)?, logits)
    }

    /// As [`Llama::forward`], with `observer` called after each layer.
    ///
    /// # Errors
    /// As [`Llama::forward`].
    pub fn forward_observed(
        &self,
        ids: &Tensor,
        cache: &mut KvCache,
        logits: LogitsOf,
        observer: Observer<'_>,
    ) -> Result<Tensor> {
        self.logits(&self.hidden_states(ids, cache, Some(observer))?, logits)
    }

    /// The residual stream `[batch, seq, hidden]` before the first layer.
    ///
    /// # Errors
    /// `InvalidArgument` if `ids` are not token ids `[batch, seq]`.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        ids_size(ids)?;
        self.embedding.try_forward(ids)
    }

    /// Runs every layer by itself, behind what `cache` holds: layer `i` reads `streams[i]` `[batch, seq, hidden]`, whatever the layer
    /// before it gave, and `observer` sees what it makes of that.
    ///
    /// # Errors
    /// `InvalidArgument` if there is not one stream a layer, or as [`Llama::forward`].
    pub fn forward_apart(
        &self,
        streams: &[Tensor],
        cache: &mut KvCache,
        observer: Observer<'_>,
    ) -> Result<()> {
        let first = match streams.first() {
            Some(first) if streams.len() == self.layers.len() && first.dim() == 3 => first,
            _ => {
                let message = format!(
                    "are {}, wanted [batch, seq, hidden] for each of {}",
                    streams.len(),
                    self.layers.len()
                );
                return Err(Error::invalid("residual streams", message));
            }
        };
        let (batch, seq) = (first.size()[0], first.size()[1]);
        cache.check_room(batch, seq)?;
        let step = Step::new(&self.rope, cache, seq, first.kind(), first.device())?;
        for (i, (layer, stream)) in self.layers.iter().zip(streams).enumerate() {
            observer(i, &layer.forward(stream, &step, cache)?);
        }
        cache.advance(seq);
        Ok(())
    }

    /// The logits `[batch, seq, vocab]` of the residual stream `[batch, seq, hidden]` behind the last layer.
    ///
    /// # Errors
    /// As [`Llama::forward`].
    pub fn head(&self, stream: &Tensor) -> Result<Tensor> {
        self.logits(stream, LogitsOf::All)
    }

    /// Runs a prompt `ids` `[batch, seq]` of any length piece by piece, in bounded memory, and returns the
    /// logits of its last position, `[batch, 1, vocab]`.
    ///
    /// # Errors
    /// As [`Llama::forward`].
    pub fn prefill(&self, ids: &Tensor, cache: &mut KvCache) -> Result<Tensor> {
        let (batch, seq) = ids_size(ids)?;
        let most = match cache.device().is_cuda() {
            true => (GPU_PREFILL_TOKENS / batch).max(1),
            false => PREFILL_TOKENS,
        };
        let mut start = 0;
        loop {
            let length = (seq - start).min(most);
            let piece = ids.f_narrow(1, start, length).about("token ids")?;
            let hidden = self.hidden_states(&piece, cache, None)?;
            start += length;
            if start == seq {
                return self.logits(&hidden, LogitsOf::Last);
            }
        }
    }

    /// The residual stream after the last layer, before the final norm: `[batch, seq, hidden]`.
    fn hidden_states(
        &self,
        ids: &Tensor,
        cache: &mut KvCache,
        mut observer: Option<Observer<'_>>,
    ) -> Result<Tensor> {
        let (batch, seq) = ids_size(ids)?;
        cache.check_room(batch, seq)?;
        let mut hidden = self.embedding.try_forward(ids)?;
        let step = Step::new(&self.rope, cache, seq, hidden.kind(), hidden.device())?;
        for (i, layer) in self.layers.iter().enumerate() {
            hidden = layer.forward(&hidden, &step, cache)?;
            if let Some(observe) = observer.as_mut() {
                observe(i, &hidden);
            }
        }
        cache.advance(seq);
        Ok(hidden)
    }

    /// The residual stream behind the last layer, of what it is before the first.
    fn through_layers(&self, hidden: Tensor, step: &Step, context: &mut dyn Context) -> Result<Tensor> {
        self.layers.iter().try_fold(hidden, |hidden, layer| layer.forward(&hidden, step, context))
    }

    /// Tells the weights of now from those of another time or model.
    fn weights_mark(&self) -> Result<WeightsMark> {
        let mut versions = vec![self.embedding.version()?, self.norm.version()?];
        versions.extend(self.head.versions()?);
        for layer in &self.layers {
            versions.extend([layer.input_norm.version()?, layer.post_attention_norm.version()?]);
            for linear in layer.linears() {
                versions.extend(linear.versions()?);
            }
        }
        Ok(WeightsMark { id: self.id, versions })
    }

    fn logits(&self, hidden: &Tensor, logits: LogitsOf) -> Result<Tensor> {
        let hidden = match logits {
            LogitsOf::All => hidden.shallow_clone(),
            LogitsOf::Last => hidden.f_narrow(1, -1, 1).about("lm_head")?,
        };
        self.head.try_forward(&self.norm.forward(&hidden)?)
    }
}

/// Which weights a model has, all of them: a captured step knows their addresses.
#[derive(Debug, PartialEq, Eq)]
struct WeightsMark {
    id: u64,
    versions: Vec<BufferVersion>,
}

/// `(batch, seq)` of token ids, neither of them zero.
fn ids_size(ids: &Tensor) -> Result<(i64, i64)> {
    match ids.size().as_slice() {
        &[batch, seq] if batch > 0 && seq > 0 && ids.kind() == Kind::Int64 => Ok((batch, seq)),
        other => Err(Error::invalid(
            "token ids",
            format!(
                "are {:?} of shape {other:?}, wanted Int64 of [batch, seq] with at least one token",
                ids.kind()
            ),
        )),
    }
}

/// The full path of a module, for error messages.
fn path_of(vs: &nn::Path<'_>) -> String {
    vs.components().collect::<Vec<_>>().join(".")
}
