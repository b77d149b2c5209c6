//! Writes small GGUF files, right ones and wrong ones.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::path::{Path, PathBuf};

const F32: u32 = 0;

/// The value of a key as it lies in a file: the number of its type, then its bytes.
#[derive(Clone, Debug)]
pub struct Value(Vec<u8>);

fn typed(kind: u32, bytes: impl AsRef<[u8]>) -> Value {
    Value([&kind.to_le_bytes()[..], bytes.as_ref()].concat())
}

fn text_bytes(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

pub fn u32(value: u32) -> Value {
    typed(4, value.to_le_bytes())
}

pub fn f32(value: f32) -> Value {
    typed(6, value.to_le_bytes())
}

pub fn flag(value: bool) -> Value {
    typed(7, [u8::from(value)])
}

pub fn text(value: &str) -> Value {
    typed(8, text_bytes(value))
}

fn array(kind: u32, items: Vec<Vec<u8>>) -> Value {
    let head = [&kind.to_le_bytes()[..], &(items.len() as u64).to_le_bytes()].concat();
    typed(9, [head, items.concat()].concat())
}

pub fn texts(values: &[&str]) -> Value {
    array(8, values.iter().map(|value| text_bytes(value)).collect())
}

pub fn u8s(values: &[u8]) -> Value {
    array(0, values.iter().map(|value| vec![*value]).collect())
}

pub fn i32s(values: &[i32]) -> Value {
    array(5, values.iter().map(|value| value.to_le_bytes().to_vec()).collect())
}

pub fn f32s(values: &[f32]) -> Value {
    array(6, values.iter().map(|value| value.to_le_bytes().to_vec()).collect())
}

/// A tensor: innermost dimension first, as in the file.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub name: String,
    pub dimensions: Vec<u64>,
    pub kind: u32,
    pub data: Vec<u8>,
    /// Where it says it is; behind the one before where none.
    pub offset: Option<u64>,
}

/// A file to be.
#[derive(Clone, Debug)]
pub struct Gguf {
    pub version: u32,
    pub keys: Vec<(String, Value)>,
    pub tensors: Vec<Tensor>,
}

impl Gguf {
    /// A Llama with one layer of eight features, and a tokenizer of single characters.
    pub fn tiny() -> Self {
        let mut gguf = Self { version: 3, keys: Vec::new(), tensors: Vec::new() };
        for (key, value) in [
            ("general.architecture", text("llama")),
            ("llama.block_count", u32(1)),
            ("llama.context_length", u32(32)),
            ("llama.embedding_length", u32(8)),
            ("llama.feed_forward_length", u32(6)),
            ("llama.attention.head_count", u32(2)),
            ("llama.attention.head_count_kv", u32(1)),
            ("llama.attention.layer_norm_rms_epsilon", f32(1e-5)),
            ("tokenizer.ggml.model", text("gpt2")),
            ("tokenizer.ggml.pre", text("gpt-2")),
            ("tokenizer.ggml.tokens", texts(&["<|endoftext|>", "a", "b", "c", "ab", "<|im_end|>"])),
            ("tokenizer.ggml.token_type", i32s(&[3, 1, 1, 1, 1, 3])),
            ("tokenizer.ggml.merges", texts(&["a b"])),
            ("tokenizer.ggml.eos_token_id", u32(5)),
        ] {
            gguf.set(key, value);
        }
        for (name, dimensions) in [
            ("token_embd.weight", &[8, 7][..]),
            ("output_norm.weight", &[8]),
            ("blk.0.attn_norm.weight", &[8]),
            ("blk.0.attn_q.weight", &[8, 8]),
            ("blk.0.attn_k.weight", &[8, 4]),
            ("blk.0.attn_v.weight", &[8, 4]),
            ("blk.0.attn_output.weight", &[8, 8]),
            ("blk.0.ffn_norm.weight", &[8]),
            ("blk.0.ffn_gate.weight", &[8, 6]),
            ("blk.0.ffn_up.weight", &[8, 6]),
            ("blk.0.ffn_down.weight", &[6, 8]),
        ] {
            gguf.add(name, dimensions);
        }
        gguf
    }

    pub fn set(&mut self, key: &str, value: Value) {
        self.remove(key);
        self.keys.push((key.to_owned(), value));
    }

    pub fn remove(&mut self, key: &str) {
        self.keys.retain(|(other, _)| other != key);
    }

    /// An F32 tensor of small different weights.
    pub fn add(&mut self, name: &str, dimensions: &[u64]) {
        let count = dimensions.iter().product::<u64>() as u32;
        let first = self.tensors.len() as u32 * 1000;
        let data = (first..first + count).flat_map(|n| (n as f32 / 8192.0).to_le_bytes()).collect();
        let tensor =
            Tensor { name: name.to_owned(), dimensions: dimensions.to_vec(), kind: F32, data, offset: None };
        self.tensors.push(tensor);
    }

    pub fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap()
    }

    pub fn remove_tensor(&mut self, name: &str) {
        self.tensors.retain(|tensor| tensor.name != name);
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            bytes.extend(text_bytes(key));
            bytes.extend(&value.0);
        }
        let mut end = 0;
        for tensor in &self.tensors {
            bytes.extend(text_bytes(&tensor.name));
            bytes.extend((tensor.dimensions.len() as u32).to_le_bytes());
            bytes.extend(tensor.dimensions.iter().flat_map(|n| n.to_le_bytes()));
            bytes.extend(tensor.kind.to_le_bytes());
            bytes.extend(tensor.offset.unwrap_or(end).to_le_bytes());
            end += (tensor.data.len() as u64).next_multiple_of(32);
        }
        for tensor in &self.tensors {
            bytes.resize(bytes.len().next_multiple_of(32), 0);
            bytes.extend(&tensor.data);
        }
        bytes
    }

    /// Writes the file into `dir`.
    pub fn write(&self, dir: &Path) -> PathBuf {
        let path = dir.join("model.gguf");
        std::fs::write(&path, self.bytes()).unwrap();
        path
    }
}
