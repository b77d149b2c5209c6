//! Against the classical rule, one INT8 step a matrix by its largest magnitude: what that does to matrices with heavy tails.
//!
//! The rule's bits are the order-0 entropy of its grid, and nothing else of it is counted; of ours everything is. A model of equal size
//! gives the rule's outliers few bits and its bells many; ours gives all of them the same signal-to-noise ratio.

mod tiny_llama;

use std::path::Path;

use codecllm::checkpoint::{compress, CompressOptions, Reader, Target, Writer};
use codecllm::codec::{grid_entropy, CompressedTensor, EncodeOptions, Layout, Matrix, StepRule};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use safetensors::Dtype;
use tiny_llama::downloaded;

const ROWS: usize = 1024;
const COLS: usize = 512;
/// The largest magnitude over the root mean square from which on a matrix has heavy tails here; a bell of a million weights has 5.
const HEAVY: f64 = 20.0;
/// From here on six decibels are gained. The gain is 6.02 dB for each bit that the classical rule gives a matrix less than the model's mean.
const HEAVIEST: f64 = 32.0;

/// A matrix under the classical rule.
struct Classical {
    tensor_path: String,
    weights: usize,
    /// The largest magnitude over the root mean square.
    spread: f64,
    entropy: f64,
    snr_db: f64,
}

fn classical(tensor_path: &str, matrix: &Matrix) -> Classical {
    let quantized = StepRule::TensorAbsmax.quantize(matrix, tensor_path).unwrap();
    let distortion = quantized.distortion(&matrix.weights, matrix.shape[1]);
    let weights = matrix.weights.len();
    let most = matrix.weights.iter().fold(0f32, |most, weight| most.max(weight.abs()));
    Classical {
        tensor_path: tensor_path.to_owned(),
        weights,
        spread: f64::from(most) / (distortion.signal / weights as f64).sqrt(),
        entropy: grid_entropy(&quantized.values),
        snr_db: distortion.snr_db(),
    }
}

/// The matrices of a model under the classical rule, and its bits a weight.
fn classical_model(model: &Path) -> (Vec<Classical>, f64) {
    let reader = Reader::open(model).unwrap();
    let matrices: Vec<Classical> = reader
        .names()
        .filter(|name| reader.info(name).unwrap().shape.len() == 2)
        .map(|name| classical(name, &Matrix::of(name, &reader.read(name).unwrap()).unwrap()))
        .collect();
    let weights: usize = matrices.iter().map(|matrix| matrix.weights).sum();
    let bits: f64 = matrices.iter().map(|matrix| matrix.entropy * matrix.weights as f64).sum();
    (matrices, bits / weights as f64)
}

/// Of the matrices with heavy tails in a model of the size that the classical rule has: the largest magnitude over the root mean square,
/// and the gain in dB.
fn gains(model: &Path) -> Vec<(f64, f64)> {
    let (matrices, bits) = classical_model(model);
    let out = tempfile::tempdir().unwrap();
    let options = CompressOptions { target: Target::Bits(bits - 0.02), ..CompressOptions::default() };
    let report = compress(model, out.path().join("out"), &options, &mut |_| ()).unwrap();
    assert!(report.bits_per_weight <= bits, "{} bits, the classical rule {bits}", report.bits_per_weight);
    let heavy = matrices.iter().filter(|matrix| matrix.spread >= HEAVY);
    heavy
        .map(|matrix| {
            let ours = report.tensors.iter().find(|ours| ours.tensor_path == matrix.tensor_path).unwrap();
            let gain = ours.stats.snr_db - matrix.snr_db;
            println!(
                "{} of {bits:.2} bits: {}, largest {:.0} rms: {:.2} bits, {:.1} dB; ours {:.2} bits, {:.1} dB, {gain:+.1}",
                model.file_name().unwrap().display(),
                matrix.tensor_path, matrix.spread, matrix.entropy, matrix.snr_db, ours.stats.bits_per_weight, ours.stats.snr_db,
            );
            (matrix.spread, gain)
        })
        .collect()
}

fn gaussian(random: &mut StdRng) -> f32 {
    let radius = (-2.0 * (1.0 - random.random::<f32>()).ln()).sqrt();
    radius * (std::f32::consts::TAU * random.random::<f32>()).cos()
}

/// Student's t of three degrees of freedom.
fn student(random: &mut StdRng) -> f32 {
    let chi: f32 = (0..3).map(|_| gaussian(random).powi(2)).sum();
    gaussian(random) / (chi / 3.0).sqrt()
}

fn with_outliers(random: &mut StdRng) -> f32 {
    gaussian(random) * if random.random_bool(1e-4) { 30.0 } else { 1.0 }
}

/// Draws a weight.
type Draw = fn(&mut StdRng) -> f32;

#[test]
fn drawn_heavy_tails_gain_six_decibels_at_the_size_of_the_classical_rule() {
    let mut random = StdRng::seed_from_u64(3);
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("drawn");
    let mut writer = Writer::create(&model).unwrap();
    let draws: [(&str, Draw); 5] = [
        ("bell.0.weight", gaussian),
        ("bell.1.weight", gaussian),
        ("bell.2.weight", gaussian),
        ("student.weight", student),
        ("outliers.weight", with_outliers),
    ];
    for (name, draw) in draws {
        let bytes: Vec<u8> =
            (0..ROWS * COLS).flat_map(|_| (0.02 * draw(&mut random)).to_le_bytes()).collect();
        writer.add(name, Dtype::F32, &[ROWS, COLS], &bytes).unwrap();
    }
    writer.finish().unwrap();
    let gains = gains(&model);
    assert_eq!(gains.len(), 2);
    assert!(gains.iter().all(|(_, gain)| *gain >= 6.0), "{gains:?}");
}

#[test]
fn the_heaviest_real_tails_gain_six_decibels_and_all_of_them_gain() {
    for name in ["stories15M", "SmolLM2-135M-Instruct"] {
        let Some(model) = downloaded(name) else { continue };
        let gains = gains(&model);
        assert!(!gains.is_empty(), "{name} has no heavy tails");
        for (spread, gain) in gains {
            // stories15M's mean is 5.4 bits, so that a largest magnitude of 27 root mean squares is enough there.
            let wanted = if spread >= HEAVIEST { 6.0 } else { 1.5 };
            assert!(
                gain >= wanted,
                "{name}: {gain:.1} dB where the largest is {spread:.0} rms, wanted {wanted}"
            );
        }
    }
}

/// Alone, a matrix has the same step under both rules where both have the same entropy: ours pays what it counts and the rule does not.
#[test]
fn a_matrix_alone_pays_for_what_is_counted_and_no_more() {
    let mut random = StdRng::seed_from_u64(4);
    for draw in [student, with_outliers] {
        let weights = (0..ROWS * COLS).map(|_| draw(&mut random)).collect();
        let matrix = Matrix { weights, shape: [ROWS, COLS], dtype: codecllm::codec::SourceDtype::F32 };
        let rule = classical("w", &matrix);
        let rms = (matrix.weights.iter().map(|weight| weight.powi(2)).sum::<f32>()
            / matrix.weights.len() as f32)
            .sqrt();
        let at = |step: f32| {
            let quantized = StepRule::Step(step).quantize(&matrix, "w").unwrap();
            let options = EncodeOptions { layout: Layout::Small, ..EncodeOptions::default() };
            *CompressedTensor::encode("w", &matrix, &quantized, options).unwrap().stats()
        };
        let (mut fine, mut coarse) = (0.01 * rms, 10.0 * rms);
        for _ in 0..12 {
            let middle = (fine * coarse).sqrt();
            *(if at(middle).bits_per_weight > rule.entropy { &mut fine } else { &mut coarse }) = middle;
        }
        let lost = rule.snr_db - at(coarse).snr_db;
        println!("alone at {:.2} bits: {:.1} dB, ours {lost:.2} less", rule.entropy, rule.snr_db);
        assert!((0.0..1.0).contains(&lost), "{lost} dB");
    }
}
