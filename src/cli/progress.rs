//! A progress bar for whatever the library does to a checkpoint.

use std::time::{Duration, Instant};

use codecllm::checkpoint;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};

/// Work that is over sooner shows no bar.
const PATIENCE: Duration = Duration::from_secs(1);

const TEMPLATE: &str = "{prefix:>10} [{bar:30}] {percent:>3}%, {eta} left  {wide_msg}";

/// A bar that appears on stderr after a second and vanishes when dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    start: Instant,
    stage: String,
    bar: ProgressBar,
    target: Option<ProgressDrawTarget>,
}

impl Progress {
    pub(crate) fn new(target: ProgressDrawTarget) -> Self {
        let style = ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::hidden()
            .with_style(style.progress_chars("=> "))
            .with_finish(ProgressFinish::AndClear);
        Self { start: Instant::now(), stage: String::new(), bar, target: Some(target) }
    }

    /// Shows one report of the library.
    pub(crate) fn show(&mut self, report: &checkpoint::Progress<'_>) {
        if self.start.elapsed() >= PATIENCE {
            if let Some(target) = self.target.take() {
                self.bar.set_draw_target(target);
            }
        }
        if self.stage != report.stage {
            report.stage.clone_into(&mut self.stage);
            self.bar.set_prefix(self.stage.clone());
            self.bar.reset();
        }
        self.bar.set_length(report.total_bytes);
        self.bar.set_position(report.done_bytes);
        self.bar.set_message(report.tensor_path.to_owned());
    }
}
