//! From a model directory to text: loading, tokens, chat, sampling, generation, memory figures.
//!
//! [`Generator`] does all of it; see its example.

#[cfg(feature = "serve")]
mod cgroup;
mod chat;
mod continuation;
mod generate;
mod language;
mod load;
mod memory;
mod prompt;
mod sampler;
mod stop;
mod token_bytes;
mod tokenizer;

pub use chat::{ChatTemplate, Message};
pub use generate::{GenerateOptions, Generation, Generator, Piece};
pub(crate) use language::Language;
pub use load::{LoadOptions, Model};
pub use memory::{peak_rss_bytes, rss_bytes};
pub use prompt::Prompt;
pub use sampler::{Sampler, SamplerOptions};
pub use stop::{stop_tokens, StopReason, StopStrings};
pub use tokenizer::{TextStream, Tokenizer};
#[cfg(feature = "serve")]
pub(crate) use {
    continuation::{Continuation, Ending},
    memory::available_bytes,
    prompt::PromptLimits,
};
