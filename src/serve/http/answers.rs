//! The answers to one request, merged as they come.

use std::future::poll_fn;
use std::task::{Context, Poll};

use tokio::time::{timeout_at, Instant};

use super::Server;
use crate::runtime::StopReason;
use crate::serve::engine::{Answer, Event, Refusal, Request, TokenLogprobs};
use crate::serve::openai::{ApiError, FinishReason, Likely, Piece, Token, TokenCounts};

/// Answers under way. To drop them is to give them up: their places are free with the next step.
#[derive(Debug)]
pub(super) struct Answers {
    answers: Vec<Progress>,
    /// How many choices there are to a prompt.
    choices: usize,
    counts: TokenCounts,
    deadline: Instant,
    seconds: f64,
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
    /// Asks the engine for all `requests`, `choices` to a prompt.
    pub(super) async fn begin(
        server: &Server,
        requests: Vec<Request>,
        choices: usize,
        arrived: Instant,
    ) -> Result<Self, ApiError> {
        let engine = server.engine().clone();
        // Making tokens of a long text takes a while.
        let submitting = tokio::task::spawn_blocking(move || {
            requests.into_iter().map(|request| engine.submit(request)).collect::<Result<Vec<_>, _>>()
        });
        let time = server.options().request_time;
        let (deadline, seconds) = (arrived + time, time.as_secs_f64());
        let submitted = timeout_at(deadline, submitting).await.map_err(|_| ApiError::out_of_time(seconds))?;
        let answers = submitted.map_err(|_| ApiError::internal("the request could not be read"))??;
        let answers = answers.into_iter().map(|answer| Progress { answer: Some(answer), chars: 0 }).collect();
        Ok(Self { answers, choices, counts: TokenCounts::default(), deadline, seconds, next: 0 })
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
            let (deadline, seconds) = (self.deadline, self.seconds);
            let event = timeout_at(deadline, poll_fn(|cx| self.poll_event(cx))).await;
            let Some((index, event)) = event.map_err(|_| ApiError::out_of_time(seconds))? else { return Ok(None) };
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
            let Some(answer) = self.answers.get_mut(index).and_then(|progress| progress.answer.as_mut()) else {
                continue;
            };
            running = true;
            if let Poll::Ready(event) = answer.poll_next(cx) {
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
                if index % choices == 0 {
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
                Ok(Some(News::Last(piece, finish_reason(&reason)?)))
            }
            Some(Event::Failed(error)) => Err(error.into()),
            None => Err(ApiError::internal("the engine has ended")),
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
    let likely = |(_, bytes, logprob)| Likely { bytes, logprob };
    Token {
        chosen: Likely { bytes: logprobs.bytes, logprob: logprobs.logprob },
        top: logprobs.top.into_iter().map(likely).collect(),
    }
}

fn finish_reason(reason: &StopReason) -> Result<FinishReason, ApiError> {
    match reason {
        StopReason::StopToken(_) | StopReason::StopString(_) => Ok(FinishReason::Stop),
        StopReason::MaxNewTokens | StopReason::Context => Ok(FinishReason::Length),
        StopReason::Interrupted => Err(ApiError::shutting_down()),
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::QueueFull => Self::busy("as many requests wait as may; try again in a second"),
            Refusal::ShuttingDown => Self::shutting_down(),
            Refusal::Invalid(error) => error.into(),
        }
    }
}
