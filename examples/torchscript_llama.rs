//! Loads a TorchScript Llama with a KV cache, patches its linears, and lets both versions tell a story.
//!
//! ```text
//! scripts/make_fixtures.sh
//! cargo run --release --example torchscript_llama -- .cache/fixtures/torchscript/kv_cache.pt .cache/models/stories15M-bf16 5.3
//!
//! patched 44 matrices: 97.6 MB to 16.2 MB, 5.30 bits a weight
//! dense:   Once upon a time, there was a little girl named Lily. She loved to play outside in the sunshine. ...
//! patched: Once upon a time, there was a little girl named Lily. She loved to play outside in the sunshine. ...
//! 40 of 40 tokens agree; relative error of the logits of the prompt: 0.041
//! ```
//!
//! The file's `forward(ids [1, seq], keys, values)` returns `(logits [1, seq, vocab], keys, values)`, where keys and values are
//! `[layers, 1, heads, past, head_dim]`: what `tests/fixtures/make_torchscript.py` writes.

use std::path::PathBuf;

use anyhow::{bail, Context, Result};
use codecllm::checkpoint::Target;
use codecllm::model::LlamaConfig;
use codecllm::runtime::Tokenizer;
use codecllm::torchscript::{patch_linears, Module, PatchOptions};
use tch::{Device, IValue, Kind, Tensor};

const NEW_TOKENS: usize = 40;

/// What a module says to a prompt, and the logits of the prompt's last token.
struct Story {
    tokens: Vec<u32>,
    logits: Tensor,
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let usage = "usage: torchscript_llama MODEL.pt MODEL_DIR BITS";
    let (model, dir) = (args.next().context(usage)?, PathBuf::from(args.next().context(usage)?));
    let target = Target::Bits(args.next().context(usage)?.parse()?);
    let (config, tokenizer) = (LlamaConfig::from_dir(&dir)?, Tokenizer::from_dir(&dir)?);
    let prompt = tokenizer.encode("Once upon a time", true)?;

    let mut module = Module::load(&model, Device::Cpu)?;
    let dense = tell(&module, &config, &prompt)?;
    let report =
        patch_linears(&mut module, &PatchOptions { target, embeddings: true, ..PatchOptions::default() })?;
    let patched = tell(&module, &config, &prompt)?;

    println!(
        "patched {} matrices: {:.1} MB to {:.1} MB, {:.2} bits a weight",
        report.patched.len(),
        report.original_bytes as f64 / 1e6,
        report.compressed_bytes as f64 / 1e6,
        report.bits_per_weight()
    );
    println!("dense:   {}", tokenizer.decode(&dense.tokens)?);
    println!("patched: {}", tokenizer.decode(&patched.tokens)?);
    let agree = dense.tokens.iter().zip(&patched.tokens).take_while(|(a, b)| a == b).count() - prompt.len();
    let error = (&dense.logits - &patched.logits).norm() / dense.logits.norm();
    println!(
        "{agree} of {NEW_TOKENS} tokens agree; relative error of the logits of the prompt: {:.3}",
        error.double_value(&[])
    );
    Ok(())
}

/// Greedy, one token at a time behind the prompt.
fn tell(module: &Module, config: &LlamaConfig, prompt: &[u32]) -> Result<Story> {
    let (layers, heads) = (config.num_hidden_layers as i64, config.num_key_value_heads as i64);
    let head_dim = config.hidden_size as i64 / config.num_attention_heads as i64;
    let empty = || Tensor::zeros([layers, 1, heads, 0, head_dim], (Kind::Float, Device::Cpu));
    let mut tokens = prompt.to_vec();
    let mut next: Vec<i64> = prompt.iter().map(|&id| i64::from(id)).collect();
    let (mut keys, mut values, mut first) = (empty(), empty(), None);
    for _ in 0..NEW_TOKENS {
        let ids = Tensor::from_slice(&next).unsqueeze(0);
        let arguments = [ids, keys, values].map(IValue::Tensor);
        let IValue::Tuple(out) = tch::no_grad(|| module.forward_is(&arguments))? else {
            bail!("forward returned no tuple, wanted logits, keys and values");
        };
        let mut out = out.into_iter().map(Tensor::try_from);
        let mut take =
            || out.next().context("forward returned too few values").and_then(|tensor| Ok(tensor?));
        let logits = take()?.select(1, -1);
        (keys, values) = (take()?, take()?);
        let token = logits.argmax(-1, false).int64_value(&[0]);
        first.get_or_insert(logits);
        tokens.push(u32::try_from(token)?);
        next = vec![token];
    }
    Ok(Story { tokens, logits: first.context("no token was wanted")? })
}
