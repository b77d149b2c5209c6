//! A model that is a formula: the next token follows from all tokens before it, so that a mixed-up row shows.

use std::sync::{Arc, Mutex};

use super::super::paged_model::{PagedModel, Scores};
use super::{LETTERS, STOP};
use crate::error::{Error, ErrorKind, Result};

/// What the engine asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// So many tokens of the prompt that begins with this letter, behind so many others.
    Piece(char, usize, usize),
    /// A step of the sequences that begin with these letters.
    Step(String),
}

/// What is to go wrong, and what happened.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) calls: Vec<Call>,
    /// Rows of logits that were fetched.
    pub(super) rows_fetched: usize,
    /// Sequences that begin with this letter fail the step or piece they are in.
    pub(super) failing: Option<char>,
    /// How they fail; as damaged where none is said.
    pub(super) failing_as: Option<ErrorKind>,
    /// The same, with a panic.
    pub(super) panicking: Option<char>,
    /// Their scores are NaN.
    pub(super) damaged: Option<char>,
    /// They choose the stop token at this length.
    pub(super) stopping: Option<(char, usize)>,
}

pub(super) type ScriptHandle = Arc<Mutex<Plan>>;

#[derive(Debug)]
pub(super) struct Script {
    pages: usize,
    free: usize,
    page_tokens: usize,
    plan: ScriptHandle,
}

#[derive(Debug)]
pub(super) struct ScriptSequence {
    tokens: Vec<u32>,
    capacity: usize,
    pages: usize,
}

#[derive(Debug)]
pub(super) struct ScriptScores {
    rows: Vec<Vec<f32>>,
    plan: ScriptHandle,
}

/// The token behind `tokens`.
pub(super) fn next_token(tokens: &[u32]) -> u32 {
    tokens.iter().fold(7u32, |hash, token| hash.wrapping_mul(31).wrapping_add(token + 1)) / 7 % LETTERS
}

impl Script {
    pub(super) fn new(pages: usize, page_tokens: usize) -> (Self, ScriptHandle) {
        let plan = ScriptHandle::default();
        (Self { pages, free: pages, page_tokens, plan: plan.clone() }, plan)
    }

    fn scores(&self, sequences: &[&ScriptSequence]) -> Result<ScriptScores> {
        let plan = self.plan.lock().unwrap();
        let mut rows = Vec::new();
        for sequence in sequences {
            let name = sequence.name();
            if plan.failing == Some(name) {
                let kind = plan.failing_as.unwrap_or(ErrorKind::Corrupt);
                return Err(Error::new(kind, "script", format!("{name} fails as planned")));
            }
            assert!(plan.panicking != Some(name), "{name} panics as planned");
            let mut row: Vec<f32> = (0..=LETTERS).map(|token| -0.01 * token as f32).collect();
            let stops = plan.stopping == Some((name, sequence.tokens.len()));
            let next = if stops { STOP } else { next_token(&sequence.tokens) };
            row[next as usize] = if plan.damaged == Some(name) { f32::NAN } else { 3.0 };
            rows.push(row);
        }
        Ok(ScriptScores { rows, plan: self.plan.clone() })
    }
}

impl ScriptSequence {
    /// The letter it begins with.
    fn name(&self) -> char {
        char::from(b'a' + self.tokens[0] as u8)
    }

    fn push(&mut self, ids: &[u32]) {
        self.tokens.extend(ids);
        assert!(self.tokens.len() <= self.capacity, "more tokens than pages were taken for");
    }
}

impl PagedModel for Script {
    type Sequence = ScriptSequence;
    type Scores = ScriptScores;

    fn page_tokens(&self) -> usize {
        self.page_tokens
    }

    fn pages(&self) -> usize {
        self.pages
    }

    fn free_pages(&self) -> usize {
        self.free
    }

    fn sequence(&mut self, tokens: usize) -> Option<ScriptSequence> {
        let pages = tokens.div_ceil(self.page_tokens);
        self.free = self.free.checked_sub(pages)?;
        Some(ScriptSequence { tokens: Vec::new(), capacity: tokens, pages })
    }

    fn release(&mut self, sequence: ScriptSequence) {
        self.free += sequence.pages;
    }

    fn prefill(&mut self, ids: &[u32], sequence: &mut ScriptSequence) -> Result<ScriptScores> {
        let held = sequence.tokens.len();
        sequence.push(ids);
        self.plan.lock().unwrap().calls.push(Call::Piece(sequence.name(), held, ids.len()));
        self.scores(&[sequence])
    }

    fn decode(&mut self, tokens: &[u32], sequences: &mut [&mut ScriptSequence]) -> Result<ScriptScores> {
        assert_eq!(tokens.len(), sequences.len());
        sequences.iter_mut().zip(tokens).for_each(|(sequence, &token)| sequence.push(&[token]));
        let names = sequences.iter().map(|sequence| sequence.name()).collect();
        self.plan.lock().unwrap().calls.push(Call::Step(names));
        let sequences: Vec<_> = sequences.iter().map(|sequence| &**sequence).collect();
        self.scores(&sequences)
    }
}

impl Scores for ScriptScores {
    fn likeliest(&self) -> Result<Vec<u32>> {
        let likeliest = |row: &Vec<f32>| {
            let found = row.iter().position(|&logit| logit == 3.0).map(|at| at as u32);
            found.ok_or_else(|| Error::corrupt("logits", "have a NaN"))
        };
        self.rows.iter().map(likeliest).collect()
    }

    fn logits(&self, row: usize) -> Result<Vec<f32>> {
        self.plan.lock().unwrap().rows_fetched += 1;
        Ok(self.rows[row].clone())
    }
}
