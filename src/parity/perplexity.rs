//! How well a model predicts a text.

use serde::Serialize;
use tch::{Kind, TchError, Tensor};

use crate::error::{Result, TorchContext};

/// The sum of a text's negative log-likelihoods.
///
/// ```
/// use codecllm::parity::{perplexity, TextScore};
/// use tch::Tensor;
/// // Two tokens of probability 1/4 and 1/16: the geometric mean is 1/8.
/// let mut score = TextScore { nats: 4f64.ln() + 16f64.ln(), tokens: 2 };
/// assert!((score.perplexity() - 8.0).abs() < 1e-12);
/// // Of a model that gives the token of one position half.
/// let log_probabilities = Tensor::from_slice(&[0.5f32, 0.25, 0.25]).log().view([1, 3]);
/// score.add(perplexity(&log_probabilities, &Tensor::from_slice(&[0i64]))?);
/// assert!((score.tokens, score.perplexity().round()) == (3, 5.0)); // the cube root of 128
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct TextScore {
    /// Negative log-likelihood of all tokens together, nats.
    pub nats: f64,
    /// Tokens that were predicted.
    pub tokens: usize,
}

impl TextScore {
    /// `exp` of the mean negative log-likelihood; NaN without tokens.
    pub fn perplexity(&self) -> f64 {
        (self.nats / self.tokens as f64).exp()
    }

    /// Adds the score of more text.
    pub fn add(&mut self, other: Self) {
        self.nats += other.nats;
        self.tokens += other.tokens;
    }
}

/// Scores `targets` `[positions]` (`Int64`) under log-probabilities `[positions, vocab]`.
///
/// Gives a [`TextScore`]; see its example.
pub fn perplexity(log_probabilities: &Tensor, targets: &Tensor) -> Result<TextScore> {
    let nats = gather_sum(log_probabilities, targets).about("log-probabilities")?;
    Ok(TextScore { nats: -nats, tokens: targets.numel() })
}

fn gather_sum(log_probabilities: &Tensor, targets: &Tensor) -> std::result::Result<f64, TchError> {
    let chosen = log_probabilities.f_gather(-1, &targets.f_unsqueeze(-1)?, false)?;
    chosen.f_sum(Kind::Double)?.f_double_value(&[])
}
