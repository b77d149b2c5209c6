//! What checksums cost: loading takes at most a fifth longer with them, from a disk and from a file that is in memory already.

mod tiny_llama;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use codecllm::checkpoint::{compress, CompressOptions, Target};
use codecllm::codec::Checksums;
use codecllm::runtime::{LoadOptions, Model};
use tiny_llama::downloaded;

const ROUNDS: usize = 15;
const MOST: f64 = 1.2;

#[test]
#[ignore = "measures time: run it alone, with --nocapture"]
fn checksums_cost_at_most_a_fifth_of_loading() {
    let Some(source) = downloaded("SmolLM2-135M-Instruct") else { return };
    let parent = tempfile::tempdir().unwrap();
    let mut worst = 0f64;
    for target in [Target::Int8, Target::Lossless] {
        let dir = parent.path().join(target.to_string());
        let options = CompressOptions { target, ..CompressOptions::default() };
        compress(&source, &dir, &options, &mut |_| {}).unwrap();
        let load = |checksums| {
            let options = LoadOptions { checksums, ..LoadOptions::default() };
            let start = Instant::now();
            let model = Model::load(&dir, &options).unwrap();
            (start.elapsed(), model.weight_bytes())
        };
        for (from, rounds, forget) in [("memory", ROUNDS, false), ("disk", ROUNDS / 3, true)] {
            // The first one fills the page cache.
            let (_, bytes) = load(Checksums::Verify);
            let (mut with, mut without) = (Duration::MAX, Duration::MAX);
            for _ in 0..rounds {
                for (checksums, best) in [(Checksums::Verify, &mut with), (Checksums::Ignore, &mut without)] {
                    if forget {
                        forget_pages(&dir.join("model.safetensors"));
                    }
                    *best = load(checksums).0.min(*best);
                }
            }
            let ratio = with.as_secs_f64() / without.as_secs_f64();
            println!("{target}, from {from}: {bytes} bytes in {with:?} with checksums, {without:?} without: {ratio:.3}");
            worst = worst.max(ratio);
        }
    }
    assert!(worst <= MOST, "{worst:.3}");
}

/// Asks the system to drop what it keeps of a file in memory.
fn forget_pages(file: &Path) {
    let dropped = Command::new("dd")
        .args([format!("if={}", file.display()).as_str(), "iflag=nocache", "count=0", "status=none"])
        .status();
    assert!(dropped.is_ok_and(|status| status.success()));
}
