//! What needs a GPU: one binary, which skips every test, with a message, where there is none.

#[path = "cuda/ops.rs"]
mod ops;
