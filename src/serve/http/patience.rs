//! A connection that gives up on a client which does not read.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{sleep, Instant, Sleep};

/// What a client that is waited for has to take in a second, or the time it is waited for becomes shorter.
const LEAST_BYTES_PER_SECOND: f64 = 1024.0;

/// A stream whose writes fail when the other side has taken nothing for a time, or so little that it has used that time up.
pub(super) struct Patient<S> {
    stream: S,
    patience: Patience,
    /// While a write waits.
    waiting: Option<Waiting>,
}

/// How long a client may be waited for. What it takes restores it.
#[derive(Debug)]
struct Patience {
    whole: Duration,
    left: Duration,
}

/// A wait, and when patience ends.
struct Waiting {
    since: Instant,
    end: Pin<Box<Sleep>>,
}

impl Patience {
    fn new(whole: Duration) -> Self {
        Self { whole, left: whole }
    }

    fn waited(&mut self, time: Duration) {
        self.left = self.left.saturating_sub(time);
    }

    fn took(&mut self, bytes: usize) {
        let worth = Duration::from_secs_f64(bytes as f64 / LEAST_BYTES_PER_SECOND);
        self.left = self.left.saturating_add(worth).min(self.whole);
    }
}

impl<S> Patient<S> {
    pub(super) fn new(stream: S, time: Duration) -> Self {
        Self { stream, patience: Patience::new(time), waiting: None }
    }

    /// Passes on what a write of some bytes gave, and minds the time it waits.
    fn mind(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(done) = written {
            if let Some(Waiting { since, .. }) = self.waiting.take() {
                self.patience.waited(since.elapsed());
            }
            self.patience.took(*done.as_ref().unwrap_or(&0));
            return Poll::Ready(done);
        }
        let begin = || Waiting { since: Instant::now(), end: Box::pin(sleep(self.patience.left)) };
        match self.waiting.get_or_insert_with(begin).end.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.mind(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.mind(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.mind(cx, flushed.map_ok(|()| 0)).map_ok(|_| ())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{duplex, AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn on_a_runtime(work: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(work);
    }

    #[test]
    fn a_reader_that_takes_nothing_is_given_up() {
        on_a_runtime(async {
            let (stream, _unread) = duplex(16);
            let mut stream = Patient::new(stream, Duration::from_millis(50));
            let error = stream.write_all(&[0; 100]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        });
    }

    #[test]
    fn a_reader_that_takes_a_little_now_and_then_is_given_up() {
        on_a_runtime(async {
            let (stream, mut reader) = duplex(16);
            let mut stream = Patient::new(stream, Duration::from_millis(400));
            // Never nothing for as long as that, on a machine that is not too busy; on one that is, it is given up, too.
            let trickle = async move {
                while reader.read_u8().await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(40)).await;
                }
            };
            let (written, ()) = tokio::join!(
                async {
                    let written = stream.write_all(&[7; 200]).await;
                    drop(stream);
                    written
                },
                trickle
            );
            assert_eq!(written.unwrap_err().kind(), io::ErrorKind::TimedOut);
        });
    }

    #[test]
    fn what_is_taken_restores_patience() {
        let second = Duration::from_secs(1);
        let mut patience = Patience::new(30 * second);
        // A kilobyte a second is enough, for days.
        for _ in 0..100_000 {
            patience.waited(10 * second);
            assert_eq!(patience.left, 20 * second);
            patience.took(10 << 10);
        }
        // More is not saved up.
        patience.took(usize::MAX);
        assert_eq!(patience.left, 30 * second);
        // A byte every 29 seconds is not.
        patience.waited(29 * second);
        patience.took(1);
        assert!(patience.left < 2 * second);
        patience.waited(29 * second);
        assert_eq!(patience.left, Duration::ZERO);
    }

    #[test]
    fn a_slow_reader_is_waited_for_as_long_as_it_reads() {
        on_a_runtime(async {
            let (stream, mut reader) = duplex(16);
            let mut stream = Patient::new(stream, Duration::from_secs(60));
            let read = async {
                let mut bytes = [0; 100];
                for byte in &mut bytes {
                    *byte = reader.read_u8().await.unwrap();
                    tokio::task::yield_now().await;
                }
                bytes
            };
            let (written, bytes) = tokio::join!(stream.write_all(&[7; 100]), read);
            assert!(written.is_ok() && bytes == [7; 100]);
        });
    }
}
