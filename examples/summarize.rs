//! Summarizes text files, several at once: `FILE.summary` appears beside each FILE when it is complete, and only then. What is there
//! is skipped, so that a run that was stopped (Ctrl-C, power) goes on where it was.
//!
//! ```text
//! scripts/fetch_smollm2.sh && cp -r examples/notes .cache
//! cargo run --release --example summarize -- .cache/models/SmolLM2-135M-Instruct .cache/notes/*.txt
//!
//! 0 of 2 are done already
//! .cache/notes/ferry.txt: 95 tokens read, 43 written
//! .cache/notes/oven.txt: 94 tokens read, 47 written
//! 2 summaries, 0 files failed
//! ```

use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use anyhow::{bail, Context, Result};
use codecllm::runtime::{GenerateOptions, Generation, Generator, LoadOptions, Message, Prompt};
use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::consts::{SIGINT, SIGTERM};

/// Files that one decoding of the weights serves.
const BATCH: usize = 4;
const NEW_TOKENS: usize = 64;
/// Of a longer file the begin is summarized.
const MOST_CHARACTERS: usize = 4000;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, files @ ..] = &arguments[..] else { bail!("usage: summarize MODEL_DIR FILE...") };
    if !Path::new(model).is_dir() {
        bail!("{model}: is not there; run scripts/fetch_smollm2.sh, or name a model directory");
    }
    let files: Vec<PathBuf> = files.iter().map(PathBuf::from).collect();
    let missing: Vec<PathBuf> = files.iter().filter(|file| !summary_of(file).exists()).cloned().collect();
    eprintln!("{} of {} are done already", files.len() - missing.len(), files.len());
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let generator = Generator::open(model, &LoadOptions::default())?;
    let style = ProgressStyle::with_template("[{bar:30.##-}] {pos} of {len}")?;
    let bar = ProgressBar::new(missing.len() as u64).with_style(style);
    let (mut done, mut failed) = (0, 0);
    for batch in missing.chunks(BATCH) {
        let (texts, unreadable) = read(batch, &bar);
        failed += unreadable;
        let Some(answers) = summarize(&generator, &texts, &stop)? else {
            bail!("stopped after {done} summaries; the same command goes on with the rest");
        };
        for ((file, _), answer) in texts.iter().zip(&answers) {
            write(&summary_of(file), answer.text.trim())?;
            let (read, written) = (answer.prompt_tokens, answer.new_tokens);
            bar.suspend(|| eprintln!("{}: {read} tokens read, {written} written", file.display()));
        }
        done += answers.len();
        bar.inc(batch.len() as u64);
    }
    bar.finish_and_clear();
    println!("{done} summaries, {failed} files failed");
    anyhow::ensure!(failed == 0, "{failed} files could not be read");
    Ok(())
}

fn summary_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".summary");
    name.into()
}

/// The begins of the files that can be read, and how many can't: one bad file must not cost the others.
fn read(batch: &[PathBuf], bar: &ProgressBar) -> (Vec<(PathBuf, String)>, usize) {
    let mut texts = Vec::new();
    for file in batch {
        match std::fs::read_to_string(file) {
            Ok(text) => texts.push((file.clone(), text.chars().take(MOST_CHARACTERS).collect())),
            Err(error) => bar.suspend(|| eprintln!("{}: {error}", file.display())),
        }
    }
    let unreadable = batch.len() - texts.len();
    (texts, unreadable)
}

/// One answer for each text; `None` where a signal came.
fn summarize(
    generator: &Generator,
    texts: &[(PathBuf, String)],
    stop: &AtomicBool,
) -> Result<Option<Vec<Generation>>> {
    if texts.is_empty() {
        return Ok(Some(Vec::new()));
    }
    let ask = |text: &str| format!("Summarize the following text in two sentences.\n\n{text}");
    let prompt = |text: &str| match generator.chat() {
        Some(_) => Prompt::Chat(vec![Message::new("user", ask(text))]),
        None => Prompt::Text(ask(text)),
    };
    let prompts: Vec<Prompt> = texts.iter().map(|(_, text)| prompt(text)).collect();
    let options = GenerateOptions { max_new_tokens: NEW_TOKENS, ..GenerateOptions::default() };
    let answers = generator.generate(&prompts, &options, &mut |_| match stop.load(Ordering::Relaxed) {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    })?;
    Ok((!stop.load(Ordering::Relaxed)).then_some(answers))
}

/// Writes the whole file or none of it.
fn write(path: &Path, text: &str) -> Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir).with_context(|| dir.display().to_string())?;
    writeln!(file, "{text}")?;
    file.persist(path).with_context(|| path.display().to_string())?;
    Ok(())
}
