//! Parity: what it reports of equal, close and wrong models, against closed forms and on a tiny random Llama.

mod tiny_llama;

use std::path::{Path, PathBuf};

use codecllm::checkpoint::{compress, CompressOptions, Reader, Writer};
use codecllm::model::LogitsOf;
use codecllm::parity::{
    compare, conspicuous, divergence, perplexity, steepest, LayerError, Options, PositionDivergence, Report,
};
use codecllm::runtime::{LoadOptions, Model};
use codecllm::{Error, ErrorKind};
use safetensors::Dtype;
use serde_json::Value;
use tch::{Kind, Tensor};
use tiny_llama::{byte_tokenizer_json, full_config, plain_config, TinyLlama};

const LAYERS: usize = 4;

/// A model of four layers with a byte tokenizer, its INT8, and a text.
struct Pair {
    tiny: TinyLlama,
    _folder: tempfile::TempDir,
    compressed: PathBuf,
    text: PathBuf,
}

fn config() -> Value {
    let mut config = plain_config();
    config["vocab_size"] = 258.into();
    config["num_hidden_layers"] = LAYERS.into();
    config
}

fn tiny(config: &Value) -> TinyLlama {
    let tiny = TinyLlama::new(config, 7);
    tiny.write("tokenizer.json", &byte_tokenizer_json());
    tiny
}

fn pair() -> Pair {
    let tiny = tiny(&config());
    let folder = tempfile::tempdir().unwrap();
    let compressed = folder.path().join("int8");
    compress(tiny.dir(), &compressed, &CompressOptions::default(), &mut |_| ()).unwrap();
    let text = folder.path().join("text.txt");
    std::fs::write(
        &text,
        "The quick brown fox jumps over the lazy dog, and then it does so again. ".repeat(4),
    )
    .unwrap();
    Pair { tiny, _folder: folder, compressed, text }
}

fn options(text: &Path) -> Options {
    Options { window: Some(50), ..Options::new(text) }
}

fn parity(reference: &Path, compressed: &Path, options: &Options) -> Report {
    compare(reference, compressed, options, &mut |_| ()).unwrap()
}

fn failure(reference: &Path, compressed: &Path, options: &Options) -> Error {
    compare(reference, compressed, options, &mut |_| ()).unwrap_err()
}

/// A copy of a model directory with its tensors under other names. It has no metadata, as if a VarStore had saved it, so that every
/// checksum holds.
fn renamed(dir: &Path, out: &Path, rename: impl Fn(&str) -> String) {
    let reader = Reader::open(dir).unwrap();
    let mut writer = Writer::create(out).unwrap();
    for name in reader.names().map(str::to_owned).collect::<Vec<_>>() {
        let info = reader.info(&name).unwrap();
        writer.add(&rename(&name), info.dtype, &info.shape, &reader.read_bytes(&name).unwrap()).unwrap();
    }
    for file in ["config.json", "tokenizer.json"] {
        writer.copy_file(&dir.join(file)).unwrap();
    }
    writer.finish().unwrap();
}

/// With what begins so exchanged for each other.
fn exchanged(name: &str, a: &str, b: &str) -> String {
    let from_to = |from: &str, to: &str| name.strip_prefix(from).map(|rest| format!("{to}{rest}"));
    from_to(a, b).or_else(|| from_to(b, a)).unwrap_or_else(|| name.to_owned())
}

#[test]
fn a_model_is_at_parity_with_itself() {
    let pair = pair();
    for dir in [pair.tiny.dir(), pair.compressed.clone()] {
        let mut options = options(&pair.text);
        options.prompts = vec!["The quick".to_owned(), "dog".to_owned()];
        options.new_tokens = 8;
        let report = parity(&dir, &dir, &options);
        assert_eq!(report.perplexity_reference, report.perplexity_compressed);
        let apart = report.divergence;
        assert_eq!((apart.kl_mean, apart.kl_p99, apart.kl_max), (0.0, 0.0, 0.0));
        assert_eq!((apart.top1_agreement, apart.top5_agreement), (1.0, 1.0));
        assert_eq!(report.kl_percentiles, [0.0; 101]);
        assert!(report.per_window.iter().all(
            |window| window.kl_mean == 0.0 && window.perplexity_reference == window.perplexity_compressed
        ));
        assert_eq!(report.layers.len(), LAYERS + 2, "embedding and head too");
        assert!(report.layers.iter().all(|layer| (layer.relative_error, layer.own_error) == (0.0, 0.0)));
        assert_eq!((report.steepest_layer.as_deref(), report.conspicuous_layers.len()), (None, 0));
        assert_eq!((report.greedy_agreed, report.greedy_first_divergence), (2, None));
        assert!(report.greedy.iter().all(|answer| answer.agrees && answer.agreed_tokens == 8));
        report.check(0.0).unwrap();
    }
}

#[test]
fn int8_is_close_and_one_layer_of_it_closer() {
    let pair = pair();
    let report = parity(&pair.tiny.dir(), &pair.compressed, &options(&pair.text));
    let one_layer = pair.compressed.with_file_name("one_layer");
    let only = CompressOptions { include: vec!["model.layers.0.*".to_owned()], ..CompressOptions::default() };
    compress(pair.tiny.dir(), &one_layer, &only, &mut |_| ()).unwrap();
    let part = parity(&pair.tiny.dir(), &one_layer, &options(&pair.text));
    assert!(part.divergence.kl_mean > 0.0 && part.divergence.kl_mean < report.divergence.kl_mean, "{part:?}");
    assert!(report.divergence.kl_mean < 2e-4 && report.divergence.kl_max < 2e-3, "{report:?}");
    assert!(report.divergence.kl_mean <= report.divergence.kl_p99);
    assert!(report.divergence.kl_p99 <= report.divergence.kl_max);
    assert!(report.divergence.top1_agreement > 0.9, "{report:?}");
    assert!(report.divergence.top5_agreement > 0.9 && report.divergence.top5_agreement < 1.0, "{report:?}");
    assert_eq!(report.conspicuous_layers, [""; 0], "{:?}", report.layers);
    let change = report.perplexity_compressed / report.perplexity_reference - 1.0;
    assert!(change != 0.0 && change.abs() < 0.02, "{report:?}");
    for error in &report.layers {
        assert!(error.relative_error > 0.0 && error.relative_error < 0.1, "{error:?}");
        assert!(error.own_error > 0.0 && error.own_error < 0.1, "{error:?}");
    }
    // Only the first layer is compressed: the others pass its error on and make none.
    let own = |at: usize| part.layers[at].own_error;
    assert!(own(0) == 0.0 && own(1) > 0.0 && (2..LAYERS + 2).all(|at| own(at) == 0.0), "{:?}", part.layers);
    assert!(part.layers[LAYERS].relative_error > 0.0);
    assert_eq!(part.conspicuous_layers, [""; 0], "{:?}", part.layers);
    assert!(report.weight_bytes_compressed < report.weight_bytes_reference / 2);
}

#[test]
fn two_swapped_layers_are_found_and_named() {
    let pair = pair();
    let int8 = parity(&pair.tiny.dir(), &pair.compressed, &options(&pair.text));
    for (a, b) in [(1, 3), (0, 2)] {
        let wrong = pair.compressed.with_file_name(format!("swapped{a}"));
        let path = |layer: usize| format!("model.layers.{layer}.self_attn.q_proj.weight.");
        renamed(&pair.compressed, &wrong, |name| exchanged(name, &path(a), &path(b)));
        let report = parity(&pair.tiny.dir(), &wrong, &options(&pair.text));
        assert!(report.divergence.kl_mean > 20.0 * int8.divergence.kl_mean, "{report:?}\n{int8:?}");
        assert_eq!(report.steepest_layer, Some(format!("model.layers.{a}")), "{:?}", report.layers);
        assert_eq!(
            report.conspicuous_layers,
            [a, b].map(|layer| format!("model.layers.{layer}")),
            "{:?}",
            report.layers
        );
        let most = 5.0 * int8.divergence.kl_mean;
        int8.check(most).unwrap();
        let error = report.check(most).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        let wanted = format!(
            "wanted at most {most}; the error first rises steeply behind model.layers.{a}; \
             wrong by themselves: model.layers.{a}, model.layers.{b}"
        );
        assert!(error.to_string().ends_with(&wanted), "{error}");
    }
}

#[test]
fn two_swapped_layers_of_an_exact_model_are_found_and_named() {
    let pair = pair();
    let wrong = pair.compressed.with_file_name("swapped");
    renamed(&pair.tiny.dir(), &wrong, |name| exchanged(name, "model.layers.1.", "model.layers.2."));
    let report = parity(&pair.tiny.dir(), &wrong, &options(&pair.text));
    assert_eq!(report.steepest_layer.as_deref(), Some("model.layers.1"), "{:?}", report.layers);
    assert_eq!(report.conspicuous_layers, ["model.layers.1", "model.layers.2"], "{:?}", report.layers);
    let own: Vec<f64> = report.layers.iter().map(|layer| layer.own_error).collect();
    assert_eq!((own[1], own[4], own[5]), (0.0, 0.0, 0.0), "the others, and the head");
}

#[test]
fn windows_are_counted_and_scored() {
    let pair = pair();
    let dir = pair.tiny.dir();
    std::fs::write(&pair.text, "x".repeat(101)).unwrap();
    let mut seen = Vec::new();
    let report = compare(&dir, &dir, &options(&pair.text), &mut |at| {
        seen.push((at.stage.to_owned(), at.done, at.total));
    })
    .unwrap();
    assert_eq!(
        (report.windows, report.window, report.tokens_scored),
        (2, 50, 98),
        "a last token alone is nothing"
    );
    let text = |done| ("text".to_owned(), done, 2);
    assert_eq!(seen[3..], [text(0), text(1), text(2)]);
    let mut first = options(&pair.text);
    first.max_windows = Some(1);
    assert_eq!(parity(&dir, &dir, &first).tokens_scored, 49);
    std::fs::write(&pair.text, "x".repeat(512 + 7)).unwrap();
    let report = parity(&dir, &dir, &Options { window: None, ..options(&pair.text) });
    assert_eq!((report.windows, report.window, report.tokens_scored), (2, 512, 511 + 6));
    let tokens: Vec<usize> = report.per_window.iter().map(|window| window.tokens).collect();
    assert_eq!(tokens, [511, 6]);
}

#[test]
fn a_long_window_is_read_in_pieces_as_if_at_once() {
    let pair = pair();
    std::fs::write(&pair.text, "All work and no play. ".repeat(28)).unwrap();
    let tiny = pair.tiny.dir();
    let load = LoadOptions { kind: Kind::Float, ..LoadOptions::default() };
    let model = Model::load(&tiny, &load).unwrap();
    let ids: Vec<i64> = std::fs::read(&pair.text).unwrap().into_iter().map(i64::from).collect();
    let row = Tensor::from_slice(&ids).view([1, -1]);
    let mut cache = model.new_cache(1, ids.len()).unwrap();
    let logits = model.llama().forward(&row, &mut cache, LogitsOf::All).unwrap();
    let predicted = logits.squeeze_dim(0).narrow(0, 0, ids.len() as i64 - 1);
    let wanted = predicted.cross_entropy_for_logits(&Tensor::from_slice(&ids[1..])).double_value(&[]).exp();
    let report = parity(&tiny, &tiny, &Options { window: Some(ids.len()), ..Options::new(&pair.text) });
    assert_eq!(report.tokens_scored, ids.len() - 1);
    approx::assert_relative_eq!(report.perplexity_reference, wanted, max_relative = 1e-4);
}

#[test]
fn texts_that_cannot_be_scored_are_refused() {
    let pair = pair();
    let dir = pair.tiny.dir();
    let text = pair.text.display().to_string();
    let with = |bytes: &[u8]| {
        std::fs::write(&pair.text, bytes).unwrap();
        failure(&dir, &dir, &options(&pair.text)).to_string()
    };
    assert_eq!(with(b""), format!("{text}: is empty, wanted a text of at least 2 tokens"));
    assert_eq!(
        with(b"a"),
        format!("{text}: has 1 tokens, wanted at least 2: one to read and one to predict")
    );
    assert_eq!(with(b"ab\xFFc"), format!("{text}: is not UTF-8 at byte 2, wanted a text"));
    assert_eq!(
        with(&[b'a'; 49]),
        format!("{text}: has 49 tokens, wanted at least one window of 50 (a longer text, or a window of 49)")
    );
    let by_default = failure(&dir, &dir, &Options::new(&pair.text)).to_string();
    assert!(by_default.contains("at least one window of 512"), "{by_default}");
    std::fs::write(&pair.text, "enough").unwrap();
    for window in [0, 1, 2049] {
        let error = failure(&dir, &dir, &Options { window: Some(window), ..Options::new(&pair.text) });
        let wanted =
            format!("--window: {window} tokens, wanted 2 to 2048 (max_position_embeddings of the model)");
        assert_eq!(error.to_string(), wanted);
    }
    let none = Options { max_windows: Some(0), window: Some(6), ..Options::new(&pair.text) };
    assert_eq!(failure(&dir, &dir, &none).to_string(), "--max-windows: 0, wanted at least 1");
    let absent = options(&pair.text.with_file_name("absent"));
    assert_eq!(failure(&dir, &dir, &absent).kind(), ErrorKind::Io);
}

#[test]
fn other_models_are_refused() {
    let pair = pair();
    let dir = pair.tiny.dir();
    let mut larger = config();
    larger["vocab_size"] = 300.into();
    let larger = tiny(&larger);
    let error = failure(&dir, &larger.dir(), &options(&pair.text)).to_string();
    let wanted = format!("vocab_size is 300, wanted 258 as in {} (not the same model?)", dir.display());
    assert!(error.ends_with(&wanted), "{error}");
    let other = tiny(&config());
    // Space and `x` change places.
    let spelled = byte_tokenizer_json().replace("\"\u{120}\":32", "\"x\":32").replacen(
        "\"x\":120",
        "\"\u{120}\":120",
        1,
    );
    assert_ne!(spelled, byte_tokenizer_json());
    other.write("tokenizer.json", &spelled);
    let error = failure(&dir, &other.dir(), &options(&pair.text)).to_string();
    assert!(error.contains("tokenizer.json: token 3 of the text is another than in"), "{error}");
}

#[test]
fn a_tokenizer_that_does_not_belong_to_the_model_is_refused() {
    let pair = pair();
    let dir = pair.tiny.dir();
    let file = dir.join("tokenizer.json").display().to_string();
    let mut more: Value = serde_json::from_str(&byte_tokenizer_json()).unwrap();
    // Both directories have it, so they agree with each other.
    let mut refused = |words: usize| {
        for word in 0..words {
            more["model"]["vocab"][format!("word{word}")] = (258 + word).into();
        }
        pair.tiny.write("tokenizer.json", &more.to_string());
        failure(&dir, &dir, &options(&pair.text)).to_string()
    };
    assert_eq!(
        refused(30),
        format!("{file}: has 288 tokens, wanted about 258, vocab_size of the model (the tokenizer of another model?)")
    );
    // Nearly as many, but the text has a token that the model has not.
    let strange = byte_tokenizer_json().replace("\"x\":120", "\"x\":270");
    pair.tiny.write("tokenizer.json", &strange);
    assert_eq!(
        failure(&dir, &dir, &options(&pair.text)).to_string(),
        format!("{file}: token 18 of the text is 270, wanted less than 258, vocab_size of the model (the tokenizer of another model?)")
    );
}

#[test]
fn logits_that_are_not_finite_are_refused() {
    let pair = pair();
    let wrong = tiny(&config());
    let reader = Reader::open(wrong.dir()).unwrap();
    let out = pair.compressed.with_file_name("nan");
    let mut writer = Writer::create(&out).unwrap();
    for name in reader.names().map(str::to_owned).collect::<Vec<_>>() {
        let mut bytes = reader.read_bytes(&name).unwrap();
        if name == "model.norm.weight" {
            bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        }
        writer.add(&name, Dtype::F32, &reader.info(&name).unwrap().shape, &bytes).unwrap();
    }
    for file in ["config.json", "tokenizer.json"] {
        writer.copy_file(&wrong.dir().join(file)).unwrap();
    }
    writer.finish().unwrap();
    let error = failure(&pair.tiny.dir(), &out, &options(&pair.text));
    assert_eq!(
        error.to_string(),
        format!(
            "{}: logits in window 0 of the text are not finite (overflow? try --dtype fp32)",
            out.display()
        )
    );
}

#[test]
fn divergence_has_its_closed_form() {
    // Two equally likely tokens against 1/4 and 3/4; certainty against 1/2; equal; and a token that one excludes.
    let reference = [[0.5f32, 0.5, 0.0], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5], [0.5, 0.5, 0.0]];
    let other = [[0.25f32, 0.75, 0.0], [0.5, 0.25, 0.25], [0.2, 0.3, 0.5], [0.4, 0.4, 0.2]];
    let log = |rows: &[[f32; 3]; 4]| Tensor::from_slice(rows.as_flattened()).view([4, 3]).log();
    let at = divergence(&log(&reference), &log(&other)).unwrap();
    let wanted = [0.5 * 2f64.ln() + 0.5 * (2.0 / 3.0f64).ln(), 2f64.ln(), 0.0, 1.25f64.ln()];
    for (kl, wanted) in at.kl.iter().zip(wanted) {
        approx::assert_abs_diff_eq!(*kl, wanted, epsilon = 1e-6);
    }
    assert_eq!(at.same_top1[1..3], [true, true]);
    let summary = at.summary();
    approx::assert_abs_diff_eq!(summary.kl_mean, wanted.iter().sum::<f64>() / 4.0, epsilon = 1e-6);
    approx::assert_abs_diff_eq!(summary.kl_max, 2f64.ln(), epsilon = 1e-6);
}

#[test]
fn the_five_likeliest_tokens_are_compared_as_a_set() {
    let rows = |rows: [[f32; 7]; 2]| {
        Tensor::from_slice(rows.as_flattened()).view([2, 7]).log_softmax(-1, Kind::Float)
    };
    let reference = rows([[9.0, 8.0, 7.0, 6.0, 5.0, 1.0, 0.0]; 2]);
    // The same five in another order; and two of them replaced.
    let other = rows([[5.0, 6.0, 7.0, 8.0, 9.0, 0.0, 1.0], [9.0, 8.0, 7.0, 0.0, 1.0, 6.0, 5.0]]);
    let at = divergence(&reference, &other).unwrap();
    assert_eq!((at.shared_top5.as_slice(), at.same_top1.as_slice()), (&[1.0, 0.6][..], &[false, true][..]));
    assert_eq!(at.summary().top5_agreement, 0.8);
}

#[test]
fn the_percentile_is_a_rank() {
    let positions = PositionDivergence {
        kl: (0..200).rev().map(f64::from).collect(),
        same_top1: (0..200).map(|index| index % 4 != 0).collect(),
        shared_top5: vec![0.6; 200],
    };
    assert_eq!(positions.percentiles()[..4], [0.0, 1.0, 3.0, 5.0]);
    let summary = positions.summary();
    assert_eq!((summary.kl_mean, summary.kl_p99, summary.kl_max), (99.5, 197.0, 199.0));
    assert_eq!(summary.top1_agreement, 0.75);
}

#[test]
fn perplexity_has_its_closed_form() {
    let probabilities = Tensor::from_slice(&[0.25f32, 0.75, 0.5, 0.5]).view([2, 2]).log();
    let score = perplexity(&probabilities, &Tensor::from_slice(&[0i64, 1])).unwrap();
    assert_eq!(score.tokens, 2);
    approx::assert_relative_eq!(score.perplexity(), 8f64.sqrt(), max_relative = 1e-6);
}

#[test]
fn the_first_great_rise_is_the_wrong_layer() {
    let first = |errors: &[f64]| {
        let errors: Vec<_> = errors
            .iter()
            .enumerate()
            .map(|(layer, &relative_error)| LayerError {
                layer: layer.to_string(),
                relative_error,
                own_error: 0.0,
            })
            .collect();
        steepest(&errors).map(|error| error.layer.clone())
    };
    assert_eq!(first(&[0.01, 0.02, 0.5, 0.6, 1.2]).as_deref(), Some("2"));
    assert_eq!(first(&[0.9, 0.8, 0.7]).as_deref(), Some("0"));
    assert_eq!(first(&[0.0, 0.0]), None);
    assert_eq!(first(&[]), None);
}

#[test]
fn layers_with_errors_far_above_the_median_are_conspicuous() {
    let named = |own: &[f64]| -> Vec<String> {
        let error = |(layer, &own_error): (usize, &f64)| LayerError {
            layer: layer.to_string(),
            relative_error: 0.0,
            own_error,
        };
        let errors: Vec<_> = own.iter().enumerate().map(error).collect();
        conspicuous(&errors).map(|error| error.layer.clone()).collect()
    };
    assert_eq!(named(&[0.01, 0.5, 0.012, 0.03, 0.9, 0.008]), ["1", "4"]);
    assert_eq!(named(&[0.9, 0.01, 0.9, 0.01]), ["0", "2"], "half of them");
    assert_eq!(named(&[0.01, 0.02, 0.03]), [""; 0]);
    assert_eq!(named(&[0.0, 0.02, 0.0, 0.03]), [""; 0], "only some are compressed");
    assert_eq!(named(&[0.0, 1.2, 0.0, 1.3]), ["1", "3"], "the others are exact");
    assert_eq!(named(&[]), [""; 0]);
}

#[test]
fn biases_and_an_untied_head_are_at_parity_too() {
    let mut config = full_config();
    config["vocab_size"] = 258.into();
    let tiny = tiny(&config);
    let folder = tempfile::tempdir().unwrap();
    let compressed = folder.path().join("int8");
    compress(tiny.dir(), &compressed, &CompressOptions::default(), &mut |_| ()).unwrap();
    let text = folder.path().join("text.txt");
    std::fs::write(&text, "A text of some words. ".repeat(3)).unwrap();
    let report = parity(&tiny.dir(), &compressed, &options(&text));
    assert!(report.divergence.kl_mean > 0.0 && report.divergence.kl_mean < 2e-3, "{report:?}");
}
