//! The verbs that measure: `parity` and `bench`.

mod cli_fixture;
mod tiny_llama;

use cli_fixture::{run, Fixture};
use serde_json::{json, Value};

/// The fixture with a text and prompts beside its model.
fn fixture() -> (Fixture, String, String) {
    let fixture = Fixture::new();
    std::fs::write(fixture.beside("text"), "A text that both models read. ".repeat(18)).unwrap();
    std::fs::write(fixture.beside("prompts"), "A text\n\nthat both\n").unwrap();
    let (text, prompts) = (fixture.path("text"), fixture.path("prompts"));
    (fixture, text, prompts)
}

fn number(object: &Value, name: &str) -> f64 {
    object[name].as_f64().unwrap_or_else(|| panic!("{name} is {}", object[name]))
}

#[test]
fn parity_has_its_figures() {
    let (fixture, text, prompts) = fixture();
    let (model, out) = (fixture.model(), fixture.compressed());
    let report = run(&[
        "parity",
        &model,
        &out,
        "--text",
        &text,
        "--window",
        "60",
        "--max-windows",
        "2",
        "--prompts",
        &prompts,
        "--new-tokens",
        "5",
        "--json",
    ])
    .json();
    let (reference, compressed) =
        (number(&report, "perplexity_reference"), number(&report, "perplexity_compressed"));
    assert!(reference > 1.0 && (compressed / reference - 1.0).abs() < 0.01, "{report}");
    assert!(number(&report, "kl_mean") > 0.0 && number(&report, "kl_mean") < 0.01, "{report}");
    assert!(number(&report, "kl_p99") >= number(&report, "kl_mean"));
    assert!(number(&report, "top1_agreement") > 0.9 && number(&report, "top1_agreement") <= 1.0);
    assert_eq!((&report["tokens_scored"], &report["windows"]), (&json!(118), &json!(2)));
    assert!(number(&report, "top5_agreement") > 0.9 && number(&report, "top5_agreement") <= 1.0);
    assert_eq!(report["layers"][2]["layer"], "model.layers.1");
    assert!(number(&report["layers"][2], "own_error") > 0.0);
    assert_eq!(report["greedy"][1]["prompt"], "that both");
    assert_eq!(report["greedy"][0]["reference_tokens"], 5);
    assert!(number(&report, "seconds") > 0.0 && number(&report, "peak_rss_bytes") > 0.0);
}

#[test]
fn parity_fails_above_the_divergence_that_is_allowed() {
    let (fixture, text, _) = fixture();
    let (model, out) = (fixture.model(), fixture.compressed());
    let with = |most: &str| run(&["parity", &model, &out, "--text", &text, "--max-kl", most]);
    let fine = with("0.5");
    assert_eq!((fine.code, fine.stderr.as_str()), (0, ""));
    assert!(fine.stdout.contains("perplexity of the compressed"), "{}", fine.stdout);
    let apart = with("0.0");
    assert_eq!(apart.code, 1);
    assert!(apart.stdout.contains("perplexity of the compressed"), "the figures are shown all the same");
    assert!(apart.stderr.starts_with("error: parity: kl_mean is "), "{}", apart.stderr);
}

#[test]
fn parity_writes_a_page_that_needs_nothing_else() {
    let (fixture, text, prompts) = fixture();
    let (model, out, page) = (fixture.model(), fixture.compressed(), fixture.path("report.html"));
    std::fs::write(&prompts, "<b>&\n").unwrap();
    let arguments =
        ["parity", &model, &out, "--text", &text, "--window", "60", "--prompts", &prompts, "--html", &page];
    let parity = run(&[&arguments[..], &["--new-tokens", "4"]].concat());
    assert_eq!((parity.code, parity.stderr.as_str()), (0, ""));
    let html = std::fs::read_to_string(&page).unwrap();
    assert!(html.starts_with("<!DOCTYPE html>") && html.trim_end().ends_with("</html>"));
    assert_eq!(html.matches("<svg ").count(), 3);
    assert!(html.contains("&lt;b&gt;&amp;") && !html.contains("<b>&"), "prompts are escaped");
    let escaped = out.replace('/', "&#x2f;");
    for wanted in [
        escaped.as_str(),
        "name=\"viewport\"",
        "prefers-color-scheme: dark",
        "model.layers.1",
        "KL mean",
        "lm_head",
    ] {
        assert!(html.contains(wanted), "{wanted}");
    }
    for asset in ["src=", "href=", "url(", "@import", "<script"] {
        assert!(!html.contains(asset), "{asset}");
    }
    // The only address is a namespace.
    assert_eq!(html.matches("://").count(), html.matches("http://www.w3.org/2000/svg").count());
    let nowhere = fixture.path("no/report.html");
    let arguments = ["parity", &model, &out, "--text", &text, "--window", "60", "--html", &nowhere];
    run(&arguments).assert_fails(&nowhere, "No such file");
}

#[test]
fn parity_says_what_is_wrong_with_its_input() {
    let (fixture, text, prompts) = fixture();
    let (model, out) = (fixture.model(), fixture.compressed());
    std::fs::write(&text, "").unwrap();
    run(&["parity", &model, &out, "--text", &text]).assert_fails(&text, "is empty");
    let gone = fixture.path("gone");
    run(&["parity", &model, &out, "--text", &gone]).assert_fails(&gone, "No such file");
    std::fs::write(&text, "enough").unwrap();
    run(&["parity", &model, &out, "--text", &text]).assert_fails(&text, "at least one window of 512");
    std::fs::write(&prompts, "\n").unwrap();
    run(&["parity", &model, &out, "--text", &text, "--prompts", &prompts])
        .assert_fails(&prompts, "has no prompts");
    run(&["parity", &model, &out, "--text", &text, "--window", "1"])
        .assert_fails("--window", "wanted 2 to 2048");
}

#[test]
fn bench_times_a_matrix() {
    let report = run(&[
        "bench",
        "--shape",
        "80x64",
        "--batch",
        "1,3",
        "--seconds",
        "0.001",
        "--threads",
        "1",
        "--json",
    ])
    .json();
    assert_eq!((&report["threads"], &report["layout"]), (&json!(1), &json!("fast")));
    let matrix = &report["matrices"][0];
    assert_eq!(matrix["shape"], json!([80, 64]));
    assert!(number(matrix, "bits_per_weight") > number(matrix, "grid_entropy_bits"));
    assert_eq!(matrix["encode"][0]["what"], "grid");
    let decode = matrix["decode"].as_array().unwrap();
    assert_eq!((&decode[0]["level"], &decode[0]["what"]), (&json!("portable"), &json!("fragments")));
    let paths: Vec<_> = (matrix["forward"].as_array().unwrap().iter())
        .map(|time| (time["path"].as_str().unwrap(), time["batch"].as_u64().unwrap()))
        .collect();
    let each = ["fused", "scratch", "dense fp16", "dense bf16", "dense fp32"];
    assert_eq!(paths, [each.map(|path| (path, 1)), each.map(|path| (path, 3))].concat());
    for time in decode.iter().chain(matrix["forward"].as_array().unwrap()) {
        assert!(number(time, "median_seconds") >= number(time, "min_seconds"), "{time}");
        assert!(number(time, "min_seconds") > 0.0, "{time}");
    }
}

#[test]
fn bench_times_a_model() {
    let fixture = Fixture::new();
    let model = fixture.model();
    let arguments =
        ["--threads", "1", "--model", &model, "--batch", "1", "--seconds", "0.001", "--layout", "small"];
    let report = run(&[&["bench", "--json"], &arguments[..]].concat()).json();
    assert_eq!(report["matrices"], json!([]));
    // Seven in each of two layers, and the tied head.
    assert_eq!(report["model"]["linears"], 15);
    assert_eq!(report["model"]["forward"].as_array().unwrap().len(), 5);
    let table = run(&[&["bench"], &arguments[..]].concat());
    assert!(table.stdout.contains("15 linears"), "{}", table.stdout);
    let out = fixture.compressed();
    run(&["bench", "--model", &out]).assert_fails(&out, "is compressed, wanted the original");
}

#[test]
fn without_a_gpu_cuda_is_refused() {
    if codecllm::cuda::is_available() {
        eprintln!("SKIPPED: there is a GPU here");
        return;
    }
    let (fixture, text, _) = fixture();
    let model = fixture.model();
    for line in [
        &["generate", &model, "--prompt", "p"][..],
        &["chat", &model],
        &["parity", &model, &model, "--text", &text],
        &["bench"],
        &["bench", "generate", "--config", "15m"],
    ] {
        run(&[line, &["--device", "cuda", "--threads", "1"]].concat()).assert_fails("CUDA", "install");
    }
}

#[test]
fn with_a_gpu_layers_and_a_model_are_timed_on_it() {
    if let Err(error) = codecllm::cuda::load() {
        eprintln!("SKIPPED: {error}");
        return;
    }
    let shape = ["--shape", "512x256", "--batch", "1,128", "--seconds", "0.001", "--json"];
    let report = run(&[&["bench", "--device", "cuda"], &shape[..]].concat()).json();
    let layer = &report["layers"][0];
    let paths: Vec<_> = (layer["forward"].as_array().unwrap().iter())
        .map(|time| (time["batch"].as_u64().unwrap(), time["path"].as_str().unwrap()))
        .collect();
    let at_1 = ["fused", "scratch", "dense fp16", "dense bf16"].map(|path| (1, path));
    assert_eq!(
        paths,
        [&at_1[..], &at_1[1..].iter().map(|(_, path)| (128, *path)).collect::<Vec<_>>()].concat()
    );
    assert_eq!((&layer["decode"][0]["dtype"], &report["step"]), (&json!("fp16"), &json!([])));
    assert!(number(&report, "copy_bytes_per_second") > 1e10, "{report}");
    let kernels = &report["kernels"];
    let [compiled, cached] = ["compile_seconds", "cached_seconds"].map(|key| number(kernels, key));
    assert!(number(kernels, "count") > 10.0 && 0.0 < cached && cached < compiled, "{kernels}");
    let generate = ["bench", "generate", "--config", "15m", "--batch", "1,2", "--new", "8", "--json"];
    let report = run(&generate).json();
    for model in ["dense", "compressed"] {
        for figures in report[model]["generation"].as_array().unwrap() {
            assert!(number(figures, "linears_us") > 0.0 && number(figures, "rest_us") > 0.0, "{figures}");
            assert!(number(figures, "peak_device_bytes") > 0.0, "{figures}");
        }
    }
}

#[test]
fn bench_generates_with_a_random_model() {
    let small = ["--config", "15m", "--prompt", "8", "--new", "2", "--device", "cpu", "--threads", "1"];
    let generate = |more: &[&str]| run(&[&["bench", "generate"], &small[..], more].concat());
    let report = generate(&["--batch", "2,1", "--json"]).json();
    assert_eq!(
        (&report["config"], &report["bits"], &report["device"]),
        (&json!("15m"), &json!(5.3), &json!(null))
    );
    let (dense, compressed) = (&report["dense"], &report["compressed"]);
    assert_eq!(number(dense, "bits_per_weight"), 16.0);
    assert!((number(compressed, "bits_per_weight") - 5.3).abs() < 0.05, "{compressed}");
    for (at, batch) in [1.0, 2.0].into_iter().enumerate() {
        for model in [dense, compressed] {
            let figures = &model["generation"][at];
            assert_eq!((number(figures, "batch"), number(figures, "prompt_tokens")), (batch, 8.0 / batch));
            assert!(
                number(figures, "tokens_per_second") > 0.0 && number(figures, "first_token_seconds") > 0.0
            );
            assert_eq!(figures["peak_device_bytes"], json!(null));
        }
        let speed = number(&compressed["generation"][at], "tokens_per_second");
        let ratio = speed / number(&dense["generation"][at], "tokens_per_second");
        assert!((number(&report["ratios"][at], "tokens_per_second") - ratio).abs() < 1e-9);
    }
    let table = generate(&["--batch", "1", "--only", "dense"]);
    assert!(table.stdout.starts_with("dense: 15191712 weights"), "{}", table.stdout);
    run(&["bench", "generate", "--config", "15m", "--device", "cpu", "--prompt", "255", "--new", "2"])
        .assert_fails("--prompt", "at most 256");
}

#[test]
fn bad_arguments_exit_with_2() {
    for (line, about) in [
        ("parity a b", "--text"),
        ("parity a b --text t --max-windows 0", "1 or more"),
        ("parity a b --text t --max-kl=-1", "0 or more"),
        ("bench --shape 0x4", "ROWSxCOLUMNS"),
        ("bench --shape 18446744073709551615x2", "ROWSxCOLUMNS"),
        ("bench --shape 4x4 --model m", "--model"),
        ("bench --batch 0", "1 or more"),
        ("bench --seconds NaN", "at most 60"),
        ("bench --bits 1", "2.5 to 8.5"),
        ("bench --device tpu", "cuda"),
        ("bench generate", "--config"),
        ("bench generate --config 9b", "8b"),
        ("bench generate --config 8b --bits 1", "2.5 to 8.5"),
        ("bench --shape 4x4 generate --config 8b", "generate"),
    ] {
        let run = run(&line.split_whitespace().collect::<Vec<_>>());
        assert_eq!((run.code, run.stdout.as_str()), (2, ""), "{line}");
        assert!(run.stderr.contains(about), "{line}: {}", run.stderr);
    }
}
