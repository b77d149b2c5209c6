//! What runs on a GPU, as one binary. Every test skips, with a message, where there is none.

#[path = "cuda/decode_step.rs"]
mod decode_step;
#[path = "cuda/exact.rs"]
mod exact;
#[path = "cuda/loaded.rs"]
mod loaded;
#[path = "cuda/many_rows.rs"]
mod many_rows;
#[path = "cuda/memory.rs"]
mod memory;
#[path = "cuda/ops.rs"]
mod ops;
#[path = "cuda/paged.rs"]
mod paged;
mod stories;
mod tiny_llama;
#[path = "cuda/torchscript.rs"]
mod torchscript;
mod torchscript_fixtures;
