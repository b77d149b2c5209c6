//! The captured decoding step against the ordinary forward, on a GPU. Every test skips, with a message, where there is none.

use std::ops::ControlFlow;
use std::path::Path;

use codecllm::checkpoint::{compress, CompressOptions};
use codecllm::cuda::PeakMemory;
use codecllm::model::{DecodeStep, KvCache, Llama, LogitsOf, StepPart};
use codecllm::runtime::{GenerateOptions, Generator, LoadOptions, Prompt};
use codecllm::ErrorKind;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::loaded::{gpu_or_skip, load, load_on, GPU, KINDS};
use crate::tiny_llama::{downloaded, full_config, plain_config, TinyLlama};

const PROMPTS: [&[i64]; 3] = [&[3, 14, 15, 9, 26, 5, 35, 8, 9, 7], &[9, 32, 38], &[46, 2, 6, 43, 38, 32]];

/// Heads that share keys and heads that do not, with and without biases and a tied head; every width is odd for a kernel.
fn configs() -> [Value; 4] {
    let mut one_group = full_config();
    one_group["num_key_value_heads"] = 4.into();
    let mut wide = plain_config();
    for (name, value) in
        [("head_dim", 72), ("hidden_size", 52), ("num_attention_heads", 6), ("num_key_value_heads", 1)]
    {
        wide[name] = value.into();
    }
    [full_config(), plain_config(), one_group, wide]
}

/// The first `batch` prompts behind their padding, run through the model.
fn prefilled(model: &Llama, batch: usize, capacity: usize, kind: Kind) -> KvCache {
    let longest = PROMPTS[0].len();
    let padding: Vec<usize> = PROMPTS[..batch].iter().map(|prompt| longest - prompt.len()).collect();
    let rows: Vec<i64> = (PROMPTS.iter().zip(&padding))
        .flat_map(|(prompt, &pad)| std::iter::repeat_n(0, pad).chain(prompt.iter().copied()))
        .collect();
    let cache = KvCache::new(model.config(), batch, capacity, kind, GPU).unwrap();
    let mut cache = cache.with_left_padding(&padding).unwrap();
    let rows = Tensor::from_slice(&rows).view([batch as i64, -1]).to(GPU);
    let _ = model.prefill(&rows, &mut cache).unwrap();
    cache
}

/// The ordinary forward of one token a sequence: all logits are asked for, which is no decoding step.
fn ordinary(model: &Llama, tokens: &[i64], cache: &mut KvCache) -> Tensor {
    let ids = Tensor::from_slice(tokens).view([-1, 1]).to(GPU);
    model.forward(&ids, cache, LogitsOf::All).unwrap()
}

fn tokens_of(step: usize, batch: usize) -> Vec<i64> {
    (0..batch).map(|sequence| ((7 * step + 11 * sequence + 3) % 50) as i64).collect()
}

fn assert_close(got: &Tensor, wanted: &Tensor, what: &str) {
    let kind = got.kind();
    assert_eq!((got.size(), kind), (wanted.size(), wanted.kind()), "{what}");
    let tolerance = match kind {
        Kind::Half => 1e-2,
        Kind::BFloat16 => 8e-2,
        _ => 1e-4,
    };
    let (got, wanted) = (got.to_kind(Kind::Double), wanted.to_kind(Kind::Double));
    let scale = wanted.abs().max().double_value(&[]).max(1.0);
    let error = (got - wanted).abs().max().double_value(&[]);
    assert!(error <= tolerance * scale, "{what} {kind:?}: {error} of {scale}");
}

fn check_steps(model: &Llama, batch: usize, kind: Kind, what: &str) {
    let [mut plain, mut replayed, mut eager] = [0; 3].map(|_| prefilled(model, batch, 20, kind));
    let mut replayed = DecodeStep::new(model, &mut replayed).unwrap();
    let mut eager = DecodeStep::new(model, &mut eager).unwrap();
    for step in 0..6 {
        let what = format!("{what}, batch {batch}, step {step}");
        let tokens = tokens_of(step, batch);
        let wanted = ordinary(model, &tokens, &mut plain);
        let got = replayed.run(&tokens).unwrap();
        assert_close(got, &wanted, &what);
        assert_eq!(got, eager.run_eager(&tokens).unwrap(), "{what}: the graph and its launches differ");
        let likeliest = Vec::<i64>::try_from(got.to_kind(Kind::Float).argmax(-1, false).view([-1])).unwrap();
        assert_eq!(replayed.tokens().unwrap(), likeliest, "{what}");
    }
}

#[test]
fn a_step_is_the_ordinary_forward() {
    gpu_or_skip!();
    for (index, config) in configs().iter().enumerate() {
        let tiny = TinyLlama::new(config, 11);
        for kind in KINDS {
            let loaded = load(&tiny.dir(), kind);
            for batch in [1, 3] {
                check_steps(&loaded.model, batch, kind, &format!("config {index}"));
            }
        }
    }
}

#[test]
fn a_step_with_compressed_weights_is_the_ordinary_forward() {
    gpu_or_skip!();
    for (index, config) in configs().iter().enumerate() {
        let tiny = TinyLlama::new(config, 12);
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("int8");
        compress(tiny.dir(), &dir, &CompressOptions::default(), &mut |_| ()).unwrap();
        for kind in KINDS {
            let loaded = load(&dir, kind);
            for batch in [1, 3] {
                check_steps(&loaded.model, batch, kind, &format!("compressed config {index}"));
            }
        }
    }
}

#[test]
fn prompts_give_the_logits_that_the_cpu_gives() {
    gpu_or_skip!();
    for config in configs() {
        let tiny = TinyLlama::new(&config, 25);
        let [gpu, cpu] = [GPU, Device::Cpu].map(|device| load_on(device, &tiny.dir(), Kind::Float).model);
        // Alone, in pieces, and padded.
        for (batch, lengths, padding) in
            [(1, &[700][..], vec![0]), (1, &[300, 1, 200], vec![0]), (3, &[90, 20, 1], vec![0, 50, 89])]
        {
            let [mut on_gpu, mut on_cpu] = [GPU, Device::Cpu].map(|device| {
                let cache = KvCache::new(gpu.config(), batch, 800, Kind::Float, device).unwrap();
                cache.with_left_padding(&padding).unwrap()
            });
            for &length in lengths {
                let ids = Tensor::arange(batch as i64 * length, (Kind::Int64, Device::Cpu));
                let ids = (ids * 17).remainder(50).view([batch as i64, length]);
                let got = gpu.prefill(&ids.to(GPU), &mut on_gpu).unwrap();
                let wanted = cpu.prefill(&ids, &mut on_cpu).unwrap();
                assert_close(&got.to(Device::Cpu), &wanted, &format!("{batch} x {length}"));
            }
        }
    }
}

#[test]
fn dense_weights_need_no_kernel_before_the_first_step() {
    gpu_or_skip!();
    let [.., one_group, _] = configs();
    let tiny = TinyLlama::new(&one_group, 26);
    // No kernel of ours takes FP64.
    let [wide, plain] = [Kind::Double, Kind::Float].map(|kind| {
        let model = load(&tiny.dir(), kind).model;
        let mut cache = KvCache::new(model.config(), 1, 20, kind, GPU).unwrap();
        ordinary(&model, &[3], &mut cache).to_kind(Kind::Float)
    });
    assert_close(&wide, &plain, "FP64");
}

#[test]
fn a_long_cache_is_attended_to_in_parts() {
    gpu_or_skip!();
    let tiny = TinyLlama::new(&full_config(), 13);
    for kind in KINDS {
        let model = load(&tiny.dir(), kind).model;
        let ids: Vec<i64> = (0..1900).map(|i| (i * i + 5) % 50).collect();
        let ids = Tensor::from_slice(&ids).view([1, -1]).to(GPU);
        let [mut plain, mut stepwise] =
            [0; 2].map(|_| KvCache::new(model.config(), 1, 2048, kind, GPU).unwrap());
        for cache in [&mut plain, &mut stepwise] {
            let _ = model.prefill(&ids, cache).unwrap();
        }
        let mut stepwise = DecodeStep::new(&model, &mut stepwise).unwrap();
        for step in 0..148 {
            let tokens = tokens_of(step, 1);
            let wanted = ordinary(&model, &tokens, &mut plain);
            assert_close(stepwise.run(&tokens).unwrap(), &wanted, &format!("slot {}", 1900 + step));
        }
        assert_eq!(stepwise.run(&[1]).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
}

#[test]
fn likeliest_tokens_feed_themselves() {
    gpu_or_skip!();
    let tiny = TinyLlama::new(&full_config(), 14);
    let model = load(&tiny.dir(), Kind::Half).model;
    let [mut fed, mut told] = [0; 2].map(|_| prefilled(&model, 3, 40, Kind::Half));
    let (mut fed, mut told) =
        (DecodeStep::new(&model, &mut fed).unwrap(), DecodeStep::new(&model, &mut told).unwrap());
    assert_eq!(fed.run_greedy().unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(fed.tokens().unwrap_err().kind(), ErrorKind::InvalidArgument);
    let mut tokens = vec![1, 2, 3];
    let _ = fed.run(&tokens).unwrap();
    for step in 0..20 {
        let wanted = told.run(&tokens).unwrap();
        if step > 0 {
            assert_eq!(fed.run_greedy().unwrap(), wanted, "step {step}");
        }
        tokens = told.tokens().unwrap();
        assert_eq!(fed.tokens().unwrap(), tokens, "step {step}");
    }
}

#[test]
fn forward_takes_the_step_and_keeps_its_logits() {
    gpu_or_skip!();
    let tiny = TinyLlama::new(&plain_config(), 15);
    let model = load(&tiny.dir(), Kind::Half).model;
    let [mut forward, mut stepwise] = [0; 2].map(|_| prefilled(&model, 3, 20, Kind::Half));
    assert!(DecodeStep::fits(&model, &forward));
    let mut seen = Vec::new();
    for step in 0..4 {
        let tokens = tokens_of(step, 3);
        let ids = Tensor::from_slice(&tokens).view([3, 1]).to(GPU);
        let logits = model.forward(&ids, &mut forward, LogitsOf::Last).unwrap();
        let wanted = DecodeStep::new(&model, &mut stepwise).unwrap().run(&tokens).unwrap().copy();
        assert_eq!(logits, wanted);
        assert_eq!((forward.len(), stepwise.len()), (11 + step, 11 + step));
        seen.push((logits, wanted));
    }
    assert!(seen.iter().all(|(logits, wanted)| logits == wanted));
}

#[test]
fn a_cache_cut_back_goes_on_from_there() {
    gpu_or_skip!();
    let tiny = TinyLlama::new(&full_config(), 16);
    let model = load(&tiny.dir(), Kind::Float).model;
    let mut cache = prefilled(&model, 1, 20, Kind::Float);
    let first = DecodeStep::new(&model, &mut cache).unwrap().run(&[5]).unwrap().copy();
    let _ = DecodeStep::new(&model, &mut cache).unwrap().run(&[6]).unwrap();
    cache.truncate(PROMPTS[0].len());
    let again = DecodeStep::new(&model, &mut cache).unwrap().run(&[5]).unwrap().copy();
    assert_eq!(first, again);
}

#[test]
fn what_a_step_can_not_do_is_an_error() {
    gpu_or_skip!();
    let tiny = TinyLlama::new(&plain_config(), 17);
    let model = load(&tiny.dir(), Kind::Half).model;
    let mut cache = prefilled(&model, 1, 11, Kind::Half);
    let mut step = DecodeStep::new(&model, &mut cache).unwrap();
    for tokens in [&[1, 2][..], &[50], &[-1], &[]] {
        assert_eq!(step.run(tokens).unwrap_err().subject(), "token ids", "{tokens:?}");
    }
    let _ = step.run(&[1]).unwrap();
    assert_eq!(step.run_greedy().unwrap_err().subject(), "context");
    assert_eq!(
        step.run(&[1]).unwrap_err().to_string(),
        "context: is 11 tokens, wanted 12 for 1 more tokens; raise the context or shorten the prompt"
    );
    drop(step);
    let other_kind = KvCache::new(model.config(), 1, 8, Kind::Float, GPU).unwrap();
    let on_cpu = KvCache::new(model.config(), 1, 8, Kind::Half, Device::Cpu).unwrap();
    let too_many = KvCache::new(model.config(), 65, 8, Kind::Half, GPU).unwrap();
    for mut cache in [other_kind, on_cpu, too_many] {
        assert!(!DecodeStep::fits(&model, &cache));
        assert_eq!(DecodeStep::new(&model, &mut cache).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
}

#[test]
fn other_weights_are_captured_anew() {
    gpu_or_skip!();
    let [one, two] = [18, 19].map(|seed| TinyLlama::new(&full_config(), seed));
    let mut first = load(&one.dir(), Kind::Half);
    let second = load(&two.dir(), Kind::Half);
    let mut cache = prefilled(&first.model, 1, 20, Kind::Half);
    let _ = DecodeStep::new(&first.model, &mut cache).unwrap().run(&[5]).unwrap();
    let mut plain = prefilled(&first.model, 1, 20, Kind::Half);
    let _ = ordinary(&first.model, &[5], &mut plain);
    // Another model on the same cache: nonsense as text, but well defined.
    let got = DecodeStep::new(&second.model, &mut cache).unwrap().run(&[6]).unwrap().copy();
    assert_close(&got, &ordinary(&second.model, &[6], &mut plain), "another model");
    // The same model in another dtype.
    first.vs.bfloat16();
    let mut cache = prefilled(&first.model, 1, 20, Kind::BFloat16);
    let mut plain = prefilled(&first.model, 1, 20, Kind::BFloat16);
    let got = DecodeStep::new(&first.model, &mut cache).unwrap().run(&[6]).unwrap().copy();
    assert_close(&got, &ordinary(&first.model, &[6], &mut plain), "another dtype");
}

#[test]
fn parts_are_timed_and_leave_the_cache_alone() {
    gpu_or_skip!();
    let tiny = TinyLlama::new(&full_config(), 20);
    let model = load(&tiny.dir(), Kind::Half).model;
    let [mut timed, mut plain] = [0; 2].map(|_| prefilled(&model, 3, 20, Kind::Half));
    let mut step = DecodeStep::new(&model, &mut timed).unwrap();
    let [whole, linears, rest] =
        [StepPart::Whole, StepPart::Linears, StepPart::Rest].map(|part| step.seconds(part, 20).unwrap());
    println!("whole {whole:.2e} s, linears {linears:.2e} s, rest {rest:.2e} s");
    assert!(linears > 0.0 && rest > 0.0 && whole > linears.max(rest) * 0.5);
    assert!(step.run_greedy().is_err());
    let tokens = tokens_of(0, 3);
    assert_close(step.run(&tokens).unwrap(), &ordinary(&model, &tokens, &mut plain), "after timing");
}

#[test]
fn steps_take_no_memory() {
    gpu_or_skip!();
    let tiny = TinyLlama::new(&full_config(), 21);
    let folder = tempfile::tempdir().unwrap();
    let compressed = folder.path().join("int8");
    compress(tiny.dir(), &compressed, &CompressOptions::default(), &mut |_| ()).unwrap();
    for dir in [tiny.dir(), compressed] {
        let model = load(&dir, Kind::Half).model;
        let mut cache = prefilled(&model, 3, 300, Kind::Half);
        let mut step = DecodeStep::new(&model, &mut cache).unwrap();
        let _ = step.run(&[1, 2, 3]).unwrap();
        let _ = step.tokens().unwrap();
        let peak = PeakMemory::start(0).unwrap();
        for _ in 0..200 {
            let _ = step.run_greedy().unwrap();
        }
        let _ = step.tokens().unwrap();
        assert_eq!(peak.finish(), 0);
    }
}

#[test]
fn threads_have_steps_of_their_own() {
    gpu_or_skip!();
    let tinies = [22, 23, 24].map(|seed| TinyLlama::new(&full_config(), seed));
    let run = |tiny: &TinyLlama| {
        let model = load(&tiny.dir(), Kind::Half).model;
        let mut cache = prefilled(&model, 3, 60, Kind::Half);
        let mut step = DecodeStep::new(&model, &mut cache).unwrap();
        let _ = step.run(&[1, 2, 3]).unwrap();
        let mut chosen = vec![step.tokens().unwrap()];
        for _ in 0..40 {
            let _ = step.run_greedy().unwrap();
            chosen.push(step.tokens().unwrap());
        }
        chosen
    };
    let alone: Vec<_> = tinies.iter().map(run).collect();
    let together: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = tinies.iter().map(|tiny| scope.spawn(|| run(tiny))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(alone, together);
}

fn story(dir: &Path, device: Device, kind: Kind, prompts: &[&str], tokens: usize) -> Vec<Vec<u32>> {
    // A model this small is fastest on one thread.
    let options = LoadOptions { device, kind, threads: Some(1), ..LoadOptions::default() };
    let generator = Generator::open(dir, &options).unwrap();
    let prompts: Vec<_> = prompts.iter().map(|text| Prompt::Text((*text).to_owned())).collect();
    let options = GenerateOptions { max_new_tokens: tokens, ..GenerateOptions::default() };
    let answers = generator.generate(&prompts, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    answers.into_iter().map(|answer| answer.token_ids).collect()
}

#[test]
fn tells_the_story_that_the_cpu_tells() {
    gpu_or_skip!();
    let Some(dir) = downloaded("stories15M-bf16") else { return };
    let folder = tempfile::tempdir().unwrap();
    let compressed = folder.path().join("int8");
    compress(&dir, &compressed, &CompressOptions::default(), &mut |_| ()).unwrap();
    let prompts = ["Once upon a time", "Tom had a", "The little dog was very sad because"];
    for dir in [&dir, &compressed] {
        for (kind, tokens) in [(Kind::Float, 48), (Kind::Half, 32), (Kind::BFloat16, 8)] {
            let told = |device, prompts: &[&str]| story(dir, device, kind, prompts, tokens);
            let what = format!("{kind:?} {}", dir.display());
            assert_eq!(told(GPU, &prompts[..1]), told(Device::Cpu, &prompts[..1]), "{what}");
            if kind == Kind::Float {
                assert_eq!(told(GPU, &prompts), told(Device::Cpu, &prompts), "{what}");
            }
        }
    }
}
