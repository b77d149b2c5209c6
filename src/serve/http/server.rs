//! What all requests share.

use std::sync::Arc;

use super::counters::Counters;
use super::workers::Workers;
use super::{page, ServerOptions};
use crate::error::Result;
use crate::serve::engine::Engine;
use crate::serve::openai::unix_seconds;

/// The engine, the options, and what was counted.
#[derive(Clone, Debug)]
pub(super) struct Server(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    engine: Engine,
    options: ServerOptions,
    counters: Counters,
    workers: Workers,
    page_policy: String,
    /// When the server started, in seconds since 1970.
    started: u64,
}

impl Server {
    pub(super) fn new(engine: Engine, options: ServerOptions) -> Result<Self> {
        options.check()?;
        let (counters, workers, page_policy) = (Counters::default(), Workers::new(), page::policy());
        let started = unix_seconds();
        Ok(Self(Arc::new(Shared { engine, options, counters, workers, page_policy, started })))
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.0.engine
    }

    pub(super) fn options(&self) -> &ServerOptions {
        &self.0.options
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.0.counters
    }

    pub(super) fn workers(&self) -> &Workers {
        &self.0.workers
    }

    pub(super) fn page_policy(&self) -> &str {
        &self.0.page_policy
    }

    pub(super) fn started(&self) -> u64 {
        self.0.started
    }
}
