//! The Llama against a plain FP64 implementation, against itself in other batchings, and its config errors.

mod tiny_llama;

use codecllm::checkpoint::{CheckpointWeights, Reader};
use codecllm::model::{KvCache, Llama, LlamaConfig, LogitsOf, RopeScaling};
use codecllm::{Error, ErrorKind};
use serde_json::{json, Value};
use tch::{nn, Device, Kind, Tensor};
use tiny_llama::{full_config, plain_config, shapes, TinyLlama};

const TOKENS: [i64; 20] = [3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9, 32, 38, 46, 2, 6, 43, 38, 32, 0];

struct Loaded {
    vs: nn::VarStore,
    model: Llama,
}

fn try_load(dir: &std::path::Path, kind: Kind) -> codecllm::Result<Loaded> {
    let config = LlamaConfig::from_dir(dir)?;
    let reader = Reader::open(dir)?;
    let vs = nn::VarStore::new(Device::Cpu);
    let model = Llama::load(&vs.root(), &config, &CheckpointWeights::new(&reader, kind))?;
    Ok(Loaded { vs, model })
}

fn load(tiny: &TinyLlama, kind: Kind) -> Loaded {
    try_load(&tiny.dir(), kind).unwrap()
}

fn ids(tokens: &[i64]) -> Tensor {
    Tensor::from_slice(tokens).view([1, -1])
}

fn cache(model: &Llama, batch: usize, capacity: usize, kind: Kind) -> KvCache {
    KvCache::new(model.config(), batch, capacity, kind, Device::Cpu).unwrap()
}

fn assert_close(got: &Tensor, wanted: &Tensor, tolerance: f64) {
    assert_eq!(got.size(), wanted.size());
    let error = (got.to_kind(Kind::Double) - wanted.to_kind(Kind::Double)).abs().max().double_value(&[]);
    assert!(error <= tolerance, "largest difference {error}, wanted at most {tolerance}");
}

/// The model in FP64 with plain loops, written from the definition.
struct Reference<'a> {
    tiny: &'a TinyLlama,
    config: &'a Value,
}

impl Reference<'_> {
    fn n(&self, name: &str) -> usize {
        self.config[name].as_u64().unwrap() as usize
    }

    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let (shape, weight) = &self.tiny.weights[&format!("{name}.weight")];
        let bias = self.tiny.weights.get(&format!("{name}.bias"));
        let row = |i: usize| (0..shape[1]).map(|j| f64::from(weight[i * shape[1] + j]) * x[j]).sum::<f64>();
        (0..shape[0]).map(|i| row(i) + bias.map_or(0.0, |(_, b)| f64::from(b[i]))).collect()
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let (_, weight) = &self.tiny.weights[&format!("{name}.weight")];
        let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + self.config["rms_norm_eps"].as_f64().unwrap()).sqrt();
        x.iter().zip(weight).map(|(v, w)| v * scale * f64::from(*w)).collect()
    }

    fn frequency(&self, i: usize) -> f64 {
        let theta = self.config["rope_theta"].as_f64().unwrap();
        let plain = 1.0 / theta.powf(2.0 * i as f64 / self.n("head_dim") as f64);
        let scaling = &self.config["rope_scaling"];
        if scaling.is_null() {
            return plain;
        }
        let get = |name: &str| scaling[name].as_f64().unwrap();
        let original = get("original_max_position_embeddings");
        let wavelength = 2.0 * std::f64::consts::PI / plain;
        if wavelength > original / get("low_freq_factor") {
            plain / get("factor")
        } else if wavelength < original / get("high_freq_factor") {
            plain
        } else {
            let smooth = (original / wavelength - get("low_freq_factor"))
                / (get("high_freq_factor") - get("low_freq_factor"));
            (1.0 - smooth) * plain / get("factor") + smooth * plain
        }
    }

    /// Rotates each head of `x`: element `i` with element `i + head_dim / 2`.
    fn rotate(&self, x: &mut [f64], position: usize) {
        let dim = self.n("head_dim");
        for head in x.chunks_mut(dim) {
            for i in 0..dim / 2 {
                let (sin, cos) = (position as f64 * self.frequency(i)).sin_cos();
                let (a, b) = (head[i], head[i + dim / 2]);
                head[i] = a * cos - b * sin;
                head[i + dim / 2] = b * cos + a * sin;
            }
        }
    }

    fn attend(&self, query: &[f64], keys: &[Vec<f64>], values: &[Vec<f64>]) -> Vec<f64> {
        let dim = self.n("head_dim");
        let group = self.n("num_attention_heads") / self.n("num_key_value_heads");
        let mut out = Vec::new();
        for (head, q) in query.chunks(dim).enumerate() {
            let at = head / group * dim;
            let score =
                |k: &Vec<f64>| q.iter().zip(&k[at..]).map(|(a, b)| a * b).sum::<f64>() / (dim as f64).sqrt();
            let weights: Vec<f64> = keys.iter().map(|k| score(k).exp()).collect();
            let total: f64 = weights.iter().sum();
            out.extend(
                (0..dim).map(|i| weights.iter().zip(values).map(|(w, v)| w / total * v[at + i]).sum::<f64>()),
            );
        }
        out
    }

    fn layer(&self, layer: usize, rows: &mut [Vec<f64>]) {
        let path = |name: &str| format!("model.layers.{layer}.{name}");
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for (position, x) in rows.iter_mut().enumerate() {
            let normed = self.norm(&path("input_layernorm"), x);
            let mut query = self.linear(&path("self_attn.q_proj"), &normed);
            let mut key = self.linear(&path("self_attn.k_proj"), &normed);
            self.rotate(&mut query, position);
            self.rotate(&mut key, position);
            keys.push(key);
            values.push(self.linear(&path("self_attn.v_proj"), &normed));
            let attended = self.attend(&query, &keys, &values);
            let out = self.linear(&path("self_attn.o_proj"), &attended);
            x.iter_mut().zip(out).for_each(|(x, y)| *x += y);
            let normed = self.norm(&path("post_attention_layernorm"), x);
            let gate = self.linear(&path("mlp.gate_proj"), &normed);
            let up = self.linear(&path("mlp.up_proj"), &normed);
            let hidden: Vec<f64> = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            let out = self.linear(&path("mlp.down_proj"), &hidden);
            x.iter_mut().zip(out).for_each(|(x, y)| *x += y);
        }
    }

    fn logits(&self, tokens: &[i64]) -> Tensor {
        let (shape, table) = &self.tiny.weights["model.embed_tokens.weight"];
        let embed = |&t: &i64| (0..shape[1]).map(|j| f64::from(table[t as usize * shape[1] + j])).collect();
        let mut rows: Vec<Vec<f64>> = tokens.iter().map(embed).collect();
        (0..self.n("num_hidden_layers")).for_each(|layer| self.layer(layer, &mut rows));
        let tied = self.config["tie_word_embeddings"] == true;
        let head = if tied { "model.embed_tokens" } else { "lm_head" };
        let flat: Vec<f64> =
            rows.iter().flat_map(|x| self.linear(head, &self.norm("model.norm", x))).collect();
        Tensor::from_slice(&flat).view([1, tokens.len() as i64, shape[0] as i64])
    }
}

#[test]
fn equals_a_plain_implementation() {
    for config in [full_config(), plain_config()] {
        let tiny = TinyLlama::new(&config, 1);
        let wanted = Reference { tiny: &tiny, config: &config }.logits(&TOKENS);
        let model = load(&tiny, Kind::Float).model;
        let got =
            model.forward(&ids(&TOKENS), &mut cache(&model, 1, 20, Kind::Float), LogitsOf::All).unwrap();
        assert!(wanted.abs().max().double_value(&[]) > 0.5, "logits too small to tell anything");
        assert_close(&got, &wanted, 2e-5);
        for (kind, tolerance) in [(Kind::Half, 2e-2), (Kind::BFloat16, 1.5e-1)] {
            let model = load(&tiny, kind).model;
            let got = model.forward(&ids(&TOKENS), &mut cache(&model, 1, 20, kind), LogitsOf::All).unwrap();
            assert_eq!(got.kind(), kind);
            assert_close(&got, &wanted, tolerance);
        }
    }
}

#[test]
fn every_rope_frequency_band_is_covered_by_the_reference() {
    let scaled = full_config();
    let tiny = TinyLlama::new(&scaled, 1);
    let plain = plain_config();
    let ratios: Vec<f64> = (0..4)
        .map(|i| {
            Reference { tiny: &tiny, config: &plain }.frequency(i)
                / Reference { tiny: &tiny, config: &scaled }.frequency(i)
        })
        .collect();
    assert!(ratios.contains(&1.0) && ratios.contains(&8.0), "{ratios:?}");
    assert!(ratios.iter().any(|r| *r > 1.01 && *r < 7.99), "{ratios:?}");
}

#[test]
fn prefill_in_pieces_and_token_by_token_agree() {
    let tiny = TinyLlama::new(&full_config(), 2);
    let model = load(&tiny, Kind::Float).model;
    let whole = model.forward(&ids(&TOKENS), &mut cache(&model, 1, 20, Kind::Float), LogitsOf::All).unwrap();
    let mut stepwise = cache(&model, 1, 20, Kind::Float);
    for (i, token) in TOKENS.iter().enumerate() {
        let logits = model.forward(&ids(&[*token]), &mut stepwise, LogitsOf::Last).unwrap();
        assert_close(&logits, &whole.narrow(1, i as i64, 1), 1e-5);
    }
    let mut pieces = cache(&model, 1, 20, Kind::Float);
    let _ = model.forward(&ids(&TOKENS[..7]), &mut pieces, LogitsOf::Last).unwrap();
    let rest = model.forward(&ids(&TOKENS[7..]), &mut pieces, LogitsOf::All).unwrap();
    assert_close(&rest, &whole.narrow(1, 7, 13), 1e-5);
    assert_eq!((pieces.len(), pieces.capacity()), (20, 20));
}

#[test]
fn a_long_prompt_equals_one_pass() {
    let tiny = TinyLlama::new(&plain_config(), 3);
    let model = load(&tiny, Kind::Float).model;
    let tokens: Vec<i64> = (0..1100).map(|i| (i * i + 7) % 50).collect();
    let one = model.forward(&ids(&tokens), &mut cache(&model, 1, 1100, Kind::Float), LogitsOf::Last).unwrap();
    let mut pieces = cache(&model, 1, 1100, Kind::Float);
    let prefilled = model.prefill(&ids(&tokens), &mut pieces).unwrap();
    assert_eq!(pieces.len(), 1100);
    assert_close(&prefilled, &one, 1e-5);
}

#[test]
fn a_sequence_in_a_batch_equals_itself_alone() {
    let tiny = TinyLlama::new(&full_config(), 4);
    let model = load(&tiny, Kind::Float).model;
    let prompts: [&[i64]; 3] = [&TOKENS[..3], &TOKENS[5..15], &TOKENS[11..12]];
    let next: [i64; 3] = [17, 4, 40];
    let longest = 10;
    let padding: Vec<usize> = prompts.iter().map(|p| longest - p.len()).collect();
    // The padding token must not matter.
    for pad in [0i64, 49] {
        let rows: Vec<i64> = prompts
            .iter()
            .zip(&padding)
            .flat_map(|(p, &n)| std::iter::repeat_n(pad, n).chain(p.iter().copied()))
            .collect();
        let mut batched = cache(&model, 3, 12, Kind::Float).with_left_padding(&padding).unwrap();
        let first = model.prefill(&Tensor::from_slice(&rows).view([3, -1]), &mut batched).unwrap();
        let second =
            model.forward(&Tensor::from_slice(&next).view([3, 1]), &mut batched, LogitsOf::Last).unwrap();
        for (i, prompt) in prompts.iter().enumerate() {
            let mut alone = cache(&model, 1, 12, Kind::Float);
            let row = |logits: &Tensor| logits.narrow(0, i as i64, 1);
            assert_close(&row(&first), &model.prefill(&ids(prompt), &mut alone).unwrap(), 1e-5);
            let wanted = model.forward(&ids(&[next[i]]), &mut alone, LogitsOf::Last).unwrap();
            assert_close(&row(&second), &wanted, 1e-5);
        }
    }
}

#[test]
fn padding_that_fills_the_cache_or_more_is_refused() {
    let tiny = TinyLlama::new(&plain_config(), 5);
    let model = load(&tiny, Kind::Float).model;
    // The last is -1 as a signed number.
    for padding in [12, 1 << 40, usize::MAX] {
        let error = cache(&model, 2, 12, Kind::Float).with_left_padding(&[3, padding]).unwrap_err();
        let wanted = format!("padding: [3, {padding}], wanted 2 numbers below the capacity 12");
        assert_eq!(error.to_string(), wanted);
    }
}

#[test]
fn the_observer_sees_every_layer() {
    let tiny = TinyLlama::new(&plain_config(), 5);
    let model = load(&tiny, Kind::Float).model;
    let mut seen = Vec::new();
    let mut observe = |layer: usize, hidden: &Tensor| seen.push((layer, hidden.size()));
    let mut cache = cache(&model, 1, 4, Kind::Float);
    let _ = model.forward_observed(&ids(&TOKENS[..4]), &mut cache, LogitsOf::Last, &mut observe).unwrap();
    assert_eq!(seen, [(0, vec![1, 4, 24]), (1, vec![1, 4, 24])]);
}

#[test]
fn layers_run_apart_as_they_do_together() {
    let tiny = TinyLlama::new(&plain_config(), 5);
    let model = load(&tiny, Kind::Float).model;
    let tokens = ids(&TOKENS[..4]);
    let mut streams = vec![model.embed(&tokens).unwrap()];
    let mut observe = |_: usize, stream: &Tensor| streams.push(stream.shallow_clone());
    let mut together = cache(&model, 1, 4, Kind::Float);
    let logits = model.forward_observed(&tokens, &mut together, LogitsOf::All, &mut observe).unwrap();
    let last = streams.pop().unwrap();
    assert_eq!(model.head(&last).unwrap(), logits);
    let mut apart = Vec::new();
    let mut observe = |layer: usize, stream: &Tensor| apart.push((layer, stream.shallow_clone()));
    model.forward_apart(&streams, &mut cache(&model, 1, 4, Kind::Float), &mut observe).unwrap();
    assert_eq!(apart, [(0, streams[1].shallow_clone()), (1, last)]);
    for wrong in [&streams[..1], &[]] {
        let error =
            model.forward_apart(wrong, &mut cache(&model, 1, 4, Kind::Float), &mut |_, _| ()).unwrap_err();
        assert!(error.to_string().starts_with("residual streams: are "), "{error}");
    }
}

#[test]
fn weights_are_buffers_and_a_tied_table_counts_once() {
    for (config, tied) in [(full_config(), false), (plain_config(), true)] {
        let tiny = TinyLlama::new(&config, 6);
        let loaded = load(&tiny, Kind::Half);
        let variables = loaded.vs.variables();
        let mut names: Vec<_> = variables.keys().cloned().collect();
        let mut wanted: Vec<_> = shapes(&config).into_iter().map(|(name, _)| name).collect();
        names.sort();
        wanted.sort();
        assert_eq!(names, wanted);
        assert!(loaded.vs.trainable_variables().is_empty());
        let elements: usize = shapes(&config).iter().map(|(_, s)| s.iter().product::<usize>()).sum();
        assert_eq!(loaded.model.weight_bytes(), 2 * elements, "tied: {tied}");
    }
}

#[test]
fn follows_its_varstore_to_another_dtype() {
    let tiny = TinyLlama::new(&full_config(), 7);
    let wanted = load(&tiny, Kind::Half).model;
    let mut loaded = load(&tiny, Kind::Float);
    loaded.vs.half();
    let run = |model: &Llama| {
        model.forward(&ids(&TOKENS), &mut cache(model, 1, 20, Kind::Half), LogitsOf::All).unwrap()
    };
    assert_eq!(run(&loaded.model), run(&wanted));
}

#[test]
fn a_cache_without_room_says_what_it_needs() {
    let config = LlamaConfig::from_json(&full_config().to_string(), "config.json").unwrap();
    // More than there are addresses for.
    let batch = 1 << 40;
    let error = KvCache::new(&config, batch, 2048, Kind::Float, Device::Cpu).unwrap_err();
    assert_eq!((error.kind(), error.subject()), (ErrorKind::OutOfMemory, "key-value cache"), "{error}");
    // Keys and values of two layers: two heads of eight elements of four bytes.
    let needed = batch * 2048 * 2 * 2 * 2 * 8 * 4;
    let text = error.to_string();
    assert!(text.contains(&format!("needs {needed} bytes for 2048 tokens of each sequence: ")), "{text}");
    assert!(text.contains("take less context"), "{text}");
    // The process goes on.
    assert_eq!(KvCache::new(&config, 1, 2048, Kind::Float, Device::Cpu).unwrap().capacity(), 2048);
}

#[test]
fn what_does_not_fit_the_cache_is_an_error() {
    let tiny = TinyLlama::new(&plain_config(), 8);
    let model = load(&tiny, Kind::Float).model;
    let mut small = cache(&model, 1, 5, Kind::Float);
    let _ = model.forward(&ids(&TOKENS[..3]), &mut small, LogitsOf::Last).unwrap();
    let error = model.forward(&ids(&TOKENS[..3]), &mut small, LogitsOf::Last).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert_eq!(
        error.to_string(),
        "context: is 5 tokens, wanted 6 for 3 more tokens; raise the context or shorten the prompt"
    );
    let two = Tensor::zeros([2, 1], (Kind::Int64, Device::Cpu));
    assert_eq!(model.forward(&two, &mut small, LogitsOf::Last).unwrap_err().subject(), "token ids");
    let empty = Tensor::zeros([1, 0], (Kind::Int64, Device::Cpu));
    assert_eq!(model.prefill(&empty, &mut small).unwrap_err().subject(), "token ids");
    let too_long = KvCache::new(model.config(), 1, 2049, Kind::Float, Device::Cpu).unwrap_err();
    assert!(too_long.to_string().contains("2049 tokens") && too_long.to_string().contains("2048 tokens"));
}

/// Loads a model whose tensors have the shapes that `edit` leaves.
fn load_error(config: &Value, edit: impl Fn(&mut Vec<(String, Vec<usize>)>)) -> Error {
    let mut shapes = shapes(config);
    edit(&mut shapes);
    let tiny = TinyLlama::with_shapes(config, &shapes, 9);
    try_load(&tiny.dir(), Kind::Float).err().expect("a contradictory checkpoint was accepted")
}

#[test]
fn tensors_that_contradict_the_config_are_named() {
    let name = "model.layers.1.self_attn.k_proj.weight";
    let find = |shapes: &[(String, Vec<usize>)]| shapes.iter().position(|(n, _)| n == name).unwrap();
    let missing = load_error(&plain_config(), |shapes| {
        shapes.remove(find(shapes));
    });
    assert_eq!((missing.kind(), missing.subject()), (ErrorKind::Corrupt, name));
    let wrong = load_error(&plain_config(), |shapes| {
        let at = find(shapes);
        shapes[at].1 = vec![24, 16];
    });
    assert_eq!((wrong.kind(), wrong.subject()), (ErrorKind::Corrupt, name));
    assert!(wrong.to_string().contains("has shape [24, 16], wanted [16, 24]"), "{wrong}");
    let bias = "model.layers.0.mlp.up_proj.bias";
    let extra = load_error(&plain_config(), |shapes| shapes.push((bias.to_owned(), vec![40])));
    assert_eq!((extra.kind(), extra.subject()), (ErrorKind::Corrupt, bias));
}

fn config_with(changes: &Value) -> codecllm::Result<LlamaConfig> {
    let mut config = plain_config();
    for (name, value) in changes.as_object().unwrap() {
        config[name] = value.clone();
    }
    LlamaConfig::from_json(&config.to_string(), "config.json")
}

#[test]
fn settings_that_change_the_maths_are_errors() {
    let cases = [
        (json!({"model_type": "mistral"}), "architecture is"),
        (json!({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}), "Qwen2ForCausalLM"),
        (json!({"architectures": ["LlamaForSequenceClassification"]}), "LlamaForSequenceClassification"),
        (json!({"architectures": null, "model_type": null}), "not named"),
        (json!({"hidden_act": "gelu"}), "hidden_act is gelu"),
        (json!({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}), "rope_scaling.rope_type is yarn"),
        (json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}}), "dynamic"),
        (json!({"rope_parameters": {"rope_type": "longrope"}}), "rope_parameters.rope_type is longrope"),
        (json!({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}), "full_attention"),
        (json!({"sliding_window": 4096}), "sliding_window is 4096"),
        (json!({"quantization_config": {"bits": 4}}), "quantization_config"),
        (json!({"logit_scale": 0.5}), "logit_scale is 0.5"),
        (json!({"attention_multiplier": 0.1}), "attention_multiplier"),
        (json!({"embedding_multiplier": 12.0}), "embedding_multiplier"),
        (json!({"residual_multiplier": 0.2}), "residual_multiplier"),
        (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        (json!({"pretraining_tp": 2}), "pretraining_tp is 2"),
        (json!({"attn_logit_softcapping": 50.0}), "attn_logit_softcapping"),
        (json!({"final_logit_softcapping": 30.0}), "final_logit_softcapping"),
        (json!({"layer_types": ["full_attention", "sliding_attention"]}), "layer_types"),
        (json!({"num_local_experts": 8}), "num_local_experts"),
    ];
    for (changes, named) in cases {
        let error = config_with(&changes).expect_err(&format!("accepted {changes}"));
        assert_eq!((error.kind(), error.subject()), (ErrorKind::Unsupported, "config.json"), "{changes}");
        assert!(error.to_string().contains(named), "{changes}: {error}");
    }
}

#[test]
fn settings_that_make_no_sense_are_errors() {
    let cases = [
        (json!({"hidden_size": null}), "hidden_size is missing"),
        (json!({"hidden_size": "24"}), "hidden_size is \"24\""),
        (json!({"hidden_size": 0}), "hidden_size is 0"),
        (json!({"vocab_size": -5}), "vocab_size is -5"),
        (json!({"num_hidden_layers": 1e30}), "num_hidden_layers is 1e+30"),
        (json!({"num_key_value_heads": 3}), "num_key_value_heads is 3"),
        (json!({"head_dim": 7}), "head_dim is 7"),
        (json!({"head_dim": null, "hidden_size": 26}), "num_attention_heads is 4"),
        (json!({"rms_norm_eps": "small"}), "rms_norm_eps"),
        (json!({"rope_theta": 0.0}), "rope_theta"),
        (json!({"tie_word_embeddings": 1}), "tie_word_embeddings"),
        (json!({"rope_scaling": {"type": "linear"}}), "rope_scaling.factor is missing"),
        (json!({"rope_scaling": 2.0}), "rope_scaling is 2.0"),
    ];
    for (changes, named) in cases {
        let error = config_with(&changes).expect_err(&format!("accepted {changes}"));
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{changes}: {error}");
        assert!(error.to_string().contains(named), "{changes}: {error}");
    }
    assert_eq!(LlamaConfig::from_json("[1]", "c").unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(LlamaConfig::from_dir("nowhere").unwrap_err().kind(), ErrorKind::Io);
}

#[test]
fn harmless_settings_are_accepted() {
    let changes = json!({
        "sliding_window": null, "pretraining_tp": 1, "partial_rotary_factor": 1.0, "quantization_config": null,
        "use_cache": true, "attention_dropout": 0.0, "transformers_version": "5.0", "something_new": 3,
        "layer_types": ["full_attention", "full_attention"],
    });
    assert_eq!(config_with(&changes).unwrap(), config_with(&json!({})).unwrap());
}

#[test]
fn rope_settings_of_both_spellings_are_read() {
    let linear = config_with(&json!({"rope_scaling": {"type": "linear", "factor": 4.0}})).unwrap();
    assert_eq!(linear.rope_scaling, RopeScaling::Linear { factor: 4.0 });
    let newer = json!({"rope_theta": null, "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}});
    let config = config_with(&newer).unwrap();
    assert_eq!(config.rope_theta, 5e5);
    assert_eq!(
        config.rope_scaling,
        RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192.0
        }
    );
}
