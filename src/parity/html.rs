//! A comparison as one page that needs nothing else.

use minijinja::{context, Environment};
use serde::Serialize;

use super::{charts, Report};
use crate::chart::{dark_rules, Chart};
use crate::error::{Error, ErrorKind, Result};

/// Text in it is escaped, as the name of a template ending so has it.
const TEMPLATE: &str = "report.html";

/// A chart with its explanation.
#[derive(Serialize)]
struct Figure {
    svg: String,
    caption: &'static str,
}

/// One line of the layers' table.
#[derive(Serialize)]
struct Row {
    layer: String,
    relative_error: String,
    own_error: String,
    remark: String,
}

impl Report {
    /// The comparison as an HTML page: figures, charts, layers and answers. The page is complete in itself, and has a dark variant.
    ///
    /// # Errors
    /// What the charts or the template report.
    pub fn html(&self) -> Result<String> {
        let failed = |e: minijinja::Error| {
            Error::new(ErrorKind::InvalidArgument, TEMPLATE, "cannot be filled in").with_source(e)
        };
        let mut environment = Environment::new();
        environment.add_template(TEMPLATE, include_str!("report.html")).map_err(failed)?;
        let page = environment.get_template(TEMPLATE).map_err(failed)?;
        let filled = page.render(context! {
            report => self,
            figures => self.figures(),
            charts => self.charts()?,
            layers => self.rows(),
            greedy_summary => self.greedy_summary(),
            dark_rules => dark_rules(),
        });
        filled.map_err(failed)
    }

    fn charts(&self) -> Result<Vec<Figure>> {
        let figure = |chart: Chart<'_>, caption| Ok(Figure { svg: chart.element()?, caption });
        let mut figures = Vec::new();
        if !self.layers.is_empty() {
            figures.push(figure(
                charts::layers(self),
                "Which layer goes wrong first. Piled up: the residual stream behind it. Of its own: fed what the reference's layer is fed.",
            )?);
        }
        figures.push(figure(
            charts::divergence(self),
            "KL(reference || compressed) of the next token. Its right end is the largest of any position.",
        )?);
        figures.push(figure(
            charts::windows(self),
            "Perplexity of the compressed model against the reference's; 0 is no change.",
        )?);
        Ok(figures)
    }

    fn rows(&self) -> Vec<Row> {
        let row = |error: &super::LayerError| Row {
            layer: error.layer.clone(),
            relative_error: format!("{:.6}", error.relative_error),
            own_error: format!("{:.6}", error.own_error),
            remark: self.remark(error),
        };
        self.layers.iter().map(row).collect()
    }
}
