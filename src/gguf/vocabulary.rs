//! The tokens of a GGUF, their kinds, and those with a role.

use std::collections::HashSet;

use super::metadata::Metadata;
use super::value::{Number, Texts, Value};
use crate::error::Result;

pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
/// No tokenizer's is as long; finding a piece's merges takes time with its square.
const MOST_TOKEN_BYTES: usize = 512;
/// What `--tokenizer` can do about it.
pub(super) const CURE: &str = "or give the model's tokenizer.json with --tokenizer FILE";

/// GGUF's kinds of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenKind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl TokenKind {
    fn from_number(number: Number) -> Option<Self> {
        let Number::Integer(id) = number else { return None };
        Some(match id {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}

/// The tokens with a role.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SpecialIds {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub unknown: Option<u32>,
    pub pad: Option<u32>,
    pub end_of_turn: Option<u32>,
    pub end_of_message: Option<u32>,
}

impl SpecialIds {
    /// By the file's keys; each is less than `tokens`.
    pub fn read(metadata: &Metadata, tokens: usize) -> Result<Self> {
        let id = |role: &str| -> Result<Option<u32>> {
            let key = format!("tokenizer.ggml.{role}_token_id");
            let wanted = format!("less than {tokens}, the number of tokens");
            match metadata.get(&key) {
                None => Ok(None),
                Some(Value::Number(Number::Integer(id))) => match u32::try_from(*id) {
                    Ok(id) if (id as usize) < tokens => Ok(Some(id)),
                    // A role that nobody has.
                    _ if *id == -1 || *id == i128::from(u32::MAX) => Ok(None),
                    _ => Err(metadata.corrupt(&key, id, &wanted)),
                },
                Some(other) => Err(metadata.corrupt(&key, other, &wanted)),
            }
        };
        Ok(Self {
            bos: id("bos")?,
            eos: id("eos")?,
            unknown: id("unknown")?,
            pad: id("padding")?,
            end_of_turn: id("eot")?,
            end_of_message: id("eom")?,
        })
    }
}

/// All tokens.
#[derive(Debug)]
pub(super) struct Vocabulary<'a> {
    tokens: &'a Texts,
    kinds: Vec<TokenKind>,
}

impl<'a> Vocabulary<'a> {
    /// From the file's keys; none where the file has no tokens.
    pub fn read(metadata: &'a Metadata, vocab_size: usize) -> Result<Option<Self>> {
        let Some(tokens) = metadata.texts(TOKENS)? else { return Ok(None) };
        if tokens.len() == 0 || tokens.len() > vocab_size {
            let wanted = format!("1 to {vocab_size}, a row of token_embd.weight for each");
            return Err(metadata.corrupt(TOKENS, format!("{} tokens", tokens.len()), &wanted));
        }
        let kinds = read_kinds(metadata, tokens.len())?;
        let vocabulary = Self { tokens, kinds };
        vocabulary.check(metadata)?;
        Ok(Some(vocabulary))
    }

    fn check(&self, metadata: &Metadata) -> Result<()> {
        let mut seen = HashSet::new();
        for (id, token) in self.tokens.iter().enumerate() {
            if token.len() > MOST_TOKEN_BYTES {
                let got = format!("a token of {} bytes at {id}", token.len());
                return Err(metadata.corrupt(TOKENS, got, &format!("at most {MOST_TOKEN_BYTES} bytes")));
            }
            if !seen.insert(token) {
                return Err(metadata.corrupt(
                    TOKENS,
                    format!("{token:?} twice, again at {id}"),
                    "each token once",
                ));
            }
        }
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    pub fn text(&self, id: u32) -> Option<&'a str> {
        self.tokens.get(id as usize)
    }

    /// Id, text and kind of each token.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &'a str, TokenKind)> + '_ {
        self.tokens.iter().zip(&self.kinds).enumerate().map(|(id, (text, kind))| (id as u32, text, *kind))
    }

    /// The id of the token spelled `text`.
    pub fn id(&self, text: &str) -> Option<u32> {
        self.iter().find(|(_, token, _)| *token == text).map(|(id, ..)| id)
    }
}

fn read_kinds(metadata: &Metadata, tokens: usize) -> Result<Vec<TokenKind>> {
    let wanted = format!("a number from 1 to 6 for each of {tokens} tokens");
    let Some(numbers) = metadata.numbers(TYPES)? else {
        return Err(metadata.corrupt(TYPES, "missing", &format!("{wanted}; get a newer file, {CURE}")));
    };
    let count = numbers.len();
    let kinds = || numbers.map(|number| TokenKind::from_number(number?)).collect();
    (count == tokens)
        .then(kinds)
        .flatten()
        .ok_or_else(|| metadata.corrupt(TYPES, format!("an array of {count} numbers"), &wanted))
}
