//! Sequences that come and go in a paged cache on a GPU, against each of them alone. Every test skips, with a message, where there
//! is none.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use codecllm::checkpoint::{compress, CompressOptions};
use codecllm::cuda::PeakMemory;
use codecllm::model::{BatchScores, KvCache, Llama, LogitsOf, PagedKvCache, PagedSequence};
use codecllm::runtime::{GenerateOptions, Generator, LoadOptions, Prompt};
use codecllm::ErrorKind;
use serde_json::Value;
use tch::{Kind, Tensor};

use crate::loaded::{gpu_or_skip, load, GPU, KINDS};
use crate::stories::{stories, Story};
use crate::tiny_llama::{downloaded, full_config, plain_config, TinyLlama};

/// Of the tiny models.
const VOCAB: usize = 50;
const MOST: usize = PagedKvCache::MOST_SEQUENCES;

/// Heads that share keys and heads that do not; every width is odd for a kernel.
fn configs() -> [Value; 3] {
    let mut wide = plain_config();
    for (name, value) in
        [("head_dim", 72), ("hidden_size", 52), ("num_attention_heads", 6), ("num_key_value_heads", 1)]
    {
        wide[name] = value.into();
    }
    let mut one_group = full_config();
    one_group["num_key_value_heads"] = 4.into();
    [full_config(), one_group, wide]
}

fn compressed(dir: &Path, folder: &Path) -> PathBuf {
    let out = folder.join("int8");
    compress(dir, &out, &CompressOptions::default(), &mut |_| ()).unwrap();
    out
}

fn new_cache(model: &Llama, pages: usize, kind: Kind) -> PagedKvCache {
    PagedKvCache::new(model.config(), pages, kind, GPU).unwrap()
}

fn assert_close(got: &[f32], wanted: &[f32], kind: Kind, what: &str) {
    assert_eq!(got.len(), wanted.len(), "{what}");
    let tolerance = match kind {
        Kind::Half => 1e-2,
        Kind::BFloat16 => 8e-2,
        _ => 1e-4,
    };
    let scale = wanted.iter().map(|value| value.abs()).fold(1.0, f32::max);
    let error = got.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    // `not <=` catches a NaN, which is no larger than anything.
    assert!(
        error <= tolerance * scale && got.iter().all(|v| v.is_finite()),
        "{what} {kind:?}: {error} of {scale}"
    );
}

/// The logits behind the prompt and behind each step, by the ordinary forward with a cache of its own.
fn alone(story: &Story, model: &Llama, kind: Kind) -> Vec<Vec<f32>> {
    let tokens: Vec<i64> = story.tokens(VOCAB).into_iter().map(i64::from).collect();
    let mut cache = KvCache::new(model.config(), 1, tokens.len(), kind, GPU).unwrap();
    let row = |ids: &[i64]| Tensor::from_slice(ids).view([1, -1]).to(GPU);
    let values = |logits: Tensor| Vec::try_from(logits.to_kind(Kind::Float).view([-1])).unwrap();
    let mut logits = vec![values(model.prefill(&row(&tokens[..story.prompt]), &mut cache).unwrap())];
    for &token in &tokens[story.prompt..] {
        // All logits are asked for, which is no captured step.
        logits.push(values(model.forward(&row(&[token]), &mut cache, LogitsOf::All).unwrap()));
    }
    logits
}

struct Running {
    index: usize,
    tokens: Vec<u32>,
    sequence: PagedSequence,
    seen: Vec<Vec<f32>>,
}

/// The row of a step, which must agree with the likeliest token of it.
fn row(scores: &BatchScores, likeliest: &[u32], row: usize) -> Vec<f32> {
    let logits = scores.logits(row).unwrap();
    let largest = logits.iter().copied().fold(f32::MIN, f32::max);
    let first = logits.iter().position(|&logit| logit == largest).unwrap();
    assert_eq!(likeliest[row] as usize, first, "row {row}");
    logits
}

/// All stories, each from its step on, as far as there are pages. Gives every story's logits.
fn together(model: &Llama, stories: &[Story], cache: &mut PagedKvCache) -> Vec<Vec<Vec<f32>>> {
    let mut seen = vec![Vec::new(); stories.len()];
    let mut waiting: Vec<(usize, Story)> = stories.iter().copied().enumerate().collect();
    let mut running: Vec<Running> = Vec::new();
    let mut step = 0;
    while !(waiting.is_empty() && running.is_empty()) {
        waiting.retain(|&(index, story)| {
            if story.joins > step || running.len() == MOST {
                return true;
            }
            let Some(mut sequence) = cache.sequence(story.prompt + story.steps) else { return true };
            let tokens = story.tokens(VOCAB);
            // In two pieces where there is more than one token.
            let (first, rest) = tokens[..story.prompt].split_at(story.prompt / 3);
            if !first.is_empty() {
                let _ = model.prefill_paged(first, &mut sequence, cache).unwrap();
            }
            let scores = model.prefill_paged(rest, &mut sequence, cache).unwrap();
            let seen = vec![row(&scores, &scores.likeliest().unwrap(), 0)];
            running.push(Running { index, tokens, sequence, seen });
            false
        });
        if !running.is_empty() {
            let turn = step % running.len();
            running.rotate_left(turn);
        }
        let (done, going): (Vec<_>, Vec<_>) =
            running.into_iter().partition(|running| running.sequence.len() == running.tokens.len());
        running = going;
        for finished in done {
            seen[finished.index] = finished.seen;
            cache.release(finished.sequence);
        }
        if !running.is_empty() {
            let tokens: Vec<u32> =
                running.iter().map(|running| running.tokens[running.sequence.len()]).collect();
            let mut sequences: Vec<_> = running.iter_mut().map(|running| &mut running.sequence).collect();
            let scores = model.decode_paged(&tokens, &mut sequences, cache).unwrap();
            let likeliest = scores.likeliest().unwrap();
            assert_eq!(likeliest.len(), running.len());
            for (place, running) in running.iter_mut().enumerate() {
                running.seen.push(row(&scores, &likeliest, place));
            }
        }
        step += 1;
    }
    seen
}

fn check(model: &Llama, kind: Kind, stories: &[Story], pages: usize, what: &str) {
    let mut cache = new_cache(model, pages, kind);
    let got = together(model, stories, &mut cache);
    assert_eq!(cache.free_pages(), pages);
    for (story, got) in stories.iter().zip(got) {
        let wanted = alone(story, model, kind);
        assert_eq!(got.len(), wanted.len());
        for (step, (got, wanted)) in got.iter().zip(&wanted).enumerate() {
            assert_close(got, wanted, kind, &format!("{what}, sequence {}, step {step}", story.who));
        }
    }
}

#[test]
fn sequences_of_any_length_are_each_as_alone() {
    gpu_or_skip!();
    for (index, config) in configs().iter().enumerate() {
        let tiny = TinyLlama::new(config, 41);
        let folder = tempfile::tempdir().unwrap();
        let int8 = compressed(&tiny.dir(), folder.path());
        for kind in KINDS {
            for (dir, what) in [(&tiny.dir(), "dense"), (&int8, "compressed")] {
                let loaded = load(dir, kind);
                // Few pages: sequences wait, and get what others leave, in pieces.
                check(&loaded.model, kind, &stories(20), 9, &format!("{what} config {index}"));
            }
        }
    }
}

#[test]
fn sixty_four_sequences_are_each_as_alone() {
    gpu_or_skip!();
    let tiny = TinyLlama::new(&full_config(), 42);
    let folder = tempfile::tempdir().unwrap();
    let int8 = compressed(&tiny.dir(), folder.path());
    let stories: Vec<Story> =
        stories(MOST).into_iter().map(|story| Story { joins: story.who / 20, steps: 6, ..story }).collect();
    for kind in [Kind::Half, Kind::BFloat16] {
        for dir in [&tiny.dir(), &int8] {
            let loaded = load(dir, kind);
            check(&loaded.model, kind, &stories, 200, "64 sequences");
        }
    }
}

#[test]
fn long_sequences_are_attended_to_in_parts() {
    gpu_or_skip!();
    let tiny = TinyLlama::new(&full_config(), 43);
    let stories = [
        Story { who: 1, prompt: 1900, joins: 0, steps: 40 },
        Story { who: 2, prompt: 3, joins: 4, steps: 20 },
        Story { who: 3, prompt: 700, joins: 9, steps: 50 },
    ];
    for kind in KINDS {
        let loaded = load(&tiny.dir(), kind);
        check(&loaded.model, kind, &stories, 100, "long");
    }
}

/// Runs `tokens` one by one behind `prompt`.
fn logits_of(model: &Llama, cache: &mut PagedKvCache, prompt: &[u32], tokens: &[u32]) -> Vec<Vec<f32>> {
    let mut sequence = cache.sequence(prompt.len() + tokens.len()).unwrap();
    let mut logits = vec![model.prefill_paged(prompt, &mut sequence, cache).unwrap().logits(0).unwrap()];
    for &token in tokens {
        let scores = model.decode_paged(&[token], &mut [&mut sequence], cache).unwrap();
        logits.push(scores.logits(0).unwrap());
    }
    logits
}

#[test]
fn a_captured_step_serves_whoever_has_the_pages() {
    gpu_or_skip!();
    let tiny = TinyLlama::new(&full_config(), 44);
    let model = load(&tiny.dir(), Kind::Half).model;
    let tokens: Vec<u32> = (0..40).map(|i| (i * 7 + 1) % 50).collect();
    let mut fresh = new_cache(&model, 3, Kind::Half);
    let wanted = logits_of(&model, &mut fresh, &[5, 6], &tokens);
    // Pages that were another's, by the same graph: two that lie apart, then two neighbors.
    let mut used = new_cache(&model, 4, Kind::Half);
    let mut others: Vec<PagedSequence> = (0..4).map(|_| used.sequence(32).unwrap()).collect();
    for other in &mut others {
        let _ = model.prefill_paged(&tokens[..31], other, &mut used).unwrap();
        let _ = model.decode_paged(&[9], &mut [other], &mut used).unwrap();
    }
    for page in [2, 0] {
        used.release(others.remove(page));
    }
    assert_eq!(logits_of(&model, &mut used, &[5, 6], &tokens), wanted);
    others.into_iter().for_each(|other| used.release(other));
    assert_eq!(logits_of(&model, &mut used, &[5, 6], &tokens), wanted);
}

#[test]
fn idle_rows_and_prompts_touch_nobody() {
    gpu_or_skip!();
    let tiny = TinyLlama::new(&full_config(), 45);
    let model = load(&tiny.dir(), Kind::Half).model;
    let tokens: Vec<u32> = (0..30).map(|i| (i * 11 + 4) % 50).collect();
    let run = |disturb: bool| {
        let mut cache = new_cache(&model, 8, Kind::Half);
        let mut own = cache.sequence(60).unwrap();
        let mut logits =
            vec![model.prefill_paged(&[1, 2, 3], &mut own, &mut cache).unwrap().logits(0).unwrap()];
        let mut others: Vec<PagedSequence> = (0..4).map(|_| cache.sequence(20).unwrap()).collect();
        for (step, &token) in tokens.iter().enumerate() {
            if disturb && step % 3 == 0 {
                // Three rows and an idle one, or four; then a prompt.
                let mut all: Vec<_> = others.iter_mut().collect();
                let rows = 3 + step % 2;
                if all[0].len() < 8 {
                    let _ = model.decode_paged(&vec![7; rows], &mut all[..rows], &mut cache).unwrap();
                }
                let mut guest = cache.sequence(50).unwrap();
                let _ = model.prefill_paged(&tokens, &mut guest, &mut cache).unwrap();
            }
            let scores = model.decode_paged(&[token], &mut [&mut own], &mut cache).unwrap();
            logits.push(scores.logits(0).unwrap());
        }
        logits
    };
    assert_eq!(run(true), run(false));
}

#[test]
fn scores_that_are_written_over_are_an_error() {
    gpu_or_skip!();
    let tiny = TinyLlama::new(&plain_config(), 46);
    let model = load(&tiny.dir(), Kind::Half).model;
    let mut cache = new_cache(&model, 8, Kind::Half);
    let mut sequence = cache.sequence(9).unwrap();
    let prompt = model.prefill_paged(&[1, 2], &mut sequence, &mut cache).unwrap();
    let first = model.decode_paged(&[3], &mut [&mut sequence], &mut cache).unwrap();
    let _ = first.likeliest().unwrap();
    let second = model.decode_paged(&[4], &mut [&mut sequence], &mut cache).unwrap();
    for error in [first.likeliest().unwrap_err(), first.logits(0).unwrap_err()] {
        assert_eq!((error.kind(), error.subject()), (ErrorKind::InvalidArgument, "scores"));
    }
    // A prompt's are its own.
    let _ = (prompt.likeliest().unwrap(), prompt.logits(0).unwrap(), second.likeliest().unwrap());
}

#[test]
fn damaged_logits_are_an_error() {
    gpu_or_skip!();
    let tiny = TinyLlama::new(&full_config(), 47);
    let loaded = load(&tiny.dir(), Kind::Half);
    let head = loaded.vs.variables().remove("lm_head.weight").unwrap();
    tch::no_grad(|| {
        let _ = head.get(3).fill_(f64::NAN);
    });
    let mut cache = new_cache(&loaded.model, 8, Kind::Half);
    let mut sequence = cache.sequence(9).unwrap();
    let prompt = loaded.model.prefill_paged(&[1, 2], &mut sequence, &mut cache).unwrap();
    let step = loaded.model.decode_paged(&[3], &mut [&mut sequence], &mut cache).unwrap();
    for scores in [prompt, step] {
        assert_eq!(scores.likeliest().unwrap_err().kind(), ErrorKind::Corrupt);
    }
}

#[test]
fn other_weights_are_captured_anew() {
    gpu_or_skip!();
    let [one, two] = [48, 49].map(|seed| TinyLlama::new(&full_config(), seed));
    let [one, two] = [one, two].map(|tiny| load(&tiny.dir(), Kind::Half));
    let mut cache = new_cache(&one.model, 8, Kind::Half);
    let first = logits_of(&one.model, &mut cache, &[5], &[6, 7]);
    let other = logits_of(&two.model, &mut cache, &[5], &[6, 7]);
    assert_ne!(first, other);
    let again = logits_of(&one.model, &mut cache, &[5], &[6, 7]);
    let fresh = logits_of(&two.model, &mut new_cache(&two.model, 8, Kind::Half), &[5], &[6, 7]);
    for (got, wanted) in first.iter().zip(&again).chain(other.iter().zip(&fresh)) {
        assert_close(got, wanted, Kind::Half, "captured anew");
    }
}

#[test]
fn steps_take_no_memory_once_they_are_captured() {
    gpu_or_skip!();
    let tiny = TinyLlama::new(&full_config(), 50);
    let folder = tempfile::tempdir().unwrap();
    let int8 = compressed(&tiny.dir(), folder.path());
    for dir in [tiny.dir(), int8] {
        let model = load(&dir, Kind::Half).model;
        let mut cache = new_cache(&model, 64, Kind::Half);
        model.prepare_paged(5, &mut cache).unwrap();
        let mut sequences: Vec<_> = (0..5).map(|_| cache.sequence(300).unwrap()).collect();
        let mut step = |count: usize| {
            let mut some: Vec<_> = sequences.iter_mut().take(count).collect();
            let scores = model.decode_paged(&vec![3; count], &mut some, &mut cache).unwrap();
            let _ = scores.likeliest().unwrap();
        };
        (1..=5).for_each(&mut step);
        let peak = PeakMemory::start(0).unwrap();
        for round in 0..100 {
            step(1 + round % 5);
        }
        // Tokens and lengths are copied into memory that is there.
        assert_eq!(peak.finish(), 0);
    }
}

#[test]
fn a_dtype_without_kernels_goes_by_operators() {
    gpu_or_skip!();
    let tiny = TinyLlama::new(&full_config(), 51);
    let [wide, plain] = [Kind::Double, Kind::Float].map(|kind| {
        let model = load(&tiny.dir(), kind).model;
        let mut cache = new_cache(&model, 8, kind);
        logits_of(&model, &mut cache, &[5, 6, 7], &[8, 9, 10])
    });
    for (wide, plain) in wide.iter().zip(&plain) {
        assert_close(wide, plain, Kind::Float, "FP64");
    }
}

/// Greedy answers of a real model, all together in one paged cache, each its own length.
fn stories_together(generator: &Generator, kind: Kind, prompts: &[Vec<u32>], tokens: usize) -> Vec<Vec<u32>> {
    let model = generator.model().llama();
    let mut cache = new_cache(model, 40, kind);
    let mut sequences = Vec::new();
    let mut answers = Vec::new();
    for prompt in prompts {
        let mut sequence = cache.sequence(prompt.len() + tokens).unwrap();
        answers.push(model.prefill_paged(prompt, &mut sequence, &mut cache).unwrap().likeliest().unwrap());
        sequences.push(sequence);
    }
    for _ in 1..tokens {
        let last: Vec<u32> = answers.iter().map(|answer| *answer.last().unwrap()).collect();
        let mut all: Vec<_> = sequences.iter_mut().collect();
        let next = model.decode_paged(&last, &mut all, &mut cache).unwrap().likeliest().unwrap();
        answers.iter_mut().zip(next).for_each(|(answer, token)| answer.push(token));
    }
    answers
}

#[test]
fn stories_together_are_the_stories_alone() {
    gpu_or_skip!();
    let Some(dir) = downloaded("stories15M-bf16") else { return };
    let folder = tempfile::tempdir().unwrap();
    let int8 = compressed(&dir, folder.path());
    let prompts = ["Once upon a time", "Tom had a", "The little dog was very sad because"];
    for dir in [&dir, &int8] {
        for (kind, tokens) in [(Kind::Float, 48), (Kind::Half, 32), (Kind::BFloat16, 8)] {
            let options = LoadOptions { device: GPU, kind, ..LoadOptions::default() };
            let generator = Generator::open(dir, &options).unwrap();
            let texts = prompts.map(|text| Prompt::Text(text.to_owned()));
            let ids: Vec<Vec<u32>> = texts.iter().map(|text| generator.encode(text).unwrap()).collect();
            let options = GenerateOptions { max_new_tokens: tokens, ..GenerateOptions::default() };
            let alone: Vec<Vec<u32>> = texts
                .iter()
                .map(|text| {
                    let text = std::slice::from_ref(text);
                    let mut answers =
                        generator.generate(text, &options, &mut |_| ControlFlow::Continue(())).unwrap();
                    answers.remove(0).token_ids
                })
                .collect();
            let together = stories_together(&generator, kind, &ids, tokens);
            assert_eq!(together, alone, "{kind:?} {}", dir.display());
        }
    }
}
