//! Model architectures. They know layers, not files: weights come through
//! [`WeightSource`](crate::checkpoint::WeightSource).
//!
//! [`Llama`] is the one there is; see its example.

pub mod config;
mod fields;
pub mod llama;

pub use config::{LlamaConfig, RopeScaling};
pub use llama::{
    BatchScores, DecodeStep, KvCache, Llama, LogitsOf, Observer, PagedKvCache, PagedSequence, StepPart,
};
