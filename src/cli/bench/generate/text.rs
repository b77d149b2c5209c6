//! The figures for people.

use super::report::{ModelFigures, Report};
use crate::cli::output::{bytes, table};

/// Both models and how they compare.
pub(super) fn report(report: &Report) -> String {
    let device = report.device.as_ref().map_or("CPU", |device| device.name.as_str());
    let title = format!(
        "shape {}, {} on {device}, libtorch {}, {} bits",
        report.config, report.dtype, report.torch, report.bits
    );
    let mut ratios =
        table(&["compressed over dense", "batch", "tokens/s", "first token", "linears", "peak memory"]);
    for at in &report.ratios {
        ratios.add_row([
            String::new(),
            at.batch.to_string(),
            format!("{:.2}x", at.tokens_per_second),
            format!("{:.2}x", at.first_token_speed),
            or_unknown(at.linears_speed, |speed| format!("{speed:.2}x")),
            or_unknown(at.peak_device_bytes, |share| format!("{share:.3}")),
        ]);
    }
    [title, model("dense", &report.dense), model("compressed", &report.compressed), ratios.to_string()]
        .join("\n\n")
}

/// One model.
pub(super) fn model(name: &str, figures: &ModelFigures) -> String {
    let title = format!(
        "{name}: {} weights, {:.3} bits/weight, {}; made in {:.1} s",
        figures.weights,
        figures.bits_per_weight,
        bytes(figures.weight_bytes as u64),
        figures.load_seconds,
    );
    let mut table = table(&[
        "generation",
        "batch",
        "prompt",
        "new",
        "first token ms",
        "tokens/s",
        "step us",
        "linears us",
        "rest us",
        "peak memory",
    ]);
    for at in &figures.generation {
        table.add_row([
            String::new(),
            at.batch.to_string(),
            at.prompt_tokens.to_string(),
            at.new_tokens.to_string(),
            format!("{:.2}", at.first_token_seconds * 1e3),
            format!("{:.1}", at.tokens_per_second),
            format!("{:.1}", at.step_us),
            or_unknown(at.linears_us, |us| format!("{us:.1}")),
            or_unknown(at.rest_us, |us| format!("{us:.1}")),
            or_unknown(at.peak_device_bytes, bytes),
        ]);
    }
    format!("{title}\n{table}")
}

fn or_unknown<T>(value: Option<T>, text: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), text)
}
