//! A comparison as charts.

use super::{LayerError, Report, WindowScore};
use crate::chart::{Axis, Chart, Color, Corner, Mark, Scale, Series};

/// As wide as a phone shows without making its text much smaller.
const SIZE: (u32, u32) = (480, 320);

/// The errors from layer to layer.
pub(super) fn layers(report: &Report) -> Chart<'static> {
    let line = |name: &str, color, error: fn(&LayerError) -> f64| {
        let points = report.layers.iter().enumerate().map(|(at, layer)| (at as f64, error(layer))).collect();
        Series { name: Some(name.to_owned()), color, mark: Mark::Line, points }
    };
    let wrong = report
        .layers
        .iter()
        .enumerate()
        .filter(|(_, e)| e.own_error.is_finite() && report.conspicuous_layers.contains(&e.layer));
    let (points, labels) =
        wrong.map(|(at, e)| ((at as f64, e.own_error), short(&e.layer).to_owned())).unzip();
    Chart {
        title: "Error of embedding, layers and head",
        x: Axis { label: "embedding (0), layers, head", scale: Scale::Whole },
        y: Axis { label: "relative error", scale: Scale::Log },
        series: vec![
            line("piled up", Color::First, |error| error.relative_error),
            line("of its own", Color::Second, |error| error.own_error),
            Series { name: None, color: Color::Second, mark: Mark::Labels(labels), points },
        ],
        legend: Corner::UpperLeft,
        size: SIZE,
    }
}

/// `model.layers.3` as `layers.3`.
fn short(layer: &str) -> &str {
    layer.strip_prefix("model.").unwrap_or(layer)
}

/// The divergence that a share of the positions stays within.
pub(super) fn divergence(report: &Report) -> Chart<'static> {
    let points =
        report.kl_percentiles.iter().enumerate().map(|(percent, kl)| (percent as f64, *kl)).collect();
    Chart {
        title: "Divergence that a share of the positions stays within",
        x: Axis { label: "% of the positions", scale: Scale::Linear },
        y: Axis { label: "KL, nats", scale: Scale::Log },
        series: vec![Series { name: None, color: Color::First, mark: Mark::Line, points }],
        legend: Corner::UpperLeft,
        size: SIZE,
    }
}

/// What each window of the text finds.
pub(super) fn windows(report: &Report) -> Chart<'static> {
    let change =
        |score: &WindowScore| (score.perplexity_compressed / score.perplexity_reference - 1.0) * 100.0;
    let points = report.per_window.iter().enumerate().map(|(at, score)| (at as f64, change(score))).collect();
    Chart {
        title: "Change of perplexity, window by window",
        x: Axis { label: "window", scale: Scale::Whole },
        y: Axis { label: "change of perplexity, %", scale: Scale::FromZero },
        series: vec![Series { name: None, color: Color::Third, mark: Mark::Dots, points }],
        legend: Corner::UpperLeft,
        size: SIZE,
    }
}
