//! The drawing itself, by plotters.

use plotters::backend::SVGBackend;
use plotters::chart::{ChartBuilder, ChartContext, SeriesLabelPosition};
use plotters::coord::cartesian::Cartesian2d;
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::drawing::{DrawingAreaErrorKind, IntoDrawingArea};
use plotters::element::{Circle, EmptyElement, PathElement, Text};
use plotters::prelude::{DrawingBackend, IntoLogRange};
use plotters::series::LineSeries;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color as _, IntoFont, ShapeStyle, TextStyle};

use super::range::{ranges, AxisRange};
use super::{Chart, Color, Corner, Mark, Scale, Series};
use crate::error::{Error, Result};

/// Of all text, in plotters' unit: 1.24 make a pixel. On a phone, where charts are three quarters as wide, it is still legible.
const FONT_SIZE: u32 = 18;
/// The legend's sample of a color, pixels.
const SAMPLE_WIDTH: i32 = 14;

/// Where a dot's text ends, from the dot, pixels: clear of the curve through it.
const BESIDE: (i32, i32) = (-16, -2);

type DrawResult =
    std::result::Result<(), DrawingAreaErrorKind<<SVGBackend<'static> as DrawingBackend>::ErrorType>>;
type Context<'a, 'b, Y> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, Y>>;

/// The chart as an SVG document without anything that is not drawn.
pub(super) fn svg(chart: &Chart<'_>) -> Result<String> {
    let mut svg = String::new();
    draw(chart, SVGBackend::with_string(&mut svg, chart.size))
        .map_err(|e| Error::invalid(chart.title, format!("cannot be drawn: {e}")))?;
    Ok(svg)
}

fn draw(chart: &Chart<'_>, backend: SVGBackend<'_>) -> DrawResult {
    let [x, y] = ranges(chart);
    match y.is_log {
        true => draw_over(chart, backend, x.range, y.range.clone().log_scale(), &y),
        false => draw_over(chart, backend, x.range, y.range.clone(), &y),
    }
}

fn draw_over<Y>(
    chart: &Chart<'_>,
    backend: SVGBackend<'_>,
    x: std::ops::Range<f64>,
    y: Y,
    range: &AxisRange,
) -> DrawResult
where
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64> + 'static,
{
    let area = backend.into_drawing_area();
    area.fill(&Color::Paper.light())?;
    let mut context = ChartBuilder::on(&area)
        .margin(8)
        .margin_right(16)
        .x_label_area_size(46)
        .y_label_area_size(70)
        .build_cartesian_2d(x, y)?;
    context
        .configure_mesh()
        .axis_style(Color::Ink.light())
        .bold_line_style(Color::Grid.light())
        .light_line_style(Color::Paper.light().mix(0.0))
        .label_style(font())
        .axis_desc_style(font())
        .x_desc(chart.x.label)
        .y_desc(chart.y.label)
        .x_labels(7)
        .y_labels(7)
        .x_label_formatter(&|value| label(*value, chart.x.scale))
        .y_label_formatter(&|value| label(*value, chart.y.scale))
        .draw()?;
    for series in &chart.series {
        draw_series(&mut context, series, range)?;
    }
    if chart.series.iter().any(|series| series.name.is_some()) {
        draw_legend(&mut context, chart.legend)?;
    }
    drop(context);
    area.present()
}

fn draw_series<Y: Ranged<ValueType = f64> + 'static>(
    context: &mut Context<'_, '_, Y>,
    series: &Series,
    range: &AxisRange,
) -> DrawResult {
    let color = series.color.light();
    // A logarithm has no place for zero.
    let points: Vec<(f64, f64)> = series.finite().map(|(x, y)| (x, y.max(range.range.start))).collect();
    let dots = |radius: u32| points.iter().map(move |&at| Circle::new(at, radius, color.filled()));
    let drawn = match &series.mark {
        Mark::Line => context.draw_series(LineSeries::new(points.clone(), color.stroke_width(2)))?,
        Mark::Hairline => context.draw_series(LineSeries::new(points.clone(), color.stroke_width(1)))?,
        Mark::Dots => context.draw_series(dots(3))?,
        Mark::Labels(labels) => {
            let texts = points
                .iter()
                .zip(labels)
                .map(|(&at, label)| EmptyElement::at(at) + Text::new(label.clone(), BESIDE, beside()));
            context.draw_series(texts)?;
            context.draw_series(dots(4))?
        }
    };
    if let Some(name) = &series.name {
        let style = ShapeStyle::from(color).stroke_width(3);
        drawn.label(name).legend(move |(x, y)| PathElement::new(vec![(x, y), (x + SAMPLE_WIDTH, y)], style));
    }
    Ok(())
}

fn draw_legend<'a, Y: Ranged<ValueType = f64> + 'static>(
    context: &mut Context<'a, 'a, Y>,
    corner: Corner,
) -> DrawResult {
    let position = match corner {
        Corner::UpperLeft => SeriesLabelPosition::UpperLeft,
        Corner::LowerRight => SeriesLabelPosition::LowerRight,
    };
    context
        .configure_series_labels()
        .position(position)
        .legend_area_size(SAMPLE_WIDTH + 6)
        .margin(8)
        .label_font(font())
        .background_style(Color::Paper.light().mix(0.85))
        .draw()
}

fn font() -> TextStyle<'static> {
    ("sans-serif", FONT_SIZE).into_font().color(&Color::Ink.light())
}

/// Above and to the left of its point: curves of charts with labels rise to the right.
fn beside() -> TextStyle<'static> {
    font().pos(Pos::new(HPos::Right, VPos::Bottom))
}

/// A tick's text; of whole numbers only the whole ones have one.
fn label(value: f64, scale: Scale) -> String {
    let is_hidden = scale == Scale::Whole && (value - value.round()).abs() > 1e-6;
    if is_hidden {
        String::new()
    } else {
        tick(value)
    }
}

/// A tick's number, as short as it can be.
fn tick(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    if !(1e-3..1e5).contains(&value.abs()) {
        return format!("{value:.0e}");
    }
    let digits = (2 - value.abs().log10().floor() as i32).clamp(0, 6) as usize;
    let text = format!("{value:.digits$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::tick;

    #[test]
    fn ticks_are_short() {
        let ticks = [0.0, 0.1 + 0.2, 20.0, 100.0, -2.5, 0.001, 1e-4, 12345.0].map(tick);
        assert_eq!(ticks, ["0", "0.3", "20", "100", "-2.5", "0.001", "1e-4", "12345"]);
    }
}
