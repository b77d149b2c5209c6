#![no_main]

#[path = "../bodies/torchscript_patch.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| body::run(data));
