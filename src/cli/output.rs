//! What the verbs print: one JSON object for machines, text for people.

use std::fmt::Display;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use anyhow::Result;
use codecllm::runtime::peak_rss_bytes;
use comfy_table::{presets, CellAlignment, Table};
use indicatif::{DecimalBytes, ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};
use serde::Serialize;

use super::progress::Progress;

/// Where a verb's results go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether one JSON object is wanted.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Prints `report` as JSON, or else what `text` makes of it.
    pub(crate) fn report<T: Serialize>(&self, report: &T, text: impl FnOnce(&T) -> String) -> Result<()> {
        let text = if self.json { serde_json::to_string(report)? } else { text(report) };
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{}", text.trim_end())?;
        Ok(stdout.flush()?)
    }

    /// Prints text at once, for people only.
    pub(crate) fn text(&self, text: &str) -> io::Result<()> {
        if self.json {
            return Ok(());
        }
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()
    }

    /// Says something beside the results, on stderr, for people only.
    pub(crate) fn note(&self, text: impl Display) {
        if !self.json {
            // Losing a remark is no reason to stop.
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// A bar for the library's progress reports.
    pub(crate) fn progress(&self) -> Progress {
        Progress::new(self.draw_target())
    }

    /// A sign of life with `message`; it vanishes when dropped or cleared.
    pub(crate) fn spinner(&self, message: &'static str) -> ProgressBar {
        let spinner = ProgressBar::with_draw_target(None, self.draw_target())
            .with_style(ProgressStyle::default_spinner())
            .with_finish(ProgressFinish::AndClear)
            .with_message(message);
        spinner.enable_steady_tick(Duration::from_millis(200));
        spinner
    }

    /// Stderr; indicatif draws nothing there if it is not a terminal.
    fn draw_target(&self) -> ProgressDrawTarget {
        if self.json {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        }
    }
}

/// A report with what it took to make it.
#[derive(Debug, Serialize)]
pub(crate) struct Measured<T> {
    #[serde(flatten)]
    pub(crate) report: T,
    pub(crate) seconds: f64,
    pub(crate) peak_rss_bytes: Option<u64>,
}

impl<T> Measured<T> {
    /// `report`, begun at `start` and complete now.
    pub(crate) fn since(start: Instant, report: T) -> Self {
        Self { report, seconds: start.elapsed().as_secs_f64(), peak_rss_bytes: peak_rss_bytes() }
    }

    /// The two rows for people.
    pub(crate) fn rows(&self) -> [(&'static str, String); 2] {
        let peak = self.peak_rss_bytes.map_or_else(|| "unknown".to_owned(), bytes);
        [("time", format!("{:.1} s", self.seconds)), ("peak memory", peak)]
    }
}

/// A table with `header`: the first column is text, the others are numbers.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    table
}

/// A name and its value on each line.
pub(crate) fn pairs<'a>(rows: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    rows.into_iter().for_each(|(name, value)| {
        table.add_row([name, &value]);
    });
    table.to_string()
}

/// Bytes as people read them: `269.03 MB`.
pub(crate) fn bytes(count: u64) -> String {
    DecimalBytes(count).to_string()
}

/// A ratio in decibels; nothing was lost where it is infinite.
pub(crate) fn decibels(snr_db: f64) -> String {
    if snr_db.is_infinite() {
        "exact".to_owned()
    } else {
        format!("{snr_db:.2} dB")
    }
}

/// `[576, 1536]` as `576x1536`.
pub(crate) fn shape(shape: &[usize]) -> String {
    shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x")
}
