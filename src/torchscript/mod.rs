//! TorchScript modules: load one, compress its linears in place, run it, save it.
//!
//! ```no_run
//! // Needs a module.
//! use codecllm::torchscript::{patch_linears, Module, PatchOptions};
//! use tch::{Device, Kind, Tensor};
//! let mut model = Module::load("model.pt", Device::Cpu)?;
//! let report = patch_linears(&mut model, &PatchOptions::default())?;
//! println!("{} of {} bytes", report.compressed_bytes, report.original_bytes);
//! let ids = Tensor::from_slice(&[1i64, 2, 3]).unsqueeze(0);
//! let logits = model.forward_ts(&[ids])?;
//! model.save("patched.pt")?;
//! # Ok::<(), codecllm::Error>(())
//! ```
//!
//! A patched module calls the operators `codecllm::linear` and `codecllm::embedding`, which are registered in every program that
//! contains this crate and in its shared library `libcodecllm.so`. Wherever one of them is loaded, the file runs: in Rust, C++
//! (`dlopen`) and Python (`torch.ops.load_library`).

mod ivalue;
mod module;
mod parity;
mod patch;
mod survey;
mod text;

pub use module::Module;
pub use parity::{compare, InputSet, OutputParity, TorchscriptParity};
pub use patch::{patch_linears, PatchOptions, PatchReport, PatchedMatrix, SkippedMatrix};
