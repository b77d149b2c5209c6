//! The examples build, run, and print what they promise; none outgrows its reader.

mod tiny_llama;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tiny_llama::downloaded;

const MOST_LINES: usize = 120;
/// How long a signal may take to end an example, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// The folder of built examples: where the binary is, built as it is.
fn built() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let folder = Path::new(env!("CARGO_BIN_EXE_codecllm")).parent().unwrap();
        let release = folder.ends_with("release").then_some("--release");
        let output = Command::new(env!("CARGO"))
            .args(["build", "--offline", "--quiet", "--examples"])
            .args(release)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        folder.join("examples")
    })
}

fn example(name: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(built().join(name));
    // Several run at once: threads that spin for each other would take a busy machine minutes.
    command.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).env("OMP_NUM_THREADS", "1");
    command
}

fn run(name: &str, arguments: &[&str]) -> Output {
    example(name, arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a run that succeeded prints.
fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// The lines of the output that the head of an example shows: all that are no command and no line typed.
fn shown(name: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name).with_extension("rs");
    let source = std::fs::read_to_string(path).unwrap();
    let head = source.lines().map_while(|line| line.strip_prefix("//!")).map(str::trim);
    let block = head.skip_while(|line| *line != "```text").skip(1).take_while(|line| *line != "```");
    let typed = ["cargo ", "scripts/", "curl ", "printf ", ">"];
    let lines = block.filter(|line| !line.is_empty() && !typed.iter().any(|start| line.starts_with(start)));
    lines.map(str::to_owned).collect()
}

/// Holds that a run printed the lines of [`shown`] that `exact` takes, one after the other; `...` in one stands for anything.
fn assert_shown(name: &str, printed: &str, exact: impl Fn(&str) -> bool) {
    let mut lines = printed.lines();
    let is_like = |line: &str, shown: &str| {
        let mut rest = Some(line);
        for part in shown.split("...") {
            rest = rest.and_then(|rest| rest.split_once(part)).map(|(_, after)| after);
        }
        rest.is_some()
    };
    let shown: Vec<String> = shown(name).into_iter().filter(|line| exact(line)).collect();
    assert!(!shown.is_empty(), "{name} shows no output");
    for wanted in shown {
        assert!(lines.any(|line| is_like(line, &wanted)), "{name} promises {wanted:?}, printed\n{printed}");
    }
}

/// stories15M, compressed to 8 bits beside `parent`.
fn compressed_stories(parent: &Path, model: &Path) -> PathBuf {
    let out = parent.join("int8");
    let compress =
        Command::new(env!("CARGO_BIN_EXE_codecllm")).arg("compress").arg(model).arg("-o").arg(&out).output();
    assert!(compress.unwrap().status.success());
    out
}

#[test]
fn each_is_short_and_says_how_to_run_it() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let files: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    let sources = files.iter().filter(|file| file.extension().is_some_and(|end| end == "rs"));
    let mut seen = 0;
    // The demo is `make demo`.
    for file in sources.filter(|file| !file.ends_with("demo.rs")) {
        let source = std::fs::read_to_string(file).unwrap();
        let name = file.file_stem().unwrap().to_str().unwrap();
        assert!(source.lines().count() < MOST_LINES, "{name} has {} lines", source.lines().count());
        let head: Vec<&str> = source.lines().take_while(|line| line.starts_with("//!")).collect();
        assert!(head.join("\n").contains(&format!("cargo run --release --example {name}")), "{name}");
        seen += 1;
    }
    assert!(seen >= 6, "{seen}");
}

#[test]
fn patching_ones_own_module_keeps_its_accuracy() {
    let printed = stdout(&run("patch_module", &[]));
    let lines: Vec<&str> = printed.lines().collect();
    let figures: Vec<[f64; 2]> = lines
        .iter()
        .map(|line| {
            let (_, figures) = line.split_once(": ").unwrap();
            let words: Vec<&str> = figures.split_whitespace().collect();
            [words[0].parse().unwrap(), words[words.len() - 2].parse().unwrap()]
        })
        .collect();
    let [dense, int8, coarse] = figures[..] else { panic!("{printed}") };
    assert!(dense[0] > 90.0, "{printed}");
    assert!((dense[0] - int8[0]).abs() < 0.5 && (dense[0] - coarse[0]).abs() < 2.0, "{printed}");
    assert!(coarse[1] < int8[1] && int8[1] < 0.3 * dense[1], "{printed}");
}

#[test]
fn a_tensor_is_looked_at() {
    let Some(model) = downloaded("stories15M") else { return };
    let printed = stdout(&run("inspect_tensor", &[]));
    assert_shown("inspect_tensor", &printed, |_| true);
    for wanted in ["payload", "4 classes", "grid values"] {
        assert!(printed.contains(wanted), "{wanted} in {printed}");
    }
    let bits: f64 =
        printed.lines().find(|line| line.starts_with("5.2 bits")).unwrap()[13..24].trim().parse().unwrap();
    assert!((bits - 5.2).abs() < 0.1, "{printed}");
    let failed = run("inspect_tensor", &[model.to_str().unwrap(), "no.such.weight"]);
    assert!(!failed.status.success() && text(&failed.stderr).contains("no.such.weight"));
}

#[test]
fn a_conversation_streams_and_remembers() {
    let absent = run("chat", &["nowhere"]);
    assert!(!absent.status.success() && text(&absent.stderr).contains("fetch_smollm2.sh"));
    let Some(model) = downloaded("SmolLM2-135M-Instruct") else { return };
    let mut child = example("chat", &[model.to_str().unwrap()]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let script = b"What is the capital of France?\n/undo\n\nSay hello.\n/exit\nnever read\n";
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), script).unwrap();
    let printed = stdout(&child.wait_with_output().unwrap());
    assert_shown("chat", &printed, |_| true);
    assert_eq!(printed.matches("tokens/s]").count(), 2, "{printed}");
}

#[test]
fn summaries_appear_whole_and_are_not_made_twice() {
    let Some(model) = downloaded("stories15M") else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let files = ["a.txt", "b.txt", "c.txt", "d.txt", "e.txt"].map(file);
    for (index, name) in files.iter().enumerate() {
        std::fs::write(name, format!("Once upon a time there were {index} birds. ").repeat(1 + index))
            .unwrap();
    }
    std::fs::write(&files[1], [0xFF, 0xFE]).unwrap();
    let arguments: Vec<&str> =
        [model.to_str().unwrap()].into_iter().chain(files.iter().map(String::as_str)).collect();
    let first = run("summarize", &arguments);
    assert!(!first.status.success(), "one file is no text");
    assert!(text(&first.stderr).contains("b.txt"), "{}", text(&first.stderr));
    assert!(text(&first.stdout).contains("4 summaries, 1 files failed"), "{}", text(&first.stdout));
    let summary = std::fs::read(file("a.txt.summary")).unwrap();
    assert!(summary.len() > 10);
    std::fs::write(&files[1], "A bird sang.").unwrap();
    let second = run("summarize", &arguments);
    assert!(text(&second.stderr).contains("4 of 5 are done already"), "{}", text(&second.stderr));
    assert!(stdout(&second).contains("1 summaries, 0 files failed"));
    assert_eq!(std::fs::read(file("a.txt.summary")).unwrap(), summary, "it was not made again");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 10, "nothing unfinished is left");
}

#[test]
fn the_notes_are_summarized_as_shown() {
    let Some(model) = downloaded("SmolLM2-135M-Instruct") else { return };
    let folder = tempfile::tempdir().unwrap();
    let notes = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/notes");
    let copy = |name: &str| {
        std::fs::copy(notes.join(name), folder.path().join(name)).unwrap();
        folder.path().join(name).display().to_string()
    };
    let [ferry, oven] = ["ferry.txt", "oven.txt"].map(copy);
    let output = run("summarize", &[model.to_str().unwrap(), &ferry, &oven]);
    let printed = text(&output.stderr) + &stdout(&output);
    let printed = printed.replace(folder.path().to_str().unwrap(), ".cache/notes");
    assert_shown("summarize", &printed, |_| true);
}

#[test]
fn a_signal_leaves_no_half_summary() {
    let Some(model) = downloaded("stories15M") else { return };
    let folder = tempfile::tempdir().unwrap();
    let files: Vec<String> =
        (0..40).map(|index| folder.path().join(format!("{index:02}.txt")).display().to_string()).collect();
    files.iter().for_each(|name| std::fs::write(name, "One day a girl found a bird. ".repeat(9)).unwrap());
    let arguments: Vec<&str> =
        [model.to_str().unwrap()].into_iter().chain(files.iter().map(String::as_str)).collect();
    let mut child =
        example("summarize", &arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let summaries = || {
        let names = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
        names.filter(|path| path.to_str().unwrap().ends_with(".summary")).count()
    };
    let start = Instant::now();
    while summaries() == 0 && start.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if start.elapsed() > 2 * PATIENCE => {
                child.kill().unwrap();
                panic!("a signal did not end it");
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    assert_eq!(status.code(), Some(1), "ended by itself, not by the signal");
    let done = summaries();
    assert!(done > 0 && done % 4 == 0 && done < files.len(), "whole batches: {done}");
    let entries = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(entries, files.len() + done, "nothing unfinished is left");
}

#[test]
fn two_models_are_compared() {
    let Some(model) = downloaded("stories15M") else { return };
    let folder = tempfile::tempdir().unwrap();
    let (out, story) = (compressed_stories(folder.path(), &model), folder.path().join("story.txt"));
    std::fs::write(&story, "Once upon a time, there was a little girl. She had a red ball. ".repeat(40))
        .unwrap();
    let page = folder.path().join("report.html");
    let paths = [&model, &out, &story, &page].map(|path| path.to_str().unwrap());
    let printed = stdout(&run("parity", &paths));
    // The figures between depend on the processor in their last digits.
    assert_shown("parity", &printed, |line| {
        ["scored", "weights of"].iter().any(|start| line.contains(start))
    });
    assert!(printed.contains("model.layers.5"), "{printed}");
    assert!(std::fs::read_to_string(page).unwrap().contains("<html"));
}

#[test]
fn a_torchscript_llama_tells_a_story_before_and_after() {
    let Some(model) = downloaded("stories15M-bf16") else { return };
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/fixtures/torchscript/kv_cache.pt");
    if !module.exists() {
        return eprintln!("SKIPPED: {} is absent; `make fixtures` makes it", module.display());
    }
    let printed =
        stdout(&run("torchscript_llama", &[module.to_str().unwrap(), model.to_str().unwrap(), "5.3"]));
    assert_shown("torchscript_llama", &printed, |_| true);
}

/// What a server answers to `path`.
#[cfg(feature = "serve")]
fn get(address: &str, path: &str) -> String {
    ureq::get(format!("{address}{path}")).call().unwrap().body_mut().read_to_string().unwrap()
}

#[cfg(feature = "serve")]
#[test]
fn an_application_serves_a_model_beside_its_own_routes() {
    let Some(model) = downloaded("stories15M") else { return };
    let mut child = example("serve_app", &[model.to_str().unwrap(), "127.0.0.1:0"]);
    let mut child = child.stdout(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    let stdout = std::io::BufReader::new(child.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut { stdout }, &mut first).unwrap();
    let address = first.trim().strip_prefix("listening on ").unwrap();
    let (story, models) = (get(address, "/story"), get(address, "/llm/v1/models"));
    let body = serde_json::json!({ "model": "my-model", "prompt": "Once upon a time", "max_tokens": 48, "temperature": 0 });
    let ask = |body: serde_json::Value| -> serde_json::Value {
        let answer = ureq::post(format!("{address}/llm/v1/completions")).send_json(body);
        answer.unwrap().body_mut().read_json().unwrap()
    };
    let answer = ask(body);
    let shorter = ask(serde_json::json!({ "prompt": "One day", "max_tokens": 16, "temperature": 0 }));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert!(child.wait().unwrap().success(), "Ctrl-C ends it in order");
    assert!(story.starts_with("Once upon a time") && story.len() > 60, "{story}");
    assert!(models.contains("my-model"), "{models}");
    let printed = format!("{first}{story}{}", serde_json::to_string(&shorter).unwrap());
    assert_shown("serve_app", &printed, |line| !line.starts_with("listening"));
    let text = answer["choices"][0]["text"].as_str().unwrap();
    assert_eq!(format!("Once upon a time{text}\n"), story, "both ask the same engine");
}
