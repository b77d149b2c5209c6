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

/// One in so many streams is left after its first events.
const LEFT: u32 = 20;

struct Load {
    clients: usize,
    /// Of the requests there are, every so many is used.
    each: usize,
    time: Duration,
    /// From when on memory has to be flat, and how flat.
    settled: Duration,
    growth: f64,
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
    while !end.load(Ordering::Relaxed) {
        let case = cases.choose(&mut rng).unwrap();
        if rng.random_ratio(1, LEFT) {
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
    // A place for each client, and some for what those left that have not been noticed yet.
    let batch = load.clients.to_string();
    let mut server = Server::start(&model, &["--max-batch", &batch, "--max-queue", "1000"]);
    let cases = cases(&server, load.each);
    let (end, counts) = (AtomicBool::new(false), Counts::default());
    let start = Instant::now();
    let mut rss = Vec::new();
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
            rss.push((start.elapsed(), server.rss_bytes()));
        }
        end.store(true, Ordering::Relaxed);
    });
    report(load, start, &rss, &counts, &server.stats());
    assert!(counts.complete.load(Ordering::Relaxed) >= load.clients, "every client was answered");
    check_memory(load, &rss);
    server
        .wait_for("no place is kept", |stats| stats["running"] == 0 && stats["pages"] == stats["pages_free"]);
    assert_eq!(server.stats()["requests"]["failed"], 0);
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0));
}

fn settled(load: &Load, rss: &[(Duration, u64)]) -> (u64, u64, u64) {
    let settled: Vec<u64> =
        rss.iter().filter(|(at, _)| *at >= load.settled).map(|(_, bytes)| *bytes).collect();
    (settled[0], *settled.iter().min().unwrap(), *settled.iter().max().unwrap())
}

fn check_memory(load: &Load, rss: &[(Duration, u64)]) {
    let (first, least, most) = settled(load, rss);
    let flat = |bytes: u64| (bytes as f64 / first as f64 - 1.0).abs() <= load.growth;
    assert!(flat(least) && flat(most), "{first} bytes after {:?}, then {least} to {most}", load.settled);
}

fn report(load: &Load, start: Instant, rss: &[(Duration, u64)], counts: &Counts, stats: &Value) {
    let seconds = start.elapsed().as_secs_f64();
    let mut times = counts.seconds.lock().unwrap().clone();
    times.sort_by(f64::total_cmp);
    let quantile = |q: f64| times.get(((times.len() as f64 - 1.0) * q) as usize).copied().unwrap_or(f64::NAN);
    let (first, least, most) = settled(load, rss);
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
        load.settled.as_secs(),
        (least as f64 / first as f64 - 1.0) * 100.0,
        (most as f64 / first as f64 - 1.0) * 100.0,
    );
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name}={value}: wanted a number")))
}

#[test]
fn many_clients_get_the_answers_they_get_alone() {
    let (time, settled) = (Duration::from_secs(20), Duration::from_secs(10));
    soak(&Load { clients: 16, each: 6, time, settled, growth: 0.1 });
}

#[test]
#[ignore = "ten minutes: `make soak` runs it"]
fn many_clients_for_long_get_the_answers_they_get_alone() {
    let time = Duration::from_secs(from_environment("SOAK_SECONDS", 600));
    let clients = from_environment("SOAK_CLIENTS", 64) as usize;
    soak(&Load { clients, each: 1, time, settled: Duration::from_secs(60).min(time / 2), growth: 0.02 });
}
