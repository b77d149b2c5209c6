//! A progress bar over steps that are not bytes.

use indicatif::{ProgressBar, ProgressStyle};

use super::output::Output;

const TEMPLATE: &str = "{prefix:>10} [{bar:30}] {pos}/{len}, {eta} left  {wide_msg}";

/// A bar on stderr that vanishes when dropped.
#[derive(Debug)]
pub(crate) struct Steps {
    stage: String,
    bar: ProgressBar,
}

impl Steps {
    pub(crate) fn new(output: &Output) -> Self {
        let style = ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = output.spinner("");
        bar.set_style(style.progress_chars("=> "));
        Self { stage: String::new(), bar }
    }

    /// Shows that `done` of `total` steps of `stage` are done, and says what comes next.
    pub(crate) fn show(&mut self, stage: &str, done: usize, total: usize, next: &str) {
        if self.stage != stage {
            stage.clone_into(&mut self.stage);
            self.bar.set_prefix(self.stage.clone());
            self.bar.reset();
        }
        self.bar.set_length(total as u64);
        self.bar.set_position(done as u64);
        self.bar.set_message(next.to_owned());
    }
}
