//! Compiles `csrc/*.cpp` against the libtorch that `torch-sys` found, and lets the binaries find it at run time. No
//! downloads.

use std::path::Path;

const SOURCES: [&str; 8] = [
    "operators",
    "parallel",
    "storage",
    "torchscript/boundary",
    "torchscript/module",
    "torchscript/patch",
    "torchscript/survey",
    "torchscript/uses",
];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for path in ["boundary.h", "operators.h", "parallel.h", "storage.h", "torchscript"] {
        println!("cargo:rerun-if-changed=csrc/{path}");
    }
    for stem in SOURCES {
        println!("cargo:rerun-if-changed=csrc/{stem}.cpp");
    }
    // Set by torch-sys, for its direct dependents only.
    let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") else {
        println!("cargo:warning=torch-sys named no libtorch folder: run scripts/setup.sh first");
        return;
    };
    let torch = Path::new(&lib).parent().unwrap_or(Path::new("."));
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        // The wheel's ABI.
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        // at::parallel_for is a template over OpenMP: without the flag it would run serially.
        .flag("-fopenmp")
        .flag("-Wall")
        .flag("-Wextra")
        // Not ours to mend.
        .flag("-isystem")
        .flag(torch.join("include"))
        .files(SOURCES.map(|stem| format!("csrc/{stem}.cpp")))
        // A file that only registers operators is called by nobody: the linker would drop it.
        .link_lib_modifier("+whole-archive")
        .compile("codecllm_csrc");
    println!("cargo:rustc-link-search=native={lib}");
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");
    println!("cargo:rustc-link-lib=gomp");
    // A dependent of this crate repeats the next line with DEP_CODECLLM_LIBTORCH_LIB (see README.md).
    println!("cargo:libtorch_lib={lib}");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    if let Some(packages) = torch.parent() {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", packages.join("nvidia/cu13/lib").display());
    }
}
