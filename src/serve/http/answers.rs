//! The answers to one request, merged as they come.

use std::future::{poll_fn, Future};
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{timeout_at, Instant};

use crate::runtime::StopReason;
use crate::serve::engine::{Answer, Event, Refusal, TokenLogprob, TokenLogprobs};
use crate::serve::openai::{ApiError, FinishReason, Likely, Piece, Token, TokenCounts};

/// How long behind a request's deadline the engine, which is in the middle of a step then, has to say so.
const GRACE: Duration = Duration::from_secs(2);

/// Answers under way. To drop them is to give them up: their places are free with the next step.
#[derive(Debug)]
pub(super) struct Answers {
    answers: Vec<Progress>,
    /// How many choices there are to a prompt.
    choices: usize,
    counts: TokenCounts,
    deadline: Instant,
    time: Duration,
    /// Where to look first, so that all get their turn.
    next: usize,
}

/// One answer.
#[derive(Debug)]
struct Progress {
    /// `None` behind its end.
    answer: Option<Answer>,
    /// Characters that have come.
    chars: usize,
}

/// What comes of one choice.
#[derive(Debug)]
pub(super) enum News {
    /// More of it.
    More(Piece),
    /// The last of it.
    Last(Piece, FinishReason),
}

impl Answers {
    /// The answers that the engine has taken on, `choices` to a prompt; `time` from the request's arrival they have to be complete.
    pub(super) fn new(answers: Vec<Answer>, choices: usize, arrived: Instant, time: Duration) -> Self {
        let answers = answers.into_iter().map(|answer| Progress { answer: Some(answer), chars: 0 }).collect();
        Self {
            answers,
            choices,
            counts: TokenCounts::default(),
            deadline: arrived + time + GRACE,
            time,
            next: 0,
        }
    }

    /// How many answers there are.
    pub(super) fn len(&self) -> usize {
        self.answers.len()
    }

    /// How many tokens there were, complete once all answers are.
    pub(super) fn counts(&self) -> TokenCounts {
        self.counts
    }

    /// The next news and whose they are; `None` when all answers are complete.
    pub(super) async fn next(&mut self) -> Result<Option<(usize, News)>, ApiError> {
        loop {
            let deadline = self.deadline;
            let event = timeout_at(deadline, poll_fn(|cx| self.poll_event(cx))).await;
            let event = event.map_err(|_| ApiError::out_of_time(self.time))?;
            let Some((index, event)) = event else { return Ok(None) };
            if let Some(news) = self.take(index, event)? {
                return Ok(Some((index, news)));
            }
        }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<(usize, Option<Event>)>> {
        let count = self.answers.len();
        let mut running = false;
        for step in 0..count {
            let index = (self.next + step) % count;
            let Some(answer) = self.answers.get_mut(index).and_then(|progress| progress.answer.as_mut())
            else {
                continue;
            };
            running = true;
            // Nothing is lost with a future that is not ready.
            if let Poll::Ready(event) = pin!(answer.next()).poll(cx) {
                self.next = index + 1;
                return Poll::Ready(Some((index, event)));
            }
        }
        if running {
            Poll::Pending
        } else {
            Poll::Ready(None)
        }
    }

    /// What an event is to the client.
    fn take(&mut self, index: usize, event: Option<Event>) -> Result<Option<News>, ApiError> {
        let choices = self.choices;
        let Some(progress) = self.answers.get_mut(index) else { return Ok(None) };
        match event {
            Some(Event::Started { prompt_tokens }) => {
                // A prompt counts once, however many choices it has.
                if index.is_multiple_of(choices) {
                    self.counts.prompt += prompt_tokens;
                }
                Ok(None)
            }
            Some(Event::Token { text, logprobs, .. }) => {
                self.counts.completion += 1;
                let piece = progress.piece(text, logprobs);
                Ok((!piece.text.is_empty() || !piece.tokens.is_empty()).then_some(News::More(piece)))
            }
            Some(Event::Ended { reason, text, .. }) => {
                progress.answer = None;
                let piece = progress.piece(text, None);
                self.end(piece, &reason).map(Some)
            }
            Some(Event::Failed(error)) => Err(error.into()),
            None => Err(ApiError::internal("the engine has ended")),
        }
    }

    fn end(&self, piece: Piece, reason: &StopReason) -> Result<News, ApiError> {
        match reason {
            StopReason::StopToken(_) | StopReason::StopString(_) => Ok(News::Last(piece, FinishReason::Stop)),
            StopReason::MaxNewTokens | StopReason::Context => Ok(News::Last(piece, FinishReason::Length)),
            StopReason::Deadline => Err(ApiError::out_of_time(self.time)),
            StopReason::Interrupted => Err(ApiError::shutting_down()),
        }
    }
}

impl Progress {
    fn piece(&mut self, text: String, logprobs: Option<TokenLogprobs>) -> Piece {
        let offset = self.chars;
        self.chars += text.chars().count();
        let tokens: Vec<Token> = logprobs.into_iter().map(token).collect();
        let offsets = tokens.iter().map(|_| offset).collect();
        Piece { text, tokens, offsets }
    }
}

fn token(logprobs: TokenLogprobs) -> Token {
    let likely = |token: TokenLogprob| Likely { bytes: token.bytes, logprob: token.logprob };
    Token { chosen: likely(logprobs.chosen), top: logprobs.top.into_iter().map(likely).collect() }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::QueueFull { .. } => Self::busy(refusal.to_string()),
            Refusal::ShuttingDown => Self::shutting_down(),
            Refusal::Broken => Self::internal(refusal.to_string()),
            Refusal::Invalid(error) => error.into(),
        }
    }
}
