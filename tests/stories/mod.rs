//! Sequences that join a batch and leave it, each with tokens of its own.

/// The tokens of sequence `who`: its prompt is the first `prompt` of them.
#[derive(Clone, Copy)]
pub struct Story {
    pub who: usize,
    pub prompt: usize,
    /// In which step it joins, and how many it takes part in.
    pub joins: usize,
    pub steps: usize,
}

impl Story {
    pub fn tokens(&self, vocab: usize) -> Vec<u32> {
        (0..self.prompt + self.steps)
            .map(|i| ((i * i + 7 * i * self.who + 3 + self.who) % vocab) as u32)
            .collect()
    }
}

/// Prompts of one token to several pages, joining one after the other and leaving in another order.
pub fn stories(count: usize) -> Vec<Story> {
    let story = |who: usize| Story {
        who,
        prompt: [1, 40, 7, 70, 31, 32, 33, 2][who % 8],
        joins: who * 3 / 4,
        steps: 1 + (who * 5) % 9 + 20 * usize::from(who.is_multiple_of(5)),
    };
    (0..count).map(story).collect()
}
