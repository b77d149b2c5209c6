//! Model directories on disk: safetensors files, one or sharded, with their `config.json` and tokenizer.
//!
//! [`Reader`] trusts nothing it reads and loads one tensor at a time; [`Writer`] streams tensors out and lets
//! the finished directory appear in one step; [`CheckpointWeights`] turns what a reader holds into layers.

mod header;
mod reader;
mod weights;
mod writer;

pub use reader::{Reader, TensorInfo};
pub use weights::{CheckpointWeights, WeightSource};
pub use writer::Writer;

/// The file of a checkpoint that is not sharded.
const SINGLE_FILE: &str = "model.safetensors";
/// Names the shard of every tensor of a sharded checkpoint.
const INDEX_FILE: &str = "model.safetensors.index.json";
