//! What checksums cost: loading takes at most a fifth longer with them.

mod tiny_llama;

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
        // The first one fills the page cache.
        let (_, bytes) = load(Checksums::Verify);
        let (mut with, mut without) = (Duration::MAX, Duration::MAX);
        for _ in 0..ROUNDS {
            with = with.min(load(Checksums::Verify).0);
            without = without.min(load(Checksums::Ignore).0);
        }
        let ratio = with.as_secs_f64() / without.as_secs_f64();
        println!("{target}: {bytes} bytes in {with:?} with checksums, {without:?} without: {ratio:.3}");
        assert!(ratio <= MOST, "{target}: {ratio:.3}");
    }
}
