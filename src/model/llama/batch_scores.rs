//! The scores of the next token, of the sequences of one step.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use tch::{Kind, TchError, Tensor};

use crate::error::{Error, Result, TorchContext};
use crate::ops::transformer::{argmax, Launcher};

/// Logits of one step, a row for each of its sequences in their order.
///
/// On a GPU those of [`Llama::decode_paged`](super::Llama::decode_paged) lie where the next decoding step with the same cache
/// writes: they are to be asked before.
///
/// Given by steps over a [`PagedKvCache`](super::PagedKvCache); see its example.
#[derive(Debug)]
pub struct BatchScores {
    /// `[rows, vocab]`.
    logits: Tensor,
    /// `[rows]`, `Int64`: the likeliest tokens where the step has found them, -1 where there is none.
    chosen: Option<Tensor>,
    freshness: Option<Freshness>,
}

/// Which of the steps that write to the same memory was the last, and which one this was.
#[derive(Debug)]
pub(super) struct Freshness {
    runs: Arc<AtomicU64>,
    run: u64,
}

impl Freshness {
    /// Of the step that was the `run`th of `runs`.
    pub(super) fn new(runs: Arc<AtomicU64>, run: u64) -> Self {
        Self { runs, run }
    }
}

impl BatchScores {
    /// `logits` are `[rows, 1, vocab]`, and nobody else's.
    pub(super) fn new(logits: &Tensor) -> Result<Self> {
        Ok(Self { logits: logits.f_squeeze_dim(1).about("logits")?, chosen: None, freshness: None })
    }

    /// `logits` `[rows, vocab]` and `chosen` `[rows]` where a captured step leaves them.
    pub(super) fn of_step(logits: Tensor, chosen: Tensor, freshness: Freshness) -> Self {
        Self { logits, chosen: Some(chosen), freshness: Some(freshness) }
    }

    /// Sequences that were in the step.
    pub fn rows(&self) -> usize {
        self.logits.size().first().map_or(0, |&rows| rows as usize)
    }

    /// The likeliest token of each sequence, the lowest of equals. Waits for the step.
    ///
    /// # Errors
    /// `Corrupt` where the logits of one have a NaN or no finite largest; `InvalidArgument` where another step has written over
    /// them.
    pub fn likeliest(&self) -> Result<Vec<u32>> {
        self.check_fresh()?;
        let tokens = match &self.chosen {
            Some(chosen) => Vec::try_from(chosen).about("token ids")?,
            None if self.kernel_takes() => Vec::try_from(&self.by_kernel()?).about("token ids")?,
            None => self.by_operators().about("logits")?,
        };
        let token = |(row, &token): (usize, &i64)| {
            u32::try_from(token).map_err(|_| {
                let message =
                    format!("of sequence {} have a NaN or no finite largest (weights damaged?)", row + 1);
                Error::corrupt("logits", message)
            })
        };
        tokens.iter().enumerate().map(token).collect()
    }

    /// The logits of the sequence in `row`, one for each token of the vocabulary. Waits for the step.
    ///
    /// # Errors
    /// `InvalidArgument` if there is no such row, or where another step has written over them.
    pub fn logits(&self, row: usize) -> Result<Vec<f32>> {
        self.check_fresh()?;
        if row >= self.rows() {
            let message = format!("{row}, wanted less than {} (sequences of the step)", self.rows());
            return Err(Error::invalid("row of scores", message));
        }
        let logits = self.logits.f_select(0, row as i64).and_then(|row| row.f_to_kind(Kind::Float));
        logits.and_then(Vec::try_from).about("logits")
    }

    fn check_fresh(&self) -> Result<()> {
        match &self.freshness {
            Some(Freshness { runs, run }) if runs.load(Ordering::Relaxed) != *run => Err(Error::invalid(
                "scores",
                "of a step that another has written over; ask before the next step",
            )),
            _ => Ok(()),
        }
    }

    fn kernel_takes(&self) -> bool {
        let kind = self.logits.kind();
        self.logits.device().is_cuda() && matches!(kind, Kind::Float | Kind::Half | Kind::BFloat16)
    }

    fn by_kernel(&self) -> Result<Tensor> {
        let launcher = Launcher::on(self.logits.device())?;
        let tokens = Tensor::f_empty([self.rows() as i64], (Kind::Int64, self.logits.device()));
        let tokens = tokens.about("token ids")?;
        argmax(&launcher, &self.logits, &tokens, None)?;
        Ok(tokens)
    }

    fn by_operators(&self) -> std::result::Result<Vec<i64>, TchError> {
        let (largest, tokens) = self.logits.f_max_dim(-1, false)?;
        let found = largest.f_isfinite()?;
        Vec::try_from(tokens.f_where_self(&found, &tokens.f_full_like(-1)?)?)
    }
}
