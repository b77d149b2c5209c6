//! How requests ended, by HTTP status.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use axum::http::StatusCode;

/// Responses by status, since the start.
#[derive(Debug, Default)]
pub(super) struct Counters(Mutex<BTreeMap<u16, u64>>);

impl Counters {
    pub(super) fn note(&self, status: StatusCode) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(status.as_u16()).or_default() += 1;
    }

    /// Each status with its count.
    pub(super) fn responses(&self) -> BTreeMap<u16, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
