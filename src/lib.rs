//! Keeps the linear weights of a large language model entropy-coded in memory and decodes them inside the
//! forward pass, through libtorch.
//!
//! A model directory is compressed by [`checkpoint::compress`], and answers through a [`runtime::Generator`]; see its example. One
//! matrix is a [`codec::CompressedTensor`], as a layer a [`nn::CompressedLinear`].
#![deny(missing_docs)]

pub mod calibration;
mod chart;
pub mod checkpoint;
pub mod codec;
pub mod cuda;
pub mod error;
pub mod gguf;
pub mod model;
pub mod nn;
mod ops;
pub mod parity;
pub mod plan;
pub mod quantize;
pub mod rans;
pub mod runtime;
#[cfg(feature = "serve")]
pub mod serve;
pub mod tile;
pub mod torchscript;

pub use error::{Error, ErrorKind, Result};

/// The README's code compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;
