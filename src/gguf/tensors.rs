//! Which tensor of a GGUF becomes which of a Hugging Face checkpoint, and the shape it must have.

use std::collections::HashMap;

use super::config::Shape;
use super::file::{GgufFile, TensorInfo};
use super::rope::FACTORS;
use crate::error::{Error, Result};

const EMBEDDING: &str = "token_embd.weight";
const HEAD: &str = "output.weight";

/// Which linears have biases: in a `config.json` all of the attention's have, or none, and the same for the feed-forward layer's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Biases {
    pub attention: bool,
    pub mlp: bool,
}

/// A tensor to import.
#[derive(Debug)]
pub(super) struct Import<'a> {
    pub info: &'a TensorInfo,
    /// Its Hugging Face path.
    pub path: String,
    /// Heads whose rows are in GGUF's rotary order.
    pub rotary_heads: Option<usize>,
}

/// Everything to import, in the order of the model.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub imports: Vec<Import<'a>>,
    pub vocab_size: usize,
    /// The head is the embedding's table.
    pub tied: bool,
    pub biases: Biases,
    /// The divisors of the rotary frequencies.
    pub rope_factors: Option<&'a TensorInfo>,
}

/// A linear of a layer.
struct Linear {
    gguf: &'static str,
    path: &'static str,
    shape: [usize; 2],
    rotary_heads: Option<usize>,
}

impl<'a> Plan<'a> {
    /// Of all tensors in the file: one that is missing or has no place in a Llama is an error.
    pub fn of(file: &'a GgufFile, shape: &Shape) -> Result<Self> {
        let mut found = Found { path: file.path(), tensors: by_name(file) };
        let rope_factors = found.optional(FACTORS, &[shape.head_dim / 2])?;
        let vocab_size = found.rows(EMBEDDING)?;
        let tied = !found.tensors.contains_key(HEAD);
        let mut imports =
            vec![found.plain(EMBEDDING, "model.embed_tokens.weight", &[vocab_size, shape.hidden])?];
        imports.push(found.plain("output_norm.weight", "model.norm.weight", &[shape.hidden])?);
        if !tied {
            imports.push(found.plain(HEAD, "lm_head.weight", &[vocab_size, shape.hidden])?);
        }
        let biases =
            Biases { attention: found.has("blk.0.attn_q.bias"), mlp: found.has("blk.0.ffn_up.bias") };
        for layer in 0..shape.layers {
            found.layer(layer, shape, biases, &mut imports)?;
        }
        found.check_empty()?;
        Ok(Self { imports, vocab_size, tied, biases, rope_factors })
    }
}

fn by_name(file: &GgufFile) -> HashMap<&str, &TensorInfo> {
    file.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect()
}

/// The tensors of a file that have no place yet.
struct Found<'a> {
    path: &'a str,
    tensors: HashMap<&'a str, &'a TensorInfo>,
}

impl<'a> Found<'a> {
    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn optional(&mut self, name: &str, shape: &[usize]) -> Result<Option<&'a TensorInfo>> {
        if !self.has(name) {
            return Ok(None);
        }
        self.take(name, shape).map(Some)
    }

    fn take(&mut self, name: &str, shape: &[usize]) -> Result<&'a TensorInfo> {
        let info = self.tensors.remove(name).ok_or_else(|| self.missing(name))?;
        if info.shape != shape {
            let message = format!("has the shape {:?}, wanted {shape:?} by the file's keys", info.shape);
            return Err(Error::corrupt(name, message));
        }
        Ok(info)
    }

    fn missing(&self, name: &str) -> Error {
        let message = format!("is missing from {} (part of a split file? join the parts first)", self.path);
        Error::corrupt(name, message)
    }

    fn rows(&self, name: &str) -> Result<usize> {
        let info = self.tensors.get(name).ok_or_else(|| self.missing(name))?;
        info.shape.first().copied().ok_or_else(|| self.missing(name))
    }

    fn plain(&mut self, name: &str, path: &str, shape: &[usize]) -> Result<Import<'a>> {
        Ok(Import { info: self.take(name, shape)?, path: path.to_owned(), rotary_heads: None })
    }

    fn layer(
        &mut self,
        layer: usize,
        shape: &Shape,
        biases: Biases,
        imports: &mut Vec<Import<'a>>,
    ) -> Result<()> {
        for (gguf, path) in [("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm")] {
            let (name, path) =
                (format!("blk.{layer}.{gguf}.weight"), format!("model.layers.{layer}.{path}.weight"));
            imports.push(self.plain(&name, &path, &[shape.hidden])?);
        }
        for linear in attention(shape) {
            self.linear(&linear, biases.attention, layer, imports)?;
        }
        for linear in feed_forward(shape) {
            self.linear(&linear, biases.mlp, layer, imports)?;
        }
        Ok(())
    }

    fn linear(
        &mut self,
        linear: &Linear,
        bias: bool,
        layer: usize,
        imports: &mut Vec<Import<'a>>,
    ) -> Result<()> {
        let Linear { gguf, path, shape, rotary_heads } = linear;
        let (gguf, path) = (format!("blk.{layer}.{gguf}"), format!("model.layers.{layer}.{path}"));
        let bias_name = format!("{gguf}.bias");
        if bias != self.has(&bias_name) {
            return Err(uneven_bias(bias_name, bias));
        }
        let parts = [("weight", &shape[..]), ("bias", &shape[..1])];
        for (suffix, shape) in parts.into_iter().take(1 + usize::from(bias)) {
            let info = self.take(&format!("{gguf}.{suffix}"), shape)?;
            imports.push(Import { info, path: format!("{path}.{suffix}"), rotary_heads: *rotary_heads });
        }
        Ok(())
    }

    fn check_empty(&self) -> Result<()> {
        match self.tensors.keys().min() {
            None => Ok(()),
            Some(name) => {
                let message =
                    "has no place in a Llama with the file's keys; what it computes is not implemented";
                Err(Error::unsupported(*name, message))
            }
        }
    }
}

fn uneven_bias(name: String, others_have: bool) -> Error {
    let got = if others_have {
        "is missing, but others like it are there"
    } else {
        "is there, but others like it are not"
    };
    let wanted = "wanted one on each linear of the attention (or of the feed-forward layer) or on none, as Hugging Face's Llama has it";
    Error::unsupported(name, format!("{got}; {wanted}"))
}

fn attention(shape: &Shape) -> [Linear; 4] {
    let (q, kv) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let linear = |gguf, path, shape, rotary_heads| Linear { gguf, path, shape, rotary_heads };
    [
        linear("attn_q", "self_attn.q_proj", [q, shape.hidden], Some(shape.heads)),
        linear("attn_k", "self_attn.k_proj", [kv, shape.hidden], Some(shape.kv_heads)),
        linear("attn_v", "self_attn.v_proj", [kv, shape.hidden], None),
        linear("attn_output", "self_attn.o_proj", [shape.hidden, q], None),
    ]
}

fn feed_forward(shape: &Shape) -> [Linear; 3] {
    let linear = |gguf, path, shape| Linear { gguf, path, shape, rotary_heads: None };
    [
        linear("ffn_gate", "mlp.gate_proj", [shape.intermediate, shape.hidden]),
        linear("ffn_up", "mlp.up_proj", [shape.intermediate, shape.hidden]),
        linear("ffn_down", "mlp.down_proj", [shape.hidden, shape.intermediate]),
    ]
}
