//! What a model directory takes in memory once it is loaded, from its headers.

use std::path::Path;

use safetensors::Dtype;
use tch::Kind;

use super::container::{is_buffer, is_byte_bias, CHOICE_KEY};
use super::Reader;
use crate::codec::SourceDtype;
use crate::error::Result;

/// A model directory, before it is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LoadedBytes {
    /// Of all weights in memory.
    pub(crate) bytes: u64,
    /// Whether it holds compressed tensors.
    pub(crate) is_compressed: bool,
    /// Whether `lossless` was asked of `compress`.
    pub(crate) is_lossless: bool,
    /// What most of its matrices that are not compressed are in.
    pub(crate) dtype: Option<SourceDtype>,
}

/// What the weights of the model directory `dir` take when it is loaded to compute in `kind`: buffers as they are, everything else
/// converted. `tied`: whether the head shares the embedding's table.
pub(crate) fn loaded_bytes(dir: impl AsRef<Path>, kind: Kind, tied: bool) -> Result<LoadedBytes> {
    let reader = Reader::open(dir)?;
    let mut loaded = LoadedBytes { bytes: 0, is_compressed: false, is_lossless: false, dtype: None };
    let mut by_dtype = [0usize; 3];
    for name in reader.names().filter(|name| !is_unused(name, tied)) {
        let Some(info) = reader.info(name) else { continue };
        if is_buffer(name) || is_byte_bias(&reader, name) {
            loaded.is_compressed |= is_buffer(name);
            loaded.bytes += info.bytes as u64;
            continue;
        }
        let elements = info.shape.iter().product::<usize>();
        loaded.bytes += (elements * kind.elt_size_in_bytes()) as u64;
        if let (2, Some(at)) = (info.shape.len(), position(info.dtype)) {
            by_dtype[at] += elements;
        }
    }
    let most = (0..DTYPES.len()).max_by_key(|&at| by_dtype[at]).filter(|&at| by_dtype[at] > 0);
    loaded.dtype = most.map(|at| DTYPES[at].1);
    loaded.is_lossless = reader.metadata().get(CHOICE_KEY).is_some_and(|choice| choice == "lossless");
    Ok(loaded)
}

/// The dtypes of weights.
const DTYPES: [(Dtype, SourceDtype); 3] =
    [(Dtype::F32, SourceDtype::F32), (Dtype::F16, SourceDtype::F16), (Dtype::BF16, SourceDtype::BF16)];

fn position(dtype: Dtype) -> Option<usize> {
    DTYPES.iter().position(|(stored, _)| *stored == dtype)
}

/// What loading passes over: old checkpoints store the rotary frequencies, and some a second copy of a tied table.
pub(crate) fn is_unused(name: &str, tied: bool) -> bool {
    name.ends_with(".rotary_emb.inv_freq") || (tied && name.starts_with("lm_head.weight"))
}
