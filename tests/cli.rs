//! The binary's promises: exit codes, messages, JSON, and nothing half-written.

mod cli_fixture;
mod tiny_llama;

use std::path::Path;
use std::process::Stdio;

use cli_fixture::{command, patch, run, run_with_stdin, Fixture, Run};
use serde_json::{json, Value};
use tiny_llama::{downloaded, plain_config};

const UP: &str = "model.layers.1.mlp.up_proj.weight";
#[test]
fn help_and_version_are_success() {
    for arguments in [&["--help"][..], &["--version"], &["help", "compress"], &["generate", "--help"]] {
        let run = run(arguments);
        assert_eq!((run.code, run.stderr.as_str()), (0, ""));
        assert!(run.stdout.contains("codecllm"));
    }
}

#[test]
fn bad_arguments_exit_with_2() {
    for (line, about) in [
        ("", "Usage"),
        ("frobnicate", "frobnicate"),
        ("compress m", "--output"),
        ("compress m -o out --preset int8 --bits 5", "--bits"),
        ("compress m -o out --preset int4", "int4"),
        ("compress m -o out --bits 9", "2.5 to 8.5"),
        ("compress m -o out --bits NaN", "2.5 to 8.5"),
        ("compress m -o out --preset near --bits 5", "--bits"),
        ("compress m -o out --bits 5 --calibrate t --calibrate-windows 0", "1 or more"),
        ("compress m -o out --layout tiny", "tiny"),
        ("compress m -o out --preset lossless --layout small", "--layout"),
        ("compress m -o out --preset lossless --bits 5", "--bits"),
        ("compress m -o out --threads 0", "--threads"),
        ("generate m", "--prompt"),
        ("generate m --prompt p --temperature=-1", "0 or more"),
        ("generate m --prompt p --top-p 1.5", "at most 1"),
        ("generate m --prompt p --top-k 0", "1 or more"),
        ("generate m --prompt p --dtype int8", "int8"),
        ("generate m --prompt p --device tpu", "tpu"),
        ("generate m --prompt p --context 0", "--context"),
        ("stats m --bits 9", "2.5 to 8.5"),
        ("verify a b", "b"),
    ] {
        let run = run(&line.split_whitespace().collect::<Vec<_>>());
        assert_eq!((run.code, run.stdout.as_str()), (2, ""), "{line}");
        assert!(run.stderr.contains(about), "{line}: {}", run.stderr);
    }
}

#[test]
fn a_missing_directory_is_named() {
    let parent = tempfile::tempdir().unwrap();
    let gone = parent.path().join("gone").display().to_string();
    let out = parent.path().join("out").display().to_string();
    for arguments in [
        &["stats", &gone][..],
        &["compress", &gone, "-o", &out],
        &["compress", &gone, "-o", &out, "--bits", "5"],
        &["decompress", &gone, "-o", &out],
        &["inspect", &gone],
        &["verify", &gone],
        &["generate", &gone, "--prompt", "p"],
        &["chat", &gone],
        &["verify", &gone, "--json"],
    ] {
        let run = run(arguments);
        assert_eq!((run.code, run.stdout.as_str()), (1, ""), "{arguments:?}");
        assert!(run.stderr.contains(&format!("error: {gone}")), "{arguments:?}: {}", run.stderr);
    }
    assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
}

#[test]
fn a_truncated_file_is_named_and_nothing_is_written() {
    let fixture = Fixture::new();
    let file = fixture.tiny.dir().join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 10]).unwrap();
    let message = format!("needs 96 bytes, 86 remain in {} (file truncated?)", file.display());
    let out = fixture.path("out");
    for choice in [&[][..], &["--bits", "6"]] {
        let run = run(&[&["compress", &fixture.model(), "-o", &out], choice].concat());
        run.assert_fails("model.norm.weight", &message);
    }
    run(&["generate", &fixture.model(), "--prompt", "p"]).assert_fails("model.norm.weight", &message);
    assert_eq!(fixture.entries(), ["model"]);
}

#[test]
fn an_output_that_exists_is_left_alone() {
    let fixture = Fixture::new();
    let compressed = fixture.compressed();
    let there = fixture.beside("there");
    std::fs::create_dir(&there).unwrap();
    std::fs::write(there.join("mine"), "mine").unwrap();
    let out = there.display().to_string();
    for arguments in [
        &["compress", &fixture.model(), "-o", &out][..],
        &["compress", &fixture.model(), "-o", &out, "--bits", "6"],
        &["decompress", &compressed, "-o", &out],
    ] {
        run(arguments).assert_fails(&out, "exists");
    }
    assert_eq!(std::fs::read_dir(&there).unwrap().count(), 1);
    assert_eq!(std::fs::read_to_string(there.join("mine")).unwrap(), "mine");
    assert_eq!(fixture.entries(), ["model", "out", "there"]);
}

#[test]
fn a_weight_that_is_not_finite_is_named_by_path_and_element() {
    let fixture = Fixture::new();
    // Row 3, column 5 of 24 columns of FP32: the two high bytes make a NaN.
    for byte in [2, 3] {
        patch(&fixture.tiny.dir(), UP, (3 * 24 + 5) * 4 + byte, |_| if byte == 2 { 0xC0 } else { 0x7F });
    }
    let out = fixture.path("out");
    for choice in [&[][..], &["--bits", "6"], &["--layout", "small"]] {
        let run = run(&[&["compress", &fixture.model(), "-o", &out], choice].concat());
        run.assert_fails(UP, "element [3, 5] is NaN");
    }
    run(&["stats", &fixture.model()]).assert_fails(UP, "element [3, 5] is NaN");
    assert_eq!(fixture.entries(), ["model"]);
    let excluded = run(&["compress", &fixture.model(), "-o", &out, "--exclude", UP]);
    assert_eq!(excluded.code, 0, "{}", excluded.stderr);
}

#[test]
fn no_verify_takes_what_checksums_refuse() {
    let fixture = Fixture::new();
    let out = fixture.compressed();
    // A scale's lowest bit: another weight, but a good one.
    patch(Path::new(&out), &format!("{UP}.scales"), 0, |byte| byte ^ 1);
    let generate = ["generate", &out, "--prompt", "p", "--max-new-tokens", "2", "--raw"];
    run(&generate).assert_fails(UP, "checksum");
    run(&["decompress", &out, "-o", &fixture.path("dense")]).assert_fails(UP, "checksum");
    assert_eq!(run(&[&generate[..], &["--no-verify"]].concat()).code, 0);
    assert_eq!(run(&["decompress", &out, "-o", &fixture.path("dense"), "--no-verify"]).code, 0);
    // What is checked without checksums still is.
    patch(Path::new(&out), &format!("{UP}.tiles"), 4, |byte| byte ^ 0x40);
    assert_eq!(run(&[&generate[..], &["--no-verify"]].concat()).code, 1);
}

#[test]
fn files_beside_the_tensors_are_verified() {
    let fixture = Fixture::new();
    let out = fixture.compressed();
    let config = Path::new(&out).join("tokenizer_config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("role", "Role")).unwrap();
    let subject = config.display().to_string();
    let generate = ["generate", &out, "--prompt", "p", "--max-new-tokens", "2", "--raw"];
    for arguments in [&["verify", &out][..], &generate, &["decompress", &out, "-o", &fixture.path("dense")]] {
        run(arguments).assert_fails(&subject, "checksum");
    }
    assert_eq!(run(&[&generate[..], &["--no-verify"]].concat()).code, 0);
    std::fs::write(&config, &text[..text.len() - 1]).unwrap();
    run(&["verify", &out]).assert_fails(&subject, "truncated");
    std::fs::remove_file(&config).unwrap();
    run(&["verify", &out]).assert_fails(&subject, "missing");
    run(&generate).assert_fails(&subject, "missing");
}

#[test]
fn a_corrupt_byte_fails_verify_and_names_the_tensor() {
    let fixture = Fixture::new();
    let out = fixture.compressed();
    let good = run(&["verify", &out, "--against", &fixture.model()]);
    assert_eq!((good.code, good.stderr.as_str()), (0, ""));
    patch(Path::new(&out), &format!("{UP}.payload"), 40, |byte| byte ^ 0x10);
    run(&["verify", &out]).assert_fails(UP, "checksum");
    let bad = run(&["verify", &out, "--json"]);
    assert_eq!(bad.code, 1);
    let report = bad.one_object();
    assert_eq!((&report["ok"], &report["first_bad_tensor"]), (&json!(false), &json!(UP)));
    assert!(bad.stderr.starts_with(&format!("error: {UP}: ")) && bad.stderr.lines().count() == 1);
    for arguments in
        [&["generate", &out, "--prompt", "p"][..], &["decompress", &out, "-o", &fixture.path("dense")]]
    {
        run(arguments).assert_fails(UP, "checksum");
    }
    assert_eq!(fixture.entries(), ["model", "out"]);
}

#[test]
fn a_corrupt_norm_fails_verify_too() {
    let fixture = Fixture::new();
    let out = fixture.compressed();
    patch(Path::new(&out), "model.norm.weight", 1, |byte| byte ^ 1);
    run(&["verify", &out]).assert_fails("model.norm.weight", "checksum");
}

#[test]
fn an_unknown_architecture_is_refused() {
    let fixture = Fixture::new();
    let mut config = plain_config();
    config["architectures"] = json!(["GPT2LMHeadModel"]);
    config["model_type"] = "gpt2".into();
    fixture.tiny.write("config.json", &config.to_string());
    let run = run(&["generate", &fixture.model(), "--prompt", "p"]);
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("GPT2LMHeadModel"), "{}", run.stderr);
}

#[test]
fn requests_a_model_cannot_meet_are_refused() {
    let fixture = Fixture::new();
    let model = fixture.model();
    run(&["generate", &model, "--prompt", "too long", "--context", "4"])
        .assert_fails("prompt 1", "--context");
    run(&["decompress", &model, "-o", &fixture.path("dense")]).assert_fails(&model, "no compressed tensor");
    std::fs::remove_file(fixture.tiny.dir().join("tokenizer_config.json")).unwrap();
    run(&["chat", &model]).assert_fails(&model, "chat template");
}

#[test]
fn globs_choose_what_is_compressed() {
    let fixture = Fixture::new();
    let compress = |name: &str, choice: &[&str]| {
        run(&[&["compress", &fixture.model(), "-o", &fixture.path(name), "--json"], choice].concat())
    };
    let paths = |report: &Value| -> Vec<String> {
        let tensors = report["tensors"].as_array().unwrap();
        tensors.iter().map(|tensor| tensor["tensor_path"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(paths(&compress("all", &[]).json()).len(), 15, "7 linears of each layer, and the embedding");
    let choice = ["--include", "model.layers.1.*", "--include", "*.q_proj.weight", "--exclude", "*.mlp.*"];
    let report = compress("some", &choice).json();
    let mut some = paths(&report);
    some.sort();
    let attention = ["k_proj", "o_proj", "q_proj", "v_proj"];
    let layer_1 = attention.map(|name| format!("model.layers.1.self_attn.{name}.weight"));
    assert_eq!(some, [&["model.layers.0.self_attn.q_proj.weight".to_owned()][..], &layer_1].concat());
    let kept = report["kept"].as_array().unwrap();
    assert!(kept.contains(&json!(UP)) && kept.contains(&json!("model.norm.weight")));
    compress("none", &["--include", "*.up_porj.*"]).assert_fails("--include *.up_porj.*", "matches no");
    compress("none", &["--exclude", "layers[0"]).assert_fails("--exclude layers[0", "not a glob");
    assert_eq!(fixture.entries(), ["all", "model", "some"]);
}

#[test]
fn the_bytes_do_not_depend_on_the_threads() {
    let fixture = Fixture::new();
    let bytes = |threads: &str| {
        let out = fixture.beside(threads);
        let arguments =
            ["compress", &fixture.model(), "-o", &out.display().to_string(), "--threads", threads];
        assert_eq!(run(&arguments).code, 0);
        std::fs::read(out.join("model.safetensors")).unwrap()
    };
    assert!(bytes("1") == bytes("3"));
}

/// `object` has these fields, each of the kind of the example beside it.
fn assert_fields(object: &Value, fields: &Value) {
    for (name, example) in fields.as_object().unwrap() {
        let value = object.get(name).unwrap_or_else(|| panic!("no {name} in {object}"));
        assert_eq!(std::mem::discriminant(value), std::mem::discriminant(example), "{name} is {value}");
        if let (Some(value), true) = (value.as_f64(), example.is_number()) {
            assert!(value > 0.0, "{name} is {value}");
        }
    }
}

#[test]
fn every_verb_has_its_json() {
    let fixture = Fixture::new();
    let (model, out, dense) = (fixture.model(), fixture.path("out"), fixture.path("dense"));
    let measured = json!({ "seconds": 1, "peak_rss_bytes": 1 });
    let compress = run(&["compress", &model, "-o", &out, "--json"]).json();
    assert_fields(&compress, &measured);
    assert_fields(
        &compress,
        &json!({ "weights": 1, "original_bytes": 1, "compressed_bytes": 1, "bits_per_weight": 1, "ratio": 1,
            "snr_db": 1, "max_error": 1, "choice": "", "layout": "", "tensors": [], "kept": [] }),
    );
    assert_eq!((&compress["choice"], &compress["layout"]), (&json!("int8"), &json!("fast")));
    let on_disk = std::fs::metadata(Path::new(&out).join("model.safetensors")).unwrap().len();
    assert_eq!(compress["compressed_bytes"], on_disk);
    let verify = run(&["verify", &out, "--against", &model, "--json"]).json();
    assert_fields(&verify, &measured);
    assert_fields(&verify, &json!({ "tensors_checked": 1, "max_abs_error": 1, "snr_db": 1 }));
    assert_eq!((&verify["ok"], &verify["first_bad_tensor"]), (&json!(true), &Value::Null));
    let inspect = run(&["inspect", &out, "--json"]).json();
    assert_fields(
        &inspect,
        &json!({ "format_version": 1, "weights": 1, "bits_per_weight": 1, "tensors": [] }),
    );
    assert_eq!(inspect["weights"], compress["weights"]);
    let stats = run(&["stats", &model, "--json"]).json();
    assert_fields(&stats, &measured);
    let lists =
        json!({ "weights": 1, "original_bytes": 1, "tensors": [], "choices": [], "unmet": [], "curve": [] });
    assert_fields(&stats, &lists);
    let decompress = run(&["decompress", &out, "-o", &dense, "--json"]).json();
    assert_fields(&decompress, &measured);
    assert_fields(&decompress, &json!({ "bytes_written": 1 }));
    let generate = run(&["generate", &out, "--prompt", "p", "--max-new-tokens", "4", "--json"]).json();
    assert_fields(
        &generate,
        &json!({ "text": "", "new_tokens": 1, "prompt_tokens": 1, "tokens_per_second": 1, "prefill_seconds": 1,
            "peak_rss_bytes": 1, "weight_bytes": 1, "stop_reason": "" }),
    );
    assert_eq!((&generate["new_tokens"], &generate["stop_reason"]), (&json!(4), &json!("max_new_tokens")));
    assert_eq!(generate["peak_device_bytes"], Value::Null, "computed on the CPU");
    let chat = run_with_stdin(&["chat", &out, "--max-new-tokens", "4", "--json"], "p\n").json();
    assert_fields(&chat, &json!({ "turns": [], "weight_bytes": 1, "peak_rss_bytes": 1 }));
    assert_fields(&chat["turns"][0], &json!({ "prompt": "", "text": "", "new_tokens": 1 }));
}

#[test]
fn people_get_tables() {
    let fixture = Fixture::new();
    let (model, out) = (fixture.model(), fixture.path("out"));
    let compress = run(&["compress", &model, "-o", &out, "--bits", "7.5"]);
    assert_eq!((compress.code, compress.stderr.as_str()), (0, "compressing at bits 7.5, layout fast\n"));
    for (arguments, words) in [
        (&["inspect", &out][..], [UP, "bits per weight", "fast"]),
        (&["stats", &model], [UP, "int8", "grid entropy"]),
        (&["verify", &out, "--against", &model], ["tensors checked", "dB", "peak memory"]),
    ] {
        let run = run(arguments);
        assert_eq!((run.code, run.stderr.as_str()), (0, ""));
        assert!(words.iter().all(|word| run.stdout.contains(word)), "{}", run.stdout);
        assert!(!run.stdout.contains('\u{1b}'), "no color codes");
    }
}

#[test]
fn text_is_streamed_as_it_is_in_json_and_depends_on_the_seed_alone() {
    let fixture = Fixture::new();
    let generate = |rest: &[&str]| {
        let common = ["generate", &fixture.model(), "--prompt", "p", "--max-new-tokens", "20"];
        run(&[&common, rest].concat())
    };
    let text = |run: &Run| run.json()["text"].as_str().unwrap().to_owned();
    let sampled = ["--temperature", "2", "--top-k", "200", "--top-p", "0.99", "--seed"];
    let with_seed = |seed: &str| text(&generate(&[&sampled[..], &[seed, "--json"]].concat()));
    let streamed = generate(&[&sampled[..], &["5"]].concat());
    assert_eq!((streamed.code, streamed.stdout), (0, with_seed("5") + "\n"));
    assert!(streamed.stderr.contains("tokens/s"), "{}", streamed.stderr);
    assert_eq!(with_seed("5"), with_seed("5"));
    assert_ne!(with_seed("5"), with_seed("6"));
    let greedy = text(&generate(&["--json"]));
    assert_eq!(greedy, text(&generate(&["--json", "--seed", "9"])), "greedy needs no seed");
    // "user: p\n" is 8 bytes, "p" one.
    assert_eq!(generate(&["--json"]).json()["prompt_tokens"], 8);
    assert_eq!(generate(&["--json", "--raw"]).json()["prompt_tokens"], 1);
}

#[test]
fn a_lossless_model_says_what_was_coded_and_why_not_the_rest() {
    let fixture = Fixture::new();
    let (model, out) = (fixture.model(), fixture.path("out"));
    // Make one matrix exactly BF16: its upper halves stay.
    for at in 0..40 * 24 {
        for byte in [0, 1] {
            patch(&fixture.tiny.dir(), UP, 4 * at + byte, |_| 0);
        }
    }
    let report = run(&["compress", &model, "-o", &out, "--preset", "lossless", "--json"]).json();
    assert_eq!((&report["choice"], &report["layout"]), (&json!("lossless"), &json!("exact")));
    assert_eq!(report["tensors"][0]["tensor_path"], UP);
    assert_eq!(report["tensors"][0]["layout"], "exact_bf16");
    assert_eq!((&report["grid_entropy_bits"], &report["max_error"]), (&Value::Null, &json!(0.0)));
    assert!(report["exponent_entropy_and_raw_bits"].as_f64().unwrap() > 8.0);
    assert_eq!(report["uncoded"].as_array().unwrap().len(), 14);
    let text = run(&["compress", &model, "-o", &fixture.path("again"), "--preset", "lossless"]).stdout;
    for wanted in
        ["1 compressed", "exact", "which neither BF16 nor FP16 holds", "11 more (--json lists them)"]
    {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    assert_eq!(run(&["verify", &out, "--against", &model, "--json"]).json()["ok"], true);
    let inspect = run(&["inspect", &out]).stdout;
    assert!(inspect.contains("exact_bf16"), "{inspect}");
    let generate =
        |dir: &str| run(&["generate", dir, "--prompt", "p", "--max-new-tokens", "8", "--json"]).json();
    assert_eq!(generate(&out)["token_ids"], generate(&model)["token_ids"]);
}

#[test]
fn a_decompressed_model_says_what_the_compressed_one_says() {
    let fixture = Fixture::new();
    let (out, dense) = (fixture.compressed(), fixture.path("dense"));
    assert_eq!(run(&["decompress", &out, "-o", &dense]).code, 0);
    let generate = |model: &str| {
        let length = ["--max-new-tokens", "30", "--dtype", "fp32", "--json"];
        run(&[&["generate", model, "--prompt", "hello"][..], &length].concat()).json()
    };
    let (compressed, decompressed) = (generate(&out), generate(&dense));
    assert_eq!(compressed["token_ids"], decompressed["token_ids"]);
    assert!(compressed["weight_bytes"].as_u64() < decompressed["weight_bytes"].as_u64());
    let verify = run(&["verify", &out, "--against", &dense, "--json"]).json();
    assert_eq!((&verify["max_abs_error"], &verify["snr_db"]), (&json!(0.0), &Value::Null));
}

#[test]
fn a_conversation_has_a_history_until_it_is_reset() {
    let fixture = Fixture::new();
    let arguments = ["chat", &fixture.model(), "--max-new-tokens", "5"];
    let script = "ab\n\ncd\n/reset\nab\n/help\n/what\n/exit\nnever said\n";
    let chat = run_with_stdin(&arguments, script);
    assert_eq!(chat.code, 0);
    assert_eq!(chat.stderr.matches("tokens/s").count(), 3, "{}", chat.stderr);
    assert!(chat.stderr.contains("/reset  forget") && chat.stderr.contains("/what: no such command"));
    let report = run_with_stdin(&[&arguments[..], &["--json"]].concat(), script).json();
    let turns = report["turns"].as_array().unwrap();
    assert_eq!(turns.len(), 3);
    let prompt_tokens: Vec<u64> = turns.iter().map(|turn| turn["prompt_tokens"].as_u64().unwrap()).collect();
    assert!(prompt_tokens[1] > 2 * prompt_tokens[0], "{prompt_tokens:?}: the first turn is in the second");
    assert_eq!(turns[0]["text"], turns[2]["text"], "forgotten");
    let texts: String = turns.iter().map(|turn| turn["text"].as_str().unwrap().to_owned() + "\n").collect();
    assert_eq!(chat.stdout, texts);
}

#[test]
fn a_turn_that_does_not_fit_ends_a_script() {
    let fixture = Fixture::new();
    let chat = run_with_stdin(&["chat", &fixture.model(), "--context", "10"], "a\nabcdefgh\n");
    assert_eq!(chat.code, 1);
    assert!(chat.stderr.contains("error: prompt 1: "), "{}", chat.stderr);
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let fixture = Fixture::new();
    let model = fixture.model();
    for arguments in
        [&["generate", &model, "--prompt", "p"][..], &["inspect", &model], &["stats", &model, "--json"]]
    {
        let mut command = command(arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let run = Run::of(&child.wait_with_output().unwrap());
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{arguments:?}");
    }
}

#[test]
fn a_trained_model_survives_its_compression() {
    let Some(model) = downloaded("stories15M") else { return };
    let parent = tempfile::tempdir().unwrap();
    let (model, out) = (model.display().to_string(), parent.path().join("out").display().to_string());
    let compress = run(&["compress", &model, "-o", &out, "--json"]).json();
    assert!(compress["ratio"].as_f64().unwrap() > 4.0, "FP32 to 8-bit grade: {}", compress["ratio"]);
    assert_eq!(run(&["verify", &out, "--against", &model]).code, 0);
    let generate = |model: &str| {
        run(&["generate", model, "--prompt", "Once upon a time", "--max-new-tokens", "12", "--json"]).json()
    };
    let (dense, compressed) = (generate(&model), generate(&out));
    assert_eq!(dense["text"], compressed["text"]);
    assert!(compressed["weight_bytes"].as_u64().unwrap() * 18 < dense["weight_bytes"].as_u64().unwrap() * 10);
}
