//! Runs of the binary, and a model to run it on.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{json, Value};

use crate::tiny_llama::{byte_tokenizer_json, plain_config, TinyLlama};

const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";

/// What a run of the binary gave.
#[derive(Debug, PartialEq)]
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    pub fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let code = output.status.code().expect("ended by a signal");
        Self { code, stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }

    pub fn json(&self) -> Value {
        assert_eq!((self.code, self.stderr.as_str()), (0, ""));
        self.one_object()
    }

    pub fn one_object(&self) -> Value {
        let object: Value = serde_json::from_str(&self.stdout).expect("one JSON value on stdout");
        assert!(object.is_object());
        object
    }

    /// Exit code 1, nothing on stdout, and on stderr one line about `subject` that says `message`.
    pub fn assert_fails(&self, subject: &str, message: &str) {
        assert_eq!((self.code, self.stdout.as_str()), (1, ""), "{}", self.stderr);
        let errors: Vec<&str> = self.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "{}", self.stderr);
        assert!(errors[0].starts_with(&format!("error: {subject}: ")), "{subject} in {}", errors[0]);
        assert!(errors[0].contains(message), "{message} in {}", errors[0]);
    }
}

pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_codecllm"));
    command.args(arguments);
    command
}

pub fn run(arguments: &[&str]) -> Run {
    Run::of(&command(arguments).output().unwrap())
}

pub fn run_with_stdin(arguments: &[&str], stdin: &str) -> Run {
    let mut command = command(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    Run::of(&child.wait_with_output().unwrap())
}

/// A tiny model that reads and writes bytes, with room beside it for outputs.
pub struct Fixture {
    pub tiny: TinyLlama,
}

impl Fixture {
    pub fn new() -> Self {
        let mut config = plain_config();
        config["vocab_size"] = 258.into();
        let tiny = TinyLlama::new(&config, 7);
        tiny.write("tokenizer.json", &byte_tokenizer_json());
        tiny.write("tokenizer_config.json", &json!({ "chat_template": TEMPLATE }).to_string());
        Self { tiny }
    }

    pub fn model(&self) -> String {
        self.tiny.dir().display().to_string()
    }

    pub fn beside(&self, name: &str) -> PathBuf {
        self.tiny.dir().with_file_name(name)
    }

    pub fn path(&self, name: &str) -> String {
        self.beside(name).display().to_string()
    }

    /// The compressed model.
    pub fn compressed(&self) -> String {
        let out = self.path("out");
        assert_eq!(run(&["compress", &self.model(), "-o", &out]).code, 0);
        out
    }

    /// All that is in the temporary folder: the model, and what a run left.
    pub fn entries(&self) -> Vec<String> {
        let mut names: Vec<String> = (std::fs::read_dir(self.beside("")).unwrap())
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

/// Overwrites bytes of a tensor in the model directory `dir`.
pub fn patch(dir: &Path, tensor: &str, offset: usize, change: impl Fn(u8) -> u8) {
    let file = dir.join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let at = 8 + header + metadata.info(tensor).unwrap().data_offsets.0 + offset;
    bytes[at] = change(bytes[at]);
    std::fs::write(&file, bytes).unwrap();
}
