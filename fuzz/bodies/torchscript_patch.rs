//! A TorchScript file from a stranger: loaded, patched, saved and loaded again.
//!
//! Loading is libtorch's: what it makes of damage is not ours to mend, but must be an error here.

use std::path::Path;

use codecllm::torchscript::{patch_linears, Module, PatchOptions};
use tch::Device;

pub fn run(data: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder for the input");
    let (path, out) = (folder.path().join("model.pt"), folder.path().join("patched.pt"));
    std::fs::write(&path, data).expect("room for it");
    let Ok(mut module) = Module::load(&path, Device::Cpu) else { return };
    if patch_linears(&mut module, &PatchOptions::default()).is_ok() && module.save(&out).is_ok() {
        Module::load(&out, Device::Cpu).expect("what was saved loads");
    }
}

#[allow(dead_code, reason = "libFuzzer reads its seeds from a folder")]
pub fn seeds(root: &Path) -> Vec<Vec<u8>> {
    // The smallest of what scripts/make_fixtures.sh makes; none where that never ran.
    let folder = root.join(".cache/fixtures/torchscript");
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries
        .filter(|entry| entry.path().extension().is_some_and(|e| e == "pt"))
        .filter_map(|entry| Some((entry.metadata().ok()?.len(), entry.path())))
        .collect();
    files.sort();
    files.truncate(4);
    files.iter().filter_map(|(_, path)| std::fs::read(path).ok()).collect()
}
