//! The figures for people.

use super::layers::ForwardTime;
use super::matrix::MatrixReport;
use super::model::ModelReport;
use super::Report;
use crate::cli::output::table;

/// All of a report.
pub(super) fn report(report: &Report) -> String {
    let choice = report.bits.map_or_else(|| "int8".to_owned(), |bits| format!("{bits} bits"));
    let title = format!(
        "{choice}, layout {}, {} threads, best level {}",
        report.layout, report.threads, report.level
    );
    let matrices = report.matrices.iter().map(matrix);
    std::iter::once(title)
        .chain(matrices)
        .chain(report.model.as_ref().map(model))
        .collect::<Vec<_>>()
        .join("\n\n")
}

fn matrix(report: &MatrixReport) -> String {
    let [rows, cols] = report.shape;
    let mut coding = table(&["", "threads", "G weights/s", "MB/s of FP16", "median ms", "fastest ms"]);
    let encode = report.encode.iter().map(|time| ("encode from", time));
    for (verb, time) in encode.chain(report.decode.iter().map(|time| ("decode to", time))) {
        coding.add_row([
            format!("{verb} {}, {}", time.what, time.level),
            time.threads.to_string(),
            format!("{:.3}", time.gweights_per_second),
            format!("{:.0}", time.fp16_mb_per_second),
            milliseconds(time.timing.median_seconds),
            milliseconds(time.timing.min_seconds),
        ]);
    }
    let entropy =
        report.grid_entropy_bits.map_or_else(String::new, |bits| format!(", entropy of the grid {bits:.3}"));
    let bits = format!("{rows}x{cols}: {:.3} bits/weight{entropy}", report.bits_per_weight);
    format!("{bits}\n{coding}\n{}", forward(&report.forward, report.scratch_wins_at))
}

fn model(report: &ModelReport) -> String {
    let ModelReport { linears, weights, bits_per_weight, .. } = report;
    let title = format!("{linears} linears, {weights} weights, {bits_per_weight:.3} bits/weight");
    format!("{title}\n{}", forward(&report.forward, report.scratch_wins_at))
}

fn forward(times: &[ForwardTime], scratch_wins_at: Option<usize>) -> String {
    let mut table = table(&["forward", "batch", "ns/weight", "median ms", "fastest ms", "of dense fp16"]);
    for time in times {
        let dense = times.iter().find(|other| other.batch == time.batch && other.path == "dense fp16");
        let ratio = dense.map_or(f64::NAN, |dense| dense.timing.median_seconds / time.timing.median_seconds);
        table.add_row([
            time.path.clone(),
            time.batch.to_string(),
            format!("{:.3}", time.ns_per_weight),
            milliseconds(time.timing.median_seconds),
            milliseconds(time.timing.min_seconds),
            format!("{ratio:.2}x"),
        ]);
    }
    let crossover = scratch_wins_at
        .map_or_else(|| "at no batch timed".to_owned(), |batch| format!("from {batch} rows on"));
    format!("{table}\nscratch beats fused {crossover}")
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.3}", seconds * 1e3)
}
