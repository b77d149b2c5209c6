//! `stats`: what it foretells is what compression gives.

mod cli_fixture;
mod tiny_llama;

use cli_fixture::{run, Fixture};
use codecllm::checkpoint::{
    bits_at_snr, compress, stats, CompressOptions, CompressReport, CurvePoint, StatsReport, Target, Writer,
};
use half::f16;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use safetensors::Dtype;

/// A directory of FP16 matrices of bells, one of them with a few large values, and what is not compressed beside them.
fn bells() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(folder.path().join("model")).unwrap();
    let mut rng = StdRng::seed_from_u64(3);
    for (name, [rows, cols], deviation, outliers) in [
        ("a.weight", [512, 768], 0.02, false),
        ("b.weight", [768, 512], 0.3, true),
        ("c.weight", [640, 640], 0.001, false),
    ] {
        let mut bell = || (0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0;
        let value = |at: usize, bell: f32| {
            bell * deviation * if outliers && at.is_multiple_of(1000) { 12.0 } else { 1.0 }
        };
        let values = (0..rows * cols).map(|at| f16::from_f32(value(at, bell())));
        let bytes: Vec<u8> = values.flat_map(f16::to_le_bytes).collect();
        writer.add(name, Dtype::F16, &[rows, cols], &bytes).unwrap();
    }
    writer.add("norm.weight", Dtype::F32, &[4096], &[0; 4 * 4096]).unwrap();
    writer.finish().unwrap();
    folder
}

fn foretold(folder: &tempfile::TempDir, target: Target) -> StatsReport {
    let options = CompressOptions { target, ..CompressOptions::default() };
    stats(folder.path().join("model"), &options, &mut |_| ()).unwrap()
}

fn made(folder: &tempfile::TempDir, target: Target) -> CompressReport {
    let options = CompressOptions { target, ..CompressOptions::default() };
    let out = folder.path().join(target.to_string());
    compress(folder.path().join("model"), out, &options, &mut |_| ()).unwrap()
}

fn choice<'a>(choices: &'a [CurvePoint], name: &str) -> &'a CurvePoint {
    choices.iter().find(|point| point.choice == name).unwrap_or_else(|| panic!("no {name} in {choices:?}"))
}

#[test]
fn each_choice_is_foretold_for_each_matrix_and_for_all() {
    let folder = bells();
    for target in [Target::Int8, Target::Lossless, Target::Bits(5.3), Target::Bits(4.0)] {
        let (report, made) = (foretold(&folder, target), made(&folder, target));
        assert_eq!(report.unmet, []);
        let name = target.to_string();
        for (tensor, made) in report.tensors.iter().zip(&made.tensors) {
            assert_eq!(tensor.tensor_path, made.tensor_path);
            let point = choice(&tensor.choices, &name);
            let bits = (point.bits_per_weight, made.stats.bits_per_weight);
            assert!((bits.0 - bits.1).abs() < 0.06, "{name} {}: {bits:?}", made.tensor_path);
            let snr = (point.snr_db, made.stats.snr_db);
            assert!(snr.0 == snr.1 || (snr.0 - snr.1).abs() < 0.6, "{name} {}: {snr:?}", made.tensor_path);
        }
        let whole = choice(&report.choices, &name);
        assert!(whole.snr_db == made.snr_db || (whole.snr_db - made.snr_db).abs() < 0.5, "{whole:?}");
        assert_eq!(whole.grid_entropy_bits.is_some(), made.grid_entropy_bits.is_some());
        let bounds = [
            (whole.grid_entropy_bits, made.grid_entropy_bits),
            (whole.exponent_entropy_and_raw_bits, made.exponent_entropy_and_raw_bits),
        ];
        for (foretold, made) in bounds {
            assert!(
                (foretold.unwrap_or(0.0) - made.unwrap_or(0.0)).abs() < 0.06,
                "{name}: {foretold:?} {made:?}"
            );
        }
        let rest_bits = 8.0 * (4 * 4096) as f64;
        let all = (whole.bits_per_weight * report.weights as f64 + rest_bits) / made.weights as f64;
        assert!((all - made.bits_per_weight).abs() < 0.05, "{name}: {all} {}", made.bits_per_weight);
    }
}

#[test]
fn the_curve_falls_and_stays_above_the_entropy() {
    let report = foretold(&bells(), Target::Int8);
    let curves = report.tensors.iter().map(|tensor| &tensor.curve).chain([&report.curve]);
    for curve in curves {
        for pair in curve.windows(2) {
            assert!(
                pair[0].bits_per_weight > pair[1].bits_per_weight && pair[0].snr_db > pair[1].snr_db,
                "{pair:?}"
            );
        }
        assert!(curve.iter().all(|point| point.bits_per_weight > point.grid_entropy_bits.unwrap()));
        // A bell at 30 dB has an entropy of 5.24 bits; large values cost more at the same step, and lift the signal.
        let bits = bits_at_snr(curve, 30.0).unwrap();
        assert!((4.2..5.8).contains(&bits), "{bits}");
    }
}

#[test]
fn a_size_out_of_reach_is_said_to_be_so() {
    let fixture = Fixture::new();
    let (model, chart) = (fixture.model(), fixture.path("curve.svg"));
    // Tables and tiles weigh more than 2.5 bits in matrices as small as these.
    let report = run(&["stats", &model, "--bits", "2.5", "--json", "--chart", &chart]).json();
    assert_eq!(report["unmet"][0]["choice"], "bits 2.5");
    let reason = report["unmet"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("their steps give"), "{reason}");
    assert_eq!(report["choices"].as_array().unwrap().len(), 5);
    let text = run(&["stats", &model, "--bits", "2.5"]).stdout;
    assert!(text.contains("cannot be met") && text.contains("30 dB"), "{text}");
    let svg = std::fs::read_to_string(chart).unwrap();
    let hairlines =
        svg.lines().filter(|line| line.contains("#A9C1DE") && line.contains("stroke-width=\"1\""));
    assert_eq!(hairlines.count(), 15, "one a matrix");
    for wanted in ["int8 (", "lossless (", "exact)", "entropy of the grids", "bits a weight"] {
        assert!(svg.contains(wanted), "{wanted}: {svg}");
    }
    let nowhere = fixture.path("no/curve.svg");
    run(&["stats", &model, "--chart", &nowhere]).assert_fails(&nowhere, "No such file");
}
