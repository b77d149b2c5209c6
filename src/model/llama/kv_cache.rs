//! Keys and values of the tokens seen so far, in memory allocated once.

use tch::{Device, Kind, TchError, Tensor};

use super::attention::{dot_product, Context};
use super::cache_memory::CacheMemory;
use super::step::Step;
use super::step_graph::StepGraph;
use super::step_launches::StepPlanes;
use crate::error::{Error, Result, TorchContext};
use crate::model::LlamaConfig;
use crate::ops::transformer::CachePlanes;

/// Keys and values of a batch of sequences, for `capacity` tokens each.
///
/// Sequences of different lengths are padded on the left ([`KvCache::with_left_padding`]); the padding is
/// masked and does not count as a position, so each sequence gets the answers it would get alone.
///
/// On the CPU the cache is FP32 in every dtype: attention over FP16 or BF16 keys is several times slower
/// there. Its pages are touched, and so take memory, only as tokens come.
///
/// ```
/// use codecllm::model::{KvCache, LlamaConfig};
/// use tch::{Device, Kind};
/// let json = r#"{"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
///     "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100}"#;
/// let config = LlamaConfig::from_json(json, "config.json")?;
/// let cache = KvCache::new(&config, 3, 100, Kind::Half, Device::Cpu)?;
/// // Keys and values, two layers, three sequences, two heads of 16, FP32.
/// assert_eq!((cache.capacity(), cache.bytes()), (100, 2 * 2 * 3 * 2 * 16 * 100 * 4));
/// // Prompts of 7, 4 and 7 tokens.
/// let mut cache = cache.with_left_padding(&[0, 3, 0])?;
/// // llama.prefill(&ids, &mut cache)?; and to begin anew:
/// cache.truncate(0);
/// assert!(cache.is_empty() && cache.len() == 0);
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    kind: Kind,
    batch: i64,
    capacity: i64,
    length: i64,
    padding: Vec<i64>,
    device: Device,
    /// On a GPU, the captured decoding step that writes to this cache.
    step_graph: Option<Box<StepGraph>>,
}

/// One layer's share, both `[batch, num_key_value_heads, capacity, head_dim]`.
#[derive(Debug)]
struct LayerCache {
    keys: Tensor,
    values: Tensor,
}

/// The dtype of keys and values on `device`, of a model in `kind`.
pub(super) fn cache_kind(device: Device, kind: Kind) -> Kind {
    match device {
        Device::Cpu => Kind::Float,
        _ => kind,
    }
}

impl KvCache {
    /// An empty cache for `batch` sequences of `capacity` tokens of a model with `config` in dtype `kind`.
    ///
    /// # Errors
    /// `InvalidArgument` if the model is not made for that many tokens, `OutOfMemory` if there is no room, with what would fit.
    pub fn new(
        config: &LlamaConfig,
        batch: usize,
        capacity: usize,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        if batch == 0 || capacity == 0 || capacity > config.max_position_embeddings {
            return Err(Error::invalid(
                "context",
                format!(
                    "{batch} sequences of {capacity} tokens, wanted at least one and at most {} tokens \
                     (max_position_embeddings of the model)",
                    config.max_position_embeddings
                ),
            ));
        }
        let kind = cache_kind(device, kind);
        let shape = [batch, config.num_key_value_heads, capacity, config.head_dim].map(|n| n as i64);
        let plane_bytes =
            shape.iter().fold(kind.elt_size_in_bytes(), |bytes, &n| bytes.saturating_mul(n as usize));
        let memory = CacheMemory {
            unit: if batch == 1 { "tokens" } else { "tokens of each sequence" },
            count: capacity,
            unit_bytes: plane_bytes.saturating_mul(2 * config.num_hidden_layers) / capacity,
            step: 1,
            spare: 0,
            rounded: 0,
            device,
        };
        let empty = |made: usize| {
            let plane = Tensor::f_empty(shape, (kind, device)).about("key-value cache");
            plane.map_err(|error| memory.explain(error, made * plane_bytes))
        };
        let layers = (0..config.num_hidden_layers)
            .map(|layer| Ok(LayerCache { keys: empty(2 * layer)?, values: empty(2 * layer + 1)? }))
            .collect::<Result<_>>()?;
        let padding = vec![0; batch];
        let (batch, capacity) = (batch as i64, capacity as i64);
        Ok(Self { layers, kind, batch, capacity, length: 0, padding, device, step_graph: None })
    }

    /// The same cache for sequences whose first `padding[i]` tokens are padding.
    ///
    /// # Errors
    /// `InvalidArgument` unless there is one number a sequence, each below the capacity.
    pub fn with_left_padding(mut self, padding: &[usize]) -> Result<Self> {
        let wanted = self.padding.len();
        if padding.len() != wanted || padding.iter().any(|&n| n >= self.capacity as usize) {
            return Err(Error::invalid(
                "padding",
                format!("{padding:?}, wanted {wanted} numbers below the capacity {}", self.capacity),
            ));
        }
        self.padding = padding.iter().map(|&n| n as i64).collect();
        // Captured with the padding of before.
        self.step_graph = None;
        Ok(self)
    }

    /// Tokens held of each sequence, padding included.
    pub fn len(&self) -> usize {
        self.length as usize
    }

    /// Whether no token has been seen.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Tokens there is room for, of each sequence.
    pub fn capacity(&self) -> usize {
        self.capacity as usize
    }

    /// Bytes of the keys and values of as many tokens as it can hold.
    pub fn bytes(&self) -> usize {
        let bytes = |tensor: &Tensor| tensor.numel() * self.kind.elt_size_in_bytes();
        self.layers.iter().map(|layer| bytes(&layer.keys) + bytes(&layer.values)).sum()
    }

    /// Forgets all tokens after the first `length`; more than there are changes nothing.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(i64::try_from(length).unwrap_or(i64::MAX));
    }

    pub(super) fn batch(&self) -> usize {
        self.batch as usize
    }

    pub(super) fn device(&self) -> Device {
        self.device
    }

    /// Lends the captured decoding step, if there is one.
    pub(super) fn take_step_graph(&mut self) -> Option<Box<StepGraph>> {
        self.step_graph.take()
    }

    /// Keeps a captured decoding step.
    pub(super) fn put_step_graph(&mut self, graph: Option<Box<StepGraph>>) {
        self.step_graph = graph;
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    pub(super) fn padding(&self) -> &[i64] {
        &self.padding
    }

    /// An error unless `seq` more tokens of `batch` sequences fit.
    pub(super) fn check_room(&self, batch: i64, seq: i64) -> Result<()> {
        if batch != self.batch {
            let message = format!("are a batch of {batch}, wanted the {} sequences of the cache", self.batch);
            return Err(Error::invalid("token ids", message));
        }
        if seq > self.capacity - self.length {
            let message = format!(
                "is {} tokens, wanted {} for {seq} more tokens; raise the context or shorten the prompt",
                self.capacity,
                self.length.saturating_add(seq)
            );
            return Err(Error::invalid("context", message));
        }
        Ok(())
    }

    /// Stores the `keys` and `values` `[batch, heads, seq, head_dim]` of the current tokens in `layer` and
    /// returns all up to and including them.
    fn append(
        &mut self,
        layer: usize,
        keys: &Tensor,
        values: &Tensor,
    ) -> std::result::Result<[Tensor; 2], TchError> {
        let (start, seq) = (self.length, keys.size4()?.2);
        let Some(cache) = self.layers.get_mut(layer) else {
            return Err(TchError::Shape(format!("the cache has no layer {layer}")));
        };
        cache.keys.f_narrow(2, start, seq)?.f_copy_(keys)?;
        cache.values.f_narrow(2, start, seq)?.f_copy_(values)?;
        Ok([cache.keys.f_narrow(2, 0, start + seq)?, cache.values.f_narrow(2, 0, start + seq)?])
    }

    /// Counts the current `seq` tokens as seen, once every layer has stored them.
    pub(super) fn advance(&mut self, seq: i64) {
        self.length += seq;
    }
}

impl Context for KvCache {
    fn kind(&self) -> Kind {
        self.kind
    }

    fn attend(
        &mut self,
        layer: usize,
        step: &Step,
        [query, key, value]: [&Tensor; 3],
    ) -> std::result::Result<Tensor, TchError> {
        let held = self.append(layer, key, value)?;
        dot_product(query, held, step)
    }
}

impl StepPlanes for KvCache {
    fn planes(&self, layer: usize) -> Result<CachePlanes<'_>> {
        let planes = self.layers.get(layer);
        planes
            .map(|LayerCache { keys, values }| CachePlanes { keys, values, table: None })
            .ok_or_else(|| Error::invalid("key-value cache", format!("has no layer {layer}")))
    }
}
