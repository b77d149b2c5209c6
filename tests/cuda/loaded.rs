//! What the tests of whole models on a GPU begin with.

use std::path::Path;

use codecllm::checkpoint::{CheckpointWeights, Reader};
use codecllm::model::{Llama, LlamaConfig};
use tch::{nn, Device, Kind};

pub const GPU: Device = Device::Cuda(0);
pub const KINDS: [Kind; 3] = [Kind::Float, Kind::Half, Kind::BFloat16];

/// Ends the test, with a message, where there is no GPU.
macro_rules! gpu_or_skip {
    () => {
        if let Err(error) = codecllm::cuda::load() {
            println!("SKIPPED: {error}");
            return;
        }
    };
}
pub(crate) use gpu_or_skip;

/// A model with the VarStore that owns its weights.
pub struct Loaded {
    pub vs: nn::VarStore,
    pub model: Llama,
}

pub fn load(dir: &Path, kind: Kind) -> Loaded {
    load_on(GPU, dir, kind)
}

pub fn load_on(device: Device, dir: &Path, kind: Kind) -> Loaded {
    let config = LlamaConfig::from_dir(dir).unwrap();
    let reader = Reader::open(dir).unwrap();
    let vs = nn::VarStore::new(device);
    let model = Llama::load(&vs.root(), &config, &CheckpointWeights::new(&reader, kind)).unwrap();
    Loaded { vs, model }
}
