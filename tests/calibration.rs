//! Calibration: what it refuses, and that what it expects is what happens.

mod cli_fixture;
mod tiny_llama;

use std::path::Path;

use cli_fixture::{run, Fixture};
use codecllm::calibration::{calibrate, Options};
use codecllm::checkpoint::{compress, compress_calibrated, CompressOptions, Target};
use codecllm::parity::compare;
use codecllm::ErrorKind;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tiny_llama::{byte_tokenizer_json, plain_config, TinyLlama};

const WINDOW: usize = 64;

/// A text of at least `bytes` bytes, no part of which comes again: a token of the fixture is a byte.
fn text(bytes: usize) -> String {
    let mut random = StdRng::seed_from_u64(2);
    let mut letter = || char::from(random.random_range(b' '..b'{'));
    (0..bytes).map(|_| letter()).collect()
}

/// A model of the fixture's kind with a million weights: enough for a budget to be met.
fn wider() -> Fixture {
    let mut config = plain_config();
    for (name, value) in
        [("vocab_size", 258), ("hidden_size", 192), ("intermediate_size", 768), ("head_dim", 48)]
    {
        config[name] = value.into();
    }
    let tiny = TinyLlama::new(&config, 8);
    tiny.write("tokenizer.json", &byte_tokenizer_json());
    Fixture { tiny }
}

fn options(fixture: &Fixture, text: &str) -> Options {
    let file = fixture.beside("calibration.txt");
    std::fs::write(&file, text).unwrap();
    Options { window: Some(WINDOW), windows: 8, ..Options::new(file) }
}

#[test]
fn texts_that_are_empty_or_too_short_are_named() {
    let fixture = Fixture::new();
    for (text, message) in [
        ("", "calibration.txt: is empty, wanted a text of at least 2 tokens"),
        (
            "a short text",
            "calibration.txt: has 12 tokens, wanted at least one window of 64 (a longer text, or a window of 12)",
        ),
    ] {
        let error = calibrate(fixture.model(), &options(&fixture, text), &mut |_, _| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains(message), "{error}");
    }
    let long = options(&fixture, &text(200));
    let none = Options { windows: 0, ..long.clone() };
    assert!(calibrate(fixture.model(), &none, &mut |_, _| ()).unwrap_err().to_string().contains("0 windows"));
    let gone = Options { text: fixture.beside("gone.txt"), ..long };
    let error = calibrate(fixture.model(), &gone, &mut |_, _| ()).unwrap_err();
    assert_eq!((error.kind(), error.subject()), (ErrorKind::Io, gone.text.to_str().unwrap()));
}

#[test]
fn a_missing_tokenizer_and_a_compressed_model_are_named() {
    let fixture = Fixture::new();
    let options = options(&fixture, &text(200));
    let error = calibrate(fixture.compressed(), &options, &mut |_, _| ()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "model.embed_tokens: is compressed already; calibrate with the model that it was made from"
    );
    let tokenizer = fixture.tiny.dir().join("tokenizer.json");
    std::fs::remove_file(&tokenizer).unwrap();
    let error = calibrate(fixture.model(), &options, &mut |_, _| ()).unwrap_err();
    assert_eq!((error.kind(), error.subject()), (ErrorKind::Io, tokenizer.to_str().unwrap()));
}

#[test]
fn a_grid_of_its_own_is_not_calibrated() {
    let fixture = Fixture::new();
    let file = options(&fixture, &text(200)).text.display().to_string();
    let out = fixture.path("out");
    let arguments = ["compress", &fixture.model(), "-o", &out, "--calibrate", &file];
    run(&arguments).assert_fails("--calibrate", "int8 has steps of its own");
    assert!(!fixture.beside("out").exists());
}

#[test]
fn the_divergence_is_about_what_was_expected() {
    let fixture = wider();
    let options = Options { windows: 32, ..options(&fixture, &text(32 * WINDOW)) };
    let calibration = calibrate(fixture.model(), &options, &mut |_, _| ()).unwrap();
    assert_eq!(calibration.tokens, 32 * WINDOW);
    let parity = |out: &Path| {
        let options = codecllm::parity::Options {
            window: Some(WINDOW),
            ..codecllm::parity::Options::new(&options.text)
        };
        compare(fixture.model(), out, &options, &mut |_| ()).unwrap().divergence.kl_mean
    };
    for bits in [5.0, 7.0] {
        let [out, plain] = ["calibrated", "plain"].map(|name| fixture.beside(&format!("{name}{bits}")));
        let options = CompressOptions { target: Target::Bits(bits), ..CompressOptions::default() };
        let importance = &calibration.importance;
        let report = compress_calibrated(fixture.model(), &out, &options, importance, &mut |_| ()).unwrap();
        compress(fixture.model(), &plain, &options, &mut |_| ()).unwrap();
        let gain = report.calibration.unwrap();
        let (got, data_free) = (parity(&out), parity(&plain));
        let [ratio, free_ratio] = [got / gain.expected_divergence, data_free / gain.data_free_divergence];
        assert!((0.7..1.4).contains(&ratio), "{bits} bits: {got} nats, expected {gain:?}");
        assert!(
            (0.7..1.4).contains(&free_ratio),
            "{bits} bits: {data_free} nats data-free, expected {gain:?}"
        );
        assert!(got < data_free && gain.gain > 0.0, "{got} nats, data-free {data_free}");
    }
}
