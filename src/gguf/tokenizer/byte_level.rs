//! Byte-level BPE (GGUF calls all of them `gpt2`): what a text is split into before the merges is named by `tokenizer.ggml.pre`.

use serde_json::{json, Map, Value as Json};

use super::{template, tokenizer_json, vocab, Around, Source, Tokenizer};
use crate::error::Result;
use crate::gguf::vocabulary::CURE;

const PRE: &str = "tokenizer.ggml.pre";
const MERGES: &str = "tokenizer.ggml.merges";

/// GPT-2's words: a contraction; letters, digits or others, each with a space before; spaces.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Llama 3's: contractions in any case, at most three digits, line ends with what is before them.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// What llama.cpp does where it is not told: punctuation first, GPT-2's words, digits by three.
const DEFAULT: [&str; 4] = [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"];

/// How one name splits.
struct Splitting {
    pre_tokenizer: Json,
    /// A word that is a token is one, whatever the merges say.
    ignore_merges: bool,
    /// Whether a text begins with `bos` where the file does not say.
    bos: bool,
    class: &'static str,
}

pub(super) fn read(source: &Source<'_>) -> Result<Tokenizer> {
    let metadata = source.metadata;
    let name = metadata.text(PRE)?;
    let splitting = match name {
        Some("smollm") => Splitting {
            pre_tokenizer: sequence(vec![
                json!({ "type": "Digits", "individual_digits": true }),
                byte_level(true),
            ]),
            ..gpt2()
        },
        Some("gpt-2") => gpt2(),
        Some("default") => Splitting {
            pre_tokenizer: sequence(DEFAULT.map(split).into_iter().chain([byte_level(false)]).collect()),
            ..gpt2()
        },
        Some("llama-bpe" | "llama3" | "llama-v3") => Splitting {
            pre_tokenizer: sequence(vec![split(LLAMA3), byte_level(false)]),
            ignore_merges: true,
            bos: true,
            class: "PreTrainedTokenizerFast",
        },
        other => {
            let wanted = format!("smollm, llama-bpe, gpt-2 or default, {CURE}");
            return Err(metadata.unsupported(PRE, other.unwrap_or("missing"), &wanted));
        }
    };
    if metadata.flag("tokenizer.ggml.add_space_prefix")? == Some(true) {
        let wanted = format!("false for a tokenizer of bytes, {CURE}");
        return Err(metadata.unsupported("tokenizer.ggml.add_space_prefix", true, &wanted));
    }
    let Some(merges) = metadata.texts(MERGES)? else {
        return Err(metadata.corrupt(
            MERGES,
            "missing",
            &format!("the pairs that a tokenizer of bytes joins, {CURE}"),
        ));
    };
    let around = template(source, Around { bos: splitting.bos, eos: false })?;
    let json = tokenizer_json(
        source,
        around,
        json!({
            "normalizer": null,
            "pre_tokenizer": splitting.pre_tokenizer,
            "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": null,
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": false,
                "byte_fallback": false,
                "ignore_merges": splitting.ignore_merges,
                "vocab": vocab(source.vocabulary),
                "merges": merges.iter().collect::<Vec<_>>(),
            },
        }),
    );
    let class = Map::from_iter([
        ("tokenizer_class".to_owned(), Json::from(splitting.class)),
        ("add_prefix_space".to_owned(), false.into()),
    ]);
    Ok(Tokenizer { name: format!("byte-level BPE, {}", name.unwrap_or_default()), json, class })
}

fn gpt2() -> Splitting {
    Splitting { pre_tokenizer: byte_level(true), ignore_merges: false, bos: false, class: "GPT2Tokenizer" }
}

/// Bytes as characters; `words` splits as GPT-2 does.
fn byte_level(words: bool) -> Json {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": words })
}

/// What matches and what lies between become pieces of their own.
fn split(pattern: &str) -> Json {
    json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false })
}

fn sequence(pre_tokenizers: Vec<Json>) -> Json {
    json!({ "type": "Sequence", "pretokenizers": pre_tokenizers })
}
