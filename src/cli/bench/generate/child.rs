//! One model measured by this same program in a process of its own.

use std::ffi::OsString;
use std::process::Command;

use anyhow::{anyhow, Context, Result};

use serde::de::DeserializeOwned;

use super::report::Which;
use crate::cli::output::Output;
use crate::cli::steps::Steps;

/// The figures of the dense model, then those of the compressed one.
pub(in super::super) fn measure_both<T: DeserializeOwned>(output: &Output) -> Result<[T; 2]> {
    let mut steps = Steps::new(output);
    let mut next = |done, which: Which| {
        steps.show("models", done, 2, which.name());
        measure(which)
    };
    Ok([next(0, Which::Dense)?, next(1, Which::Compressed)?])
}

/// Repeats the arguments of this process, for one model; its figures.
fn measure<T: DeserializeOwned>(which: Which) -> Result<T> {
    let program = std::env::current_exe().context("this program's file")?;
    let output = Command::new(program).args(arguments(std::env::args_os(), which)).output();
    let output = output.with_context(|| format!("the process of the {} model", which.name()))?;
    if !output.status.success() {
        return Err(anyhow!("{} model: {}", which.name(), failure(&output.stderr, output.status)));
    }
    let figures = serde_json::from_slice(&output.stdout);
    figures.with_context(|| format!("the figures of the {} model", which.name()))
}

fn arguments(own: impl Iterator<Item = OsString>, which: Which) -> Vec<OsString> {
    let repeated = own.skip(1).filter(|argument| argument != "--json");
    repeated.chain(["--only", which.name(), "--json"].map(OsString::from)).collect()
}

/// The process's last words.
fn failure(stderr: &[u8], status: std::process::ExitStatus) -> String {
    let stderr = String::from_utf8_lossy(stderr);
    match stderr.lines().rfind(|line| !line.trim().is_empty()) {
        Some(line) => line.trim_start_matches("error: ").to_owned(),
        None => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::{arguments, Which};

    #[test]
    fn a_child_gets_its_parents_arguments() {
        let own = ["codecllm", "--json", "bench", "generate", "--config", "8b"].map(Into::into);
        let wanted = ["bench", "generate", "--config", "8b", "--only", "compressed", "--json"];
        assert_eq!(arguments(own.into_iter(), Which::Compressed), wanted);
    }
}
