//! The scores of the next token, of the sequences of one step.

use tch::{Kind, TchError, Tensor};

use crate::error::{Error, Result, TorchContext};

/// Logits of one step, a row for each of its sequences in their order.
#[derive(Debug)]
pub struct BatchScores {
    /// `[rows, vocab]`.
    logits: Tensor,
}

impl BatchScores {
    /// `logits` are `[rows, 1, vocab]`.
    pub(super) fn new(logits: &Tensor) -> Result<Self> {
        Ok(Self { logits: logits.f_squeeze_dim(1).about("logits")? })
    }

    /// Sequences that were in the step.
    pub fn rows(&self) -> usize {
        self.logits.size().first().map_or(0, |&rows| rows as usize)
    }

    /// The likeliest token of each sequence, the lowest of equals.
    ///
    /// # Errors
    /// `Corrupt` where the logits of one have a NaN or no finite largest.
    pub fn likeliest(&self) -> Result<Vec<u32>> {
        let find = || -> std::result::Result<Vec<i64>, TchError> {
            let (largest, tokens) = self.logits.f_max_dim(-1, false)?;
            let found = largest.f_isfinite()?;
            Vec::try_from(tokens.f_where_self(&found, &tokens.f_full_like(-1)?)?)
        };
        let tokens = find().about("logits")?;
        let token = |(row, &token): (usize, &i64)| {
            u32::try_from(token).map_err(|_| {
                let message =
                    format!("of sequence {} have a NaN or no finite largest (weights damaged?)", row + 1);
                Error::corrupt("logits", message)
            })
        };
        tokens.iter().enumerate().map(token).collect()
    }

    /// The logits of the sequence in `row`, one for each token of the vocabulary.
    ///
    /// # Errors
    /// `InvalidArgument` if there is no such row.
    pub fn logits(&self, row: usize) -> Result<Vec<f32>> {
        if row >= self.rows() {
            let message = format!("{row}, wanted less than {} (sequences of the step)", self.rows());
            return Err(Error::invalid("row of scores", message));
        }
        let logits = self.logits.f_select(0, row as i64).and_then(|row| row.f_to_kind(Kind::Float));
        logits.and_then(Vec::try_from).about("logits")
    }
}
