//! What is summed up over the windows of a text.

use super::divergence::{divergence, PositionDivergence};
use super::logits::{in_chunks, PIECE_POSITIONS};
use super::perplexity::{perplexity, TextScore};
use super::report::WindowScore;
use super::side::Side;
use crate::error::Result;

/// Scores of all windows read.
#[derive(Debug, Default)]
pub(super) struct Scores {
    /// Of the reference, and of the compressed model.
    pub(super) text: [TextScore; 2],
    pub(super) divergence: PositionDivergence,
    pub(super) windows: Vec<WindowScore>,
}

impl Scores {
    /// Lets both models read `window` piece by piece and scores every token but the first.
    pub(super) fn read(&mut self, sides: [&Side; 2], window: &[i64]) -> Result<()> {
        let (read, targets) = (&window[..window.len() - 1], &window[1..]);
        let [mut reference_reads, mut compressed_reads] = [sides[0].read(read)?, sides[1].read(read)?];
        let mut text = [TextScore::default(); 2];
        let mut apart = PositionDivergence::default();
        for (ids, targets) in read.chunks(PIECE_POSITIONS).zip(targets.chunks(PIECE_POSITIONS)) {
            let reference = reference_reads.next(ids)?;
            let compressed = compressed_reads.next(ids)?;
            in_chunks([&reference, &compressed], targets, |reference, compressed, targets| {
                text[0].add(perplexity(reference, targets)?);
                text[1].add(perplexity(compressed, targets)?);
                apart.append(divergence(reference, compressed)?);
                Ok(())
            })?;
        }
        self.add(text, apart);
        Ok(())
    }

    fn add(&mut self, text: [TextScore; 2], apart: PositionDivergence) {
        self.windows.push(WindowScore {
            tokens: text[0].tokens,
            perplexity_reference: text[0].perplexity(),
            perplexity_compressed: text[1].perplexity(),
            kl_mean: apart.summary().kl_mean,
        });
        self.text.iter_mut().zip(text).for_each(|(sum, text)| sum.add(text));
        self.divergence.append(apart);
    }
}
