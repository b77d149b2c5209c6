//! Compares two model directories, dense or compressed, on a text: perplexity, divergence, agreement, greedy answers, and the layers.
//!
//! ```text
//! scripts/fetch_stories15m.sh && cargo run --release -- compress .cache/models/stories15M -o .cache/stories15m-int8
//! printf 'Once upon a time, there was a little girl. She had a red ball. %.0s' {1..40} > .cache/story.txt
//! cargo run --release --example parity -- .cache/models/stories15M .cache/stories15m-int8 .cache/story.txt .cache/report.html
//!
//! | figure                       | value                        |
//! |------------------------------|------------------------------|
//! | scored                       | 679 tokens, 3 windows of 256 |
//! | perplexity of the reference  | 5.5393                       |
//! | perplexity of the compressed | 5.5867 (+0.85 %)             |
//! | KL mean                      | 0.001675 nats                |
//! ...
//! | weights of the reference     | 60.77 MB                     |
//! | weights of the compressed    | 12.52 MB                     |
//!
//! | layer              | error behind it, of its own      |
//! |--------------------|----------------------------------|
//! | model.embed_tokens | 0.0099  0.0087  first steep rise |
//! | model.layers.0     | 0.0156  0.0113                   |
//! ...
//! 2 of 3 answers agree to the end; the first to diverge does so behind 8 tokens
//! ```

use std::path::Path;

use anyhow::{bail, Context, Result};
use codecllm::parity::{compare, Options, Report};
use comfy_table::{presets, Table};

const WINDOW: usize = 256;
const WINDOWS: usize = 4;
const PROMPTS: [&str; 3] = ["Once upon a time", "The capital of France is", "To make bread, first"];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (model, out, text, page) = match &arguments[..] {
        [model, out, text] => (model, out, text, None),
        [model, out, text, page] => (model, out, text, Some(page)),
        _ => bail!("usage: parity MODEL_DIR OUT TEXT [REPORT.html]"),
    };
    let options = Options {
        window: Some(WINDOW),
        max_windows: Some(WINDOWS),
        prompts: PROMPTS.map(str::to_owned).to_vec(),
        raw: true, // continued as they are, without a chat template
        new_tokens: 32,
        ..Options::new(text)
    };
    let report = compare(model, out, &options, &mut |at| {
        eprintln!("{} {} of {}", at.stage, at.done, at.total);
    })?;
    print(&report);
    match page {
        Some(file) => write_page(&report, file.as_ref()),
        None => Ok(()),
    }
}

fn print(report: &Report) {
    let mut figures = table(["figure", "value"]);
    figures.add_rows(report.figures().into_iter().map(|(name, value)| [name.to_owned(), value]));
    let mut layers = table(["layer", "error behind it, of its own"]);
    for error in &report.layers {
        let errors = format!("{:.4}  {:.4}  {}", error.relative_error, error.own_error, report.remark(error));
        layers.add_row([error.layer.clone(), errors]);
    }
    let mut answers = table(["prompt", "where the answers diverge"]);
    for answer in &report.greedy {
        let parting = match &answer.divergence {
            None => format!("nowhere in {} tokens", answer.reference_tokens),
            Some(at) => format!("token {}: {:?} instead of {:?}", at.token, at.compressed, at.reference),
        };
        answers.add_row([answer.prompt.clone(), parting]);
    }
    println!("{figures}\n\n{layers}\n\n{answers}\n\n{}", report.greedy_summary());
}

fn table(header: [&str; 2]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_header(header);
    table
}

fn write_page(report: &Report, file: &Path) -> Result<()> {
    std::fs::write(file, report.html()?).with_context(|| file.display().to_string())
}
