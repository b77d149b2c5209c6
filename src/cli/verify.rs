//! `codecllm verify`: is every byte as it was written, and how far is it from the original?

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{bail, Result};
use codecllm::checkpoint::{self, VerifyReport};

use super::output::{decibels, pairs, Measured, Output};

const EXAMPLES: &str = "\
Examples:
  codecllm verify OUT
  codecllm verify OUT --against MODEL_DIR --json

Decodes every tensor and checks all checksums. The exit code is 1 if anything is wrong; the first bad tensor is named.";

/// Check a compressed directory, alone or against its original
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The compressed directory
    compressed_dir: PathBuf,
    /// The original: shapes and dtypes must agree, and the error is measured
    #[arg(long, value_name = "MODEL_DIR")]
    against: Option<PathBuf>,
}

pub(crate) fn run(args: Args, output: &Output) -> Result<()> {
    let start = Instant::now();
    let mut bar = output.progress();
    let report = checkpoint::verify(&args.compressed_dir, args.against.as_deref(), &mut |p| bar.show(&p))?;
    drop(bar);
    let measured = Measured::since(start, report);
    let bad = (!measured.report.ok).then(|| problem(&measured.report));
    if output.is_json() || bad.is_none() {
        output.report(&measured, text)?;
    }
    match bad {
        None => Ok(()),
        Some(problem) => bail!(problem),
    }
}

/// What the library found wrong, its subject first.
fn problem(report: &VerifyReport) -> String {
    report.error.clone().unwrap_or_else(|| {
        format!("{}: is damaged", report.first_bad_tensor.as_deref().unwrap_or("checkpoint"))
    })
}

fn text(measured: &Measured<VerifyReport>) -> String {
    let report = &measured.report;
    let mut rows = vec![("ok", "yes".to_owned()), ("tensors checked", report.tensors_checked.to_string())];
    if let Some(error) = report.max_abs_error {
        rows.push(("largest error", format!("{error:.3e}")));
        // No finite ratio: nothing was lost.
        rows.push(("SNR", decibels(report.snr_db.unwrap_or(f64::INFINITY))));
    }
    pairs(rows.into_iter().chain(measured.rows()))
}
