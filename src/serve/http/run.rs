//! A whole server: from a bound socket to the end.

use std::future::Future;
use std::time::Duration;

use tokio::net::TcpListener;

use super::connections::Connections;
use super::{router, ServerOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::serve::engine::Engine;

/// Time to tell a client that its answer was cut off.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Serves on `listener` until `end` comes: then it accepts no more, lets running answers finish for at most
/// [`ServerOptions::shutdown_time`], and ends the engine.
///
/// ```no_run
/// // Needs a model.
/// use codecllm::runtime::{Generator, LoadOptions};
/// use codecllm::serve::{run, ApiKeys, Engine, EngineOptions, ServerOptions};
/// let generator = Generator::open("model", &LoadOptions::default())?;
/// let engine = Engine::start(generator, EngineOptions::default())?;
/// let options = ServerOptions { keys: ApiKeys::from_file("keys.txt")?, ..ServerOptions::new("my-model") };
/// tokio::runtime::Runtime::new().unwrap().block_on(async {
///     let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await.unwrap();
///     let end = async { tokio::signal::ctrl_c().await.unwrap() };
///     run(listener, engine, options, end).await
/// })?;
/// # Ok::<(), codecllm::Error>(())
/// ```
///
/// # Errors
/// `InvalidArgument` for a listener that others than this machine reach, without keys or with
/// [`ServerOptions::loopback_hosts_only`]; `Io` if the listener has no address; and as [`router`].
pub async fn run(
    listener: TcpListener,
    engine: Engine,
    options: ServerOptions,
    end: impl Future<Output = ()>,
) -> Result<()> {
    let address = listener.local_addr().map_err(|e| Error::io("the listening socket", e))?;
    if !address.ip().is_loopback() && options.keys.is_empty() {
        let message =
            "is reached from other machines, wanted API keys for that (or a loopback address: 127.0.0.1)";
        return Err(Error::invalid(address.to_string(), message));
    }
    let shutdown_time = options.shutdown_time;
    let mut connections = Connections::new(router(engine.clone(), options.clone())?, &options);
    connections.accept_until(listener, end).await;
    engine.begin_shut_down(shutdown_time);
    // The engine cuts off what is not complete by then, and clients are told.
    connections.finish(shutdown_time + LAST_WORDS).await;
    let stopped = tokio::task::spawn_blocking(move || engine.shut_down(LAST_WORDS)).await;
    stopped.map_err(|e| Error::new(ErrorKind::Torch, "engine", "did not end in order").with_source(e))
}
