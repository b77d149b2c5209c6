//! A GPU that is nearly full: what is asked for in vain is told with what it needed and what would fit, and the process goes on.

use codecllm::checkpoint::{compress, CompressOptions};
use codecllm::cuda;
use codecllm::model::{KvCache, Llama, LogitsOf};
use codecllm::runtime::{LoadOptions, Model};
use codecllm::{Error, ErrorKind};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::tiny_llama::{plain_config, TinyLlama};

const GPU: Device = Device::Cuda(0);

/// Takes what the GPU has free, in pieces that shrink to a mebibyte.
fn take_nearly_all() -> Vec<Tensor> {
    let mut taken = Vec::new();
    let mut bytes: i64 = 1 << 34;
    while bytes >= 1 << 20 {
        match Tensor::f_empty([bytes], (Kind::Uint8, GPU)) {
            Ok(tensor) => taken.push(tensor),
            Err(_) => bytes /= 2,
        }
    }
    taken
}

/// The number between `before` and `after` in the error's text.
fn number(error: &Error, before: &str, after: &str) -> u64 {
    let text = error.to_string();
    let number =
        text.split_once(before).and_then(|(_, rest)| rest.split_once(after)).map(|(number, _)| number);
    number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no {before}N{after} in {text}"))
}

/// A config whose cache takes 65,536 bytes a token of each sequence in FP16, and whose weights take some 35 MB.
fn wide_cache() -> serde_json::Value {
    let mut config = plain_config();
    for (name, value) in [
        ("hidden_size", 256),
        ("intermediate_size", 256),
        ("vocab_size", 2048),
        ("num_attention_heads", 64),
        ("num_key_value_heads", 64),
        ("head_dim", 128),
        ("max_position_embeddings", 1 << 20),
    ] {
        config[name] = json!(value);
    }
    config
}

fn logits(model: &Llama, kind: Kind) -> Tensor {
    let mut cache = KvCache::new(model.config(), 1, 16, kind, GPU).unwrap();
    let ids = Tensor::from_slice(&[3i64, 14, 15, 9]).view([1, -1]).to(GPU);
    model.forward(&ids, &mut cache, LogitsOf::Last).unwrap().to_kind(Kind::Float).to(Device::Cpu)
}

/// Set in the process of its own that fills the GPU: libtorch keeps what it once had, and the driver has no room left for the kernels
/// that other tests load.
const OF_ITS_OWN: &str = "CODECLLM_FILLS_THE_GPU";

#[test]
fn a_full_gpu_is_told_with_both_figures_and_the_process_goes_on() {
    if let Err(error) = cuda::load() {
        println!("SKIPPED: {error}");
        return;
    }
    if std::env::var_os(OF_ITS_OWN).is_some() {
        return fill_the_gpu();
    }
    let name = "memory::a_full_gpu_is_told_with_both_figures_and_the_process_goes_on";
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(OF_ITS_OWN, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout).into_owned();
    print!("{said}");
    assert!(
        child.status.success() && said.contains("1 passed"),
        "{}",
        String::from_utf8_lossy(&child.stderr)
    );
}

fn fill_the_gpu() {
    let tiny = TinyLlama::new(&wide_cache(), 21);
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("int8");
    compress(tiny.dir(), &dir, &CompressOptions::default(), &mut |_| ()).unwrap();
    let options = LoadOptions { device: GPU, kind: Kind::Half, ..LoadOptions::default() };
    let model = Model::load(&dir, &options).unwrap();
    let wanted = logits(model.llama(), Kind::Half);
    // A dense one multiplies by cuBLAS, whose handle is made at the first product and wants memory of the driver's.
    let dense = logits(Model::load(tiny.dir(), &options).unwrap().llama(), Kind::Half);

    // More context than any GPU has room for: 65,536 bytes a token, a million tokens each of 64 sequences.
    let error = model.new_cache(64, 1 << 20).unwrap_err();
    assert_eq!((error.kind(), error.subject()), (ErrorKind::OutOfMemory, "key-value cache"), "{error}");
    println!("{error}");
    assert_eq!(number(&error, "needs ", " bytes for 1048576 tokens of each sequence"), (65_536 * 64) << 20);
    let free = number(&error, "of each sequence, ", " are free");
    let room = number(&error, "room for ", " tokens");
    assert_eq!(room, free / (64 * 65_536), "{error}");
    // What was said to fit does: a tenth is left for what the allocator rounds up.
    let fits = model.new_cache(64, room.min(1 << 20) as usize * 9 / 10).unwrap();
    drop(fits);

    // A GPU that is full: a second copy of the model has no room, nor has a cache.
    let taken = take_nearly_all();
    assert!(!taken.is_empty());
    let error = Model::load(tiny.dir(), &options).unwrap_err();
    println!("{error}");
    assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
    assert!(error.subject().starts_with("model."), "the tensor is named: {error}");
    let needed = number(&error, "the weights need ", " bytes, ");
    let free = number(&error, " bytes, ", " were free on cuda:0");
    assert!(needed > free && needed > 30 << 20, "{needed} needed, {free} free: {error}");
    let error = model.new_cache(1, 4096).unwrap_err();
    println!("{error}");
    assert_eq!(number(&error, "needs ", " bytes for 4096 tokens"), 65_536 * 4096);
    assert!(number(&error, "4096 tokens, ", " are free") < 65_536 * 4096, "{error}");

    // What was there answers as before, and what had no room has it again.
    drop(taken);
    assert_eq!(logits(model.llama(), Kind::Half), wanted);
    let again = Model::load(tiny.dir(), &options).unwrap();
    assert_eq!(logits(again.llama(), Kind::Half), dense);
    assert_eq!(model.new_cache(1, 4096).unwrap().capacity(), 4096);
}
