//! The figures for people.

use super::{ModelFigures, Report};
use crate::cli::output::{bytes, table};

/// Both models.
pub(super) fn report(report: &Report) -> String {
    let device = report.device.as_ref().map_or("CPU", |device| device.name.as_str());
    let title = format!(
        "shape {}, {} on {device}, libtorch {}, {} bits; prompts of {} tokens, answers of {}",
        report.config, report.dtype, report.torch, report.bits, report.prompt_tokens, report.new_tokens
    );
    [title, model("dense", &report.dense), model("compressed", &report.compressed)].join("\n\n")
}

/// One model.
pub(super) fn model(name: &str, figures: &ModelFigures) -> String {
    let mut table = table(&["clients", "prompt ms", "step us", "tokens/s", "gain", "cache"]);
    for at in &figures.clients {
        table.add_row([
            at.clients.to_string(),
            format!("{:.2}", at.prompt_seconds * 1e3),
            format!("{:.1}", at.step_us),
            format!("{:.1}", at.tokens_per_second),
            format!("{:.2}x", at.gain),
            bytes(at.cache_bytes as u64),
        ]);
    }
    format!("{name}: weights of {}\n{table}", bytes(figures.weight_bytes as u64))
}
