//! Model directories on disk: safetensors files, one or sharded, with their `config.json` and tokenizer.
//!
//! [`Reader`] trusts nothing it reads and loads one tensor at a time; [`Writer`] streams tensors out and lets
//! the finished directory appear in one step; [`CheckpointWeights`] turns what a reader holds into layers.
//!
//! What is done with a whole directory begins with [`compress`](compress()); see its example.

mod budget_search;
mod calibrated;
mod compress;
mod container;
mod decompress;
mod files;
mod hash_beside;
mod header;
mod inspect;
mod loaded;
mod matrices;
mod partial;
mod reader;
mod selection;
mod snapshot;
mod stats;
mod verify;
mod weights;
mod writer;

pub use calibrated::{compress_calibrated, CalibrationGain};
pub use compress::{
    compress, CompressOptions, CompressReport, Progress, Target, TensorReport, UncodedReport,
};
pub use decompress::{decompress, decompress_from};
pub use inspect::{inspect, InspectReport, InspectTensor};
pub(crate) use loaded::{is_unused, loaded_bytes};
pub(crate) use matrices::{compress_matrices, MatrixToCompress};
pub use partial::remove_unfinished;
pub use reader::{Reader, TensorInfo};
pub(crate) use selection::PathFilter;
pub(crate) use snapshot::Snapshot;
pub(crate) use stats::PRESETS;
pub use stats::{bits_at_snr, stats, CurvePoint, StatsReport, StatsTensor, UnmetChoice};
pub use verify::{verify, VerifyReport};
pub use weights::{CheckpointWeights, WeightSource};
pub use writer::Writer;

/// The file of a checkpoint that is not sharded.
const SINGLE_FILE: &str = "model.safetensors";
/// Names the shard of every tensor of a sharded checkpoint.
const INDEX_FILE: &str = "model.safetensors.index.json";

/// Whether the model directory `dir` holds compressed tensors.
///
/// It does after [`compress`](compress()); see its example.
///
/// # Errors
/// What [`Reader::open`] reports.
pub fn is_compressed(dir: impl AsRef<std::path::Path>) -> crate::error::Result<bool> {
    let reader = Reader::open(dir)?;
    let found = reader.names().any(container::is_buffer);
    Ok(found)
}
