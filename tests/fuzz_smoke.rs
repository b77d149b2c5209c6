//! Every fuzz target on its seeds and some thousand mutations of them: what `make fuzz` does for hours, in seconds and without nightly.

#[path = "../fuzz/bodies/mod.rs"]
mod bodies;

use std::path::Path;
use std::time::{Duration, Instant};

use codecllm::runtime::{ChatTemplate, Message, Tokenizer};
use codecllm::ErrorKind;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// A target: its name, what it starts from, and what it does.
type Target = (&'static str, fn(&Path) -> Vec<Vec<u8>>, fn(&[u8]));

const TARGETS: [Target; 7] = [
    ("open_container", bodies::open_container::seeds, bodies::open_container::run),
    ("decode_tile", bodies::decode_tile::seeds, bodies::decode_tile::run),
    ("decode_table", bodies::decode_table::seeds, bodies::decode_table::run),
    ("parse_config", bodies::parse_config::seeds, bodies::parse_config::run),
    ("tokenizer_and_template", bodies::tokenizer_and_template::seeds, bodies::tokenizer_and_template::run),
    ("import_gguf", bodies::import_gguf::seeds, bodies::import_gguf::run),
    ("torchscript_patch", bodies::torchscript_patch::seeds, bodies::torchscript_patch::run),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Some bytes of `bytes` changed; now and then a piece is left out, doubled or taken from another seed.
fn mutate(bytes: &mut Vec<u8>, other: &[u8], rng: &mut StdRng) {
    let length = bytes.len();
    if length == 0 {
        return;
    }
    let at = rng.random_range(0..length);
    let run = rng.random_range(1..=16.min(length - at));
    match rng.random_range(0..8) {
        0 => drop(bytes.drain(at..at + run)),
        1 => {
            let piece = bytes[at..at + run].to_vec();
            drop(bytes.splice(at..at, piece));
        }
        2 => {
            let from = rng.random_range(0..other.len());
            let piece = other[from..other.len().min(from + run)].to_vec();
            drop(bytes.splice(at..at + run, piece));
        }
        // In JSON and templates a number or a letter becomes another.
        3 => bytes[at] = b"0123456789-{}[]\",:.eE%|ab"[rng.random_range(0..25)],
        4 => bytes[at] ^= 1 << rng.random_range(0..8),
        _ => bytes[at..at + run].iter_mut().for_each(|byte| *byte = rng.random()),
    }
}

fn smoke(name: &str, rounds: usize) {
    let (_, seeds, run) = TARGETS.into_iter().find(|target| target.0 == name).unwrap();
    let seeds = seeds(root());
    if seeds.is_empty() {
        eprintln!("SKIPPED: {name} has no seeds here; make them with: scripts/make_fixtures.sh");
        return;
    }
    seeds.iter().for_each(|seed| run(seed));
    let mut rng = StdRng::seed_from_u64(10);
    for round in 0..rounds {
        let mut input = seeds[rng.random_range(0..seeds.len())].clone();
        for _ in 0..rng.random_range(1..=4) {
            mutate(&mut input, &seeds[rng.random_range(0..seeds.len())], &mut rng);
        }
        let start = Instant::now();
        run(&input);
        // What hangs takes for ever; a busy machine may hold up anything for seconds.
        assert!(start.elapsed() < Duration::from_secs(30), "{name}, round {round}: {:?}", start.elapsed());
    }
}

#[test]
fn open_container() {
    smoke("open_container", 2000);
}

#[test]
fn decode_tile() {
    smoke("decode_tile", 5000);
}

#[test]
fn decode_table() {
    smoke("decode_table", 20_000);
}

#[test]
fn parse_config() {
    smoke("parse_config", 20_000);
}

#[test]
fn tokenizer_and_template() {
    smoke("tokenizer_and_template", 5000);
}

#[test]
fn import_gguf() {
    smoke("import_gguf", 2000);
}

#[test]
fn torchscript_patch() {
    smoke("torchscript_patch", 200);
}

#[test]
fn what_was_found_stays_mended() {
    // The tokenizers crate panics on half a surrogate pair.
    let half = br#"{"version":"1.0","decoder":{"type":"ByteLevel","x":"\ud800"},"model":{"type":"BPE","vocab":{},"merges":[]}}"#;
    let error = Tokenizer::from_bytes(half, "tokenizer.json").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    // A template that would run for days.
    let loops = "{% for a in range(9999) %}".repeat(5) + "x" + &"{% endfor %}".repeat(5);
    let config = serde_json::json!({ "chat_template": loops }).to_string();
    let template = ChatTemplate::from_json(&config, "tokenizer_config.json").unwrap().unwrap();
    let start = Instant::now();
    let error = template.render(&[Message::new("user", "a")], true).unwrap_err();
    assert!(error.to_string().contains("fuel") && start.elapsed() < Duration::from_secs(5), "{error}");
}

/// Puts the seeds where libFuzzer looks for them.
#[test]
#[ignore = "writes fuzz/corpus: make fuzz"]
fn write_corpus() {
    for (name, seeds, _) in TARGETS {
        let folder = root().join("fuzz/corpus").join(name);
        std::fs::create_dir_all(&folder).unwrap();
        for (number, seed) in seeds(root()).into_iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{number}")), seed).unwrap();
        }
    }
}
