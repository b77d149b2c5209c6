#![no_main]

#[path = "../bodies/import_gguf.rs"]
mod body;

// libFuzzer's hook ends the process at every panic. Those of the tokenizers crate are caught and made errors; one that is not caught
// still ends it.
libfuzzer_sys::fuzz_target!(init: drop(std::panic::take_hook()), |data: &[u8]| body::run(data));
