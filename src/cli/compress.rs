//! `codecllm compress`: a model directory to a compressed one.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::ValueEnum;
use codecllm::checkpoint::{self, CompressReport, Target};
use serde::Serialize;

use super::model::float;
use super::output::{bytes, decibels, pairs, Measured, Output};
use super::selection::SelectionArgs;

const EXAMPLES: &str = "\
Examples:
  codecllm compress MODEL_DIR -o OUT
  codecllm compress MODEL_DIR -o OUT --bits 5.3 --layout small
  codecllm compress MODEL_DIR -o OUT --include 'model.layers.*' --exclude '*.v_proj.weight'

OUT must not exist; it appears when it is complete. Norms and biases stay as they are.";

/// Compress a model directory into a new one
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The model directory to compress
    model_dir: PathBuf,
    /// The directory to write
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// A named grid [default: int8]
    #[arg(long, value_enum, conflicts_with = "bits")]
    preset: Option<Preset>,
    /// Bits a weight to spend on the whole model, 2.5 to 8.5, everything counted
    #[arg(long, value_name = "B", value_parser = budget)]
    bits: Option<f64>,
    #[command(flatten)]
    selection: SelectionArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Preset {
    /// One step per output row, its largest magnitude over 127
    Int8,
}

#[derive(Debug, Serialize)]
struct Report {
    choice: String,
    layout: &'static str,
    #[serde(flatten)]
    report: CompressReport,
}

pub(crate) fn run(args: Args, output: &Output) -> Result<()> {
    let start = Instant::now();
    let target = match (args.bits, args.preset) {
        (Some(bits), _) => Target::Bits(bits),
        (None, Some(Preset::Int8) | None) => Target::Int8,
    };
    let layout = args.selection.layout.name();
    let choice = target.to_string();
    output.note(format_args!("compressing at {choice}, layout {layout}"));
    let mut bar = output.progress();
    let options = args.selection.options(target);
    let report = checkpoint::compress(&args.model_dir, &args.output, &options, &mut |p| bar.show(&p))?;
    drop(bar);
    output.report(&Measured::since(start, Report { choice, layout, report }), text)
}

fn text(measured: &Measured<Report>) -> String {
    let Report { choice, layout, report } = &measured.report;
    let rows = [
        ("choice", format!("{choice}, layout {layout}")),
        ("weights", report.weights.to_string()),
        ("tensors", format!("{} compressed, {} kept", report.tensors.len(), report.kept.len())),
        ("original", bytes(report.original_bytes)),
        ("compressed", bytes(report.compressed_bytes)),
        (
            "bits per weight",
            format!("{:.3} (entropy of the grid {:.3})", report.bits_per_weight, report.grid_entropy_bits),
        ),
        ("ratio", format!("{:.3}", report.ratio)),
        ("SNR", decibels(report.snr_db)),
        ("largest error", format!("{:.3e}", report.max_error)),
    ];
    pairs(rows.into_iter().chain(measured.rows()))
}

fn budget(text: &str) -> Result<f64, String> {
    float(text, |bits| (2.5..=8.5).contains(&bits), "2.5 to 8.5")
}
