//! A small Llama with random weights, written to a temporary model directory.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use codecllm::checkpoint::Writer;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use safetensors::Dtype;
use serde_json::{json, Value};

/// A config with everything optional in it: biases, an explicit head width, Llama-3 scaling, an untied head.
pub fn full_config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 50, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5, "rope_theta": 100.0, "attention_bias": true, "mlp_bias": true,
        "tie_word_embeddings": false,
        "rope_scaling": { "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64 },
    })
}

/// The same with the plainest settings.
pub fn plain_config() -> Value {
    let mut config = full_config();
    for name in ["attention_bias", "mlp_bias"] {
        config[name] = false.into();
    }
    config["tie_word_embeddings"] = true.into();
    config["rope_scaling"] = Value::Null;
    config
}

/// Shapes of all tensors that a model with `config` has.
pub fn shapes(config: &Value) -> Vec<(String, Vec<usize>)> {
    let n = |name: &str| config[name].as_u64().unwrap() as usize;
    let (hidden, wide) = (n("hidden_size"), n("intermediate_size"));
    let (query, kv) = (n("num_attention_heads") * n("head_dim"), n("num_key_value_heads") * n("head_dim"));
    let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![n("vocab_size"), hidden])];
    for layer in 0..n("num_hidden_layers") {
        let linears = [
            ("self_attn.q_proj", query, hidden, "attention_bias"),
            ("self_attn.k_proj", kv, hidden, "attention_bias"),
            ("self_attn.v_proj", kv, hidden, "attention_bias"),
            ("self_attn.o_proj", hidden, query, "attention_bias"),
            ("mlp.gate_proj", wide, hidden, "mlp_bias"),
            ("mlp.up_proj", wide, hidden, "mlp_bias"),
            ("mlp.down_proj", hidden, wide, "mlp_bias"),
        ];
        for (name, out, inner, bias) in linears {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), vec![out, inner]));
            if config[bias] == true {
                shapes.push((format!("model.layers.{layer}.{name}.bias"), vec![out]));
            }
        }
        for name in ["input_layernorm", "post_attention_layernorm"] {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), vec![hidden]));
        }
    }
    shapes.push(("model.norm.weight".to_owned(), vec![hidden]));
    if config["tie_word_embeddings"] != true {
        shapes.push(("lm_head.weight".to_owned(), vec![n("vocab_size"), hidden]));
    }
    shapes
}

/// A tokenizer whose first 256 tokens are the bytes, then `<s>` and `</s>`.
pub fn byte_tokenizer_json() -> String {
    // GPT-2's spelling of bytes as printable characters.
    let printable = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let mut next = 256;
    let mut vocab = BTreeMap::new();
    for byte in 0..256u32 {
        let code = if printable(byte) { byte } else { next };
        next += u32::from(!printable(byte));
        vocab.insert(char::from_u32(code).unwrap().to_string(), byte);
    }
    let special = |id: u32, content: &str| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true })
    };
    let level =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    json!({
        "version": "1.0", "added_tokens": [special(256, "<s>"), special(257, "</s>")],
        "truncation": { "direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0 },
        "pre_tokenizer": level, "decoder": level,
        "model": { "type": "BPE", "vocab": vocab, "merges": [] },
    })
    .to_string()
}

/// A model directory, removed when dropped, and its weights.
pub struct TinyLlama {
    parent: tempfile::TempDir,
    pub weights: HashMap<String, (Vec<usize>, Vec<f32>)>,
}

impl TinyLlama {
    pub fn dir(&self) -> PathBuf {
        self.parent.path().join("model")
    }

    /// Random weights for `config`, FP32, large enough that every part of the model matters.
    pub fn new(config: &Value, seed: u64) -> Self {
        Self::with_shapes(config, &shapes(config), seed)
    }

    pub fn with_shapes(config: &Value, shapes: &[(String, Vec<usize>)], seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let parent = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(parent.path().join("model")).unwrap();
        let mut weights = HashMap::new();
        for (name, shape) in shapes {
            let values: Vec<f32> =
                (0..shape.iter().product()).map(|_| rng.random_range(-0.5f32..0.5)).collect();
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            writer.add(name, Dtype::F32, shape, &bytes).unwrap();
            weights.insert(name.clone(), (shape.clone(), values));
        }
        writer.write_file("config.json", config.to_string().as_bytes()).unwrap();
        writer.finish().unwrap();
        Self { parent, weights }
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir().join(name), text).unwrap();
    }
}

/// The folder of a downloaded model, or `None` with the cure on stderr.
pub fn downloaded(name: &str) -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/models").join(name);
    if dir.join("config.json").exists() {
        return Some(dir);
    }
    eprintln!("SKIPPED: {} is absent; `make test` fetches it", dir.display());
    None
}
