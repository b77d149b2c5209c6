//! The HTTP side: routes, limits, keys, streams and metrics.

mod answers;
mod body;
mod connections;
mod counters;
mod endpoints;
mod exposition;
mod gate;
mod headers;
mod keys;
mod metrics;
mod options;
mod order;
mod page;
mod patience;
mod reply;
mod run;
mod server;
mod stream;
mod workers;

use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use axum::Router;

pub use keys::ApiKeys;
pub use options::ServerOptions;
pub use run::run;
use server::Server;

use super::engine::Engine;
use crate::error::Result;

/// The server's routes, for an application with an axum server of its own. Limits that concern connections
/// ([`ServerOptions::max_connections`], [`ServerOptions::write_time`], [`ServerOptions::shutdown_time`], the time for a head)
/// are [`run`]'s.
///
/// | route | what it does |
/// |---|---|
/// | `POST /v1/chat/completions`, `POST /v1/completions` | answer, as OpenAI's API does |
/// | `GET /v1/models`, `GET /v1/models/{id}` | the one model there is |
/// | `GET /health` | 200, and 503 once the engine takes no more requests |
/// | `GET /metrics`, `GET /stats` | the engine's figures, for Prometheus and as JSON |
/// | `GET /` | a page to chat in |
///
/// Beside an application's own routes; see `examples/serve_app.rs`.
///
/// # Errors
/// What [`ServerOptions`] contradict themselves in.
pub fn router(engine: Engine, options: ServerOptions) -> Result<Router> {
    let server = Server::new(engine, options)?;
    let router = Router::new()
        .route("/v1/chat/completions", post(endpoints::chat))
        .route("/v1/completions", post(endpoints::completion))
        .route("/v1/models", get(endpoints::models))
        .route("/v1/models/{*id}", get(endpoints::model))
        .route("/health", get(endpoints::health))
        .route("/metrics", get(endpoints::metrics))
        .route("/stats", get(endpoints::stats))
        .route("/", get(endpoints::page))
        .fallback(endpoints::no_such_path)
        .method_not_allowed_fallback(endpoints::no_such_method)
        .layer(from_fn_with_state(server.clone(), gate::admit))
        .with_state(server);
    Ok(router)
}
