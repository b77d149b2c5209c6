//! Links against the libtorch that `torch-sys` found and lets the binaries find it at run time. No downloads.

use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Set by torch-sys, for its direct dependents only.
    let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") else {
        println!("cargo:warning=torch-sys named no libtorch folder: run scripts/setup.sh first");
        return;
    };
    // A dependent of this crate repeats the next line with DEP_CODECLLM_LIBTORCH_LIB (see README.md).
    println!("cargo:libtorch_lib={lib}");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    if let Some(packages) = Path::new(&lib).parent().and_then(Path::parent) {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", packages.join("nvidia/cu13/lib").display());
    }
}
