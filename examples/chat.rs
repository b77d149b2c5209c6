//! Talks with a model in the terminal: answers stream, the model sees the whole conversation, `/undo` takes the last turn back.
//!
//! ```text
//! scripts/fetch_smollm2.sh && cargo run --release -- compress .cache/models/SmolLM2-135M-Instruct -o .cache/smollm2-int8
//! cargo run --release --example chat -- .cache/smollm2-int8
//!
//! > What is the capital of France?
//! The capital of France is Paris.
//! [7 tokens, ... tokens/s]
//! > /undo
//! >
//! ```
//!
//! Lines may come through a pipe too. Without a directory it takes SmolLM2 from `.cache`.

use std::io::{BufRead, Write};
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{bail, Context, Result};
use codecllm::runtime::{GenerateOptions, Generation, Generator, LoadOptions, Message, Prompt};
use codecllm::ErrorKind;

const DEFAULT_MODEL: &str = ".cache/models/SmolLM2-135M-Instruct";
const NEW_TOKENS: usize = 128;

fn main() -> Result<()> {
    let model = std::env::args().nth(1).unwrap_or_else(|| DEFAULT_MODEL.to_owned());
    if !Path::new(&model).is_dir() {
        bail!("{model}: is not there; run scripts/fetch_smollm2.sh, or name a model directory");
    }
    let generator = Generator::open(&model, &LoadOptions::default())?;
    if generator.chat().is_none() {
        bail!("{model}: has no chat template, wanted a model that was trained to chat");
    }
    let mut history = Vec::new();
    for line in prompts() {
        match line?.trim() {
            "" => {}
            "/exit" => break,
            "/undo" => history.truncate(history.len().saturating_sub(2)),
            said => turn(&generator, &mut history, said)?,
        }
    }
    Ok(())
}

/// The lines of stdin, each asked for by a `>`.
fn prompts() -> impl Iterator<Item = std::io::Result<String>> {
    let mut lines = std::io::stdin().lock().lines();
    std::iter::from_fn(move || match show("> ") {
        Ok(()) => lines.next(),
        Err(error) => Some(Err(error)),
    })
}

/// One question and its answer. What the model refuses, such as a conversation that is too long, is forgotten.
fn turn(generator: &Generator, history: &mut Vec<Message>, said: &str) -> Result<()> {
    history.push(Message::new("user", said));
    match answer(generator, history) {
        Ok(answer) => {
            println!("\n[{} tokens, {:.1} tokens/s]", answer.new_tokens, answer.tokens_per_second);
            history.push(Message::new("assistant", answer.text));
            Ok(())
        }
        Err(error) if error.kind() == ErrorKind::InvalidArgument => {
            history.pop();
            eprintln!("error: {error}; /undo makes room");
            Ok(())
        }
        Err(error) => Err(error).context("the answer"),
    }
}

fn answer(generator: &Generator, history: &[Message]) -> codecllm::Result<Generation> {
    let options = GenerateOptions { max_new_tokens: NEW_TOKENS, ..GenerateOptions::default() };
    // A reader that is gone ends the answer.
    let mut on_piece = |piece: codecllm::runtime::Piece<'_>| match show(piece.text) {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    };
    let mut answers = generator.generate(&[Prompt::Chat(history.to_vec())], &options, &mut on_piece)?;
    answers.pop().ok_or_else(|| codecllm::Error::invalid("prompt", "got no answer"))
}

/// Text without a line end, at once.
fn show(text: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}
