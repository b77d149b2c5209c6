//! Keeps the linear weights of a large language model entropy-coded in memory and decodes them inside the
//! forward pass, through libtorch.
#![deny(missing_docs)]

pub mod checkpoint;
pub mod error;
pub mod model;
pub mod nn;
pub mod runtime;

pub use error::{Error, ErrorKind, Result};
