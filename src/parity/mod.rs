//! What compression changes of a model's answers: perplexity, divergence, agreement, the layer that goes wrong first, and those
//! that are wrong by themselves.
//!
//! Both models read the same windows of the same text. The reference defines the distribution: every divergence is
//! `KL(reference || compressed)`, in nats, of FP32 log-probabilities, summed in FP64. Both models are in memory, and
//! beside them the logits of a few hundred positions, however long the text is.
//!
//! [`compare`] does all of it; see its example.

mod charts;
mod divergence;
mod figures;
mod greedy;
mod html;
mod layers;
mod logits;
mod perplexity;
mod report;
mod scores;
mod side;
mod text;

pub use divergence::{divergence, Divergence, PositionDivergence};
pub use greedy::{FirstDivergence, GreedyAgreement};
pub use layers::{conspicuous, steepest, LayerError};
pub use perplexity::{perplexity, TextScore};
pub use report::{compare, Options, Progress, Report, WindowScore};
pub(crate) use text::Text;

/// Tokens of a window where the caller names no number and the model allows that many.
///
/// What [`compare`] takes unless told otherwise; see its example.
pub const DEFAULT_WINDOW: usize = 512;
