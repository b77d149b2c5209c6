//! Keys and values of sequences that come and go, each as long as it is, in pages of memory allocated once.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tch::{Device, Kind, TchError, Tensor};

use super::page_pool::PagePool;
use crate::error::{Error, Result, TorchContext};
use crate::model::LlamaConfig;

/// Keys and values of many sequences, in pages of [`PagedKvCache::PAGE_TOKENS`] tokens handed out from one pool allocated once.
///
/// A sequence owns all its pages from the beginning ([`PagedKvCache::sequence`]), so that it never runs out of memory on the
/// way; they are free again when it is released or dropped. [`Llama::prefill_paged`](super::Llama::prefill_paged) and
/// [`Llama::decode_paged`](super::Llama::decode_paged) fill them.
///
/// As in a [`KvCache`](super::KvCache), keys and values are FP32 on the CPU, and memory is touched, and so taken, only as tokens
/// come.
///
/// ```no_run
/// # use codecllm::model::PagedKvCache;
/// # use codecllm::runtime::{LoadOptions, Model};
/// # use tch::{Device, Kind};
/// let model = Model::load("model", &LoadOptions::default())?;
/// let llama = model.llama();
/// let mut cache = PagedKvCache::new(llama.config(), 64, Kind::Float, Device::Cpu)?;
/// let (mut one, mut two) = (cache.sequence(100).unwrap(), cache.sequence(500).unwrap());
/// let first = llama.prefill_paged(&[1, 9038, 2501], &mut one, &mut cache)?.likeliest()?[0];
/// let second = llama.prefill_paged(&[1, 4335], &mut two, &mut cache)?.likeliest()?[0];
/// let scores = llama.decode_paged(&[first, second], &mut [&mut one, &mut two], &mut cache)?;
/// println!("{:?}", scores.likeliest()?);
/// cache.release(one);
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Debug)]
pub struct PagedKvCache {
    layers: Vec<Planes>,
    shape: Shape,
    kind: Kind,
    device: Device,
    /// Shared with the sequences, which give their pages back; tells them from those of another cache.
    pool: Arc<Mutex<PagePool>>,
}

/// One layer's share, both `[num_key_value_heads, slots, head_dim]`: a slot for each token of each page, in order.
#[derive(Debug)]
struct Planes {
    keys: Tensor,
    values: Tensor,
}

/// What a model must have in common with its cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    context: usize,
}

impl Shape {
    fn of(config: &LlamaConfig) -> Self {
        Self {
            layers: config.num_hidden_layers,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            context: config.max_position_embeddings,
        }
    }

    /// Bytes of the keys and values of a page, all layers together.
    fn page_bytes(&self, kind: Kind) -> usize {
        let elements = self.kv_heads * PagedKvCache::PAGE_TOKENS * self.head_dim;
        2 * self.layers * elements * kind.elt_size_in_bytes()
    }
}

/// The dtype of keys and values: see [`KvCache`](super::KvCache).
fn kind_on(device: Device, kind: Kind) -> Kind {
    match device {
        Device::Cpu => Kind::Float,
        _ => kind,
    }
}

impl PagedKvCache {
    /// Tokens of a page.
    pub const PAGE_TOKENS: usize = 32;

    /// Most sequences that [`Llama::decode_paged`](super::Llama::decode_paged) takes at once.
    pub const MOST_SEQUENCES: usize = 64;

    /// A cache of `pages` free pages for a model with `config` in dtype `kind`.
    ///
    /// # Errors
    /// `InvalidArgument` for no page or more than can be addressed, `Torch` if memory is short.
    pub fn new(config: &LlamaConfig, pages: usize, kind: Kind, device: Device) -> Result<Self> {
        let most = i32::MAX as usize / Self::PAGE_TOKENS - 1;
        if pages == 0 || pages > most {
            return Err(Error::invalid("key-value cache", format!("{pages} pages, wanted 1 to {most}")));
        }
        let (shape, kind) = (Shape::of(config), kind_on(device, kind));
        let size = [shape.kv_heads, pages * Self::PAGE_TOKENS, shape.head_dim].map(|n| n as i64);
        let empty = || Tensor::f_empty(size, (kind, device)).about("key-value cache");
        let mut layers = Vec::new();
        for _ in 0..shape.layers {
            layers.push(Planes { keys: empty()?, values: empty()? });
        }
        Ok(Self { layers, shape, kind, device, pool: Arc::new(Mutex::new(PagePool::new(pages))) })
    }

    /// Bytes that one page takes in a cache made with these arguments.
    pub fn page_bytes(config: &LlamaConfig, kind: Kind, device: Device) -> usize {
        Shape::of(config).page_bytes(kind_on(device, kind))
    }

    /// Pages that `tokens` tokens take.
    pub fn pages_for(tokens: usize) -> usize {
        tokens.div_ceil(Self::PAGE_TOKENS)
    }

    /// Pages that sequences can have, all together.
    pub fn pages(&self) -> usize {
        lock(&self.pool).len()
    }

    /// Pages that nobody has.
    pub fn free_pages(&self) -> usize {
        lock(&self.pool).free()
    }

    /// Bytes of all pages.
    pub fn bytes(&self) -> usize {
        self.pages() * self.shape.page_bytes(self.kind)
    }

    /// An empty sequence that owns pages for `tokens` tokens, no more than the model is made for; `None`, and nothing changes,
    /// when too few are free.
    pub fn sequence(&mut self, tokens: usize) -> Option<PagedSequence> {
        let tokens = tokens.min(self.shape.context);
        let pages = lock(&self.pool).take(Self::pages_for(tokens))?;
        let capacity = (pages.len() * Self::PAGE_TOKENS).min(self.shape.context);
        Some(PagedSequence { pool: self.pool.clone(), pages, length: 0, capacity })
    }

    /// Forgets a sequence: its pages are free. Dropping it does the same.
    pub fn release(&mut self, sequence: PagedSequence) {
        drop(sequence);
    }

    /// An error unless the cache is made for a model with `config`, on `device`.
    pub(super) fn check_model(&self, config: &LlamaConfig, device: Device) -> Result<()> {
        let wanted = Shape::of(config);
        if self.shape == wanted && self.device == device {
            return Ok(());
        }
        let (got, on) = (self.shape, self.device);
        let message = format!("{got:?} on {on:?}, wanted {wanted:?} on {device:?} as the model has");
        Err(Error::invalid("key-value cache", message))
    }

    /// An error unless `sequence` is of this cache and `more` tokens fit behind what it holds.
    pub(super) fn check_room(&self, sequence: &PagedSequence, more: usize) -> Result<()> {
        if !Arc::ptr_eq(&self.pool, &sequence.pool) {
            return Err(Error::invalid("sequence", "has pages of another cache, wanted one of this cache"));
        }
        if more > sequence.capacity - sequence.length {
            let message = format!(
                "is {} tokens, wanted {} for {more} more tokens; ask for a longer sequence or shorten the prompt",
                sequence.capacity,
                sequence.length.saturating_add(more)
            );
            return Err(Error::invalid("context", message));
        }
        Ok(())
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// Writes `keys` and `values` `[num_key_value_heads, slots, head_dim]` of `layer` to `slots`.
    pub(super) fn put(
        &mut self,
        layer: usize,
        slots: &Slots,
        [keys, values]: [&Tensor; 2],
    ) -> std::result::Result<(), TchError> {
        let planes = self.planes(layer)?;
        slots.put(&planes.keys, keys)?;
        slots.put(&planes.values, values)
    }

    /// The keys and values of `layer` in `slots`, both `[1, num_key_value_heads, slots, head_dim]`.
    pub(super) fn get(&self, layer: usize, slots: &Slots) -> std::result::Result<[Tensor; 2], TchError> {
        let planes = self.planes(layer)?;
        Ok([slots.get(&planes.keys)?.f_unsqueeze(0)?, slots.get(&planes.values)?.f_unsqueeze(0)?])
    }

    fn planes(&self, layer: usize) -> std::result::Result<&Planes, TchError> {
        let missing = || TchError::Shape(format!("the cache has no layer {layer}"));
        self.layers.get(layer).ok_or_else(missing)
    }
}

/// One sequence's pages in a [`PagedKvCache`], and how many tokens they hold. Dropped, it gives them back.
#[derive(Debug)]
pub struct PagedSequence {
    pool: Arc<Mutex<PagePool>>,
    pages: Vec<u32>,
    length: usize,
    capacity: usize,
}

impl PagedSequence {
    /// Tokens that it holds.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Tokens that there is room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Counts `tokens` as held, once every layer has stored them.
    pub(super) fn advance(&mut self, tokens: usize) {
        self.length += tokens;
    }

    /// Forgets all tokens after the first `length`.
    pub(super) fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    /// Where a token's keys and values lie; it must be below the capacity.
    pub(super) fn slot(&self, token: usize) -> i64 {
        let page = self.pages.get(token / PagedKvCache::PAGE_TOKENS).copied().unwrap_or_default();
        page as i64 * PagedKvCache::PAGE_TOKENS as i64 + (token % PagedKvCache::PAGE_TOKENS) as i64
    }

    /// The slots of `count` tokens from `start` on.
    pub(super) fn slots(&self, start: usize, count: usize, device: Device) -> Result<Slots> {
        let neighbors = self.pages.windows(2).all(|pages| pages[0] + 1 == pages[1]);
        if neighbors {
            return Ok(Slots::Run { first: self.slot(start), count: count as i64 });
        }
        let slots: Vec<i64> = (start..start + count).map(|token| self.slot(token)).collect();
        Slots::any(&slots, device)
    }
}

impl Drop for PagedSequence {
    fn drop(&mut self) {
        lock(&self.pool).give_back(&self.pages);
    }
}

/// Places of tokens in the planes.
#[derive(Debug)]
pub(super) enum Slots {
    /// One behind the other.
    Run {
        /// The first of them.
        first: i64,
        /// How many.
        count: i64,
    },
    /// By index, `Int64` on the planes' device.
    Any(Tensor),
}

impl Slots {
    pub(super) fn any(slots: &[i64], device: Device) -> Result<Self> {
        Tensor::f_from_slice(slots).and_then(|slots| slots.f_to_device(device)).about("slots").map(Self::Any)
    }

    /// `rows` `[heads, slots, head_dim]` in any dtype to the slots of `plane`.
    fn put(&self, plane: &Tensor, rows: &Tensor) -> std::result::Result<(), TchError> {
        match self {
            Self::Run { first, count } => plane.f_narrow(1, *first, *count)?.f_copy_(rows),
            Self::Any(slots) => {
                let _ = plane.shallow_clone().f_index_copy_(1, slots, &rows.f_to_kind(plane.kind())?)?;
                Ok(())
            }
        }
    }

    /// `[heads, slots, head_dim]`: a view where the slots are a run.
    fn get(&self, plane: &Tensor) -> std::result::Result<Tensor, TchError> {
        match self {
            Self::Run { first, count } => plane.f_narrow(1, *first, *count),
            Self::Any(slots) => plane.f_index_select(1, slots),
        }
    }
}

/// Nothing panics while the lock is held.
fn lock(pool: &Mutex<PagePool>) -> MutexGuard<'_, PagePool> {
    pool.lock().unwrap_or_else(PoisonError::into_inner)
}
