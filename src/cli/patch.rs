//! `codecllm patch`: a TorchScript file to one whose linears are compressed.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use codecllm::torchscript::{patch_linears, Module, PatchOptions, PatchReport};
use codecllm::Error;
use serde::Serialize;
use tch::Device;

use super::model::budget;
use super::output::{bytes, decibels, pairs, shape, table, Measured, Output};
use super::selection::{Preset, SelectionArgs};

const EXAMPLES: &str = "\
Examples:
  codecllm patch MODEL.pt -o PATCHED.pt
  codecllm patch MODEL.pt -o PATCHED.pt --bits 5.3 --embeddings
  codecllm patch MODEL.pt -o PATCHED.pt --preset lossless --exclude '*lm_head*'

MODEL.pt is what torch.jit.save writes: scripted, traced or frozen. PATCHED.pt must not exist; it runs wherever libcodecllm.so is
loaded (torch.ops.load_library in Python, dlopen in C++) and in Rust programs that use this crate. A size is of the patched matrices.";

/// Compress the linears of a TorchScript file
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The TorchScript file to patch
    model: PathBuf,
    /// The file to write
    #[arg(short, long, value_name = "PATCHED.pt")]
    output: PathBuf,
    /// A named choice [default: int8]
    #[arg(long, value_enum, conflicts_with = "bits")]
    preset: Option<Preset>,
    /// Bits a weight to spend on the patched matrices, 2.5 to 8.5, everything counted
    #[arg(long, value_name = "B", value_parser = budget)]
    bits: Option<f64>,
    /// Leave matrices with fewer weights as they are
    #[arg(long, value_name = "N", default_value_t = 0)]
    min_weights: usize,
    /// Compress tables whose rows are only looked up, too (one that a head shares is compressed in any case)
    #[arg(long)]
    embeddings: bool,
    #[command(flatten)]
    selection: SelectionArgs,
}

#[derive(Debug, Serialize)]
struct Report {
    choice: String,
    original_file_bytes: u64,
    patched_file_bytes: u64,
    bits_per_weight: f64,
    #[serde(flatten)]
    report: PatchReport,
}

pub(crate) fn run(args: Args, output: &Output) -> Result<()> {
    let start = Instant::now();
    let target = Preset::target_or(args.preset, args.bits);
    let selection = args.selection.options(target);
    let options = PatchOptions {
        target,
        layout: selection.layout,
        include: selection.include,
        exclude: selection.exclude,
        min_weights: args.min_weights,
        embeddings: args.embeddings,
    };
    if args.output.exists() {
        return Err(Error::invalid(
            args.output.display().to_string(),
            "exists already; give another name or remove it",
        )
        .into());
    }
    let spinner = output.spinner("compressing");
    let mut module = Module::load(&args.model, Device::Cpu)?;
    let report = patch_linears(&mut module, &options)?;
    module.save(&args.output)?;
    spinner.finish_and_clear();
    let size =
        |path: &PathBuf| std::fs::metadata(path).map(|data| data.len()).map_err(|e| Error::io(path, e));
    let report = Report {
        choice: target.to_string(),
        original_file_bytes: size(&args.model)?,
        patched_file_bytes: size(&args.output)?,
        bits_per_weight: report.bits_per_weight(),
        report,
    };
    output.report(&Measured::since(start, report), text)
}

fn text(measured: &Measured<Report>) -> String {
    let Report { choice, original_file_bytes, patched_file_bytes, bits_per_weight, report } =
        &measured.report;
    let mut patched = table(&["patched", "shape", "bits a weight", "SNR"]);
    for matrix in &report.patched {
        patched.add_row([
            matrix.paths.join(", "),
            shape(&matrix.shape),
            format!("{:.3}", matrix.stats.bits_per_weight),
            decibels(matrix.stats.snr_db),
        ]);
    }
    let mut skipped = table(&["left as it is", ""]);
    for matrix in &report.skipped {
        skipped.add_row([matrix.paths.join(", "), matrix.reason.clone()]);
    }
    let figures = pairs(
        [
            ("choice", choice.clone()),
            ("patched", format!("{} matrices, {} weights", report.patched.len(), report.weights)),
            (
                "their bytes",
                format!("{} of {}", bytes(report.compressed_bytes), bytes(report.original_bytes)),
            ),
            ("bits a weight", format!("{bits_per_weight:.3}")),
            ("file", format!("{} of {}", bytes(*patched_file_bytes), bytes(*original_file_bytes))),
        ]
        .into_iter()
        .chain(measured.rows()),
    );
    let mut parts = vec![figures];
    if !report.patched.is_empty() {
        parts.push(patched.to_string());
    }
    if !report.skipped.is_empty() {
        parts.push(skipped.to_string());
    }
    parts.join("\n\n")
}
