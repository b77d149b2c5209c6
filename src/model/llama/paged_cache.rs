//! Keys and values of sequences that come and go, each as long as it is, in pages of memory allocated once.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tch::{Device, Kind, TchError, Tensor};

use super::cache_memory::CacheMemory;
use super::kv_cache::cache_kind;
use super::page_pool::PagePool;
use super::paged_graphs::PagedGraphs;
use crate::error::{Error, Result, TorchContext};
use crate::model::LlamaConfig;
use crate::ops::transformer::{CachePlanes, PageTable};

/// Keys and values of many sequences, in pages of [`PagedKvCache::PAGE_TOKENS`] tokens handed out from one pool allocated once.
///
/// A sequence owns all its pages from the beginning ([`PagedKvCache::sequence`]), so that it never runs out of memory on the
/// way; they are free again when it is released or dropped. [`Llama::prefill_paged`](super::Llama::prefill_paged) and
/// [`Llama::decode_paged`](super::Llama::decode_paged) fill them.
///
/// As in a [`KvCache`](super::KvCache), keys and values are FP32 on the CPU, and memory is touched, and so taken, only as tokens
/// come.
///
/// ```
/// use codecllm::model::{BatchScores, Llama, LlamaConfig, PagedKvCache};
/// use tch::{nn, Device, Kind};
/// # use codecllm::checkpoint::WeightSource;
/// # use codecllm::nn::{DenseEmbedding, DenseLinear, Embedding, Linear};
/// # use codecllm::Result;
/// # use tch::Tensor;
/// # struct Random;
/// # impl WeightSource for Random {
/// #     fn linear(&self, vs: &nn::Path<'_>, shape: [usize; 2], _bias: bool) -> Result<Linear> {
/// #         Ok(Linear::Dense(DenseLinear::new("linear", self.tensor(vs, &shape)?, None)?))
/// #     }
/// #     fn embedding(&self, vs: &nn::Path<'_>, shape: [usize; 2]) -> Result<Embedding> {
/// #         Ok(Embedding::Dense(DenseEmbedding::new("table", self.tensor(vs, &shape)?)?))
/// #     }
/// #     fn tensor(&self, vs: &nn::Path<'_>, shape: &[usize]) -> Result<Tensor> {
/// #         let shape: Vec<i64> = shape.iter().map(|&length| length as i64).collect();
/// #         Ok(vs.var("weight", &shape, nn::Init::Randn { mean: 0.0, stdev: 0.2 }).detach())
/// #     }
/// # }
/// # let json = r#"{"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
/// #     "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100}"#;
/// # let config = LlamaConfig::from_json(json, "config.json")?;
/// let vs = nn::VarStore::new(Device::Cpu);
/// let llama = Llama::load(&vs.root(), &config, &Random)?; // `Random` weights as in the example of `Llama`
/// let mut cache = PagedKvCache::new(&config, 20, Kind::Float, Device::Cpu)?;
/// assert_eq!(cache.bytes(), 20 * PagedKvCache::page_bytes(&config, Kind::Float, Device::Cpu));
/// cache.reserve()?; // its memory now, rather than as tokens come
/// llama.prepare_paged(PagedKvCache::MOST_SEQUENCES, &mut cache)?; // on a GPU the first steps would wait for it
/// let (mut one, mut two) = (cache.sequence(100).unwrap(), cache.sequence(500).unwrap());
/// assert!(one.is_empty() && one.capacity() >= 100 && PagedKvCache::pages_for(100) == 100usize.div_ceil(PagedKvCache::PAGE_TOKENS));
/// assert!((cache.pages(), cache.free_pages()) == (20, 0) && cache.sequence(1).is_none());
/// let first = llama.prefill_paged(&[1, 90, 25], &mut one, &mut cache)?.likeliest()?[0];
/// let second = llama.prefill_paged(&[1, 43], &mut two, &mut cache)?.likeliest()?[0];
/// let scores: BatchScores = llama.decode_paged(&[first, second], &mut [&mut one, &mut two], &mut cache)?;
/// assert_eq!((scores.rows(), scores.logits(1)?.len(), one.len(), two.len()), (2, 100, 4, 3));
/// println!("{:?}", scores.likeliest()?);
/// cache.release(one);
/// assert_eq!(cache.free_pages(), 4);
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
    /// On a GPU, the captured decoding steps that write to this cache.
    graphs: Option<Box<PagedGraphs>>,
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

    /// Bytes of the keys and values of a page, all layers together; what no memory could hold is the largest number.
    fn page_bytes(&self, kind: Kind) -> usize {
        let factors = [2, self.layers, self.kv_heads, PagedKvCache::PAGE_TOKENS, self.head_dim];
        factors.into_iter().fold(kind.elt_size_in_bytes(), usize::saturating_mul)
    }

    /// Memory for `pages` pages.
    fn memory(&self, pages: usize, kind: Kind, device: Device) -> CacheMemory {
        CacheMemory {
            unit: "tokens",
            count: pages * PagedKvCache::PAGE_TOKENS,
            unit_bytes: self.page_bytes(kind) / PagedKvCache::PAGE_TOKENS,
            step: PagedKvCache::PAGE_TOKENS,
            spare: spare_on(device) * PagedKvCache::PAGE_TOKENS,
            rounded: if device.is_cuda() { 2 * self.layers } else { 0 },
            device,
        }
    }
}

/// Pages that belong to nobody. On a GPU the idle rows of a captured step write to one.
fn spare_on(device: Device) -> usize {
    usize::from(device.is_cuda())
}

impl PagedKvCache {
    /// Tokens of a page.
    ///
    /// A [`PagedKvCache`] counts in it; see its example.
    pub const PAGE_TOKENS: usize = 32;

    /// Most sequences that [`Llama::decode_paged`](super::Llama::decode_paged) takes at once.
    ///
    /// What a step over a [`PagedKvCache`] takes; see its example.
    pub const MOST_SEQUENCES: usize = 64;

    /// A cache of `pages` free pages for a model with `config` in dtype `kind`.
    ///
    /// # Errors
    /// `InvalidArgument` for no page or more than can be addressed, `OutOfMemory` if there is no room, with what would fit.
    pub fn new(config: &LlamaConfig, pages: usize, kind: Kind, device: Device) -> Result<Self> {
        let most = i32::MAX as usize / Self::PAGE_TOKENS - 1;
        if pages == 0 || pages > most {
            return Err(Error::invalid("key-value cache", format!("{pages} pages, wanted 1 to {most}")));
        }
        let (shape, kind) = (Shape::of(config), cache_kind(device, kind));
        let slots = (pages + spare_on(device)) * Self::PAGE_TOKENS;
        let size = [shape.kv_heads, slots, shape.head_dim].map(|n| n as i64);
        let memory = shape.memory(pages, kind, device);
        let plane_bytes = slots.saturating_mul(memory.unit_bytes) / (2 * shape.layers).max(1);
        let empty = |made: usize| {
            let plane = Tensor::f_empty(size, (kind, device)).about("key-value cache");
            plane.map_err(|error| memory.explain(error, made * plane_bytes))
        };
        let mut layers = Vec::new();
        for layer in 0..shape.layers {
            layers.push(Planes { keys: empty(2 * layer)?, values: empty(2 * layer + 1)? });
        }
        let pool = Arc::new(Mutex::new(PagePool::new(pages)));
        Ok(Self { layers, shape, kind, device, pool, graphs: None })
    }

    /// Takes the memory of all pages now, rather than as tokens come: what the process occupies does not grow later. On a GPU that
    /// is so from the beginning. It would wipe out what sequences hold, so there may be none.
    ///
    /// # Errors
    /// `InvalidArgument` while a sequence has pages, `Torch` where libtorch refuses to write.
    pub fn reserve(&mut self) -> Result<()> {
        let taken = self.pages() - self.free_pages();
        if taken > 0 {
            let message =
                format!("sequences have {taken} of its pages, wanted all of them free to reserve them");
            return Err(Error::invalid("key-value cache", message));
        }
        if self.device == Device::Cpu {
            for Planes { keys, values } in &mut self.layers {
                let _ = keys.f_zero_().about("key-value cache")?;
                let _ = values.f_zero_().about("key-value cache")?;
            }
        }
        Ok(())
    }

    /// Bytes that one page takes in a cache made with these arguments.
    pub fn page_bytes(config: &LlamaConfig, kind: Kind, device: Device) -> usize {
        Shape::of(config).page_bytes(cache_kind(device, kind))
    }

    /// What its pages need, and for how many tokens `free_bytes` have room.
    #[cfg(feature = "serve")]
    pub(crate) fn need(&self, free_bytes: usize) -> String {
        self.shape.memory(self.pages(), self.kind, self.device).need(Some(free_bytes))
    }

    /// The most tokens that all sequences of a cache made with these arguments can have in `bytes` of memory: a whole number of pages.
    ///
    /// ```
    /// use codecllm::model::{LlamaConfig, PagedKvCache};
    /// # let json = r#"{"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    /// #     "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100}"#;
    /// # let config = LlamaConfig::from_json(json, "config.json")?;
    /// let page_bytes = PagedKvCache::page_bytes(&config, tch::Kind::Half, tch::Device::Cpu);
    /// let room = |bytes| PagedKvCache::room_in(&config, tch::Kind::Half, tch::Device::Cpu, bytes);
    /// assert_eq!([room(3 * page_bytes - 1), room(3 * page_bytes)], [64, 96]);
    /// # Ok::<(), codecllm::Error>(())
    /// ```
    pub fn room_in(config: &LlamaConfig, kind: Kind, device: Device, bytes: usize) -> usize {
        Shape::of(config).memory(0, cache_kind(device, kind), device).room(bytes)
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

    /// Bytes of all pages, and of the one more that there is on a GPU.
    pub fn bytes(&self) -> usize {
        (self.pages() + spare_on(self.device)).saturating_mul(self.shape.page_bytes(self.kind))
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

    pub(super) fn device(&self) -> Device {
        self.device
    }

    /// On a GPU, the page that belongs to nobody.
    pub(super) fn spare_page(&self) -> usize {
        self.pages()
    }

    /// Most pages that a sequence can have.
    pub(super) fn pages_of_a_sequence(&self) -> usize {
        Self::pages_for(self.shape.context).min(self.pages())
    }

    /// Lends the captured decoding steps, if there are any.
    pub(super) fn take_graphs(&mut self) -> Option<Box<PagedGraphs>> {
        self.graphs.take()
    }

    /// Keeps captured decoding steps.
    pub(super) fn put_graphs(&mut self, graphs: Box<PagedGraphs>) {
        self.graphs = Some(graphs);
    }

    /// Writes `keys` and `values` `[num_key_value_heads, slots, head_dim]` of `layer` to `slots`.
    pub(super) fn put(
        &mut self,
        layer: usize,
        slots: &Slots,
        [keys, values]: [&Tensor; 2],
    ) -> std::result::Result<(), TchError> {
        let planes = self.layer(layer)?;
        slots.put(&planes.keys, keys)?;
        slots.put(&planes.values, values)
    }

    /// The keys and values of `layer` in `held`, both `[1, num_key_value_heads, tokens, head_dim]`.
    pub(super) fn get(&self, layer: usize, held: &Held) -> std::result::Result<[Tensor; 2], TchError> {
        let planes = self.layer(layer)?;
        Ok([held.of(&planes.keys)?, held.of(&planes.values)?])
    }

    /// All slots of one layer, for the sequences whose pages are in `table`.
    pub(super) fn planes<'a>(&'a self, layer: usize, table: &'a Tensor) -> Result<CachePlanes<'a>> {
        let Planes { keys, values } = self.layer(layer).about("key-value cache")?;
        let table = PageTable { pages: table, page_tokens: Self::PAGE_TOKENS as i64 };
        Ok(CachePlanes { keys, values, table: Some(table) })
    }

    fn layer(&self, layer: usize) -> std::result::Result<&Planes, TchError> {
        let missing = || TchError::Shape(format!("the cache has no layer {layer}"));
        self.layers.get(layer).ok_or_else(missing)
    }
}

/// One sequence's pages in a [`PagedKvCache`], and how many tokens they hold. Dropped, it gives them back.
///
/// Given by a [`PagedKvCache`]; see its example.
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
        if self.is_run() {
            return Ok(Slots::Run { first: self.slot(start), count: count as i64 });
        }
        let slots: Vec<i64> = (start..start + count).map(|token| self.slot(token)).collect();
        Slots::any(&slots, device)
    }

    /// Its first `tokens` tokens.
    pub(super) fn held(&self, tokens: usize, device: Device) -> Result<Held> {
        let count = tokens as i64;
        if self.is_run() {
            return Ok(Held::Run { first: self.slot(0), count });
        }
        let pages = self.pages.iter().take(PagedKvCache::pages_for(tokens));
        let pages: Vec<i64> = pages.map(|&page| i64::from(page)).collect();
        let pages =
            Tensor::f_from_slice(&pages).and_then(|pages| pages.f_to_device(device)).about("pages")?;
        Ok(Held::Pages { pages, count })
    }

    /// Its pages, in order.
    pub(super) fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// Whether its pages lie one behind the other.
    fn is_run(&self) -> bool {
        self.pages.windows(2).all(|pages| pages[0] + 1 == pages[1])
    }
}

impl Drop for PagedSequence {
    fn drop(&mut self) {
        lock(&self.pool).give_back(&self.pages);
    }
}

/// Where new tokens go in the planes.
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
}

/// What a sequence holds, its first `count` tokens.
#[derive(Debug)]
pub(super) enum Held {
    /// Its pages lie one behind the other.
    Run {
        /// The first slot.
        first: i64,
        /// Tokens.
        count: i64,
    },
    /// They do not.
    Pages {
        /// `Int64` on the planes' device.
        pages: Tensor,
        /// Tokens.
        count: i64,
    },
}

impl Held {
    /// `[1, heads, count, head_dim]`: a view where that is possible. The heads of a copy lie as far apart as whole pages do: the
    /// last bits of what libtorch makes of them may depend on how they are aligned.
    fn of(&self, plane: &Tensor) -> std::result::Result<Tensor, TchError> {
        match self {
            Self::Run { first, count } => plane.f_narrow(1, *first, *count)?.f_unsqueeze(0),
            Self::Pages { pages, count } => {
                let (heads, _, dim) = plane.size3()?;
                let cut = plane.f_view([heads, -1, PagedKvCache::PAGE_TOKENS as i64, dim])?;
                cut.f_index_select(1, pages)?.f_view([1, heads, -1, dim])?.f_narrow(2, 0, *count)
            }
        }
    }
}

/// Nothing panics while the lock is held.
fn lock(pool: &Mutex<PagePool>) -> MutexGuard<'_, PagePool> {
    pool.lock().unwrap_or_else(PoisonError::into_inner)
}
