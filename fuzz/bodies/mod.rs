//! What the fuzz targets do with their input, and what they start from: used by libFuzzer, and by `tests/fuzz_smoke.rs` without it.

pub mod decode_table;
pub mod decode_tile;
pub mod import_gguf;
pub mod open_container;
pub mod parse_config;
pub mod tokenizer_and_template;
pub mod torchscript_patch;
