//! Many clients at once, for long: each answer is the one that its request gets alone, and memory stays flat.
#![cfg(feature = "serve")]

mod server;
mod tiny_llama;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use codecllm::checkpoint::{compress, CompressOptions};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{json, Value};
use server::{Server, Told};
use tiny_llama::downloaded;

/// Of stories15M.
const CONTEXT: usize = 256;

/// One in so many streams is left after its first events.
const LEFT: u32 = 20;

struct Load {
    clients: usize,
    /// Of the requests there are, every so many is used.
    each: usize,
    time: Duration,
    /// From when on memory has to be flat, and how much more it may become. It may become less: the system takes pages of mapped files
    /// back where other processes want memory.
    settled: Duration,
    growth: f64,
}

/// A look at the server while it works.
struct Sample {
    at: Duration,
    bytes: u64,
}

/// A request and the answer it gets alone.
struct Case {
    path: &'static str,
    body: Value,
    alone: Told,
}

/// stories15M, compressed, with a chat template; `None` if it is not here.
fn stories(parent: &Path) -> Option<PathBuf> {
    let source = downloaded("stories15M")?;
    let (model, out) = (parent.join("model"), parent.join("stories"));
    std::fs::create_dir(&model).unwrap();
    for entry in std::fs::read_dir(&source).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
    }
    let config = model.join("tokenizer_config.json");
    let mut object: Value = serde_json::from_str(&std::fs::read_to_string(&config).unwrap()).unwrap();
    object["chat_template"] = json!("{% for m in messages %}{{ m.content }}{% endfor %}");
    std::fs::write(config, object.to_string()).unwrap();
    compress(&model, &out, &CompressOptions::default(), &mut |_| {}).unwrap();
    Some(out)
}

fn orders() -> Vec<(&'static str, Value)> {
    let starts = [
        "Once upon a time",
        "Tom had a red ball",
        "The little dog was very sad because",
        "Lily and her mom went to the park.",
        "One day, a bird",
        "There was a big tree",
        "\"I want to play,\" said",
        "It was a cold day and",
    ];
    let mut orders = Vec::new();
    for (i, start) in starts.iter().enumerate() {
        // A prompt that is read in several pieces.
        let long = format!("{} {start}", "The cat sat on the mat and looked at the moon. ".repeat(i));
        let tokens = [8, 20, 45, 90][i % 4];
        let completion = |prompt: &str| json!({ "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": true });
        orders.push(("/v1/completions", completion(start)));
        orders.push(("/v1/completions", completion(&long)));
        let mut sampled = completion(start);
        sampled["temperature"] = json!(0.8);
        sampled["seed"] = json!(i);
        orders.push(("/v1/completions", sampled));
        let mut stopped = completion(start);
        stopped["stop"] = json!([".", "!\n"]);
        stopped["max_tokens"] = json!(60);
        orders.push(("/v1/completions", stopped));
        let messages = json!([{ "role": "user", "content": start }]);
        orders.push((
            "/v1/chat/completions",
            json!({ "messages": messages, "max_tokens": 100 - tokens, "temperature": 0, "stream": true }),
        ));
    }
    orders
}

fn cases(server: &Server, each: usize) -> Vec<Case> {
    let tell = |(path, body): (&'static str, Value)| {
        let alone = Told::of(server.stream(path, &body));
        // The first token may be where a stop string begins.
        assert!(alone.done && (!alone.text.is_empty() || alone.finish_reason == "stop"), "{body}: {alone:?}");
        Case { path, body, alone }
    };
    orders().into_iter().step_by(each).map(tell).collect()
}

/// One client: asks, compares, asks again.
fn client(server: &Server, cases: &[Case], seed: u64, end: &AtomicBool, counts: &Counts) {
    let mut rng = StdRng::seed_from_u64(seed);
    for round in 0.. {
        if round > 0 && end.load(Ordering::Relaxed) {
            break;
        }
        let case = cases.choose(&mut rng).unwrap();
        if round > 0 && rng.random_ratio(1, LEFT) {
            let events = rng.random_range(1..6);
            let left = server.stream(case.path, &case.body).take(events).count();
            assert!(left > 0, "{}: no event", case.body);
            counts.left.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let start = Instant::now();
        let told = Told::of(server.stream(case.path, &case.body));
        assert_eq!(told, case.alone, "{}", case.body);
        counts.complete.fetch_add(1, Ordering::Relaxed);
        counts.seconds.lock().unwrap().push(start.elapsed().as_secs_f64());
    }
}

#[derive(Default)]
struct Counts {
    complete: AtomicUsize,
    left: AtomicUsize,
    seconds: Mutex<Vec<f64>>,
}

/// Ends the clients even where one of them fails.
struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn soak(load: &Load) {
    let parent = tempfile::tempdir().unwrap();
    let Some(model) = stories(parent.path()) else { return };
    let batch = load.clients.to_string();
    // Memory for a whole context of each, taken at the start.
    let tokens = (load.clients * CONTEXT).to_string();
    let mut server =
        Server::start(&model, &["--max-batch", &batch, "--max-queue", "1000", "--cache-tokens", &tokens]);
    let cases = cases(&server, load.each);
    let (end, counts) = (AtomicBool::new(false), Counts::default());
    let start = Instant::now();
    let mut samples = Vec::new();
    thread::scope(|scope| {
        let (server, cases, end, counts) = (&server, &cases, &end, &counts);
        for seed in 0..load.clients {
            scope.spawn(move || {
                // One that fails ends the others; nobody else does before the time.
                let _guard = EndOnDrop(end);
                client(server, cases, seed as u64, end, counts);
            });
        }
        while start.elapsed() < load.time && !end.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(500));
            samples.push(Sample { at: start.elapsed(), bytes: server.rss_bytes() });
        }
        end.store(true, Ordering::Relaxed);
    });
    report(load, start, &samples, &counts, &server.stats());
    assert!(counts.complete.load(Ordering::Relaxed) >= load.clients, "every client was answered");
    check_memory(load, &samples);
    server
        .wait_for("no place is kept", |stats| stats["running"] == 0 && stats["pages"] == stats["pages_free"]);
    assert_eq!(server.stats()["requests"]["failed"], 0);
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0));
}

/// When memory was settled, how much it was then, and the least and the most from then on.
fn settled(load: &Load, samples: &[Sample]) -> (Duration, u64, u64, u64) {
    let settled: Vec<&Sample> = samples.iter().filter(|sample| sample.at >= load.settled).collect();
    let Some(first) = settled.first() else { panic!("no sample after {:?}", load.settled) };
    let bytes = || settled.iter().map(|sample| sample.bytes);
    (first.at, first.bytes, bytes().min().unwrap(), bytes().max().unwrap())
}

fn check_memory(load: &Load, samples: &[Sample]) {
    let (at, first, least, most) = settled(load, samples);
    let growth = most as f64 / first as f64 - 1.0;
    assert!(growth <= load.growth, "{first} bytes after {at:?}, then {least} to {most}");
}

fn report(load: &Load, start: Instant, samples: &[Sample], counts: &Counts, stats: &Value) {
    let seconds = start.elapsed().as_secs_f64();
    let mut times = counts.seconds.lock().unwrap().clone();
    times.sort_by(f64::total_cmp);
    let quantile = |q: f64| times.get(((times.len() as f64 - 1.0) * q) as usize).copied().unwrap_or(f64::NAN);
    let (at, first, least, most) = settled(load, samples);
    eprintln!(
        "{} clients, {seconds:.0} s: {} answers as alone, {} left midway; {} tokens, {:.1} tokens/s; seconds an answer: median {:.2}, \
         99th percentile {:.2}; resident after {} s {first} bytes, then {least} to {most} ({:+.2} % to {:+.2} %)",
        load.clients,
        counts.complete.load(Ordering::Relaxed),
        counts.left.load(Ordering::Relaxed),
        stats["completion_tokens"],
        stats["completion_tokens"].as_f64().unwrap() / seconds,
        quantile(0.5),
        quantile(0.99),
        at.as_secs(),
        (least as f64 / first as f64 - 1.0) * 100.0,
        (most as f64 / first as f64 - 1.0) * 100.0,
    );
    eprintln!("resident MB over time: {}", course(samples));
}

/// Resident memory over time, for whoever has to find out why it grew.
fn course(samples: &[Sample]) -> String {
    let step = (samples.len() / 20).max(1);
    let point = |sample: &Sample| format!("{} s {:.1}", sample.at.as_secs(), sample.bytes as f64 / 1e6);
    let points = samples.iter().step_by(step).map(point);
    points.collect::<Vec<_>>().join(", ")
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name}={value}: wanted a number")))
}

#[test]
fn many_clients_get_the_answers_they_get_alone() {
    let (time, settled) = (Duration::from_secs(20), Duration::from_secs(10));
    soak(&Load { clients: 16, each: 6, time, settled, growth: 0.05 });
}

#[test]
#[ignore = "ten minutes: `make soak` runs it"]
fn many_clients_for_long_get_the_answers_they_get_alone() {
    let time = Duration::from_secs(from_environment("SOAK_SECONDS", 600));
    let clients = from_environment("SOAK_CLIENTS", 64) as usize;
    let settled = Duration::from_secs(60).min(time / 2);
    soak(&Load { clients, each: 1, time, settled, growth: 0.02 });
}
