//! What the scheduler needs of a model: sequences in pages, pieces of prompts, and steps of many sequences.

use crate::error::Result;

/// A model whose sequences own pages of one pool.
pub(super) trait PagedModel {
    /// One request's pages and what they hold.
    type Sequence;
    /// The scores of one step's next tokens.
    type Scores: Scores;

    /// Tokens that a page has room for.
    fn page_tokens(&self) -> usize;

    /// All pages.
    fn pages(&self) -> usize;

    /// Pages that nobody has.
    fn free_pages(&self) -> usize;

    /// An empty sequence with room for `tokens` tokens; `None` if too few pages are free.
    fn sequence(&mut self, tokens: usize) -> Option<Self::Sequence>;

    /// Takes a sequence's pages back.
    fn release(&mut self, sequence: Self::Sequence);

    /// Puts `ids` behind what `sequence` holds; scores of one row, behind the last of them.
    fn prefill(&mut self, ids: &[u32], sequence: &mut Self::Sequence) -> Result<Self::Scores>;

    /// Puts one token behind what each sequence holds; scores of a row for each.
    fn decode(&mut self, tokens: &[u32], sequences: &mut [&mut Self::Sequence]) -> Result<Self::Scores>;
}

/// Scores of the next token, a row for each sequence.
pub(super) trait Scores {
    /// The likeliest token of each row.
    fn likeliest(&self) -> Result<Vec<u32>>;

    /// One logit for each token of the vocabulary.
    fn logits(&self, row: usize) -> Result<Vec<f32>>;
}
