//! What compression costs a real model, stories15M, on stories that it tells itself.

mod tiny_llama;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use codecllm::calibration::{calibrate, Options as CalibrationOptions};
use codecllm::checkpoint::{compress, compress_calibrated, CompressOptions, Target};
use codecllm::parity::{compare, Options, Report};
use codecllm::runtime::{GenerateOptions, Generator, LoadOptions, Prompt, SamplerOptions};
use tch::Kind;
use tiny_llama::downloaded;

const PROMPTS: [&str; 3] = ["Once upon a time", "Tom had a red", "The little dog"];
const NEW_TOKENS: usize = 160;
/// Threads that wait for each other are slow on a busy machine, and this model is small.
const THREADS: Option<usize> = Some(1);

struct Stories {
    model: PathBuf,
    folder: tempfile::TempDir,
    text: PathBuf,
}

/// Stories of a fixed seed, told by the uncompressed model.
fn stories() -> Option<Stories> {
    let model = downloaded("stories15M")?;
    let options = LoadOptions { kind: Kind::Float, threads: THREADS, ..LoadOptions::default() };
    let generator = Generator::open(&model, &options).unwrap();
    let sampling = SamplerOptions { temperature: 0.8, seed: 11, ..SamplerOptions::default() };
    let options = GenerateOptions { max_new_tokens: NEW_TOKENS, sampling, ..GenerateOptions::default() };
    let prompts = PROMPTS.map(|prompt| Prompt::Text(prompt.to_owned()));
    let told = generator.generate(&prompts, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    let text: String =
        PROMPTS.iter().zip(told).map(|(prompt, story)| format!("{prompt}{}\n", story.text)).collect();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("stories.txt");
    std::fs::write(&file, text).unwrap();
    Some(Stories { model, folder, text: file })
}

impl Stories {
    fn compressed(&self, target: Target) -> PathBuf {
        let out = self.folder.path().join(target.to_string());
        let options = CompressOptions { target, ..CompressOptions::default() };
        compress(&self.model, &out, &options, &mut |_| ()).unwrap();
        out
    }

    fn parity(&self, compressed: &Path) -> Report {
        let prompts = PROMPTS.map(str::to_owned).to_vec();
        let options = Options { prompts, new_tokens: 48, threads: THREADS, ..Options::new(&self.text) };
        compare(&self.model, compressed, &options, &mut |_| ()).unwrap()
    }
}

fn perplexity_change(report: &Report) -> f64 {
    report.perplexity_compressed / report.perplexity_reference - 1.0
}

#[test]
fn int8_and_six_bits_keep_the_stories() {
    let Some(stories) = stories() else { return };
    let int8 = stories.parity(&stories.compressed(Target::Int8));
    assert!(int8.tokens_scored > 200, "{int8:?}");
    assert!(int8.perplexity_reference > 1.0 && int8.perplexity_reference < 20.0, "{int8:?}");
    assert!(int8.divergence.kl_mean > 0.0 && int8.divergence.kl_mean < 0.002, "{int8:?}");
    assert!(int8.divergence.top1_agreement > 0.97, "{int8:?}");
    assert!(perplexity_change(&int8).abs() < 0.01, "{int8:?}");
    let six = stories.parity(&stories.compressed(Target::Bits(6.0)));
    assert!(six.divergence.kl_mean > int8.divergence.kl_mean && six.divergence.kl_mean < 0.025, "{six:?}");
    assert!(six.divergence.top1_agreement > 0.92, "{six:?}");
    assert!(perplexity_change(&six).abs() < 0.03, "{six:?}");
}

#[test]
fn calibration_is_never_worse_on_its_own_text() {
    let Some(stories) = stories() else { return };
    let options =
        CalibrationOptions { window: Some(64), windows: 6, ..CalibrationOptions::new(&stories.text) };
    let calibration = calibrate(&stories.model, &options, &mut |_, _| ()).unwrap();
    let mut before = f64::INFINITY;
    for bits in [4.0, 5.2] {
        let target = Target::Bits(bits);
        let out = stories.folder.path().join(format!("calibrated {bits}"));
        let options = CompressOptions { target, ..CompressOptions::default() };
        let report =
            compress_calibrated(&stories.model, &out, &options, &calibration.importance, &mut |_| ())
                .unwrap();
        assert!(
            (report.bits_per_weight - bits).abs() <= 0.02,
            "{} bits, wanted {bits}",
            report.bits_per_weight
        );
        let gain = report.calibration.unwrap();
        assert!(gain.expected_divergence < before, "more bits, more divergence: {gain:?}");
        before = gain.expected_divergence;
        let calibrated = stories.parity(&out).divergence.kl_mean;
        let data_free = stories.parity(&stories.compressed(target)).divergence.kl_mean;
        assert!(calibrated < 0.75 * data_free, "{bits} bits: {calibrated} nats, data-free {data_free}");
    }
}
