//! GGUF's keys `llama.*` to `config.json`. A key that is not known could change the maths: it is refused by name.

use serde_json::{json, Value as Json};
use tch::Kind;

use super::metadata::Metadata;
use super::rope::RopeScaling;
use super::tensors::Biases;
use super::value::{Number, Value};
use super::vocabulary::SpecialIds;
use crate::error::{Error, Result};

/// The only architecture there is a `config.json` for.
const ARCHITECTURE: &str = "llama";
/// What is read of `llama.*`, here and in [`RopeScaling`].
const READ: [&str; 15] = [
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.factor",
    "rope.scaling.type",
    "vocab_size",
];
/// What may be there as long as it says the ordinary thing.
const NEUTRAL: [(&str, &[Number]); 6] = [
    ("attention.causal", &[Number::Bool(true)]),
    ("attention.sliding_window", &[Number::Integer(0)]),
    ("expert_count", &[Number::Integer(0)]),
    ("expert_used_count", &[Number::Integer(0)]),
    ("rope.scaling.attn_factor", &[Number::Float(1.0), Number::Float(0.0)]),
    ("use_parallel_residual", &[Number::Bool(false)]),
];
/// What says nothing about the maths of a Llama at the context it was made for.
const IGNORED: [&str; 2] = ["rope.scaling.finetuned", "rope.scaling.original_context_length"];
const LAYOUT_KEY: &str = "tensor_data_layout";
/// The order of rows that is undone for queries and keys.
const LAYOUT: &str = "Meta AI original pth";

/// The shape of a model.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub layers: usize,
    pub hidden: usize,
    pub intermediate: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub context: usize,
    norm_epsilon: f64,
    rope_theta: f64,
}

impl Shape {
    /// From the file's keys, all of which are checked.
    pub fn read(metadata: &Metadata) -> Result<Self> {
        match metadata.text("general.architecture")? {
            Some(ARCHITECTURE) => {}
            other => return Err(metadata.unsupported("general.architecture", quoted(other), "\"llama\"")),
        }
        check_known(metadata)?;
        let heads = metadata.count("llama.attention.head_count")?;
        let hidden = metadata.count("llama.embedding_length")?;
        let shape = Self {
            layers: metadata.count("llama.block_count")?,
            hidden,
            intermediate: metadata.count("llama.feed_forward_length")?,
            heads,
            kv_heads: metadata.count_or("llama.attention.head_count_kv", Some(heads))?,
            head_dim: read_head_dim(metadata, hidden, heads)?,
            context: metadata.count("llama.context_length")?,
            norm_epsilon: required(metadata, "llama.attention.layer_norm_rms_epsilon")?,
            rope_theta: metadata.positive("llama.rope.freq_base")?.unwrap_or(10000.0),
        };
        shape.check(metadata)?;
        Ok(shape)
    }

    fn check(&self, metadata: &Metadata) -> Result<()> {
        let Self { heads, kv_heads, head_dim, .. } = *self;
        if heads % kv_heads != 0 {
            let wanted = format!("a divisor of llama.attention.head_count = {heads}");
            return Err(metadata.corrupt("llama.attention.head_count_kv", kv_heads, &wanted));
        }
        let rotated = metadata.count_or("llama.rope.dimension_count", Some(head_dim))?;
        if rotated != head_dim {
            let wanted = format!(
                "{head_dim}, the width of a head: a rotary embedding of part of it is not implemented"
            );
            return Err(metadata.unsupported("llama.rope.dimension_count", rotated, &wanted));
        }
        Ok(())
    }

    /// Base of the rotary frequencies.
    pub fn rope_theta(&self) -> f64 {
        self.rope_theta
    }

    /// `config.json`.
    pub fn config(&self, model: &Model<'_>) -> Json {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "attention_bias": model.biases.attention,
            "attention_dropout": 0.0,
            "mlp_bias": model.biases.mlp,
            "rope_scaling": model.scaling.to_json(),
            "initializer_range": 0.02,
            "use_cache": true,
            "pretraining_tp": 1,
            "torch_dtype": dtype_name(model.kind),
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": model.vocab_size,
            "max_position_embeddings": self.context,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.norm_epsilon,
            "tie_word_embeddings": model.tied,
            "bos_token_id": model.ids.bos,
            "eos_token_id": model.ids.eos,
            "pad_token_id": model.ids.pad,
        })
    }
}

/// What `config.json` says that is not in the keys `llama.*`.
#[derive(Debug)]
pub(super) struct Model<'a> {
    pub kind: Kind,
    pub vocab_size: usize,
    pub tied: bool,
    pub biases: Biases,
    pub scaling: &'a RopeScaling,
    pub ids: SpecialIds,
}

/// PyTorch's name of a dtype.
pub(super) fn dtype_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Half => "float16",
        Kind::BFloat16 => "bfloat16",
        _ => "float32",
    }
}

fn quoted(text: Option<&str>) -> String {
    text.map_or_else(|| "missing".to_owned(), |text| format!("{text:?}"))
}

fn required(metadata: &Metadata, key: &str) -> Result<f64> {
    metadata.positive(key)?.ok_or_else(|| metadata.corrupt(key, "missing", "a positive number"))
}

fn check_known(metadata: &Metadata) -> Result<()> {
    for key in metadata.keys() {
        let Some(name) = key.strip_prefix("llama.") else { continue };
        if READ.contains(&name) || IGNORED.contains(&name) {
            continue;
        }
        let value = metadata.get(key);
        let neutral = NEUTRAL.iter().find(|(neutral, _)| *neutral == name).map(|(_, values)| *values);
        match (value, neutral) {
            (Some(Value::Number(number)), Some(values)) if values.contains(number) => {}
            (Some(Value::Text(layout)), _) if name == LAYOUT_KEY && layout == LAYOUT => {}
            (Some(value), _) => return Err(refusal(metadata, key, value, neutral)),
            (None, _) => {}
        }
    }
    Ok(())
}

fn refusal(metadata: &Metadata, key: &str, value: &Value, neutral: Option<&[Number]>) -> Error {
    match neutral {
        Some([number, ..]) => metadata.unsupported(key, value, &format!("{number}, or no such key")),
        _ => metadata.unsupported(key, value, "no such key: what it changes in a Llama is not implemented"),
    }
}

fn read_head_dim(metadata: &Metadata, hidden: usize, heads: usize) -> Result<usize> {
    let key = "llama.attention.key_length";
    if metadata.get(key).is_none() && !hidden.is_multiple_of(heads) {
        let wanted = format!("a divisor of llama.embedding_length = {hidden}, or llama.attention.key_length");
        return Err(metadata.corrupt("llama.attention.head_count", heads, &wanted));
    }
    let head_dim = metadata.count_or(key, Some(hidden / heads))?;
    let value = metadata.count_or("llama.attention.value_length", Some(head_dim))?;
    if value != head_dim {
        let wanted = format!("{head_dim}, the width of keys: other values are not implemented");
        return Err(metadata.unsupported("llama.attention.value_length", value, &wanted));
    }
    if head_dim == 0 || !head_dim.is_multiple_of(2) {
        return Err(metadata.corrupt("the width of a head", head_dim, "an even number"));
    }
    Ok(head_dim)
}
