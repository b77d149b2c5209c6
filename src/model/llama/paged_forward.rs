//! Passes over sequences of a paged cache: a piece of one prompt, or one token of each of several sequences.

use tch::{Device, Kind, TchError, Tensor};

use super::attention::{dot_product, Context};
use super::paged_cache::{Held, Slots};
use super::paged_graphs::PagedGraphs;
use super::step::Step;
use super::{BatchScores, Llama, LogitsOf, PagedKvCache, PagedSequence, GPU_PREFILL_TOKENS, PREFILL_TOKENS};
use crate::error::{Error, Result, TorchContext};

type Torch<T> = std::result::Result<T, TchError>;

impl Llama {
    /// Runs a piece `ids` of one sequence's prompt behind what it holds; the scores of its last position, one row.
    ///
    /// # Errors
    /// `InvalidArgument` for no token, one outside the vocabulary, more than fit the sequence, a sequence of another cache, or a
    /// cache for another model. The sequence holds no more than before then.
    pub fn prefill_paged(
        &self,
        ids: &[u32],
        sequence: &mut PagedSequence,
        cache: &mut PagedKvCache,
    ) -> Result<BatchScores> {
        let device = self.norm.device();
        cache.check_model(&self.config, device)?;
        cache.check_room(sequence, ids.len())?;
        let before = sequence.len();
        let ids = self.token_ids(ids, device)?.f_unsqueeze(0).about("token ids")?;
        let logits = self.prefill_pieces(&ids, sequence, cache);
        if logits.is_err() {
            sequence.truncate(before);
        }
        BatchScores::new(&logits?)
    }

    fn prefill_pieces(
        &self,
        ids: &Tensor,
        sequence: &mut PagedSequence,
        cache: &mut PagedKvCache,
    ) -> Result<Tensor> {
        let (seq, mut start) = (ids.numel() as i64, 0);
        let most = if ids.device().is_cuda() { GPU_PREFILL_TOKENS } else { PREFILL_TOKENS };
        loop {
            let length = (seq - start).min(most);
            let piece = ids.f_narrow(1, start, length).about("token ids")?;
            let hidden = self.embedding.try_forward(&piece)?;
            let at = (sequence.len(), length as usize);
            let step = Step::behind(&self.rope, at.0 as i64, &hidden, cache.kind())?;
            let mut context = PromptPiece {
                new: sequence.slots(at.0, at.1, hidden.device())?,
                all: sequence.held(at.0 + at.1, hidden.device())?,
                cache,
            };
            let hidden = self.through_layers(hidden, &step, &mut context)?;
            sequence.advance(at.1);
            start += length;
            if start == seq {
                return self.logits(&hidden, LogitsOf::Last);
            }
        }
    }

    /// One token of each of several sequences, each at its own length: one pass through the weights for all. A sequence's scores do
    /// not depend on the others as long as each linear's do not: on a CPU those of a compressed model with
    /// [`Llama::set_fused_rows`] of at least as many rows.
    ///
    /// # Errors
    /// `InvalidArgument` for no sequence or more than [`PagedKvCache::MOST_SEQUENCES`], another number of tokens, a token outside
    /// the vocabulary, a full sequence or one of another cache, or a cache for another model. The sequences hold no more than before
    /// then.
    pub fn decode_paged(
        &self,
        tokens: &[u32],
        sequences: &mut [&mut PagedSequence],
        cache: &mut PagedKvCache,
    ) -> Result<BatchScores> {
        let device = self.norm.device();
        cache.check_model(&self.config, device)?;
        let (rows, most) = (sequences.len(), PagedKvCache::MOST_SEQUENCES);
        if rows == 0 || rows > most || rows != tokens.len() {
            let message = format!(
                "{} tokens of {rows} sequences, wanted as many, 1 to {most} (PagedKvCache::MOST_SEQUENCES)",
                tokens.len()
            );
            return Err(Error::invalid("decoding step", message));
        }
        sequences.iter().try_for_each(|sequence| cache.check_room(sequence, 1))?;
        self.check_tokens(tokens)?;
        let scores = match PagedGraphs::fit(self, cache) {
            true => PagedGraphs::step(self, tokens, sequences, cache)?,
            false => self.decode_rows(tokens, sequences, cache)?,
        };
        sequences.iter_mut().for_each(|sequence| sequence.advance(1));
        Ok(scores)
    }

    /// Captures the decoding steps of up to `sequences` sequences, which else happens to the first of each number: on a GPU,
    /// where there are such.
    ///
    /// # Errors
    /// What compiling the kernels and the capture report.
    pub fn prepare_paged(&self, sequences: usize, cache: &mut PagedKvCache) -> Result<()> {
        cache.check_model(&self.config, self.norm.device())?;
        match PagedGraphs::fit(self, cache) {
            true => PagedGraphs::prepare(self, sequences, cache),
            false => Ok(()),
        }
    }

    /// A step by tensor operators.
    fn decode_rows(
        &self,
        tokens: &[u32],
        sequences: &[&mut PagedSequence],
        cache: &mut PagedKvCache,
    ) -> Result<BatchScores> {
        let device = self.norm.device();
        let ids = self.token_ids(tokens, device)?.f_unsqueeze(1).about("token ids")?;
        let hidden = self.embedding.try_forward(&ids)?;
        let positions: Vec<i64> = sequences.iter().map(|sequence| sequence.len() as i64).collect();
        let step = Step::rows(&self.rope, &positions, &hidden)?;
        let new: Vec<i64> = sequences.iter().map(|sequence| sequence.slot(sequence.len())).collect();
        let all = sequences.iter().map(|sequence| sequence.held(sequence.len() + 1, device));
        let mut context = Rows { new: Slots::any(&new, device)?, all: all.collect::<Result<_>>()?, cache };
        let hidden = self.through_layers(hidden, &step, &mut context)?;
        BatchScores::new(&self.logits(&hidden, LogitsOf::Last)?)
    }

    /// An error unless there are `ids`, all in the vocabulary.
    fn check_tokens(&self, ids: &[u32]) -> Result<()> {
        let vocab = self.config.vocab_size;
        if ids.is_empty() {
            return Err(Error::invalid("token ids", "are none, wanted at least one"));
        }
        match ids.iter().find(|&&id| id as usize >= vocab) {
            None => Ok(()),
            Some(id) => {
                let message = format!("{id}, wanted 0 to {} (vocab_size of the model)", vocab - 1);
                Err(Error::invalid("token ids", message))
            }
        }
    }

    /// `ids` as a tensor on `device`, at least one and all in the vocabulary.
    fn token_ids(&self, ids: &[u32], device: Device) -> Result<Tensor> {
        self.check_tokens(ids)?;
        let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        Tensor::f_from_slice(&ids).and_then(|ids| ids.f_to_device(device)).about("token ids")
    }
}

/// A piece of a sequence's prompt behind what its pages hold.
struct PromptPiece<'a> {
    cache: &'a mut PagedKvCache,
    /// Of the piece, and of all up to its end.
    new: Slots,
    all: Held,
}

impl Context for PromptPiece<'_> {
    fn kind(&self) -> Kind {
        self.cache.kind()
    }

    fn attend(&mut self, layer: usize, step: &Step, [query, key, value]: [&Tensor; 3]) -> Torch<Tensor> {
        self.cache.put(layer, &self.new, [&key.f_squeeze_dim(0)?, &value.f_squeeze_dim(0)?])?;
        let [keys, values] = self.cache.get(layer, &self.all)?;
        dot_product(query, [keys, values], step)
    }
}

/// One token of each of several sequences, behind what their pages hold.
struct Rows<'a> {
    cache: &'a mut PagedKvCache,
    /// Of the new tokens, and of each sequence up to its own.
    new: Slots,
    all: Vec<Held>,
}

impl Context for Rows<'_> {
    fn kind(&self) -> Kind {
        self.cache.kind()
    }

    /// Sequence by sequence, so that none meets another's numbers or length.
    fn attend(&mut self, layer: usize, step: &Step, [query, key, value]: [&Tensor; 3]) -> Torch<Tensor> {
        let [key, value] = [key, value].map(|rows| rows.f_squeeze_dim(2)?.f_transpose(0, 1));
        self.cache.put(layer, &self.new, [&key?, &value?])?;
        let mut attended = Vec::with_capacity(self.all.len());
        for (row, held) in self.all.iter().enumerate() {
            let held = self.cache.get(layer, held)?;
            attended.push(dot_product(&query.f_narrow(0, row as i64, 1)?, held, step)?);
        }
        Tensor::f_cat(&attended, 0)
    }
}
