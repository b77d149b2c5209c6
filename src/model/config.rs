//! `config.json` of a Llama, read strictly: a setting that changes the maths and is not implemented is an
//! error, never ignored.
//!
//! [`LlamaConfig`] reads it; see its example.

use std::path::Path;

use serde_json::{Map, Value};

use super::fields::Fields;
use crate::error::{Error, Result};

/// How rotary frequencies are stretched beyond the trained context.
///
/// Read by [`LlamaConfig`]; see its example.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// Positions are divided by `factor`.
    Linear {
        /// How many times longer the context becomes.
        factor: f64,
    },
    /// Llama 3: low frequencies are divided by `factor`, high ones kept, with a smooth step between.
    Llama3 {
        /// What low frequencies are divided by.
        factor: f64,
        /// Wavelengths above `original_context / low_freq_factor` count as low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high_freq_factor` count as high frequencies.
        high_freq_factor: f64,
        /// Context the model was first trained on, tokens (`original_max_position_embeddings`).
        original_context: f64,
    },
}

/// The settings of a Llama, under the names of Hugging Face's `config.json`.
///
/// ```
/// use codecllm::model::{LlamaConfig, RopeScaling};
/// let json = r#"{"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
///     "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100, "rms_norm_eps": 1e-5,
///     "max_position_embeddings": 256, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}"#;
/// let config = LlamaConfig::from_json(json, "config.json")?;
/// assert_eq!((config.head_dim, config.rope_theta), (16, 10000.0));
/// assert!(matches!(config.rope_scaling, RopeScaling::Linear { factor: 2.0 }));
/// let error = LlamaConfig::from_json(&json.replace("linear", "yarn"), "config.json").unwrap_err();
/// assert!(error.to_string().contains("yarn"), "what is not implemented is refused: {error}");
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of a head, even.
    pub head_dim: usize,
    /// Longest context the model is made for, tokens.
    pub max_position_embeddings: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Stretching of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// Whether the attention's four linears have biases.
    pub attention_bias: bool,
    /// Whether the feed-forward layer's three linears have biases.
    pub mlp_bias: bool,
    /// Whether the head shares the embedding's table.
    pub tie_word_embeddings: bool,
}

/// Settings that change the maths in ways not implemented, with the values that leave it as it is. An absent
/// or null setting is always fine.
const NEUTRAL: &[(&str, &[f64])] = &[
    ("pretraining_tp", &[0.0, 1.0]),
    ("partial_rotary_factor", &[1.0]),
    ("rotary_pct", &[1.0]),
    ("logit_scale", &[1.0]),
    ("logits_scaling", &[1.0]),
    ("attention_multiplier", &[]),
    ("embedding_multiplier", &[1.0]),
    ("residual_multiplier", &[1.0]),
    ("attn_logit_softcapping", &[]),
    ("final_logit_softcapping", &[]),
    ("query_pre_attn_scalar", &[]),
    ("clip_qkv", &[]),
    ("scale_emb", &[1.0]),
    ("scale_depth", &[]),
    ("dim_model_base", &[]),
    ("no_rope_layer_interval", &[0.0]),
    ("num_experts", &[0.0, 1.0]),
    ("num_local_experts", &[0.0, 1.0]),
    ("sliding_window", &[]),
    ("attention_chunk_size", &[]),
];

/// The same for switches and structures: only absent, null, false or empty is implemented.
const MUST_BE_OFF: &[&str] = &[
    "quantization_config",
    "compression_config",
    "use_sliding_window",
    "use_qk_norm",
    "qk_norm",
    "qk_layernorm",
    "use_parallel_residual",
    "rope_interleave",
    "rope_interleaved",
    "alibi",
    "no_rope_layers",
    "layer_types",
    "add_cross_attention",
    "is_encoder_decoder",
];

impl LlamaConfig {
    /// The settings of Llama-3.1-8B: a shape to plan for, or to fill with weights of one's own.
    ///
    /// Planned for by [`plan`](crate::plan::plan()); see its example.
    pub fn llama_3_1_8b() -> Self {
        Self {
            vocab_size: 128_256,
            hidden_size: 4096,
            intermediate_size: 14336,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: 8,
            head_dim: 128,
            max_position_embeddings: 131_072,
            rms_norm_eps: 1e-5,
            rope_theta: 500_000.0,
            rope_scaling: RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_context: 8192.0,
            },
            attention_bias: false,
            mlp_bias: false,
            tie_word_embeddings: false,
        }
    }

    /// Reads `config.json` in the model directory `dir`.
    ///
    /// # Errors
    /// `Io` if it cannot be read, and as [`LlamaConfig::from_json`].
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self> {
        let path = dir.as_ref().join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
        Self::from_json(&text, &path.display().to_string())
    }

    /// Reads a configuration from JSON; `subject` is its file name for messages.
    ///
    /// # Errors
    /// `Corrupt` for a missing, ill-typed or contradictory setting; `Unsupported` for another architecture or
    /// a setting that changes the maths and is not implemented. Unknown settings are ignored.
    pub fn from_json(json: &str, subject: &str) -> Result<Self> {
        let object: Map<String, Value> = serde_json::from_str(json)
            .map_err(|e| Error::corrupt(subject, format!("is not a JSON object: {e}")).with_source(e))?;
        let fields = Fields::new(&object, subject, "");
        check_architecture(&fields)?;
        check_unimplemented(&fields)?;
        let config = Self::from_fields(&fields)?;
        config.check_consistency(subject)?;
        Ok(config)
    }

    fn from_fields(fields: &Fields<'_>) -> Result<Self> {
        let hidden_size = fields.count("hidden_size")?;
        let num_attention_heads = fields.count("num_attention_heads")?;
        let (rope_theta, rope_scaling) = read_rope(fields)?;
        Ok(Self {
            vocab_size: fields.count("vocab_size")?,
            hidden_size,
            intermediate_size: fields.count("intermediate_size")?,
            num_hidden_layers: fields.count("num_hidden_layers")?,
            num_attention_heads,
            num_key_value_heads: fields.count_or("num_key_value_heads", num_attention_heads)?,
            head_dim: read_head_dim(fields, hidden_size, num_attention_heads)?,
            max_position_embeddings: fields.count_or("max_position_embeddings", 2048)?,
            rms_norm_eps: fields.positive_or("rms_norm_eps", 1e-6)?,
            rope_theta,
            rope_scaling,
            attention_bias: fields.flag("attention_bias")?,
            mlp_bias: fields.flag("mlp_bias")?,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?,
        })
    }

    fn check_consistency(&self, subject: &str) -> Result<()> {
        let (heads, kv_heads) = (self.num_attention_heads, self.num_key_value_heads);
        let problem = if heads % kv_heads != 0 {
            format!("num_key_value_heads is {kv_heads}, wanted a divisor of num_attention_heads = {heads}")
        } else if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) {
            format!("head_dim is {}, wanted an even number", self.head_dim)
        } else {
            return Ok(());
        };
        Err(Error::corrupt(subject, problem))
    }
}

fn read_head_dim(fields: &Fields<'_>, hidden_size: usize, heads: usize) -> Result<usize> {
    if fields.get("head_dim").is_some() {
        return fields.count("head_dim");
    }
    if !hidden_size.is_multiple_of(heads) {
        let wanted = format!("a divisor of hidden_size = {hidden_size}, or head_dim");
        return Err(fields.corrupt("num_attention_heads", &heads, &wanted));
    }
    Ok(hidden_size / heads)
}

fn check_architecture(fields: &Fields<'_>) -> Result<()> {
    let model_type = fields.text("model_type")?;
    let architecture = match fields.get("architectures").and_then(Value::as_array).map(Vec::as_slice) {
        None => None,
        Some([Value::String(name)]) => Some(name.as_str()),
        Some(other) => return Err(unknown_architecture(fields, &Value::from(other).to_string())),
    };
    match (model_type, architecture) {
        (Some("llama"), None | Some("LlamaForCausalLM")) | (None, Some("LlamaForCausalLM")) => {}
        (model_type, architecture) => {
            let got = architecture.or(model_type).unwrap_or("not named");
            return Err(unknown_architecture(fields, got));
        }
    }
    match fields.text("hidden_act")?.or(fields.text("hidden_activation")?) {
        None | Some("silu" | "swish") => Ok(()),
        Some(other) => Err(fields.unsupported("hidden_act", other, "silu")),
    }
}

fn unknown_architecture(fields: &Fields<'_>, got: &str) -> Error {
    fields.unsupported("architecture", got, "LlamaForCausalLM with model_type llama")
}

fn check_unimplemented(fields: &Fields<'_>) -> Result<()> {
    for (name, neutral) in NEUTRAL {
        if let Some(value) = fields.get(name) {
            if !value.as_f64().is_some_and(|value| neutral.contains(&value)) {
                let wanted = match neutral {
                    [] => "null".to_owned(),
                    [.., last] => format!("{last} or null"),
                };
                return Err(fields.unsupported(name, value, &wanted));
            }
        }
    }
    for name in MUST_BE_OFF {
        if fields.get(name).is_some_and(|value| !is_off(name, value)) {
            let value = fields.get(name).unwrap_or(&Value::Null);
            return Err(fields.unsupported(name, value, "null or false"));
        }
    }
    Ok(())
}

fn is_off(name: &str, value: &Value) -> bool {
    match value {
        Value::Bool(on) => !on,
        // Newer configs spell out the ordinary case.
        Value::Array(types) if name == "layer_types" => types.iter().all(|t| t == "full_attention"),
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        _ => false,
    }
}

/// Rotary base and scaling, from `rope_theta` and `rope_scaling` or from the newer `rope_parameters`.
fn read_rope(fields: &Fields<'_>) -> Result<(f64, RopeScaling)> {
    let section = match fields.get("rope_parameters") {
        Some(_) => fields.section("rope_parameters")?,
        None => fields.section("rope_scaling")?,
    };
    let theta = match section.as_ref().filter(|section| section.get("rope_theta").is_some()) {
        Some(section) => section.positive("rope_theta")?,
        None => fields.positive_or("rope_theta", 10000.0)?,
    };
    Ok((theta, section.map_or(Ok(RopeScaling::Default), |section| read_scaling(&section))?))
}

fn read_scaling(section: &Fields<'_>) -> Result<RopeScaling> {
    if let Some((name, value)) = section.nested() {
        return Err(section.unsupported(name, value, "one rope for all layers"));
    }
    if let Some(factor) = section.get("partial_rotary_factor").filter(|factor| factor.as_f64() != Some(1.0)) {
        return Err(section.unsupported("partial_rotary_factor", factor, "1"));
    }
    let kind = match section.text("rope_type")? {
        Some(kind) => kind,
        None => section.text("type")?.unwrap_or("default"),
    };
    match kind {
        "default" => Ok(RopeScaling::Default),
        "linear" => Ok(RopeScaling::Linear { factor: section.positive("factor")? }),
        "llama3" => read_llama3(section),
        other => Err(section.unsupported("rope_type", other, "default, linear or llama3")),
    }
}

fn read_llama3(section: &Fields<'_>) -> Result<RopeScaling> {
    let low_freq_factor = section.positive("low_freq_factor")?;
    let high_freq_factor = section.positive("high_freq_factor")?;
    if high_freq_factor <= low_freq_factor {
        return Err(section.corrupt("high_freq_factor", &high_freq_factor, "more than low_freq_factor"));
    }
    Ok(RopeScaling::Llama3 {
        factor: section.positive("factor")?,
        low_freq_factor,
        high_freq_factor,
        original_context: section.positive("original_max_position_embeddings")?,
    })
}
