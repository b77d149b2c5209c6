//! Charts as SVG: lines and points over two axes, in colors that a style sheet turns for a dark background.
//!
//! A chart is drawn in a few fixed colors ([`palette`]), so that a rule for each of them is all that the dark variant takes.

mod draw;
mod palette;
mod range;

pub(crate) use palette::{dark_rules, Color};

use crate::error::Result;

/// What a chart shows.
#[derive(Clone, Debug)]
pub(crate) struct Chart<'a> {
    /// What it is, for those who cannot see it.
    pub(crate) title: &'a str,
    pub(crate) x: Axis<'a>,
    pub(crate) y: Axis<'a>,
    /// From back to front.
    pub(crate) series: Vec<Series>,
    /// Where there is room for the legend.
    pub(crate) legend: Corner,
    /// Width and height, pixels where it is shown at its own size.
    pub(crate) size: (u32, u32),
}

/// One axis.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Axis<'a> {
    pub(crate) label: &'a str,
    pub(crate) scale: Scale,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    Linear,
    /// Linear, of whole numbers.
    Whole,
    /// Linear, zero included.
    FromZero,
    /// Logarithmic; values that are not positive lie at the lower end. Linear from zero where none is positive.
    Log,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Corner {
    UpperLeft,
    LowerRight,
}

/// Values of one kind.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    /// Its line in the legend; none for a series that another one speaks for.
    pub(crate) name: Option<String>,
    pub(crate) color: Color,
    pub(crate) mark: Mark,
    /// `(x, y)`; those that are not finite are left out.
    pub(crate) points: Vec<(f64, f64)>,
}

/// How values are drawn.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Mark {
    Line,
    /// A line that many of may lie over each other.
    Hairline,
    Dots,
    /// Dots with a text beside each; every one is finite.
    Labels(Vec<String>),
}

impl Series {
    fn finite(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        self.points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite())
    }
}

impl Chart<'_> {
    /// The chart as an element to be put into a page, which has to have [`dark_rules`].
    pub(crate) fn element(&self) -> Result<String> {
        self.with_head("")
    }

    /// The chart as a file, with a dark variant where the reader prefers that.
    pub(crate) fn file(&self) -> Result<String> {
        let style = format!("<style>@media (prefers-color-scheme: dark) {{\n{}}}</style>\n", dark_rules());
        self.with_head(&style)
    }

    /// With `head` and the title in front of everything that is drawn.
    fn with_head(&self, head: &str) -> Result<String> {
        let svg = draw::svg(self)?;
        // The end of the root element's tag.
        let (root, rest) = svg.split_once('>').unwrap_or((&svg, ""));
        let title = escape(self.title);
        Ok(format!("{root} role=\"img\" aria-label=\"{title}\">\n<title>{title}</title>\n{head}{rest}"))
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(scale: Scale, points: Vec<(f64, f64)>) -> Chart<'static> {
        let series = Series { name: Some("a < b".to_owned()), color: Color::First, mark: Mark::Line, points };
        let axis = |label, scale| Axis { label, scale };
        Chart {
            title: "t & u",
            x: axis("across", Scale::Linear),
            y: axis("up", scale),
            series: vec![series],
            legend: Corner::UpperLeft,
            size: (480, 320),
        }
    }

    #[test]
    fn what_is_drawn_is_there_and_escaped() {
        let svg = chart(Scale::Log, vec![(0.0, 0.001), (1.0, 10.0), (2.0, f64::NAN)]).file().unwrap();
        for part in
            ["<title>t &amp; u</title>", "a &lt; b", "across", "up", "<polyline", "prefers-color-scheme"]
        {
            assert!(svg.contains(part), "{part} in {svg}");
        }
        assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn charts_without_a_range_are_drawn() {
        for scale in [Scale::Linear, Scale::Whole, Scale::FromZero, Scale::Log] {
            for points in [vec![], vec![(1.0, 0.0)], vec![(0.0, 5.0), (1.0, 5.0)], vec![(0.0, f64::INFINITY)]]
            {
                let svg = chart(scale, points.clone()).element().unwrap();
                assert!(!svg.contains("NaN") && svg.contains("</svg>"), "{scale:?} {points:?}: {svg}");
            }
        }
    }

    #[test]
    fn every_color_drawn_has_a_dark_one() {
        let svg = chart(Scale::Linear, vec![(0.0, 1.0), (1.0, 2.0)]).element().unwrap();
        let rules = dark_rules();
        let colors = svg.split("=\"#").skip(1).map(|rest| &rest[..6]);
        let mut count = 0;
        for color in colors {
            assert!(rules.contains(&format!("[fill=\"#{color}\"]")), "#{color} is no color of the palette");
            count += 1;
        }
        assert!(count > 5);
    }
}
