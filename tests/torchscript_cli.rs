//! `codecllm patch`, and `codecllm parity` of TorchScript files.

mod torchscript_fixtures;

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use torchscript_fixtures::fixture;

fn codecllm(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_codecllm")).args(arguments).output().unwrap()
}

fn json(arguments: &[&str]) -> Value {
    let output = codecllm(&[&["--json"], arguments].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The message of a command that fails with this exit code.
fn error(code: i32, arguments: &[&str]) -> String {
    let output = codecllm(arguments);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_file_is_patched_and_its_outputs_are_compared() {
    let Some(model) = fixture("mlp") else { return };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("patched.pt");
    let report = json(&["patch", text(&model), "-o", text(&out), "--exclude", "4.*"]);
    assert_eq!(report["patched"].as_array().unwrap().len(), 2);
    assert_eq!(report["skipped"][0]["reason"], "excluded");
    assert_eq!(report["patched_file_bytes"], std::fs::metadata(&out).unwrap().len());
    assert!(report["bits_per_weight"].as_f64().unwrap() < 8.0);

    let inputs = model.with_extension("safetensors");
    let report = json(&["parity", text(&model), text(&out), "--inputs", text(&inputs)]);
    let output = &report["outputs"][0];
    let error_of = |report: &Value| report["relative_error"].as_f64().unwrap();
    assert!(error_of(output) > 0.0 && error_of(output) < 0.05, "{output}");
    assert!(output["mean_divergence"].as_f64().unwrap() > 0.0);
    let same = json(&["parity", text(&model), text(&model), "--inputs", text(&inputs), "--max-kl", "0"]);
    assert_eq!(error_of(&same["outputs"][0]), 0.0);
    let message =
        error(1, &["parity", text(&model), text(&out), "--inputs", text(&inputs), "--max-kl", "1e-12"]);
    assert!(message.contains("KL mean"), "{message}");
    let table = codecllm(&["parity", text(&model), text(&out), "--inputs", text(&inputs)]);
    assert!(String::from_utf8_lossy(&table.stdout).contains("relative error"));
}

#[test]
fn what_can_not_be_patched_or_compared_is_said() {
    let Some(model) = fixture("mlp") else { return };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("patched.pt");
    let message = error(1, &["patch", text(&model), "-o", text(&out), "--include", "no.such"]);
    assert!(message.contains("no.such") && !out.exists(), "{message}");
    std::fs::write(&out, b"mine").unwrap();
    let message = error(1, &["patch", text(&model), "-o", text(&out)]);
    assert!(message.contains("exists already"), "{message}");
    assert_eq!(std::fs::read(&out).unwrap(), b"mine");
    let message = error(1, &["patch", text(&out), "-o", text(&folder.path().join("x.pt"))]);
    assert!(message.contains("patched.pt") && message.contains("not a TorchScript file"), "{message}");
    error(2, &["patch", text(&model)]);
    error(2, &["parity", text(&model), text(&model)]);
    let message = error(1, &["parity", text(&model), text(&model), "--inputs", text(&out)]);
    assert!(message.contains("not a safetensors file"), "{message}");
    let message = error(1, &["parity", text(&model), text(&model), "--text", text(&out)]);
    assert!(message.contains("--tokenizer"), "{message}");
}

#[test]
fn language_models_read_a_text_as_files_and_as_directories() {
    let Some(model) = fixture("tied") else { return };
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/models/stories15M-bf16");
    let folder = tempfile::tempdir().unwrap();
    let [story, prompts, patched, page] =
        ["story.txt", "prompts.txt", "patched.pt", "report.html"].map(|name| folder.path().join(name));
    let line =
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. ";
    std::fs::write(&story, line.repeat(4)).unwrap();
    std::fs::write(&prompts, "Once upon a time\n").unwrap();
    json(&["patch", text(&model), "-o", text(&patched)]);

    let window = ["--window", "32", "--text", text(&story)];
    // The same model once as a directory and once as a file.
    let same = json(&[&["parity", text(&dir), text(&model)], &window[..]].concat());
    assert!(same["kl_mean"].as_f64().unwrap() < 1e-6, "{}", same["kl_mean"]);
    assert_eq!(same["top1_agreement"], 1.0);
    assert_eq!(same["layers"].as_array().unwrap().len(), 0);

    let rest =
        ["--tokenizer", text(&dir), "--prompts", text(&prompts), "--new-tokens", "8", "--html", text(&page)];
    let report = json(&[&["parity", text(&model), text(&patched)], &window[..], &rest[..]].concat());
    let kl = report["kl_mean"].as_f64().unwrap();
    assert!(kl > 0.0 && kl < 0.05, "{kl}");
    assert_eq!(report["greedy"][0]["reference_tokens"], 8);
    assert!(report["weight_bytes_compressed"].as_u64() < report["weight_bytes_reference"].as_u64());
    let page = std::fs::read_to_string(&page).unwrap();
    assert!(page.contains("<svg") && !page.contains("<h2>Layers"));

    let Some(mlp) = fixture("mlp") else { return };
    let message =
        error(1, &[&["parity", text(&mlp), text(&mlp), "--tokenizer", text(&dir)], &window[..]].concat());
    assert!(message.contains("mlp.pt"), "{message}");
}
