//! `codecllm stats`: what each choice would make of a model.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use codecllm::checkpoint::{self, CurvePoint, StatsReport, StatsTensor, Target};

use super::output::{bytes, decibels, pairs, shape, table, Measured, Output};
use super::selection::SelectionArgs;

const EXAMPLES: &str = "\
Examples:
  codecllm stats MODEL_DIR
  codecllm stats MODEL_DIR --layout small --include '*.mlp.*'

The first table has one line a matrix, with its size and error at int8; the second has what each choice gives over all of
them. Nothing is written.";

/// Show what each choice would make of a model, before anything is written
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The model directory
    model_dir: PathBuf,
    #[command(flatten)]
    selection: SelectionArgs,
}

pub(crate) fn run(args: Args, output: &Output) -> Result<()> {
    let start = Instant::now();
    let mut bar = output.progress();
    let options = args.selection.options(Target::Int8);
    let report = checkpoint::stats(&args.model_dir, &options, &mut |p| bar.show(&p))?;
    drop(bar);
    output.report(&Measured::since(start, report), text)
}

fn text(measured: &Measured<StatsReport>) -> String {
    let report = &measured.report;
    let mut tensors =
        table(&["tensor path", "shape", "dtype", "rms", "absmax", "int8 bits/weight", "int8 SNR"]);
    report.tensors.iter().for_each(|tensor| {
        tensors.add_row(tensor_row(tensor));
    });
    let mut curve = table(&["choice", "bits/weight", "grid entropy", "exponent entropy + raw bits", "SNR"]);
    report.curve.iter().for_each(|point| {
        curve.add_row(curve_row(point));
    });
    let total = [
        ("weights of these matrices", report.weights.to_string()),
        ("their bytes", bytes(report.original_bytes)),
    ];
    format!("{tensors}\n\n{curve}\n\n{}", pairs(total.into_iter().chain(measured.rows())))
}

fn tensor_row(tensor: &StatsTensor) -> [String; 7] {
    [
        tensor.tensor_path.clone(),
        shape(&tensor.shape),
        tensor.dtype.clone(),
        format!("{:.5}", tensor.rms),
        format!("{:.4}", tensor.absmax),
        format!("{:.3}", tensor.int8.bits_per_weight),
        decibels(tensor.int8.snr_db),
    ]
}

fn curve_row(point: &CurvePoint) -> [String; 5] {
    [
        point.choice.clone(),
        format!("{:.3}", point.bits_per_weight),
        entropy(point.grid_entropy_bits),
        entropy(point.exponent_entropy_and_raw_bits),
        decibels(point.snr_db),
    ]
}

fn entropy(bits: Option<f64>) -> String {
    bits.map_or_else(|| "-".to_owned(), |bits| format!("{bits:.3}"))
}
