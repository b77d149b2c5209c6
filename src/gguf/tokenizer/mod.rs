//! GGUF's tokenizer to `tokenizer.json` and `tokenizer_config.json`.

mod byte_level;
mod sentencepiece;

use serde_json::{json, Map, Value as Json};

use super::metadata::Metadata;
use super::vocabulary::{SpecialIds, TokenKind, Vocabulary, CURE};
use crate::error::{Error, Result};

const MODEL: &str = "tokenizer.ggml.model";
const CHAT_TEMPLATE: &str = "tokenizer.chat_template";
/// Keys that are read here, or that say nothing about how a text is split. Token ids have keys of their own.
const KNOWN: [&str; 9] = [
    "add_bos_token",
    "add_eos_token",
    "add_space_prefix",
    "merges",
    "model",
    "pre",
    "scores",
    "token_type",
    "tokens",
];
/// Settings of tokenizers that no Llama has, harmless when off.
const MUST_BE_OFF: [&str; 2] = ["add_sep_token", "remove_extra_whitespaces"];

/// What the two files are made of.
#[derive(Debug)]
pub(super) struct Source<'a> {
    pub metadata: &'a Metadata,
    pub vocabulary: &'a Vocabulary<'a>,
    pub ids: SpecialIds,
}

/// A tokenizer of the file, in Hugging Face's terms.
#[derive(Debug)]
pub(super) struct Tokenizer {
    /// How it splits, for reports.
    pub name: String,
    /// `tokenizer.json`.
    pub json: Json,
    /// What `tokenizer_config.json` says of this kind.
    pub class: Map<String, Json>,
}

impl Tokenizer {
    /// From the file's keys; what cannot be said in a `tokenizer.json` is an error.
    pub fn read(source: &Source<'_>) -> Result<Self> {
        let metadata = source.metadata;
        check_known(metadata)?;
        match metadata.text(MODEL)? {
            Some("gpt2") => byte_level::read(source),
            Some("llama") => sentencepiece::read(source),
            other => {
                let wanted = format!("\"gpt2\" or \"llama\", {CURE}");
                Err(metadata.unsupported(MODEL, format!("{other:?}"), &wanted))
            }
        }
    }
}

fn check_known(metadata: &Metadata) -> Result<()> {
    for key in metadata.keys() {
        let Some(name) = key.strip_prefix("tokenizer.ggml.") else { continue };
        let known = KNOWN.contains(&name) || name.ends_with("_token_id") || name == "token_type_count";
        if MUST_BE_OFF.contains(&name) && metadata.flag(key)? != Some(true) {
            continue;
        }
        if let (false, Some(value)) = (known, metadata.get(key)) {
            return Err(metadata.unsupported(key, value, &format!("no such key, {CURE}")));
        }
    }
    Ok(())
}

/// `tokenizer.json` but for what the kinds do differently: the parts in `kind` are added.
fn tokenizer_json(source: &Source<'_>, post_processor: Json, kind: Json) -> Json {
    let mut tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens(source.vocabulary),
        "post_processor": post_processor,
    });
    if let (Some(tokenizer), Json::Object(kind)) = (tokenizer.as_object_mut(), kind) {
        tokenizer.extend(kind);
    }
    tokenizer
}

/// Tokens that are found in a text before it is split: they are spelled as they are, and none is made of parts.
fn added_tokens(vocabulary: &Vocabulary<'_>) -> Vec<Json> {
    let is_special = |kind| match kind {
        TokenKind::Control | TokenKind::Unknown => Some(true),
        TokenKind::UserDefined => Some(false),
        TokenKind::Normal | TokenKind::Unused | TokenKind::Byte => None,
    };
    vocabulary
        .iter()
        .filter_map(|(id, text, kind)| {
            Some(json!({
                "id": id,
                "content": text,
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": false,
                "special": is_special(kind)?,
            }))
        })
        .collect()
}

/// Token to id.
fn vocab(vocabulary: &Vocabulary<'_>) -> Map<String, Json> {
    vocabulary.iter().map(|(id, text, _)| (text.to_owned(), Json::from(id))).collect()
}

/// Puts the first and the last token around a text, where the file says so or, if it says nothing, `default` does.
fn template(source: &Source<'_>, default: Around) -> Result<Json> {
    let flag = |name: &str, default| -> Result<bool> {
        Ok(source.metadata.flag(&format!("tokenizer.ggml.add_{name}_token"))?.unwrap_or(default))
    };
    let token = |name: &str, id: Option<u32>, wanted: bool| -> Result<Option<(u32, String)>> {
        let text = id.and_then(|id| Some((id, source.vocabulary.text(id)?.to_owned())));
        match (wanted, text) {
            (false, _) => Ok(None),
            (true, Some(token)) => Ok(Some(token)),
            (true, None) => {
                let key = format!("tokenizer.ggml.{name}_token_id");
                Err(source.metadata.corrupt(
                    &key,
                    "missing",
                    &format!("the token to add around a text, {CURE}"),
                ))
            }
        }
    };
    let first = token("bos", source.ids.bos, flag("bos", default.bos)?)?;
    let last = token("eos", source.ids.eos, flag("eos", default.eos)?)?;
    if first.is_none() && last.is_none() {
        return Ok(Json::Null);
    }
    let around = |sequence: &str, type_id: u32| -> Vec<Json> {
        let special = |token: &Option<(u32, String)>| {
            token.as_ref().map(|(_, text)| part("SpecialToken", text, type_id))
        };
        [special(&first), Some(part("Sequence", sequence, type_id)), special(&last)]
            .into_iter()
            .flatten()
            .collect()
    };
    let pair = [around("A", 0), around("B", 1)].concat();
    let tokens: Map<String, Json> = [&first, &last]
        .into_iter()
        .flatten()
        .map(|(id, text)| (text.clone(), json!({ "id": text, "ids": [id], "tokens": [text] })))
        .collect();
    Ok(json!({
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": pair,
        "special_tokens": tokens,
    }))
}

fn part(kind: &str, id: &str, type_id: u32) -> Json {
    json!({ (kind): { "id": id, "type_id": type_id } })
}

/// Which tokens stand around a text.
#[derive(Clone, Copy, Debug)]
struct Around {
    bos: bool,
    eos: bool,
}

/// `tokenizer_config.json`: `class` is what the kind of tokenizer says, the rest comes from the file's keys.
pub(super) fn tokenizer_config(
    metadata: &Metadata,
    class: Map<String, Json>,
    vocabulary: Option<&Vocabulary<'_>>,
    ids: SpecialIds,
    context: usize,
) -> Result<Json> {
    let mut config = class;
    let roles =
        [("bos_token", ids.bos), ("eos_token", ids.eos), ("pad_token", ids.pad), ("unk_token", ids.unknown)];
    for (role, id) in roles {
        if let Some(text) = id.zip(vocabulary).and_then(|(id, vocabulary)| vocabulary.text(id)) {
            config.insert(role.to_owned(), text.into());
        }
    }
    config.insert("clean_up_tokenization_spaces".to_owned(), false.into());
    config.insert("model_max_length".to_owned(), context.into());
    if let Some(template) = chat_template(metadata)? {
        config.insert("chat_template".to_owned(), template);
    }
    Ok(Json::Object(config))
}

/// The file's template; with others beside it that have names, a list of all.
fn chat_template(metadata: &Metadata) -> Result<Option<Json>> {
    let default = metadata.text(CHAT_TEMPLATE)?;
    let mut named = Vec::new();
    for key in metadata.keys() {
        if let Some(name) = key.strip_prefix(CHAT_TEMPLATE).and_then(|rest| rest.strip_prefix('.')) {
            named.push(json!({ "name": name, "template": metadata.text(key)? }));
        }
    }
    if named.is_empty() {
        return Ok(default.map(Json::from));
    }
    if let Some(default) = default {
        named.insert(0, json!({ "name": "default", "template": default }));
    }
    Ok(Some(named.into()))
}

/// The text of a `tokenizer.json` that its users can load, checked by loading it.
pub(super) fn checked_text(path: &str, tokenizer: &Json) -> Result<String> {
    let text = tokenizer.to_string();
    crate::runtime::Tokenizer::from_bytes(text.as_bytes(), path).map_err(|e| {
        Error::corrupt(
            path,
            format!("the keys tokenizer.ggml.* make no tokenizer ({e}); get the file anew, {CURE}"),
        )
    })?;
    Ok(text)
}
