//! Where `scripts/make_fixtures.sh` puts the TorchScript modules.

use std::path::{Path, PathBuf};

/// The module `NAME.pt`, or its NAME.safetensors; none, with a message, where the fixtures were not made.
pub fn fixture(name: &str) -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/fixtures/torchscript");
    let path = folder.join(format!("{name}.pt"));
    if path.exists() || path.with_extension("safetensors").exists() {
        return Some(path);
    }
    eprintln!("SKIPPED: {} is missing; make it with: scripts/make_fixtures.sh", path.display());
    None
}
