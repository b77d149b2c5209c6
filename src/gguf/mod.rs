//! A Llama in a GGUF file to a Hugging Face directory.
//!
//! A GGUF file is a header of key-value pairs, a list of tensors, and their data in blocks of a few weights that share scales.
//! Everything in it is taken for a stranger's: counts, lengths and offsets are held against the file's size before anything is
//! allocated. What would change the maths and cannot be said in a `config.json` or a `tokenizer.json` is refused by name.
//!
//! Tensors are read, widened and written one at a time.
//!
//! [`import`] does it; see its example.

mod blocks;
mod config;
mod convert;
mod cursor;
mod file;
mod import;
mod metadata;
mod rope;
mod special_tokens;
mod tensor_type;
mod tensors;
mod tokenizer;
mod value;
mod vocabulary;

pub use import::{import, ImportOptions, ImportReport};
