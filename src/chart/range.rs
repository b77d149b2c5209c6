//! From where to where an axis goes.

use std::ops::Range;

use super::{Chart, Scale};

/// Share of a linear range that is left free at its ends.
const MARGIN: f64 = 0.04;
/// The most that a logarithmic axis shows below its largest value: what is smaller is nothing beside it.
const MOST_DECADES: f64 = 9.0;

/// The range of an axis, and whether it is logarithmic.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct AxisRange {
    pub(super) range: Range<f64>,
    pub(super) is_log: bool,
}

/// The ranges of both axes.
pub(super) fn ranges(chart: &Chart<'_>) -> [AxisRange; 2] {
    let points: Vec<(f64, f64)> = chart.series.iter().flat_map(|series| series.finite()).collect();
    let xs = points.iter().map(|(x, _)| *x);
    let ys = points.iter().map(|(_, y)| *y);
    [axis_range(xs.collect(), chart.x.scale), axis_range(ys.collect(), chart.y.scale)]
}

fn axis_range(values: Vec<f64>, scale: Scale) -> AxisRange {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if scale == Scale::Log && most > 0.0 {
        let positive = values.iter().copied().filter(|value| *value > 0.0);
        let least = positive.fold(f64::INFINITY, f64::min).max(most * 10f64.powf(-MOST_DECADES));
        let decade = |value: f64, up: bool| {
            let log = value.log10();
            10f64.powf(if up { (log + 0.01).ceil() } else { (log - 0.01).floor() })
        };
        return AxisRange { range: decade(least, false)..decade(most, true), is_log: true };
    }
    let (least, most) = match (values.is_empty(), scale) {
        (true, _) => (0.0, 1.0),
        (_, Scale::Linear | Scale::Whole) => (least, most),
        _ => (least.min(0.0), most.max(0.0)),
    };
    let span = if most > least { most - least } else { least.abs().max(1.0) };
    let below =
        if matches!(scale, Scale::Linear | Scale::Whole) || least < 0.0 { MARGIN * span } else { 0.0 };
    AxisRange { range: least - below..most.max(least + span * 0.5) + MARGIN * span, is_log: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_inside() {
        for (values, scale) in [
            (vec![3.0, 3.0], Scale::Linear),
            (vec![0.0], Scale::FromZero),
            (vec![-2.0, 5.0], Scale::FromZero),
            (vec![1e-3, 1.0, 1000.0], Scale::Log),
            (vec![0.0, 0.0], Scale::Log),
            (vec![0.2], Scale::Log),
        ] {
            let AxisRange { range, is_log } = axis_range(values.clone(), scale);
            assert!(range.start < range.end, "{values:?} {scale:?}: {range:?}");
            assert!(values.iter().all(|value| range.contains(value)), "{values:?} {scale:?}: {range:?}");
            assert_eq!(is_log, scale == Scale::Log && values.iter().any(|value| *value > 0.0));
        }
    }

    #[test]
    fn zeros_do_not_stretch_a_logarithmic_axis() {
        let AxisRange { range, .. } = axis_range(vec![0.0, 1e-30, 0.5], Scale::Log);
        assert!(range.start > 1e-11 && range.end <= 1.0 + 1e-9, "{range:?}");
    }
}
