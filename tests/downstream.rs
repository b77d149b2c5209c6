//! A crate outside this repository that depends on it by path builds and runs.

use std::path::Path;
use std::process::Command;

const FILES: [&str; 3] = ["Cargo.toml", "build.rs", "src/main.rs"];

/// Copies the crate to `dir`, its dependency by absolute path, with our versions of everything.
fn copy_crate(root: &Path, dir: &Path) {
    std::fs::create_dir(dir.join("src")).unwrap();
    for file in FILES {
        let text = std::fs::read_to_string(root.join("tests/fixtures/downstream").join(file)).unwrap();
        let text = text.replace(r#"path = "../../..""#, &format!("path = {root:?}"));
        std::fs::write(dir.join(file), text).unwrap();
    }
    // Cargo adds the crate itself and drops what it does not need.
    std::fs::copy(root.join("Cargo.lock"), dir.join("Cargo.lock")).unwrap();
}

#[test]
fn a_crate_outside_the_repository_builds_and_runs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let outside = tempfile::tempdir().unwrap();
    copy_crate(root, outside.path());
    println!("building {} against {} (minutes the first time)", outside.path().display(), root.display());
    let output = Command::new(env!("CARGO"))
        .args(["run", "--offline", "--quiet"])
        .current_dir(outside.path())
        // Kept from run to run, so that libtorch's bindings are compiled once.
        .env("CARGO_TARGET_DIR", root.join("target/downstream"))
        // What .cargo/config.toml sets inside the repository; see README.md.
        .env("LIBTORCH", root.join(".libtorch/torch"))
        .env("LIBTORCH_CXX11_ABI", "1")
        .env_remove("LD_LIBRARY_PATH")
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stderr}");
    assert!(stdout.contains("bits per weight"), "{stdout}");
}
