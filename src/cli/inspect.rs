//! `codecllm inspect`: what a model directory is made of.

use std::path::PathBuf;

use anyhow::Result;
use codecllm::checkpoint::{self, InspectReport, InspectTensor};

use super::output::{bytes, pairs, shape, table, Output};

const EXAMPLES: &str = "\
Examples:
  codecllm inspect OUT
  codecllm inspect MODEL_DIR --json

One line a tensor: shape, dtype, layout (- is stored as it is), bytes, bits a weight, tile shape, tiles, frequency tables,
tiles by number of raw magnitude bits (bits:tiles), and weights coded as escapes.";

/// List the tensors of a model directory and how each is coded
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// A model directory, compressed or not
    model: PathBuf,
}

pub(crate) fn run(args: Args, output: &Output) -> Result<()> {
    let report = checkpoint::inspect(&args.model)?;
    output.report(&report, text)
}

fn text(report: &InspectReport) -> String {
    let header = [
        "tensor path",
        "shape",
        "dtype",
        "layout",
        "bytes",
        "bits/weight",
        "tile",
        "tiles",
        "tables",
        "raw bits:tiles",
        "escapes",
    ];
    let mut table = table(&header);
    report.tensors.iter().for_each(|tensor| {
        table.add_row(row(tensor));
    });
    let total = pairs([
        ("format version", report.format_version.to_string()),
        ("weights", report.weights.to_string()),
        ("tensor files", bytes(report.file_bytes)),
        ("bits per weight", format!("{:.3}", report.bits_per_weight)),
    ]);
    format!("{table}\n\n{total}")
}

fn row(tensor: &InspectTensor) -> [String; 11] {
    [
        tensor.tensor_path.clone(),
        shape(&tensor.shape),
        tensor.dtype.clone(),
        tensor.layout.unwrap_or("-").to_owned(),
        tensor.bytes.to_string(),
        format!("{:.3}", tensor.bits_per_weight),
        tensor.tile.map_or_else(dash, |tile| shape(&tile)),
        tensor.tiles.map_or_else(dash, |tiles| tiles.to_string()),
        tensor.tables.map_or_else(dash, |tables| tables.to_string()),
        raw_bits(&tensor.raw_bits),
        tensor.escapes.map_or_else(dash, |escapes| escapes.to_string()),
    ]
}

fn dash() -> String {
    "-".to_owned()
}

/// Tiles by number of raw magnitude bits, those that occur: `3:120 4:8`.
fn raw_bits(tiles: &[usize]) -> String {
    let used = tiles.iter().enumerate().filter(|(_, &tiles)| tiles > 0);
    let text: Vec<String> = used.map(|(bits, tiles)| format!("{bits}:{tiles}")).collect();
    if text.is_empty() {
        dash()
    } else {
        text.join(" ")
    }
}
