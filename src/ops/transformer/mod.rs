//! What a decoding step on the GPU does beside its linears: one kernel each, on tensors allocated before.
//!
//! Nothing here allocates, waits or asks the device, so that a step can be captured. Every function checks the tensors it is
//! given: the kernels trust their sizes.

mod argmax;
mod attention;
mod embedding;
mod launcher;
mod pages;
mod rms_norm;
mod rope_cache;
mod swiglu;
#[cfg(test)]
mod tests;

pub(crate) use argmax::argmax;
pub(crate) use attention::{attention, takes_head, AttentionScratch};
pub(crate) use embedding::embedding;
pub(crate) use launcher::{by_kind, Launcher};
pub(crate) use pages::{CachePlanes, PageTable};
pub(crate) use rms_norm::rms_norm;
pub(crate) use rope_cache::{rope_angles, rope_cache};
pub(crate) use swiglu::swiglu;

use tch::Kind;

use self::attention::attention_source;
use crate::cuda::{kernels, Source};
use crate::error::Result;

/// The modules that a step of a model with these heads (`[heads, kv_heads, head_dim]`) needs in dtype `kind`, to be compiled at
/// once.
pub(crate) fn sources(kind: Kind, heads: [i64; 3]) -> Result<[&'static Source; 6]> {
    Ok([
        attention_source(kind, heads)?,
        &kernels::ARGMAX,
        &kernels::EMBEDDING,
        &kernels::RMS_NORM,
        &kernels::ROPE_CACHE,
        &kernels::SWIGLU,
    ])
}
