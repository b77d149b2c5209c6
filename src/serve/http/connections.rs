//! Connections: accepted, held to their limits, and ended in good order.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::patience::Patient;
use super::ServerOptions;

/// Most bytes of a request's head.
const MOST_HEAD_BYTES: usize = 64 << 10;
/// How long to wait where the system has no room for another connection.
const PAUSE: Duration = Duration::from_millis(50);

/// The connections of a server.
pub(super) struct Connections {
    router: Router,
    builder: http1::Builder,
    write_time: Duration,
    places: Arc<Semaphore>,
    open: JoinSet<()>,
    graceful: GracefulShutdown,
}

impl Connections {
    pub(super) fn new(router: Router, options: &ServerOptions) -> Self {
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(options.read_time).max_buf_size(MOST_HEAD_BYTES);
        Self {
            router,
            builder,
            write_time: options.write_time,
            places: Arc::new(Semaphore::new(options.max_connections.clamp(1, Semaphore::MAX_PERMITS))),
            open: JoinSet::new(),
            graceful: GracefulShutdown::new(),
        }
    }

    /// Accepts connections until `end` comes.
    pub(super) async fn accept_until(&mut self, listener: TcpListener, end: impl Future<Output = ()>) {
        let mut end = std::pin::pin!(end);
        loop {
            let next = accept(&listener, &self.places);
            tokio::select! {
                () = &mut end => return,
                (stream, place) = next => self.open(stream, place),
                // Ended ones are forgotten.
                Some(_) = self.open.join_next() => {}
            }
        }
    }

    fn open(&mut self, stream: TcpStream, place: OwnedSemaphorePermit) {
        // Tokens are small and go out one by one.
        let _ = stream.set_nodelay(true);
        let io = TokioIo::new(Patient::new(stream, self.write_time));
        let service = TowerToHyperService::new(self.router.clone());
        let connection = self.graceful.watch(self.builder.serve_connection(io, service));
        self.open.spawn(async move {
            // What a client does wrong is its own affair.
            let _ = connection.await;
            drop(place);
        });
    }

    /// Lets requests that are under way finish, for at most `time`; says whether they all did.
    pub(super) async fn finish(mut self, time: Duration) -> bool {
        let finished = tokio::time::timeout(time, self.graceful.shutdown()).await.is_ok();
        self.open.shutdown().await;
        finished
    }
}

/// The next connection, once there is a place for it.
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> (TcpStream, OwnedSemaphorePermit) {
    loop {
        if let Ok(place) = Arc::clone(places).acquire_owned().await {
            if let Ok((stream, _)) = listener.accept().await {
                return (stream, place);
            }
        }
        // Out of file descriptors, or the client is gone already.
        tokio::time::sleep(PAUSE).await;
    }
}
