//! A budget is met, whatever the weights are like, and more bits never mean more error.

use std::path::Path;

use codecllm::checkpoint::{compress, CompressOptions, CompressReport, Target, Writer};
use codecllm::codec::Layout;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use safetensors::Dtype;

const ROWS: usize = 1024;
const COLS: usize = 1024;

fn gaussian(random: &mut StdRng) -> f32 {
    let radius = (-2.0 * (1.0 - random.random::<f32>()).ln()).sqrt();
    radius * (std::f32::consts::TAU * random.random::<f32>()).cos()
}

/// Draws a weight of a row.
type Draw = fn(&mut StdRng, usize) -> f32;

const DISTRIBUTIONS: [(&str, Draw); 10] = [
    ("gaussian", |random, _| 0.02 * gaussian(random)),
    ("tiny", |random, _| 1e-30 * gaussian(random)),
    ("large", |random, _| 1e20 * gaussian(random)),
    ("uniform", |random, _| random.random_range(-0.1..0.1)),
    ("laplace", |random, _| (gaussian(random) * gaussian(random)) + (gaussian(random) * gaussian(random))),
    ("heavy tails", |random, _| gaussian(random) / (0.05 + gaussian(random).abs())),
    ("outliers", |random, _| gaussian(random) * if random.random_bool(1e-4) { 100.0 } else { 1.0 }),
    ("rows that differ", |random, row| gaussian(random) * (1 + row % 16) as f32),
    ("a mean far from zero", |random, _| 5.0 + gaussian(random)),
    ("half of it zero", |random, _| if random.random_bool(0.5) { 0.0 } else { gaussian(random) }),
];

fn write_model(dir: &Path, matrices: &[(&str, Vec<f32>)]) {
    let mut writer = Writer::create(dir).unwrap();
    for (name, weights) in matrices {
        let bytes: Vec<u8> = weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
        writer.add(name, Dtype::F32, &[weights.len() / COLS, COLS], &bytes).unwrap();
    }
    writer.finish().unwrap();
}

fn compressed(name: &str, model: &Path, bits: f64, layout: impl Into<Option<Layout>>) -> CompressReport {
    let out = tempfile::tempdir().unwrap();
    let options =
        CompressOptions { target: Target::Bits(bits), layout: layout.into(), ..CompressOptions::default() };
    compress(model, out.path().join("out"), &options, &mut |_| ()).expect(name)
}

#[test]
fn a_budget_is_met_on_ten_distributions() {
    for (index, (name, weight)) in DISTRIBUTIONS.iter().enumerate() {
        let mut random = StdRng::seed_from_u64(index as u64);
        let weights = (0..ROWS * COLS).map(|at| weight(&mut random, at / COLS)).collect();
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        write_model(&model, &[("a.weight", weights)]);
        let between = random.random_range(2.6..8.4);
        for (bits, layout) in [(2.5, Layout::Small), (between, Layout::Fast), (8.5, Layout::Fast)] {
            let report = compressed(name, &model, bits, layout);
            let got = report.bits_per_weight;
            assert!((got - bits).abs() <= 0.02, "{name}: {got} bits, wanted {bits}");
        }
    }
}

#[test]
fn more_bits_give_no_more_distortion() {
    let mut random = StdRng::seed_from_u64(20);
    let mut matrix =
        |sigma: f32, rows: usize| (0..rows * COLS).map(|_| sigma * gaussian(&mut random)).collect();
    let matrices =
        [("a.weight", matrix(0.1, 512)), ("b.weight", matrix(3.0, 64)), ("c.weight", matrix(1e-3, 512))];
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    write_model(&model, &matrices);
    let mut before: Option<CompressReport> = None;
    for tenths in (25..=85).step_by(6) {
        let report = compressed("three matrices", &model, f64::from(tenths) / 10.0, Layout::Fast);
        if let Some(before) = before {
            for (less, more) in before.tensors.iter().zip(&report.tensors) {
                let (less, more) = (less.stats.distortion.noise, more.stats.distortion.noise);
                assert!(more < less, "{tenths} tenths of a bit: {more} after {less}");
            }
        }
        before = Some(report);
    }
}
