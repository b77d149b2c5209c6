//! The engine with a real model, stories15M compressed: many requests at once, each answered as if it were alone.
#![cfg(feature = "serve")]

mod tiny_llama;

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use codecllm::checkpoint::{compress, CompressOptions};
use codecllm::runtime::{GenerateOptions, Generator, LoadOptions, Prompt, SamplerOptions, StopReason};
use codecllm::serve::engine::{Answer, Engine, EngineOptions, EngineState, Event, Refusal, Request, Usage};
use codecllm::ErrorKind;
use tch::Kind;
use tiny_llama::{downloaded, plain_config, TinyLlama};

/// More than any of these tests takes on a slow machine.
const LONG: Duration = Duration::from_secs(3600);

const OPENINGS: [&str; 8] = [
    "Once upon a time",
    "Tom had a red ball. He",
    "The little dog was very sad because",
    "Lily and her mom went to the",
    "One day, a big bear found a",
    "In the garden there was a tree. The tree was old and",
    "It was raining. Ben wanted to play outside, but his mother said that he must stay in the house until the \
     sun came out again. So Ben took his toys and his books and all his cars, and he made a little town on the \
     floor of his room, with a road and a river and a",
    "\"Look!\" said",
];

/// Request `i`: its own prompt and length.
fn story(i: usize) -> Request {
    let prompt = format!("{} {}", OPENINGS[i % 8], ["", "And then", "The cat", "She"][i / 8 % 4]);
    let options = GenerateOptions { max_new_tokens: 5 + i * 7 % 24, ..GenerateOptions::default() };
    Request::new(Prompt::Text(prompt.trim_end().to_owned()), options)
}

/// stories15M compressed, in a folder that is removed when dropped.
fn compressed() -> Option<tempfile::TempDir> {
    let model = downloaded("stories15M")?;
    let folder = tempfile::tempdir().unwrap();
    compress(model, folder.path().join("model"), &CompressOptions::default(), &mut |_| ()).unwrap();
    Some(folder)
}

fn open(dir: &Path, kind: Kind) -> Generator {
    Generator::open(dir, &LoadOptions { kind, ..LoadOptions::default() }).unwrap()
}

/// An answer, heard to its end.
#[derive(Clone, Debug, Default, PartialEq)]
struct Heard {
    ids: Vec<u32>,
    text: String,
    ended: Option<(StopReason, Usage)>,
}

fn hear(mut answer: Answer) -> Heard {
    let mut heard = Heard::default();
    while let Some(event) = answer.next_blocking() {
        match event {
            Event::Started { .. } => (),
            Event::Token { id, text, .. } => {
                heard.ids.push(id);
                heard.text.push_str(&text);
            }
            Event::Ended { reason, text, usage } => {
                heard.text.push_str(&text);
                heard.ended = Some((reason, usage));
            }
            Event::Failed(error) => panic!("{error}"),
        }
    }
    heard
}

fn alone(engine: &Engine, request: Request) -> Heard {
    hear(engine.submit(request).unwrap())
}

/// What the generator answers to `request`, one prompt in a cache of its own.
fn generated(generator: &Generator, request: &Request) -> (Vec<u32>, String, StopReason) {
    let prompts = std::slice::from_ref(&request.prompt);
    let generation =
        generator.generate(prompts, &request.options, &mut |_| ControlFlow::Continue(())).unwrap().remove(0);
    (generation.token_ids, generation.text, generation.stop_reason)
}

#[test]
fn twenty_four_at_once_get_the_answers_that_they_get_alone() {
    let Some(folder) = compressed() else { return };
    let dir = folder.path().join("model");
    for (kind, count) in [(Kind::Half, 24), (Kind::Float, 12)] {
        let generator = open(&dir, kind);
        // Each row by itself, as the engine does: a prompt of many rows would go through scratch, whose sums differ in the last bits.
        generator.model().llama().set_fused_rows(1024);
        // Room for some of them, so that others wait, for places and for pages.
        let options = EngineOptions {
            max_batch: 10,
            cache_tokens: Some(1000),
            prefill_tokens: Some(16),
            ..EngineOptions::default()
        };
        let engine = Engine::start(open(&dir, kind), options).unwrap();
        let lonely: Vec<Heard> = (0..count).map(|i| alone(&engine, story(i))).collect();
        let mut answers: Vec<Option<Answer>> = (0..count).map(|i| engine.submit(story(i)).ok()).collect();
        assert_eq!(answers.iter().flatten().count(), count);
        // Some leave: at once, and in the middle.
        for i in [3, 10, 11] {
            answers[i] = None;
        }
        for i in [5, 8] {
            let mut answer = answers[i].take().unwrap();
            (0..4).for_each(|_| drop(answer.next_blocking()));
        }
        for (i, answer) in answers.into_iter().enumerate() {
            let Some(answer) = answer else { continue };
            let together = hear(answer);
            assert_eq!(together, lonely[i], "{kind:?}, story {i}");
            let (ids, text, reason) = generated(&generator, &story(i));
            assert_eq!((together.ids, together.text), (ids, text), "{kind:?}, story {i}");
            assert_eq!(together.ended.unwrap().0, reason, "{kind:?}, story {i}");
        }
        engine.shut_down(LONG);
        let stats = engine.stats();
        assert_eq!((stats.pages_free, stats.running, stats.waiting), (stats.pages, 0, 0));
        assert_eq!(
            (stats.state, stats.requests.left + stats.requests.length + stats.requests.stopped),
            (EngineState::Stopped, 2 * count as u64)
        );
        assert!(stats.requests.left >= 3, "{:?}", stats.requests);
        assert!(stats.steps < stats.completion_tokens, "no step served two");
        assert!(matches!(engine.submit(story(0)), Err(Refusal::ShuttingDown)));
    }
}

#[test]
fn sampling_and_logprobs_do_not_depend_on_the_others() {
    let Some(folder) = compressed() else { return };
    let engine =
        Engine::start(open(&folder.path().join("model"), Kind::Half), EngineOptions::default()).unwrap();
    let request = |i: usize| {
        let mut request = story(i);
        request.logprobs = Some(i % 3);
        request.options.sampling =
            SamplerOptions { temperature: 1.0, seed: i as u64, ..SamplerOptions::default() };
        request
    };
    let details = |mut answer: Answer| {
        let mut all = Vec::new();
        while let Some(event) = answer.next_blocking() {
            match event {
                Event::Token { id, logprobs, .. } => all.push((id, logprobs.unwrap())),
                Event::Failed(error) => panic!("{error}"),
                _ => (),
            }
        }
        all
    };
    let lonely: Vec<_> = (0..6).map(|i| details(engine.submit(request(i)).unwrap())).collect();
    let answers: Vec<_> = (0..6).map(|i| engine.submit(request(i)).unwrap()).collect();
    for (i, answer) in answers.into_iter().enumerate() {
        let together = details(answer);
        assert_eq!(together, lonely[i], "story {i}");
        for (id, logprobs) in together {
            assert_eq!((id, logprobs.top.len()), (logprobs.chosen.id, i % 3));
            assert!(logprobs.chosen.logprob <= 0.0 && logprobs.chosen.logprob > -30.0);
        }
    }
    engine.shut_down(LONG);
}

#[test]
fn a_small_model_fills_its_context_and_frees_its_memory() {
    let model = TinyLlama::new(&plain_config(), 5);
    model.write("tokenizer.json", &tiny_llama::byte_tokenizer_json());
    let load = LoadOptions { kind: Kind::Float, context: Some(40), ..LoadOptions::default() };
    let generator = Generator::open(model.dir(), &load).unwrap();
    let options =
        GenerateOptions { max_new_tokens: 500, ignore_stop_tokens: true, ..GenerateOptions::default() };
    let request = Request::new(Prompt::Tokens(vec![7, 8, 9]), options);
    let wanted = generated(&generator, &request);
    let engine =
        Engine::start(generator, EngineOptions { prefill_tokens: Some(2), ..EngineOptions::default() })
            .unwrap();
    let info = engine.model_info().clone();
    assert_eq!((info.context, info.vocab_size, info.chat_template), (40, 50, false));
    assert_eq!((info.device.as_str(), info.dtype.as_str(), info.max_prompt_tokens()), ("cpu", "fp32", 40));
    let heard = alone(&engine, request.clone());
    assert_eq!((heard.ids, heard.text), (wanted.0, wanted.1));
    assert_eq!(
        (heard.ended.unwrap(), wanted.2),
        ((StopReason::Context, Usage { prompt_tokens: 3, completion_tokens: 38 }), StopReason::Context)
    );
    let refusal = engine.submit(Request { prompt: Prompt::Tokens(vec![50]), ..request }).unwrap_err();
    assert_eq!(refusal.to_string(), "prompt: has token 50, wanted one below vocab_size = 50");
    let stats = engine.stats();
    assert!(stats.rss_bytes.is_none_or(|bytes| bytes > 0) && stats.cache_bytes > 0 && stats.weight_bytes > 0);
    engine.shut_down(LONG);
    let over = EngineOptions { max_batch: 1000, ..EngineOptions::default() };
    let error = Engine::start(Generator::open(model.dir(), &load).unwrap(), over).unwrap_err();
    assert_eq!(error.to_string(), "max-batch: 1000, wanted 1 to 64");
    // More than any machine has, less than can be addressed.
    let over = EngineOptions { cache_tokens: Some(2_000_000_000), ..EngineOptions::default() };
    let error = Engine::start(Generator::open(model.dir(), &load).unwrap(), over).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
    let message = error.to_string();
    assert!(message.contains(" bytes for 2000000000 tokens"), "{message}");
    assert!(message.ends_with("; give the engine a smaller cache (--cache-tokens)"), "{message}");
}

/// `cargo test --release --test serve_engine -- --ignored --nocapture`
#[test]
#[ignore = "measures: run it by itself, optimized"]
fn tokens_a_second() {
    let Some(folder) = compressed() else { return };
    let dir = folder.path().join("model");
    for kind in [Kind::Half, Kind::Float] {
        for clients in [1, 8, 32, 64] {
            let options = EngineOptions { max_batch: 64, ..EngineOptions::default() };
            let engine = Engine::start(open(&dir, kind), options).unwrap();
            let long = |i: usize| {
                let mut request = story(i);
                request.options.max_new_tokens = 64;
                request.options.ignore_stop_tokens = true;
                request
            };
            alone(&engine, long(0));
            let start = Instant::now();
            let answers: Vec<_> = (0..clients).map(|i| engine.submit(long(i)).unwrap()).collect();
            let tokens: usize = answers.into_iter().map(|answer| hear(answer).ids.len()).sum();
            let seconds = start.elapsed().as_secs_f64();
            let stats = engine.stats();
            let first = stats.time_to_first_token;
            println!(
                "{kind:?}, {clients} at once: {tokens} tokens in {seconds:.2} s, {:.0} a second; first token after {:.0} ms on average",
                tokens as f64 / seconds,
                1000.0 * first.sum / first.count as f64
            );
            engine.shut_down(LONG);
        }
    }
}
