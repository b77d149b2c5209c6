//! One model for many clients: an engine that batches their requests token by token, and an HTTP server in front of it.
//!
//! [`run`] is all of it; see its example.

pub mod engine;
mod http;
mod openai;

pub use engine::{Engine, EngineOptions};
pub use http::{router, run, ApiKeys, ServerOptions};
