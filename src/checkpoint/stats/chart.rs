//! The curve as a chart.

use super::{CurvePoint, StatsReport};
use crate::chart::{Axis, Chart, Color, Corner, Mark, Scale, Series};
use crate::error::Result;

const SIZE: (u32, u32) = (760, 500);

impl StatsReport {
    /// Bits against signal-to-noise ratio as an SVG file: each matrix, all together, the entropy bound, and every choice. It has a dark
    /// variant.
    ///
    /// # Errors
    /// `InvalidArgument` where it cannot be drawn.
    pub fn chart(&self) -> Result<String> {
        let chart = Chart {
            title: "Bits a weight against signal-to-noise ratio",
            x: Axis { label: "bits a weight", scale: Scale::Linear },
            y: Axis { label: "signal to noise, dB", scale: Scale::FromZero },
            series: self.series(),
            legend: Corner::LowerRight,
            size: SIZE,
        };
        chart.file()
    }

    /// From back to front.
    fn series(&self) -> Vec<Series> {
        let line = |name: Option<&str>, color, mark, points| Series {
            name: name.map(str::to_owned),
            color,
            mark,
            points,
        };
        let mut series: Vec<Series> = Vec::new();
        for (index, tensor) in self.tensors.iter().enumerate() {
            // One speaks for all of them.
            let name = (index == 0).then_some("each matrix");
            series.push(line(name, Color::Faint, Mark::Hairline, bits_and_snr(&tensor.curve)));
        }
        let bound =
            self.curve.iter().filter_map(|point| Some((point.grid_entropy_bits?, point.snr_db))).collect();
        series.push(line(Some("entropy of the grids"), Color::Third, Mark::Line, bound));
        series.push(line(Some("all matrices"), Color::First, Mark::Line, bits_and_snr(&self.curve)));
        series.push(self.choices_on_top());
        series
    }

    /// Each choice with its name; what is exact lies as high as the curves go.
    fn choices_on_top(&self) -> Series {
        let most =
            self.curve.iter().map(|point| point.snr_db).filter(|snr| snr.is_finite()).fold(0.0, f64::max);
        let place = |point: &CurvePoint| (point.bits_per_weight, point.snr_db.min(most));
        let label = |point: &CurvePoint| match point.snr_db.is_finite() {
            true => format!("{} ({:.2})", point.choice, point.bits_per_weight),
            false => format!("{} ({:.2}, exact)", point.choice, point.bits_per_weight),
        };
        Series {
            name: None,
            color: Color::Second,
            mark: Mark::Labels(self.choices.iter().map(label).collect()),
            points: self.choices.iter().map(place).collect(),
        }
    }
}

fn bits_and_snr(curve: &[CurvePoint]) -> Vec<(f64, f64)> {
    curve.iter().map(|point| (point.bits_per_weight, point.snr_db)).collect()
}
