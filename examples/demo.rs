//! Compresses a model twice, asks the original and both copies one question, and prints what it cost.
//!
//! usage: demo MODEL_DIR OUT_DIR

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{bail, ensure, Context, Result};
use codecllm::checkpoint::{compress, inspect, verify, CompressOptions, Progress, Target};
use codecllm::runtime::{
    peak_rss_bytes, GenerateOptions, Generation, Generator, LoadOptions, Message, Prompt, Tokenizer,
};
use comfy_table::{presets, Table};
use indicatif::{DecimalBytes, ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

const QUESTION: &str = "What is the capital of France, and what is it known for?";
const NEW_TOKENS: usize = 64;
const COLUMNS: &str = "model, on disk, bits/weight, weights in memory, peak memory, tokens/s, same tokens";
/// Measures one model in a process of its own, so that its peak memory is its own.
const ANSWER: &str = "--answer";

/// What one model made of the question.
#[derive(Serialize, Deserialize)]
struct Answer {
    text: String,
    token_ids: Vec<u32>,
    tokens_per_second: f64,
    weight_bytes: u64,
    peak_rss_bytes: Option<u64>,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [flag, dir] if flag == ANSWER => {
            Ok(serde_json::to_writer(std::io::stdout(), &answer(dir.as_ref())?)?)
        }
        [model, out] => demo(model.as_ref(), out.as_ref()),
        _ => bail!("usage: demo MODEL_DIR OUT_DIR"),
    }
}

fn demo(model: &Path, out: &Path) -> Result<()> {
    std::fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    let mut models = vec![("uncompressed", model.to_owned())];
    for (name, target) in [("int8", Target::Int8), ("5.3 bits", Target::Bits(5.3))] {
        models.push((name, compressed(model, out, name, target)?));
    }
    eprintln!("\nquestion: {QUESTION}");
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_header(COLUMNS.split(", "));
    let tokenizer = Tokenizer::from_dir(model)?;
    let (mut reference, mut partings) = (None, String::new());
    for (name, dir) in &models {
        let answer = answer_in_child(dir)?;
        eprintln!("\n{name}: {}", answer.text.trim());
        let reference = reference.get_or_insert_with(|| answer.token_ids.clone());
        let same = reference.iter().zip(&answer.token_ids).take_while(|(a, b)| a == b).count();
        table.add_row(row(name, dir, &answer, format!("{same} of {}", reference.len()))?);
        if same < reference.len().max(answer.token_ids.len()) {
            let rest = |ids: &[u32]| tokenizer.decode(&ids[same..ids.len().min(same + 6)]);
            let (own, original) = (rest(&answer.token_ids)?, rest(reference)?);
            partings += &format!("{name} parts after token {same}: {own:?} instead of {original:?}\n");
        }
    }
    println!("\n{table}\n{partings}");
    Ok(())
}

/// The directory of the compressed copy, made unless it is there and sound.
fn compressed(model: &Path, out: &Path, name: &str, target: Target) -> Result<PathBuf> {
    let dir = out.join(name.replace(' ', "-"));
    if dir.exists() {
        let bar = progress_bar();
        if verify(&dir, Some(model), &mut |p| show(&bar, &p)).is_ok_and(|report| report.ok) {
            eprintln!("{name}: {} is there and sound", dir.display());
            return Ok(dir);
        }
        std::fs::remove_dir_all(&dir)?;
    }
    let bar = progress_bar();
    let options = CompressOptions { target, ..CompressOptions::default() };
    let report = compress(model, &dir, &options, &mut |p| show(&bar, &p))?;
    bar.finish_and_clear();
    let (before, after) = (DecimalBytes(report.original_bytes), DecimalBytes(report.compressed_bytes));
    eprintln!("{name}: {before} -> {after} in {:.1} s, in {}", bar.elapsed().as_secs_f64(), dir.display());
    Ok(dir)
}

fn progress_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("[{bar:30}] {percent}% {wide_msg}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn show(bar: &ProgressBar, progress: &Progress<'_>) {
    bar.set_length(progress.total_bytes);
    bar.set_position(progress.done_bytes);
    bar.set_message(format!("{} {}", progress.stage, progress.tensor_path));
}

fn answer_in_child(dir: &Path) -> Result<Answer> {
    let mut child = Command::new(std::env::current_exe()?);
    let output = child.arg(ANSWER).arg(dir).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{}: the model gave no answer", dir.display());
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn answer(dir: &Path) -> Result<Answer> {
    let generator = Generator::open(dir, &LoadOptions::default())?;
    ask(&generator, 2)?; // first use allocates
    let Generation { text, token_ids, tokens_per_second, .. } = ask(&generator, NEW_TOKENS)?;
    let weight_bytes = generator.model().weight_bytes() as u64;
    Ok(Answer { text, token_ids, tokens_per_second, weight_bytes, peak_rss_bytes: peak_rss_bytes() })
}

fn ask(generator: &Generator, max_new_tokens: usize) -> Result<Generation> {
    let prompt = Prompt::Chat(vec![Message::new("user", QUESTION)]);
    let options = GenerateOptions { max_new_tokens, ..GenerateOptions::default() };
    let mut answers =
        generator.generate(&[prompt], &options, &mut |_| std::ops::ControlFlow::Continue(()))?;
    answers.pop().context("no answer")
}

fn row(name: &str, dir: &Path, answer: &Answer, same: String) -> Result<[String; 7]> {
    let on_disk = tensor_file_bytes(dir)?;
    Ok([
        name.to_owned(),
        DecimalBytes(on_disk).to_string(),
        format!("{:.2}", 8.0 * on_disk as f64 / inspect(dir)?.weights as f64),
        DecimalBytes(answer.weight_bytes).to_string(),
        answer.peak_rss_bytes.map_or_else(|| "unknown".to_owned(), |bytes| DecimalBytes(bytes).to_string()),
        format!("{:.1}", answer.tokens_per_second),
        same,
    ])
}

/// Bytes of the safetensors files of a model directory, headers and all.
fn tensor_file_bytes(dir: &Path) -> Result<u64> {
    let files = std::fs::read_dir(dir)?.collect::<std::io::Result<Vec<_>>>()?;
    let tensors = files.iter().filter(|file| file.path().extension().is_some_and(|e| e == "safetensors"));
    Ok(tensors.map(|file| file.metadata().map(|metadata| metadata.len())).sum::<std::io::Result<u64>>()?)
}
