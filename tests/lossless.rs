//! A lossless model is the model: the same bytes after decompression, the same logits before.

mod tiny_llama;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use codecllm::checkpoint::{
    compress, decompress, stats, verify, CompressOptions, CompressReport, Reader, Target, Writer,
};
use codecllm::codec::{CompressedTensor, EncodeOptions, TensorStats};
use codecllm::model::LogitsOf;
use codecllm::runtime::{GenerateOptions, Generator, LoadOptions, Prompt};
use half::{bf16, f16};
use safetensors::Dtype;
use tch::{Kind, Tensor};
use tiny_llama::{byte_tokenizer_json, downloaded, full_config, TinyLlama};

const LOSSLESS: CompressOptions = CompressOptions {
    target: Target::Lossless,
    layout: Some(codecllm::codec::Layout::Fast),
    include: Vec::new(),
    exclude: Vec::new(),
};

fn compressed(model: &Path, folder: &Path) -> (PathBuf, CompressReport) {
    let out = folder.join("lossless");
    let report = compress(model, &out, &LOSSLESS, &mut |_| ()).unwrap();
    let check = verify(&out, Some(model), &mut |_| ()).unwrap();
    assert!(check.ok, "{check:?}");
    assert_eq!((check.max_abs_error, check.snr_db), (Some(0.0), None));
    (out, report)
}

/// Decompresses and compares every tensor with the original's: dtype, shape, bytes.
fn assert_same_after_decompression(model: &Path, out: &Path, folder: &Path) {
    let back = folder.join("back");
    decompress(out, &back, &mut |_| ()).unwrap();
    let (original, back) = (Reader::open(model).unwrap(), Reader::open(back).unwrap());
    assert_eq!(original.names().count(), back.names().count());
    for name in original.names() {
        let info = |reader: &Reader| reader.info(name).map(|info| (info.dtype, info.shape.clone())).unwrap();
        assert_eq!(info(&original), info(&back), "{name}");
        assert!(original.read_bytes(name).unwrap() == back.read_bytes(name).unwrap(), "{name}");
    }
}

fn open(dir: &Path, kind: Kind) -> Generator {
    let options = LoadOptions { kind, threads: Some(1), ..LoadOptions::default() };
    let generator = Generator::open(dir, &options).unwrap();
    generator.model().llama().set_fused_rows(0);
    generator
}

fn logits(generator: &Generator, ids: &[i64]) -> Tensor {
    let model = generator.model();
    let mut cache = model.new_cache(1, ids.len()).unwrap();
    model.llama().forward(&Tensor::from_slice(ids).view([1, -1]), &mut cache, LogitsOf::All).unwrap()
}

fn tell(generator: &Generator, text: &str, max_new_tokens: usize) -> Vec<u32> {
    let options = GenerateOptions { max_new_tokens, ..GenerateOptions::default() };
    let prompts = [Prompt::Text(text.to_owned())];
    let mut told = generator.generate(&prompts, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    told.remove(0).token_ids
}

/// Bit for bit the dense model's, a token at a time and many at once.
fn assert_same_logits(model: &Path, out: &Path, kind: Kind, ids: &[i64]) {
    let (dense, lossless) = (open(model, kind), open(out, kind));
    assert!(lossless.model().weight_bytes() < dense.model().weight_bytes());
    for ids in [ids, &ids[..1]] {
        let (wanted, got) = (logits(&dense, ids), logits(&lossless, ids));
        assert!(wanted.isfinite().all().int64_value(&[]) == 1);
        assert!(got == wanted, "{kind:?}, {} tokens: {}", ids.len(), (got - wanted).abs().max());
    }
}

#[test]
fn stories15m_is_kept_to_the_last_bit() {
    let Some(model) = downloaded("stories15M-bf16") else { return };
    let folder = tempfile::tempdir().unwrap();
    let (out, report) = compressed(&model, folder.path());
    assert!(report.bits_per_weight <= 10.85, "{}", report.bits_per_weight);
    assert!(report.uncoded.is_empty() && report.tensors.iter().all(|tensor| tensor.layout == "exact_bf16"));
    let bound = report.exponent_entropy_and_raw_bits.unwrap();
    assert!(report.grid_entropy_bits.is_none() && (10.0..report.bits_per_weight).contains(&bound), "{bound}");
    for tensor in &report.tensors {
        let bound = tensor.stats.exponent_entropy_and_raw_bits.unwrap();
        assert!(tensor.stats.bits_per_weight < bound + 0.15, "{tensor:?}");
    }
    assert_same_after_decompression(&model, &out, folder.path());
    let (dense, lossless) = (open(&model, Kind::BFloat16), open(&out, Kind::BFloat16));
    let ids: Vec<i64> = tell(&dense, "Once upon a time", 64).into_iter().map(i64::from).collect();
    assert_eq!(ids.len(), 64);
    let told: Vec<i64> = tell(&lossless, "Once upon a time", 64).into_iter().map(i64::from).collect();
    assert_eq!(told, ids);
    drop((dense, lossless));
    for kind in [Kind::BFloat16, Kind::Float, Kind::Half] {
        assert_same_logits(&model, &out, kind, &ids);
    }
}

/// A copy of `model` whose weights went through `store`: new bytes and their dtype, by name and FP32 weights.
fn rewritten(model: &TinyLlama, folder: &Path, store: impl Fn(&str, &[f32]) -> (Dtype, Vec<u8>)) -> PathBuf {
    let dir = folder.join("model");
    let mut writer = Writer::create(&dir).unwrap();
    let mut names: Vec<&String> = model.weights.keys().collect();
    names.sort();
    for name in names {
        let (shape, weights) = &model.weights[name];
        let (dtype, bytes) = store(name, weights);
        writer.add(name, dtype, shape, &bytes).unwrap();
    }
    writer.write_file("config.json", &std::fs::read(model.dir().join("config.json")).unwrap()).unwrap();
    writer.write_file("tokenizer.json", byte_tokenizer_json().as_bytes()).unwrap();
    writer.finish().unwrap();
    dir
}

/// Wide enough that a coded tensor is smaller than a plain one.
fn model() -> TinyLlama {
    let mut config = full_config();
    for (name, size) in [("hidden_size", 96), ("intermediate_size", 160), ("vocab_size", 258)] {
        config[name] = size.into();
    }
    TinyLlama::new(&config, 5)
}

fn fp32(weights: impl Iterator<Item = f32>) -> (Dtype, Vec<u8>) {
    (Dtype::F32, weights.flat_map(f32::to_le_bytes).collect())
}

#[test]
fn an_fp32_model_that_is_exactly_bf16_is_coded_as_such_and_comes_back_as_fp32() {
    let folder = tempfile::tempdir().unwrap();
    let model = rewritten(&model(), folder.path(), |_, weights| {
        fp32(weights.iter().map(|w| bf16::from_f32(*w).to_f32()))
    });
    let (out, report) = compressed(&model, folder.path());
    assert_eq!(report.tensors.len(), 16);
    assert!(report.uncoded.is_empty() && report.tensors.iter().all(|tensor| tensor.layout == "exact_bf16"));
    assert!(report.ratio > 2.0, "{}", report.ratio);
    assert_same_after_decompression(&model, &out, folder.path());
    assert_same_logits(&model, &out, Kind::Float, &[1, 5, 20, 257, 3, 3, 9]);
}

#[test]
fn tensors_of_every_kind_are_coded_as_what_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let model = rewritten(&model(), folder.path(), |name, weights| match name {
        "lm_head.weight" => {
            (Dtype::F16, weights.iter().flat_map(|w| f16::from_f32(*w).to_le_bytes()).collect())
        }
        "model.embed_tokens.weight" => {
            (Dtype::BF16, weights.iter().flat_map(|w| bf16::from_f32(*w).to_le_bytes()).collect())
        }
        name if name.contains("layers.0.mlp") => fp32(weights.iter().map(|w| f16::from_f32(*w).to_f32())),
        _ => fp32(weights.iter().copied()),
    });
    let (out, report) = compressed(&model, folder.path());
    let layout = |name: &str| report.tensors.iter().find(|t| t.tensor_path == name).map(|t| t.layout);
    assert_eq!(layout("lm_head.weight"), Some("exact_fp16"));
    assert_eq!(layout("model.embed_tokens.weight"), Some("exact_bf16"));
    assert_eq!(layout("model.layers.0.mlp.up_proj.weight"), Some("exact_fp16"));
    // FP32 with all of its mantissa stays, its bias with it, and the report says why.
    assert_eq!(report.tensors.len(), 5);
    assert_eq!(report.uncoded.len(), 11);
    for left in &report.uncoded {
        assert!(report.kept.contains(&left.tensor_path));
        assert!(left.reason.contains("which neither BF16 nor FP16 holds exactly"), "{}", left.reason);
    }
    assert_same_after_decompression(&model, &out, folder.path());
    assert_same_logits(&model, &out, Kind::Float, &[1, 5, 20, 257, 3, 3, 9]);
}

#[test]
fn a_tensor_that_coding_makes_larger_is_left_alone_and_so_is_its_bias() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(folder.path().join("model")).unwrap();
    writer.add("m.tiny.bias", Dtype::BF16, &[4], &[7; 8]).unwrap();
    writer.add("m.tiny.weight", Dtype::BF16, &[4, 4], &[7; 32]).unwrap();
    // All bits are noise.
    let noise: Vec<u8> = (0..128 * 1024u32).map(|n| (n.wrapping_mul(0x9E37_79B9) >> 13) as u8).collect();
    writer.add("m.noise.weight", Dtype::F16, &[256, 256], &noise).unwrap();
    writer.add("m.zero.weight", Dtype::F16, &[256, 256], &vec![0; 128 * 1024]).unwrap();
    writer.finish().unwrap();
    let model = folder.path().join("model");
    let (out, report) = compressed(&model, folder.path());
    assert_eq!(report.tensors.len(), 1);
    let reasons: Vec<_> = report.uncoded.iter().map(|left| (&*left.tensor_path, &*left.reason)).collect();
    assert_eq!(reasons[0].0, "m.tiny.weight");
    assert!(reasons[0].1.ends_with(" bytes, as it is 32"), "{reasons:?}");
    assert_eq!(reasons[1].0, "m.noise.weight");
    assert_same_after_decompression(&model, &out, folder.path());
}

#[test]
fn a_difference_of_one_bit_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let write = |dir: &str, half: u16| {
        let mut halves = [0x3C00u16; 4096];
        halves[77] = half;
        let bytes: Vec<u8> = halves.iter().flat_map(|half| half.to_le_bytes()).collect();
        let mut writer = Writer::create(folder.path().join(dir)).unwrap();
        writer.add("m.weight", Dtype::BF16, &[64, 64], &bytes).unwrap();
        writer.finish().unwrap();
        folder.path().join(dir)
    };
    let (a, b) = (write("a", 0x7FC0), write("b", 0x7FC1));
    let (out, _) = compressed(&a, folder.path());
    let report = verify(out, Some(&b), &mut |_| ()).unwrap();
    assert!(!report.ok);
    assert_eq!(report.error.unwrap(), "m.weight: differs from the original, though its layout is exact");
}

#[test]
fn stats_foretell_the_size() {
    let Some(model) = downloaded("stories15M-bf16") else { return };
    let folder = tempfile::tempdir().unwrap();
    let foretold = stats(&model, &LOSSLESS, &mut |_| ()).unwrap();
    let lossless = &foretold.choices[0];
    assert_eq!((lossless.choice.as_str(), lossless.grid_entropy_bits), ("lossless", None));
    let (_, report) = compressed(&model, folder.path());
    let bits = report.tensors.iter().map(|t| t.stats.bits_per_weight * t.stats.weights as f64).sum::<f64>()
        / foretold.weights as f64;
    assert!((lossless.bits_per_weight - bits).abs() < 0.03, "{} {bits}", lossless.bits_per_weight);
}

/// Every matrix of a million weights or more of the models that are there, and whether all are.
fn large_matrices() -> (Vec<(String, Tensor)>, bool) {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/models");
    let (mut matrices, mut complete) = (Vec::new(), true);
    for name in ["stories15M", "SmolLM2-135M-Instruct", "whisper-base-matrices"] {
        if !models.join(name).join("model.safetensors").exists() {
            eprintln!("SKIPPED: {name} is absent, so the median is not judged; scripts/fetch_*.sh make it");
            complete = false;
            continue;
        }
        let reader = Reader::open(models.join(name)).unwrap();
        let large = |path: &&str| {
            reader.info(path).is_some_and(|info| {
                info.shape.len() == 2 && info.shape.iter().product::<usize>() >= 1_000_000
            })
        };
        matrices
            .extend(reader.names().filter(large).map(|path| (path.to_owned(), reader.read(path).unwrap())));
    }
    (matrices, complete)
}

/// What docs/quality.md says of unquantized matrices: run with `--nocapture` to see the figures.
#[test]
fn large_matrices_come_close_to_the_entropy_of_their_exponents() {
    let (matrices, complete) = large_matrices();
    for (kind, most_bits) in [(Kind::BFloat16, 10.75), (Kind::Half, 13.75)] {
        let stats_of = |(path, matrix): &(String, Tensor)| {
            let options = EncodeOptions { row_access: path.contains("embed"), ..EncodeOptions::default() };
            *CompressedTensor::compress_exact(path, &matrix.to_kind(kind), options).unwrap().stats()
        };
        let stats: Vec<_> = matrices.iter().map(stats_of).collect();
        let mut bits: Vec<f64> = stats.iter().map(|stats| stats.bits_per_weight).collect();
        let over = |s: &TensorStats| s.bits_per_weight - s.exponent_entropy_and_raw_bits.unwrap();
        let worst = stats.iter().map(over).fold(0.0, f64::max);
        bits.sort_by(f64::total_cmp);
        let Some(median) = bits.get(bits.len() / 2) else { continue };
        println!("{kind:?}: {} matrices, median {median:.3}, {:.3} to {:.3} bits a weight, at most {worst:.3} over",
            bits.len(), bits[0], bits[bits.len() - 1]);
        assert!(worst <= 0.15, "{kind:?}: worst {worst} over");
        // The embeddings of two small models alone are no median.
        assert!(*median <= most_bits || !complete, "{kind:?}: median {median}");
    }
}
