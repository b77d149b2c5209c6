//! `codecllm compress`: a model directory to a compressed one.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{bail, Result};
use codecllm::calibration::{self, calibrate};
use codecllm::checkpoint::{self, CompressReport, Target, TensorReport};
use codecllm::codec::Importance;
use serde::Serialize;

use super::interrupt;
use super::model::{at_least_one, budget};
use super::output::{bytes, decibels, pairs, Measured, Output};
use super::selection::{Preset, SelectionArgs};
use super::steps::Steps;

const EXAMPLES: &str = "\
Examples:
  codecllm compress MODEL_DIR -o OUT
  codecllm compress MODEL_DIR -o OUT --bits 5.3 --layout small
  codecllm compress MODEL_DIR -o OUT --preset lossless
  codecllm compress MODEL_DIR -o OUT --preset balanced --calibrate TEXT
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
    /// A named choice [default: int8]
    #[arg(long, value_enum, conflicts_with = "bits")]
    preset: Option<Preset>,
    /// Bits a weight to spend on the whole model, 2.5 to 8.5, everything counted
    #[arg(long, value_name = "B", value_parser = budget)]
    bits: Option<f64>,
    /// Run the model on the UTF-8 text in FILE first, and spend bits where errors would change its answers; with --bits or a
    /// preset that is a size
    #[arg(long, value_name = "FILE")]
    calibrate: Option<PathBuf>,
    /// Windows of the text to read, 512 tokens each
    #[arg(long, value_name = "N", value_parser = at_least_one, default_value_t = calibration::DEFAULT_WINDOWS)]
    calibrate_windows: usize,
    #[command(flatten)]
    selection: SelectionArgs,
}

/// Tensors whose reason to be stored as they are is printed.
const MOST_REASONS: usize = 3;

#[derive(Debug, Serialize)]
struct Report {
    choice: String,
    layout: &'static str,
    #[serde(flatten)]
    report: CompressReport,
}

pub(crate) fn run(args: Args, output: &Output) -> Result<()> {
    let start = Instant::now();
    let target = Preset::target_or(args.preset, args.bits);
    let layout = match (target, args.selection.layout) {
        (Target::Lossless, None) => "exact",
        (Target::Lossless, Some(_)) => {
            let message = "--layout is of grids, --preset lossless has layouts of its own\n";
            // Bad arguments, like those that the parser finds by itself.
            clap::Error::raw(clap::error::ErrorKind::ArgumentConflict, message).exit()
        }
        (_, layout) => layout.unwrap_or_default().name(),
    };
    let choice = target.to_string();
    let options = args.selection.options(target);
    let importance = match &args.calibrate {
        Some(text) => Some(importance(&args.model_dir, text, args.calibrate_windows, target, output)?),
        None => None,
    };
    output.note(format_args!("compressing at {choice}, layout {layout}"));
    interrupt::clean_up()?;
    let mut bar = output.progress();
    let mut show = |p: checkpoint::Progress<'_>| bar.show(&p);
    let (dir, out) = (&args.model_dir, &args.output);
    let report = match &importance {
        Some(importance) => checkpoint::compress_calibrated(dir, out, &options, importance, &mut show)?,
        None => checkpoint::compress(dir, out, &options, &mut show)?,
    };
    drop(bar);
    output.report(&Measured::since(start, Report { choice, layout, report }), text)
}

fn importance(
    dir: &Path,
    text: &Path,
    windows: usize,
    target: Target,
    output: &Output,
) -> Result<HashMap<String, Importance>> {
    if !matches!(target, Target::Bits(_)) {
        bail!("--calibrate: {target} has steps of its own, wanted --bits or a preset that is a size");
    }
    output.note(format_args!("calibrating on {}", text.display()));
    let options = calibration::Options { windows, ..calibration::Options::new(text) };
    let mut steps = Steps::new(output);
    Ok(calibrate(dir, &options, &mut |done, total| steps.show("calibrate", done, total, ""))?.importance)
}

fn text(measured: &Measured<Report>) -> String {
    let Report { choice, layout, report } = &measured.report;
    let rows = [
        ("choice", format!("{choice}, layout {layout}")),
        ("weights", report.weights.to_string()),
        ("tensors", format!("{} compressed, {} kept", report.tensors.len(), report.kept.len())),
        ("original", bytes(report.original_bytes)),
        ("compressed", bytes(report.compressed_bytes)),
        ("bits per weight", format!("{:.3} ({})", report.bits_per_weight, bound(report))),
        ("ratio", format!("{:.3}", report.ratio)),
        ("SNR", decibels(report.snr_db)),
        ("largest error", format!("{:.3e}", report.max_error)),
    ];
    let gain = report.calibration.map(|gain| {
        let (calibrated, free) = (gain.expected_divergence, gain.data_free_divergence);
        (
            "expected divergence",
            format!("{calibrated:.6} nats, data-free {free:.6} ({:+.1} %)", -100.0 * gain.gain),
        )
    });
    let uncoded = report.uncoded.iter().take(MOST_REASONS);
    let reasons = uncoded.map(|kept| ("stored as it is", format!("{}: {}", kept.tensor_path, kept.reason)));
    let rest = report.uncoded.len().saturating_sub(MOST_REASONS);
    let more = (rest > 0).then(|| ("stored as they are", format!("{rest} more (--json lists them)")));
    let other_layout =
        |tensor: &TensorReport| Some(format!("{}: {}", tensor.tensor_path, tensor.layout_reason.as_ref()?));
    let other_layouts: Vec<String> = report.tensors.iter().filter_map(other_layout).collect();
    let beyond = other_layouts.len().saturating_sub(MOST_REASONS);
    let other_layouts = other_layouts.into_iter().take(MOST_REASONS).map(|reason| ("layout small", reason));
    let further = (beyond > 0).then(|| ("layout small", format!("{beyond} more (--json lists them)")));
    let gain = gain.into_iter().chain(other_layouts).chain(further);
    pairs(rows.into_iter().chain(gain).chain(reasons).chain(more).chain(measured.rows()))
}

/// What the bits of the compressed weights cannot go below, weight by weight.
fn bound(report: &CompressReport) -> String {
    match (report.grid_entropy_bits, report.exponent_entropy_and_raw_bits) {
        (Some(bits), _) => format!("entropy of the grid {bits:.3}"),
        (None, Some(bits)) => format!("entropy of the exponents, and all other bits {bits:.3}"),
        (None, None) => "nothing coded".to_owned(),
    }
}
