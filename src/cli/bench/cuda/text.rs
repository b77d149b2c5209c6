//! The figures for people.

use super::forward::ForwardTime;
use super::{LayerReport, Report};
use crate::cli::output::{pairs, shape, table, Measured};

/// All of a report.
pub(super) fn report(measured: &Measured<Report>) -> String {
    let report = &measured.report;
    let choice = match report.bits {
        _ if report.layout.starts_with("exact") => "lossless".to_owned(),
        Some(bits) => format!("{bits} bits"),
        None => "int8".to_owned(),
    };
    let title = format!(
        "{}, driver {}, libtorch {}; {choice}, layout {}, activations {}; a copy moves {:.2} TB/s",
        report.device.name,
        report.device.driver,
        report.torch,
        report.layout,
        report.dtype,
        report.copy_bytes_per_second / 1e12,
    );
    let kernels = format!(
        "{} kernel modules: compiled in {:.2} s, from the cache on disk in {:.3} s",
        report.kernels.count, report.kernels.compile_seconds, report.kernels.cached_seconds
    );
    let layers = report.layers.iter().map(layer);
    let mut parts: Vec<String> = [format!("{title}\n{kernels}")].into_iter().chain(layers).collect();
    if !report.step.is_empty() {
        parts.push(step(report));
    }
    parts.push(pairs(measured.rows()));
    parts.join("\n\n")
}

fn layer(report: &LayerReport) -> String {
    let title =
        format!("{} {}: {:.3} bits/weight", report.name, shape(&report.shape), report.bits_per_weight);
    let mut decode = table(&["decode to", "us", "T weights/s", "of copy"]);
    for time in &report.decode {
        decode.add_row([
            time.dtype.to_owned(),
            format!("{:.2}", time.timing.median_us),
            format!("{:.3}", time.tweights_per_second),
            format!("{:.2}", time.share_of_copy),
        ]);
    }
    let mut forward = table(&["forward", "batch", "us", "fastest us", "T weights/s", "of dense fp16"]);
    for ForwardTime { batch, path, timing, tweights_per_second, of_dense_fp16 } in &report.forward {
        forward.add_row([
            (*path).to_owned(),
            batch.to_string(),
            format!("{:.2}", timing.median_us),
            format!("{:.2}", timing.min_us),
            format!("{tweights_per_second:.3}"),
            format!("{of_dense_fp16:.2}x"),
        ]);
    }
    format!("{title}\n{decode}\n{forward}")
}

fn step(report: &Report) -> String {
    let mut step = table(&["all linears of one 8B step", "batch", "us", "of dense fp16"]);
    for time in &report.step {
        step.add_row([
            time.path.to_owned(),
            time.batch.to_string(),
            format!("{:.1}", time.median_us),
            format!("{:.2}x", time.of_dense_fp16),
        ]);
    }
    step.to_string()
}
