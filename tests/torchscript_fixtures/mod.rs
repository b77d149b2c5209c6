//! Where `scripts/make_fixtures.sh` puts the TorchScript modules.

use std::path::{Path, PathBuf};

/// The module `NAME.pt` (in the folder that CODECLLM_FIXTURES names, on a machine without this repository), or its NAME.safetensors; none, with a message, where the fixtures were not made.
pub fn fixture(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("CODECLLM_FIXTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/fixtures/torchscript"),
        PathBuf::from,
    );
    let path = folder.join(format!("{name}.pt"));
    if path.exists() || path.with_extension("safetensors").exists() {
        return Some(path);
    }
    eprintln!("SKIPPED: {} is missing; make it with: scripts/make_fixtures.sh", path.display());
    None
}
