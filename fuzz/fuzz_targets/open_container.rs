#![no_main]

#[path = "../bodies/open_container.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| body::run(data));
