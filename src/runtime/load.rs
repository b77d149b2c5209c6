//! Loads a model directory into one VarStore.

use std::path::Path;

use tch::{nn, Device, Kind};

use crate::checkpoint::{is_unused, CheckpointWeights, Reader, TensorInfo};
use crate::codec::Checksums;
use crate::cuda;
use crate::error::{Error, Result};
use crate::model::{KvCache, Llama, LlamaConfig};

/// Context where the caller names none and the model allows more, tokens.
const DEFAULT_CONTEXT: usize = 4096;

/// What a running model takes of its directory beside the tensors. A container vouches for them.
const SMALL_FILES: [&str; 5] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
];

/// How to load a model.
///
/// Given to a [`Model`]; see its example.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Where the weights go. For [`Device::Cuda`] the loading calls [`cuda::load`]: in a process that has asked libtorch
    /// for anything before, that comes too late; call it yourself then, first thing.
    pub device: Device,
    /// The dtype to compute in: `Half`, `BFloat16` or `Float`.
    pub kind: Kind,
    /// Most tokens of prompt and answer together; `None` for 4096, or less if the model allows less.
    pub context: Option<usize>,
    /// Threads of libtorch's operators, for the whole process; `None` leaves them as they are.
    pub threads: Option<usize>,
    /// Whether the checksums of a compressed directory are compared.
    pub checksums: Checksums,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            device: Device::Cpu,
            kind: Kind::Half,
            context: None,
            threads: None,
            checksums: Checksums::Verify,
        }
    }
}

/// A Llama and the VarStore that owns its weights.
///
/// ```no_run
/// // Needs a model.
/// use codecllm::runtime::{LoadOptions, Model};
/// let model = Model::load("model", &LoadOptions { kind: tch::Kind::BFloat16, ..LoadOptions::default() })?;
/// let mut cache = model.new_cache(1, model.context().min(128))?;
/// let ids = tch::Tensor::from_slice(&[1i64, 42]).unsqueeze(0);
/// let logits = model.llama().prefill(&ids, &mut cache)?; // [1, 1, vocab]
/// assert_eq!((logits.kind(), model.kind()), (tch::Kind::BFloat16, tch::Kind::BFloat16));
/// println!("{} bytes of weights, {} tokens seen", model.weight_bytes(), cache.len());
/// println!("{} tensors", model.var_store().variables().len());
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Debug)]
pub struct Model {
    var_store: nn::VarStore,
    llama: Llama,
    kind: Kind,
    context: usize,
}

impl Model {
    /// Loads the model directory `dir`.
    ///
    /// # Errors
    /// What [`LlamaConfig::from_dir`], [`Reader::open`] and the weights report; `InvalidArgument` for a
    /// context longer than the model allows or a dtype that is not a float; `OutOfMemory` where the weights have no room, with what
    /// they need and what was free; `Unsupported` for a tensor in the
    /// checkpoint that a Llama has no use for, and as [`cuda::load`] where a GPU is asked for.
    pub fn load(dir: impl AsRef<Path>, options: &LoadOptions) -> Result<Self> {
        if let Device::Cuda(_) = options.device {
            cuda::load()?;
        }
        let config = LlamaConfig::from_dir(&dir)?;
        let context = choose_context(&config, options.context)?;
        check_kind(options.kind)?;
        set_threads(options.threads)?;
        let reader = Reader::open(&dir)?.with_checksums(options.checksums);
        if options.checksums.verify() {
            SMALL_FILES.iter().try_for_each(|name| reader.check_file(name))?;
        }
        let var_store = nn::VarStore::new(options.device);
        let need = WeightMemory::of(&reader, options);
        let llama = Llama::load(&var_store.root(), &config, &CheckpointWeights::new(&reader, options.kind))
            .map_err(|error| error.with_need(|| need.text()))?;
        check_leftovers(&reader, &var_store, &config)?;
        Ok(Self { var_store, llama, kind: options.kind, context })
    }

    /// The model.
    pub fn llama(&self) -> &Llama {
        &self.llama
    }

    /// The weights by tensor path.
    pub fn var_store(&self) -> &nn::VarStore {
        &self.var_store
    }

    /// The dtype computed in.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Most tokens of prompt and answer together.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Bytes of all weights held in memory; a table shared by embedding and head counts once.
    pub fn weight_bytes(&self) -> usize {
        self.llama.weight_bytes()
    }

    /// An empty key-value cache for `batch` sequences of `capacity` tokens.
    ///
    /// # Errors
    /// As [`KvCache::new`].
    pub fn new_cache(&self, batch: usize, capacity: usize) -> Result<KvCache> {
        KvCache::new(self.llama.config(), batch, capacity, self.kind, self.var_store.device())
    }
}

/// What the weights take of a device, and what it had free before.
struct WeightMemory {
    bytes: usize,
    /// Of which GPU, and bytes.
    free: Option<(usize, usize)>,
}

impl WeightMemory {
    fn of(reader: &Reader, options: &LoadOptions) -> Self {
        use safetensors::Dtype::{BF16, F16, F32, F64};
        let bytes_of = |info: &TensorInfo| match info.dtype {
            // Becomes what is computed in.
            F64 | F32 | F16 | BF16 => info.shape.iter().product::<usize>() * options.kind.elt_size_in_bytes(),
            _ => info.bytes,
        };
        let free = match options.device {
            Device::Cuda(ordinal) => cuda::free_bytes(ordinal).map(|free| (ordinal, free)),
            _ => None,
        };
        Self { bytes: reader.names().filter_map(|name| reader.info(name)).map(bytes_of).sum(), free }
    }

    fn text(&self) -> String {
        let need = format!("the weights need {} bytes", self.bytes);
        match self.free {
            Some((ordinal, free)) => format!("{need}, {free} were free on cuda:{ordinal}"),
            None => need,
        }
    }
}

fn choose_context(config: &LlamaConfig, wanted: Option<usize>) -> Result<usize> {
    let most = config.max_position_embeddings;
    match wanted {
        None => Ok(most.min(DEFAULT_CONTEXT)),
        Some(context) if (1..=most).contains(&context) => Ok(context),
        Some(context) => Err(Error::invalid(
            "context",
            format!("{context} tokens, wanted 1 to {most} (max_position_embeddings of the model)"),
        )),
    }
}

fn check_kind(kind: Kind) -> Result<()> {
    match kind {
        Kind::Half | Kind::BFloat16 | Kind::Float => Ok(()),
        other => Err(Error::invalid("dtype", format!("{other:?}, wanted Half, BFloat16 or Float"))),
    }
}

fn set_threads(threads: Option<usize>) -> Result<()> {
    let Some(threads) = threads else { return Ok(()) };
    match i32::try_from(threads) {
        Ok(count) if (1..=1024).contains(&count) => tch::set_num_threads(count),
        _ => return Err(Error::invalid("threads", format!("{threads}, wanted 1 to 1024"))),
    }
    Ok(())
}

/// A tensor that nothing was made of means that the model computes something else than the checkpoint's.
fn check_leftovers(reader: &Reader, var_store: &nn::VarStore, config: &LlamaConfig) -> Result<()> {
    let used = var_store.variables();
    let harmless = |name: &str| is_unused(name, config.tie_word_embeddings);
    match reader.names().find(|name| !used.contains_key(*name) && !harmless(name)) {
        None => Ok(()),
        Some(name) => Err(Error::unsupported(
            name,
            format!("is in {}, but a Llama with its config.json has no such tensor", reader.dir().display()),
        )),
    }
}
