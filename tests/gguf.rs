//! GGUF files become Hugging Face directories: their weights as the reference implementation has them, their tokenizers as theirs do.

mod cli_fixture;
mod gguf_writer;
mod tiny_llama;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use codecllm::checkpoint::Reader;
use codecllm::gguf::{import, ImportOptions, ImportReport};
use codecllm::model::{LlamaConfig, RopeScaling};
use codecllm::runtime::{
    stop_tokens, ChatTemplate, GenerateOptions, Generator, LoadOptions, Message, Prompt, Tokenizer,
};
use codecllm::{Error, ErrorKind};
use gguf_writer::{f32, f32s, flag, i32s, text, texts, u32, Gguf};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tch::Kind;
use xxhash_rust::xxh3::xxh3_64;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures/gguf").join(name)
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// An imported file.
struct Imported {
    parent: tempfile::TempDir,
    report: ImportReport,
}

impl Imported {
    fn of(file: &Path, options: &ImportOptions) -> Self {
        let parent = tempfile::tempdir().unwrap();
        let report = import(file, parent.path().join("out"), options, &mut |_| {}).unwrap();
        Self { parent, report }
    }

    fn fixture(name: &str) -> Self {
        Self::of(&fixture(name), &ImportOptions::default())
    }

    fn dir(&self) -> PathBuf {
        self.parent.path().join("out")
    }

    fn json(&self, name: &str) -> Value {
        json_of(&self.dir().join(name))
    }
}

/// The error of importing `gguf`, after which there is no output and no half of one.
fn refused(gguf: &Gguf) -> Error {
    refused_with(gguf, &ImportOptions::default())
}

fn refused_with(gguf: &Gguf, options: &ImportOptions) -> Error {
    let parent = tempfile::tempdir().unwrap();
    let error =
        import(gguf.write(parent.path()), parent.path().join("out"), options, &mut |_| {}).unwrap_err();
    let names: Vec<_> =
        std::fs::read_dir(parent.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["model.gguf"], "{error}");
    error
}

fn tiny_with(change: impl FnOnce(&mut Gguf)) -> Gguf {
    let mut gguf = Gguf::tiny();
    change(&mut gguf);
    gguf
}

/// The reference's FP32 weights of `types.gguf`, under Hugging Face's names.
fn expected_types() -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = std::fs::read(fixture("types.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let floats =
        |data: &[u8]| data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    tensors
        .iter()
        .map(|(name, view)| (name.to_owned(), (view.shape().to_vec(), floats(view.data()))))
        .collect()
}

#[test]
fn every_type_is_what_the_reference_makes_of_it() {
    type Narrow = fn(f32) -> Vec<u8>;
    let kinds: [(Kind, Dtype, Narrow); 3] = [
        (Kind::Float, Dtype::F32, |weight| weight.to_le_bytes().to_vec()),
        (Kind::Half, Dtype::F16, |weight| f16::from_f32(weight).to_le_bytes().to_vec()),
        (Kind::BFloat16, Dtype::BF16, |weight| bf16::from_f32(weight).to_le_bytes().to_vec()),
    ];
    for (kind, dtype, narrow) in kinds {
        let options = ImportOptions { dtype: Some(kind), ..ImportOptions::default() };
        let imported = Imported::of(&fixture("types.gguf"), &options);
        let reader = Reader::open(imported.dir()).unwrap();
        let expected = expected_types();
        assert_eq!(reader.names().count(), expected.len());
        for (name, (shape, weights)) in expected {
            let info = reader.info(&name).unwrap_or_else(|| panic!("{name} is missing"));
            assert_eq!((info.dtype, &info.shape), (dtype, &shape), "{name}");
            let wanted: Vec<u8> = weights.into_iter().flat_map(narrow).collect();
            assert!(reader.read_bytes(&name).unwrap() == wanted, "{name} differs in {dtype:?}");
        }
        // All types are in it.
        let types: Vec<&str> = imported.report.types.keys().copied().collect();
        assert_eq!(
            types,
            ["BF16", "F16", "F32", "Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0"]
        );
    }
}

#[test]
fn the_dtype_is_that_of_the_matrices() {
    let dtype = |gguf: &Gguf| {
        let parent = tempfile::tempdir().unwrap();
        Imported::of(&gguf.write(parent.path()), &ImportOptions::default()).report.dtype
    };
    let all_in = |id: u32| {
        tiny_with(|gguf| {
            for tensor in gguf.tensors.iter_mut().filter(|tensor| tensor.dimensions.len() > 1) {
                tensor.kind = id;
                tensor.data.truncate(tensor.data.len() / 2);
                tensor.data.fill(0x3c);
            }
        })
    };
    assert_eq!(dtype(&Gguf::tiny()), "float32");
    assert_eq!(dtype(&all_in(1)), "float16");
    assert_eq!(dtype(&all_in(30)), "bfloat16");
    assert_eq!(Imported::fixture("types.gguf").report.dtype, "float16");
    assert_eq!(Imported::fixture("types.gguf").json("config.json")["torch_dtype"], "float16");
}

#[test]
fn tokenizers_split_as_the_reference_does() {
    let expected = json_of(&fixture("tokenizers.json"));
    let texts: Vec<&str> =
        expected["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    assert!(texts.len() > 20);
    for name in ["sentencepiece", "gpt-2", "smollm", "default", "llama-bpe"] {
        let imported = Imported::fixture(&format!("{name}.gguf"));
        let tokenizer = Tokenizer::from_dir(imported.dir()).unwrap();
        for (text, ids) in texts.iter().zip(expected[name].as_array().unwrap()) {
            let ids: Vec<u32> =
                ids.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
            assert_eq!(tokenizer.encode(text, false).unwrap(), ids, "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&ids).unwrap(), **text, "{name}");
        }
    }
}

#[test]
fn splittings_differ() {
    // Else the test above could not tell them apart.
    let expected = json_of(&fixture("tokenizers.json"));
    let names = ["gpt-2", "smollm", "default", "llama-bpe"];
    for (i, name) in names.iter().enumerate() {
        for other in &names[..i] {
            assert_ne!(expected[name], expected[other], "{name}, {other}");
        }
    }
}

#[test]
fn texts_begin_as_the_model_expects() {
    let around = |name: &str| {
        let imported = Imported::fixture(name);
        let tokenizer = Tokenizer::from_dir(imported.dir()).unwrap();
        let (with, without) = (tokenizer.encode("a", true).unwrap(), tokenizer.encode("a", false).unwrap());
        (with.len() - without.len(), with[0])
    };
    assert_eq!(around("sentencepiece.gguf"), (1, 1));
    let bos =
        Tokenizer::from_dir(Imported::fixture("llama-bpe.gguf").dir()).unwrap().token_id("<|begin_of_text|>");
    assert_eq!(around("llama-bpe.gguf"), (1, bos.unwrap()));
    assert_eq!(around("gpt-2.gguf").0, 0);
    // The file has the last word.
    let gguf = tiny_with(|gguf| {
        gguf.set("tokenizer.ggml.bos_token_id", u32(0));
        gguf.set("tokenizer.ggml.add_bos_token", flag(true));
        gguf.set("tokenizer.ggml.add_eos_token", flag(true));
    });
    let parent = tempfile::tempdir().unwrap();
    let imported = Imported::of(&gguf.write(parent.path()), &ImportOptions::default());
    let tokenizer = Tokenizer::from_dir(imported.dir()).unwrap();
    assert_eq!(tokenizer.encode("abc", true).unwrap(), [0, 4, 3, 5]);
}

#[test]
fn a_llama_3_keeps_its_rope_its_template_and_its_ends() {
    let imported = Imported::fixture("llama-bpe.gguf");
    let config = LlamaConfig::from_dir(imported.dir()).unwrap();
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 8192.0,
    };
    assert_eq!((config.rope_scaling, config.rope_theta), (scaling, 500_000.0));
    assert_eq!((config.head_dim, config.max_position_embeddings, config.rms_norm_eps), (32, 131_072, 1e-5));
    assert!(config.tie_word_embeddings && !config.attention_bias);
    let end = Tokenizer::from_dir(imported.dir()).unwrap().token_id("<|eot_id|>").unwrap();
    assert_eq!(stop_tokens(imported.dir()).unwrap(), [end]);
    let template = ChatTemplate::from_dir(imported.dir()).unwrap().unwrap();
    assert_eq!(template.render(&[Message::new("user", "Hi")], false).unwrap(), "<|user|>Hi<|end|>");
}

#[test]
fn what_was_imported_runs() {
    for name in ["sentencepiece.gguf", "llama-bpe.gguf", "types.gguf"] {
        let imported = Imported::fixture(name);
        let options = LoadOptions { kind: Kind::Float, ..LoadOptions::default() };
        let generator = Generator::open(imported.dir(), &options).unwrap();
        let options = GenerateOptions { max_new_tokens: 3, ..GenerateOptions::default() };
        let answer = generator.generate(&[Prompt::Text("abc".to_owned())], &options, &mut |_| {
            std::ops::ControlFlow::Continue(())
        });
        assert!(answer.is_ok(), "{name}: {answer:?}");
    }
}

#[test]
fn biases_and_their_rotary_order_come_along() {
    let imported = Imported::fixture("types.gguf");
    let config = LlamaConfig::from_dir(imported.dir()).unwrap();
    assert!(config.attention_bias && !config.mlp_bias && !config.tie_word_embeddings);
    // The vocabulary has more rows than tokens.
    assert_eq!((config.vocab_size, imported.report.tokens), (16, 12));
}

#[test]
fn one_bias_of_four_is_refused() {
    let error = refused(&tiny_with(|gguf| gguf.add("blk.0.attn_q.bias", &[8])));
    assert_eq!((error.kind(), error.subject()), (ErrorKind::Unsupported, "blk.0.attn_k.bias"), "{error}");
    let error = refused(&tiny_with(|gguf| gguf.add("blk.0.ffn_down.bias", &[8])));
    assert_eq!((error.kind(), error.subject()), (ErrorKind::Unsupported, "blk.0.ffn_down.bias"), "{error}");
}

#[test]
fn what_changes_the_maths_is_refused_by_name() {
    for (key, value) in [
        ("llama.expert_count", u32(8)),
        ("llama.attention.sliding_window", u32(4096)),
        ("llama.logit_scale", f32(0.5)),
        ("llama.rope.scaling.type", text("yarn")),
        ("llama.rope.dimension_count", u32(2)),
        ("llama.attention.value_length", u32(8)),
        ("llama.attention.causal", flag(false)),
        ("llama.something_new", u32(1)),
        ("general.architecture", text("qwen2")),
        ("tokenizer.ggml.model", text("t5")),
        ("tokenizer.ggml.pre", text("tekken")),
        ("tokenizer.ggml.remove_extra_whitespaces", flag(true)),
        ("tokenizer.ggml.precompiled_charsmap", text("x")),
        ("tokenizer.ggml.add_space_prefix", flag(true)),
    ] {
        let error = refused(&tiny_with(|gguf| gguf.set(key, value)));
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        let text = error.to_string();
        assert!(text.contains(&format!("model.gguf: {key} is ")) && text.contains("wanted"), "{text}");
        assert_eq!(key.starts_with("tokenizer"), text.contains("--tokenizer FILE"), "{text}");
    }
    for (name, dimensions) in
        [("blk.0.attn_q_norm.weight", &[8][..]), ("blk.1.attn_q.weight", &[8, 8]), ("output_norm.bias", &[8])]
    {
        let error = refused(&tiny_with(|gguf| gguf.add(name, dimensions)));
        assert_eq!((error.kind(), error.subject()), (ErrorKind::Unsupported, name), "{error}");
    }
    let error = refused(&tiny_with(|gguf| gguf.add("rope_freqs.weight", &[2])));
    assert_eq!((error.kind(), error.subject()), (ErrorKind::Unsupported, "rope_freqs.weight"), "{error}");
}

#[test]
fn what_says_the_ordinary_thing_is_no_reason_to_refuse() {
    let gguf = tiny_with(|gguf| {
        gguf.set("llama.expert_count", u32(0));
        gguf.set("llama.attention.causal", flag(true));
        gguf.set("llama.rope.scaling.type", text("none"));
        gguf.set("llama.tensor_data_layout", text("Meta AI original pth"));
        gguf.set("llama.rope.dimension_count", u32(4));
        gguf.set("llama.vocab_size", u32(7));
        gguf.set("quantize.imatrix.file", text("whatever else is in the file"));
    });
    let parent = tempfile::tempdir().unwrap();
    let imported = Imported::of(&gguf.write(parent.path()), &ImportOptions::default());
    assert_eq!(imported.json("config.json")["rope_scaling"], Value::Null);
    // Linear scaling can be said.
    let gguf = tiny_with(|gguf| {
        gguf.set("llama.rope.scaling.type", text("linear"));
        gguf.set("llama.rope.scaling.factor", f32(4.0));
    });
    let imported = Imported::of(&gguf.write(parent.path()), &ImportOptions::default());
    let config = LlamaConfig::from_dir(imported.dir()).unwrap();
    assert_eq!(config.rope_scaling, RopeScaling::Linear { factor: 4.0 });
}

/// A file may have holes, which take no room on a disk: 64 GB of them, where a process may take 32.
#[test]
fn a_tensor_larger_than_the_memory_is_an_error() {
    let parent = tempfile::tempdir().unwrap();
    let mut gguf = Gguf::tiny();
    gguf.remove_tensor("token_embd.weight");
    gguf.add("token_embd.weight", &[8, 1]);
    gguf.tensor("token_embd.weight").dimensions = vec![8, 1 << 31];
    let file = gguf.write(parent.path());
    let holes = std::fs::File::options().write(true).open(&file).unwrap();
    holes.set_len(holes.metadata().unwrap().len() + ((8 * 4) << 31)).unwrap();
    let limited = "ulimit -v 33554432 && exec \"$0\" import \"$1\" -o \"$2\"";
    let run = std::process::Command::new("sh")
        .args(["-c", limited, env!("CARGO_BIN_EXE_codecllm")])
        .args([&file, &parent.path().join("out")])
        .output()
        .unwrap();
    let run = cli_fixture::Run::of(&run);
    assert_eq!(run.code, 1, "{}", run.stderr);
    assert!(
        run.stderr.contains("token_embd.weight: needs 68719476736 bytes of memory, which are not there"),
        "{}",
        run.stderr
    );
    assert!(!parent.path().join("out").exists());
}

#[test]
fn damage_is_named() {
    type Damage = fn(&mut Gguf);
    let cases: [(&str, ErrorKind, &str, Damage); 16] = [
        ("a missing key", ErrorKind::Corrupt, "llama.block_count is missing, wanted a number", |g| {
            g.remove("llama.block_count");
        }),
        ("a key of another type", ErrorKind::Corrupt, "llama.block_count is \"1\", wanted", |g| {
            g.set("llama.block_count", text("1"));
        }),
        ("a key twice", ErrorKind::Corrupt, "llama.block_count is there twice", |g| {
            g.keys.push(("llama.block_count".to_owned(), u32(1)));
        }),
        ("more layers than there are", ErrorKind::Corrupt, "blk.1.attn_norm.weight: is missing", |g| {
            g.set("llama.block_count", u32(2_000_000_000));
        }),
        ("a missing tensor", ErrorKind::Corrupt, "blk.0.ffn_up.weight: is missing", |g| {
            g.remove_tensor("blk.0.ffn_up.weight");
        }),
        (
            "another shape",
            ErrorKind::Corrupt,
            "blk.0.ffn_up.weight: has the shape [6, 8], wanted [7, 8]",
            |g| {
                g.set("llama.feed_forward_length", u32(7));
                g.remove_tensor("blk.0.ffn_gate.weight");
                g.add("blk.0.ffn_gate.weight", &[8, 7]);
            },
        ),
        ("a tensor twice", ErrorKind::Corrupt, "tensor output_norm.weight is there twice", |g| {
            g.add("output_norm.weight", &[8]);
        }),
        (
            "an unread type",
            ErrorKind::Unsupported,
            "blk.0.attn_v.weight: is stored in Q2_K, wanted one of F32, F16",
            |g| g.tensor("blk.0.attn_v.weight").kind = 10,
        ),
        (
            "no type at all",
            ErrorKind::Unsupported,
            "blk.0.attn_v.weight: is stored of unknown type 99",
            |g| g.tensor("blk.0.attn_v.weight").kind = 99,
        ),
        (
            "rows of broken blocks",
            ErrorKind::Corrupt,
            "wanted rows of whole Q8_0 blocks of 32 weights",
            |g| g.tensor("blk.0.attn_v.weight").kind = 8,
        ),
        (
            "an offset outside",
            ErrorKind::Truncated,
            "blk.0.attn_v.weight: needs 128 bytes at byte 1048576",
            |g| g.tensor("blk.0.attn_v.weight").offset = Some(1 << 20),
        ),
        ("an offset in another", ErrorKind::Corrupt, "within another tensor", |g| {
            g.tensor("blk.0.attn_v.weight").offset = Some(0);
        }),
        (
            "an odd offset",
            ErrorKind::Corrupt,
            "blk.0.attn_v.weight: begins at byte 3 of the data, wanted a multiple of 32",
            |g| g.tensor("blk.0.attn_v.weight").offset = Some(3),
        ),
        ("more than there can be", ErrorKind::Corrupt, "more than can be addressed", |g| {
            g.tensor("output_norm.weight").dimensions = vec![1 << 40, 1 << 40];
        }),
        ("no weights", ErrorKind::Corrupt, "output_norm.weight: has the shape [0]", |g| {
            g.tensor("output_norm.weight").dimensions = vec![0];
        }),
        ("a weight that is none", ErrorKind::Corrupt, "blk.0.attn_q.weight: has a weight that is NaN", |g| {
            g.tensor("blk.0.attn_q.weight").data[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        }),
    ];
    for (what, kind, message, damage) in cases {
        let error = refused(&tiny_with(damage));
        assert_eq!(error.kind(), kind, "{what}: {error}");
        assert!(error.to_string().contains(message), "{what}: {error}");
    }
}

#[test]
fn a_damaged_tokenizer_is_named() {
    type Damage = fn(&mut Gguf);
    let cases: [(&str, &str, Damage); 8] = [
        ("no tokens", "tokenizer.ggml.tokens is missing", |g| g.remove("tokenizer.ggml.tokens")),
        ("more tokens than rows", "is 8 tokens, wanted 1 to 7", |g| {
            g.set("tokenizer.ggml.tokens", texts(&["a", "b", "c", "d", "e", "f", "g", "h"]));
        }),
        ("a token twice", "\"a\" twice, again at 2", |g| {
            g.set("tokenizer.ggml.tokens", texts(&["<|endoftext|>", "a", "a", "c", "ab", "<|im_end|>"]));
        }),
        ("too few kinds", "tokenizer.ggml.token_type is an array of 2 numbers", |g| {
            g.set("tokenizer.ggml.token_type", i32s(&[1, 1]));
        }),
        ("an unknown kind", "tokenizer.ggml.token_type is an array of 6 numbers", |g| {
            g.set("tokenizer.ggml.token_type", i32s(&[3, 1, 1, 9, 1, 3]));
        }),
        ("a role of no token", "tokenizer.ggml.eos_token_id is 6, wanted less than 6", |g| {
            g.set("tokenizer.ggml.eos_token_id", u32(6));
        }),
        ("a merge of no tokens", "tokenizer.ggml.* make no tokenizer", |g| {
            g.set("tokenizer.ggml.merges", texts(&["a x"]));
        }),
        ("pieces without scores", "tokenizer.ggml.scores is missing", |g| {
            g.set("tokenizer.ggml.model", text("llama"));
        }),
    ];
    for (what, message, damage) in cases {
        let error = refused(&tiny_with(damage));
        assert!(error.to_string().contains(message), "{what}: {error}");
        assert!(
            error.to_string().contains("--tokenizer FILE") || error.kind() == ErrorKind::Corrupt,
            "{what}: {error}"
        );
    }
    let error = refused(&tiny_with(|g| {
        g.set("tokenizer.ggml.model", text("llama"));
        g.set("tokenizer.ggml.scores", f32s(&[0.0, 0.0, 0.0, f32::NAN, -1.0, 0.0]));
    }));
    assert!(error.to_string().contains("tokenizer.ggml.scores is an array of 6 numbers"), "{error}");
}

#[test]
fn other_files_are_refused() {
    let parent = tempfile::tempdir().unwrap();
    let refuse = |bytes: &[u8]| {
        let path = parent.path().join("file");
        std::fs::write(&path, bytes).unwrap();
        import(path, parent.path().join("out"), &ImportOptions::default(), &mut |_| {}).unwrap_err()
    };
    assert_eq!(refuse(b"").kind(), ErrorKind::Truncated);
    let error = refuse(b"PK\x03\x04 and more of a zip file");
    assert!(error.to_string().contains("begins with \"PK\\x03\\x04\", wanted \"GGUF\""), "{error}");
    let versions = [
        (1, ErrorKind::Unsupported, "version 1"),
        (4, ErrorKind::Unsupported, "version 4"),
        (3u32.swap_bytes(), ErrorKind::Unsupported, "big-endian"),
    ];
    for (version, kind, message) in versions {
        let error = refuse(&tiny_with(|gguf| gguf.version = version).bytes());
        assert_eq!(error.kind(), kind);
        assert!(error.to_string().contains(message), "{error}");
    }
    // A directory, and nothing.
    for path in [parent.path().to_path_buf(), parent.path().join("absent")] {
        assert!(import(&path, parent.path().join("out"), &ImportOptions::default(), &mut |_| {}).is_err());
    }
}

#[test]
fn a_tokenizer_can_be_given() {
    let mut gguf = tiny_with(|gguf| gguf.set("tokenizer.ggml.pre", text("tekken")));
    let parent = tempfile::tempdir().unwrap();
    let given = Imported::of(&Gguf::tiny().write(parent.path()), &ImportOptions::default());
    let tokenizer = Some(given.dir().join("tokenizer.json"));
    let options =
        ImportOptions { tokenizer: tokenizer.clone(), stop_tokens: vec!["c".to_owned()], dtype: None };
    let imported = Imported::of(&gguf.write(parent.path()), &options);
    let read = |dir: PathBuf| std::fs::read(dir.join("tokenizer.json")).unwrap();
    assert_eq!(read(imported.dir()), read(given.dir()));
    assert_eq!(imported.report.stop_tokens, [5, 0, 3]);
    // A model with fewer rows than it has tokens.
    gguf.remove_tensor("token_embd.weight");
    gguf.add("token_embd.weight", &[8, 4]);
    gguf.remove("tokenizer.ggml.tokens");
    gguf.remove("tokenizer.ggml.eos_token_id");
    let error = refused_with(&gguf, &options);
    assert!(error.to_string().contains("tokenizer.json: has 6 tokens, the model has 4"), "{error}");
}

#[test]
fn options_that_do_not_fit_are_refused() {
    let options = ImportOptions { stop_tokens: vec!["nothing".to_owned()], ..ImportOptions::default() };
    let error = refused_with(&Gguf::tiny(), &options);
    assert_eq!((error.kind(), error.subject()), (ErrorKind::InvalidArgument, "--stop-token"), "{error}");
    let options = ImportOptions { dtype: Some(Kind::Int), ..ImportOptions::default() };
    assert_eq!(refused_with(&Gguf::tiny(), &options).kind(), ErrorKind::InvalidArgument);
    let large = tiny_with(|gguf| {
        gguf.tensor("blk.0.attn_q.weight").data[4..8].copy_from_slice(&1e5f32.to_le_bytes());
    });
    let options = ImportOptions { dtype: Some(Kind::Half), ..ImportOptions::default() };
    let error = refused_with(&large, &options);
    assert_eq!(error.subject(), "blk.0.attn_q.weight");
    assert!(
        error.to_string().contains("has the weight 1e5, beyond F16; take --dtype bf16 or fp32"),
        "{error}"
    );
    // An output that exists stays as it is.
    let parent = tempfile::tempdir().unwrap();
    let path = Gguf::tiny().write(parent.path());
    let error = import(&path, parent.path(), &ImportOptions::default(), &mut |_| {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}

#[test]
fn progress_ends_at_the_whole() {
    let parent = tempfile::tempdir().unwrap();
    let mut seen = Vec::new();
    import(fixture("types.gguf"), parent.path().join("out"), &ImportOptions::default(), &mut |progress| {
        seen.push((progress.stage.to_owned(), progress.done_bytes, progress.total_bytes));
    })
    .unwrap();
    assert_eq!(seen.len(), expected_types().len());
    assert!(seen.windows(2).all(|pair| pair[0].1 < pair[1].1));
    assert!(seen.last().is_some_and(|(stage, done, total)| stage == "import" && done == total));
}

#[test]
fn the_verb_reports_and_fails_as_the_others_do() {
    let parent = tempfile::tempdir().unwrap();
    let (file, out) = (fixture("smollm.gguf"), parent.path().join("out"));
    let arguments =
        ["import", file.to_str().unwrap(), "-o", out.to_str().unwrap(), "--dtype", "bf16", "--json"];
    let report = cli_fixture::run(&arguments).json();
    assert_eq!((&report["dtype"], &report["chat_template"]), (&"bfloat16".into(), &true.into()));
    assert_eq!(report["types"], serde_json::json!({ "F16": 8, "F32": 3 }));
    assert_eq!(json_of(&out.join("config.json"))["torch_dtype"], "bfloat16");
    let run = cli_fixture::run(&arguments);
    run.assert_fails(out.to_str().unwrap(), "exists");
    let absent = parent.path().join("absent.gguf");
    let run = cli_fixture::run(&["import", absent.to_str().unwrap(), "-o", "x"]);
    run.assert_fails(absent.to_str().unwrap(), "No such file");
    assert_eq!(cli_fixture::run(&["import", file.to_str().unwrap()]).code, 2);
}

/// What scripts/fetch_smollm2.sh made is what the reference implementation makes of the file.
#[test]
fn smollm2_is_what_the_reference_makes_of_it() {
    let dir = root().join(".cache/models/SmolLM2-135M-Instruct");
    if !dir.join("config.json").exists() {
        eprintln!("SKIPPED: {} is absent; `make test` fetches it", dir.display());
        return;
    }
    let expected = json_of(&fixture("smollm2.json"));
    let reader = Reader::open(&dir).unwrap();
    let tensors = expected["tensors"].as_object().unwrap();
    assert_eq!(reader.names().count(), tensors.len());
    for (name, sum) in tensors {
        assert_eq!(reader.info(name).unwrap().dtype, Dtype::F16, "{name}");
        assert_eq!(
            format!("{:016x}", xxh3_64(&reader.read_bytes(name).unwrap())),
            sum.as_str().unwrap(),
            "{name}"
        );
    }
    let tokenizer = Tokenizer::from_dir(&dir).unwrap();
    for (text, ids) in expected["texts"].as_object().unwrap() {
        assert_eq!(&Value::from(tokenizer.encode(text, true).unwrap()), ids, "{text:?}");
    }
    check_wikitext(&tokenizer, &expected["wikitext"]);
    check_smollm2_settings(&dir);
}

fn check_wikitext(tokenizer: &Tokenizer, expected: &Value) {
    let Ok(text) = std::fs::read_to_string(root().join(".cache/text/wikitext-2-test.txt")) else {
        eprintln!("SKIPPED: WikiText-2 is absent; scripts/fetch_wikitext.sh fetches it");
        return;
    };
    let text: String = text.chars().take(200_000).collect();
    let ids = tokenizer.encode(&text, false).unwrap();
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    assert_eq!(ids.len() as u64, expected["tokens"].as_u64().unwrap());
    assert_eq!(format!("{:016x}", xxh3_64(&bytes)), expected["xxh3"].as_str().unwrap());
}

fn check_smollm2_settings(dir: &Path) {
    let config = LlamaConfig::from_dir(dir).unwrap();
    let counts = [config.vocab_size, config.hidden_size, config.intermediate_size, config.num_hidden_layers];
    assert_eq!(counts, [49152, 576, 1536, 30]);
    assert_eq!((config.num_attention_heads, config.num_key_value_heads, config.head_dim), (9, 3, 64));
    assert_eq!((config.rope_theta, config.rms_norm_eps, config.max_position_embeddings), (1e5, 1e-5, 8192));
    assert!(config.tie_word_embeddings && config.rope_scaling == RopeScaling::Default);
    assert_eq!(json_of(&dir.join("generation_config.json"))["eos_token_id"], serde_json::json!([2, 0]));
    let template = ChatTemplate::from_dir(dir).unwrap().unwrap();
    let text = template.render(&[Message::new("user", "Hi")], true).unwrap();
    assert!(text.ends_with("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"), "{text}");
    let tokenizer = json_of(&dir.join("tokenizer_config.json"));
    assert_eq!(
        (&tokenizer["bos_token"], &tokenizer["eos_token"]),
        (&"<|im_start|>".into(), &"<|im_end|>".into())
    );
}
