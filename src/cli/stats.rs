//! `codecllm stats`: what each choice would make of a model.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use codecllm::checkpoint::{self, bits_at_snr, CurvePoint, StatsReport, StatsTensor, Target};
use codecllm::Error;

use super::model::budget;
use super::output::{bytes, decibels, pairs, shape, table, Measured, Output};
use super::selection::SelectionArgs;

const EXAMPLES: &str = "\
Examples:
  codecllm stats MODEL_DIR
  codecllm stats MODEL_DIR --bits 5.3 --chart CURVE.svg
  codecllm stats MODEL_DIR --layout small --include '*.mlp.*'

The first table has one line a matrix: the bits a weight of each choice, and those that a signal-to-noise ratio of 20, 30 and 40 dB
takes. The second has each choice, and steps from fine to coarse, over all of them. Everything is tried on samples. No model is
written.";

/// Signal-to-noise ratios of which the bits are shown for each matrix, dB.
const SNR_COLUMNS: [f64; 3] = [20.0, 30.0, 40.0];

/// Show what each choice would make of a model, before anything is written
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The model directory
    model_dir: PathBuf,
    /// Show also what this many bits a weight for the whole model would give, 2.5 to 8.5
    #[arg(long, value_name = "B", value_parser = budget)]
    bits: Option<f64>,
    /// Write the curve as an SVG chart, over what is there
    #[arg(long, value_name = "FILE")]
    chart: Option<PathBuf>,
    #[command(flatten)]
    selection: SelectionArgs,
}

pub(crate) fn run(args: Args, output: &Output) -> Result<()> {
    let start = Instant::now();
    let mut bar = output.progress();
    let options = args.selection.options(args.bits.map_or(Target::Int8, Target::Bits));
    let report = checkpoint::stats(&args.model_dir, &options, &mut |p| bar.show(&p))?;
    drop(bar);
    if let Some(file) = &args.chart {
        std::fs::write(file, report.chart()?).map_err(|e| Error::io(file, e))?;
    }
    output.report(&Measured::since(start, report), text)
}

fn text(measured: &Measured<StatsReport>) -> String {
    let report = &measured.report;
    let mut curve = table(&["choice", "bits/weight", "grid entropy", "exponent entropy + raw bits", "SNR"]);
    report.choices.iter().chain(&report.curve).for_each(|point| {
        curve.add_row(curve_row(point));
    });
    let total = [
        ("weights of these matrices", report.weights.to_string()),
        ("their bytes", bytes(report.original_bytes)),
    ];
    let unmet =
        report.unmet.iter().map(|unmet| ("cannot be met", format!("{}: {}", unmet.choice, unmet.reason)));
    let pairs = pairs(total.into_iter().chain(unmet).chain(measured.rows()));
    format!("{}\n\n{curve}\n\n{pairs}", tensors(report))
}

fn tensors(report: &StatsReport) -> String {
    let choices = report.choices.iter().map(|point| point.choice.clone());
    let ratios = SNR_COLUMNS.iter().map(|snr| format!("{snr} dB"));
    let fixed = ["tensor path", "shape", "dtype", "rms", "absmax"].map(str::to_owned);
    let header: Vec<String> = fixed.into_iter().chain(choices).chain(ratios).collect();
    let mut tensors = table(&header.iter().map(String::as_str).collect::<Vec<_>>());
    report.tensors.iter().for_each(|tensor| {
        tensors.add_row(tensor_row(tensor));
    });
    tensors.to_string()
}

fn tensor_row(tensor: &StatsTensor) -> Vec<String> {
    let choices = tensor.choices.iter().map(|point| Some(point.bits_per_weight));
    let ratios = SNR_COLUMNS.iter().map(|snr| bits_at_snr(&tensor.curve, *snr));
    let fixed = [
        tensor.tensor_path.clone(),
        shape(&tensor.shape),
        tensor.dtype.clone(),
        format!("{:.5}", tensor.rms),
        format!("{:.4}", tensor.absmax),
    ];
    fixed.into_iter().chain(choices.chain(ratios).map(bits)).collect()
}

fn curve_row(point: &CurvePoint) -> [String; 5] {
    [
        point.choice.clone(),
        format!("{:.3}", point.bits_per_weight),
        bits(point.grid_entropy_bits),
        bits(point.exponent_entropy_and_raw_bits),
        decibels(point.snr_db),
    ]
}

fn bits(bits: Option<f64>) -> String {
    bits.map_or_else(|| "-".to_owned(), |bits| format!("{bits:.3}"))
}
