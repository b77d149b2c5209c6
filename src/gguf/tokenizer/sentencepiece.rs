//! SentencePiece's BPE, as Llama 2 has it: pieces with scores instead of merges, spaces as a visible mark, bytes as a last resort.

use std::cmp::Reverse;
use std::collections::HashMap;

use serde_json::{json, Map, Value as Json};

use super::{template, tokenizer_json, vocab, Around, Source, Tokenizer};
use crate::error::{Error, Result};
use crate::gguf::value::Number;
use crate::gguf::vocabulary::{TokenKind, CURE, TOKENS};

const SCORES: &str = "tokenizer.ggml.scores";
/// Most bytes that all merges may take together, [`PAIR_BYTES`] each and their text: 28 times what those of Llama 2's 32,000 tokens do,
/// and not much more than those of 512 tokens that are each other's parts.
const MOST_MERGE_BYTES: usize = 64 << 20;
/// What a merge takes beside its text, at least.
const PAIR_BYTES: usize = 32;
/// SentencePiece's visible space.
const MARK: &str = "\u{2581}";

pub(super) fn read(source: &Source<'_>) -> Result<Tokenizer> {
    let (metadata, vocabulary) = (source.metadata, source.vocabulary);
    let scores = read_scores(source)?;
    // Where the file does not say: what llama.cpp takes, which is Llama 2's.
    let prefix = metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let around = template(source, Around { bos: true, eos: false })?;
    let unknown = unknown_token(source)?;
    let merges = merges(source, &scores)?;
    let json = tokenizer_json(
        source,
        around,
        json!({
            "normalizer": normalizer(prefix),
            "pre_tokenizer": null,
            "decoder": decoder(prefix),
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": unknown,
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": true,
                "byte_fallback": true,
                "ignore_merges": false,
                "vocab": vocab(vocabulary),
                "merges": merges,
            },
        }),
    );
    let class = Map::from_iter([
        ("tokenizer_class".to_owned(), Json::from("LlamaTokenizer")),
        ("add_bos_token".to_owned(), metadata.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(true).into()),
        ("add_eos_token".to_owned(), metadata.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false).into()),
        ("add_prefix_space".to_owned(), prefix.into()),
        ("legacy".to_owned(), true.into()),
    ]);
    Ok(Tokenizer { name: "SentencePiece BPE".to_owned(), json, class })
}

fn read_scores(source: &Source<'_>) -> Result<Vec<f64>> {
    let (metadata, tokens) = (source.metadata, source.vocabulary.len());
    let wanted = format!("a number for each of {tokens} tokens, {CURE}");
    let Some(numbers) = metadata.numbers(SCORES)? else {
        return Err(metadata.corrupt(SCORES, "missing", &wanted));
    };
    let count = numbers.len();
    let score = |number| match number {
        Some(Number::Float(score)) if !score.is_nan() => Some(score),
        _ => None,
    };
    let scores = || numbers.map(score).collect();
    (count == tokens)
        .then(scores)
        .flatten()
        .ok_or_else(|| metadata.corrupt(SCORES, format!("an array of {count} numbers"), &wanted))
}

fn unknown_token<'a>(source: &Source<'a>) -> Result<&'a str> {
    let vocabulary = source.vocabulary;
    let by_kind = || vocabulary.iter().find(|(_, _, kind)| *kind == TokenKind::Unknown).map(|(id, ..)| id);
    source.ids.unknown.or_else(by_kind).and_then(|id| vocabulary.text(id)).ok_or_else(|| {
        let wanted = format!("the token of what is in no other, {CURE}");
        source.metadata.corrupt("tokenizer.ggml.unknown_token_id", "missing", &wanted)
    })
}

/// The merges that act like the scores: each way to make a piece of two, best score first. Ways that the scores do not tell apart come in
/// the order of the piece, then of its parts.
fn merges<'a>(source: &Source<'a>, scores: &[f64]) -> Result<Vec<[&'a str; 2]>> {
    let vocabulary = source.vocabulary;
    // Only these are made of parts: bytes stand for what is in no piece, the others are found before a text is split.
    let pieces: HashMap<&'a str, u32> = (vocabulary.iter())
        .filter(|(_, _, kind)| *kind == TokenKind::Normal)
        .map(|(id, text, _)| (text, id))
        .collect();
    let (mut found, mut bytes) = (Vec::new(), 0);
    for (&piece, &id) in &pieces {
        for (cut, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(cut);
            if let (Some(&l), Some(&r)) = (pieces.get(left), pieces.get(right)) {
                let score = scores.get(id as usize).copied().unwrap_or(f64::NEG_INFINITY);
                found.push((Reverse(Score(score)), id, l, r, [left, right]));
                bytes += PAIR_BYTES + piece.len();
            }
        }
        if bytes > MOST_MERGE_BYTES {
            return Err(too_many_merges(source));
        }
    }
    found.sort_unstable();
    Ok(found.into_iter().map(|(.., pair)| pair).collect())
}

fn too_many_merges(source: &Source<'_>) -> Error {
    let got = format!(
        "{} tokens with more than {MOST_MERGE_BYTES} bytes of ways to join them",
        source.vocabulary.len()
    );
    let wanted = format!("less than that, as real vocabularies have, {CURE}");
    source.metadata.unsupported(TOKENS, got, &wanted)
}

/// A score in its order; none is NaN.
#[derive(Clone, Copy, Debug)]
struct Score(f64);

impl Ord for Score {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // 0.0 and -0.0 are the same score.
        (self.0 + 0.0).total_cmp(&(other.0 + 0.0))
    }
}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Score {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Score {}

fn normalizer(prefix: bool) -> Json {
    let spaces = json!({ "type": "Replace", "pattern": { "String": " " }, "content": MARK });
    match prefix {
        true => {
            json!({ "type": "Sequence", "normalizers": [{ "type": "Prepend", "prepend": MARK }, spaces] })
        }
        false => spaces,
    }
}

fn decoder(prefix: bool) -> Json {
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": MARK }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if prefix {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    json!({ "type": "Sequence", "decoders": decoders })
}
