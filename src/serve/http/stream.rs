//! Answers as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use serde_json::{json, Value};

use super::answers::{Answers, News};
use crate::serve::openai::{ApiError, Head};

/// How often a client that waits hears a comment, so that nobody on the way takes the connection for dead.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

/// A response that tells `answers` as they come.
pub(super) fn response(head: Head, answers: Answers) -> Response {
    let chunks = unfold(Chunks::new(head, answers), |mut chunks| async move {
        let event = chunks.next().await?;
        Some((Ok::<_, Infallible>(event), chunks))
    });
    Sse::new(chunks).keep_alive(KeepAlive::new().interval(SIGN_OF_LIFE)).into_response()
}

/// The events of one response.
struct Chunks {
    head: Head,
    /// `None` behind the last.
    answers: Option<Answers>,
    ready: VecDeque<Event>,
}

impl Chunks {
    fn new(head: Head, answers: Answers) -> Self {
        let openings = (0..answers.len()).filter_map(|index| head.opening(index));
        let ready = openings.map(event).collect();
        Self { head, answers: Some(answers), ready }
    }

    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            let news = self.answers.as_mut()?.next().await;
            self.take(news);
        }
    }

    fn take(&mut self, news: Result<Option<(usize, News)>, ApiError>) {
        match news {
            Ok(Some((index, News::More(piece)))) => {
                self.ready.push_back(event(self.head.piece(index, &piece)));
            }
            Ok(Some((index, News::Last(piece, reason)))) => {
                if !piece.text.is_empty() {
                    self.ready.push_back(event(self.head.piece(index, &piece)));
                }
                self.ready.push_back(event(self.head.ending(index, reason)));
            }
            Ok(None) => {
                let counts = self.answers.take().map(|answers| answers.counts()).unwrap_or_default();
                self.ready.extend(self.head.counts(counts).map(event));
                self.ready.push_back(Event::default().data("[DONE]"));
            }
            // The status went out long ago: the error is the last event, and no [DONE] follows.
            Err(error) => {
                self.answers = None;
                self.ready.push_back(event(json!(error.object())));
            }
        }
    }
}

/// Compact JSON has no line ends, which would end an event's field.
fn event(chunk: Value) -> Event {
    Event::default().data(chunk.to_string())
}
