//! Runs of the binary in which a call that changes files fails, or a signal comes just before it.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

/// `faults.c`, compiled once.
static LIBRARY: LazyLock<(tempfile::TempDir, PathBuf)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let library = dir.path().join("faults.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/faults.c");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let built = Command::new(compiler)
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
        .args([&library, &source])
        .status()
        .expect("a C compiler");
    assert!(built.success());
    (dir, library)
});

/// What happens at a call.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// It fails with this error number.
    Error(i32),
    /// It and all later ones that write data do.
    Onward(i32),
    /// The process gets this signal.
    Signal(i32),
}

/// Runs the binary with a fault at call number `at` of those that change files below `dir`.
pub fn run_with_fault(arguments: &[&str], dir: &Path, at: usize, fault: Fault) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_codecllm"));
    command
        .args(arguments)
        .env("LD_PRELOAD", &LIBRARY.1)
        .env("FAULT_DIR", dir)
        .env("FAULT_AT", at.to_string());
    match fault {
        Fault::Error(number) => command.env("FAULT_ERRNO", number.to_string()),
        Fault::Onward(number) => command.env("FAULT_ERRNO", number.to_string()).env("FAULT_ONWARD", "1"),
        Fault::Signal(number) => command.env("FAULT_SIGNAL", number.to_string()),
    };
    command.output().unwrap()
}
