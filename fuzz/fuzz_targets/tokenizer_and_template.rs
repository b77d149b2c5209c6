#![no_main]

#[path = "../bodies/tokenizer_and_template.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| body::run(data));
