//! What a client wants answered, whichever endpoint it asked: from the order to the response.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use axum::Json;
use tokio::time::Instant;

use super::answers::{Answers, News};
use super::workers::Asker;
use super::{stream, Server};
use crate::runtime::{GenerateOptions, Prompt};
use crate::serve::engine::{Answer, Request};
use crate::serve::openai::{ApiError, Choice, FinishReason, Form, Head, Parameters, Piece};

/// Prompts to answer.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) form: Form,
    pub(super) prompts: Vec<Prompt>,
    pub(super) parameters: Parameters,
    pub(super) logprobs: Option<usize>,
}

impl Order {
    /// Has the engine answer a request that came at `arrived`.
    pub(super) async fn answer(self, server: &Server, arrived: Instant) -> Result<Response, ApiError> {
        let time = server.options().request_time;
        let Parameters { choices, stream: streaming, include_usage, .. } = self.parameters;
        let model = &server.options().model_id;
        let head = Head::new(self.form, model, self.logprobs.is_some(), streaming && include_usage);
        let answers = self.submit(server.clone(), arrived, time).await?;
        let answers = Answers::new(answers, choices, arrived, time);
        match streaming {
            true => Ok(stream::response(head, answers)),
            false => whole(&head, answers).await,
        }
    }

    /// Making tokens of a long text takes a while: not on a thread that others wait for.
    async fn submit(self, server: Server, arrived: Instant, time: Duration) -> Result<Vec<Answer>, ApiError> {
        let deadline = arrived + time;
        let workers = server.workers().clone();
        let submitting = workers.run(deadline, move |asker| self.submit_blocking(&server, deadline, asker));
        let submitted = submitting.await.map_err(|_| ApiError::out_of_time(time))?;
        submitted.map_err(|_| ApiError::internal("the request could not be taken"))?
    }

    /// Asks for each choice of each prompt. If one is refused, the others are given up with it.
    fn submit_blocking(
        &self,
        server: &Server,
        deadline: Instant,
        asker: &Asker,
    ) -> Result<Vec<Answer>, ApiError> {
        let (engine, info) = (server.engine(), server.engine().model_info());
        let places = info.max_batch.saturating_add(info.max_queue);
        let wanted = self.prompts.len().saturating_mul(self.parameters.choices);
        if wanted > places {
            let message =
                format!("asks for {wanted} answers, wanted at most {places}: more never run and wait here");
            return Err(ApiError::parameter("n", message));
        }
        let mut answers = Vec::with_capacity(wanted);
        for prompt in &self.prompts {
            if asker.has_left() {
                return Err(ApiError::out_of_time(server.options().request_time));
            }
            let ids = engine.encode(prompt)?;
            let options = self.options(server, ids.len())?;
            for choice in 0..self.parameters.choices as u64 {
                let mut options = options.clone();
                options.sampling.seed = options.sampling.seed.wrapping_add(choice);
                let (prompt, deadline) = (Prompt::Tokens(ids.clone()), Some(deadline.into_std()));
                answers.push(engine.submit(Request {
                    prompt,
                    options,
                    logprobs: self.logprobs,
                    deadline,
                })?);
            }
        }
        Ok(answers)
    }

    /// How to continue a prompt of `prompt_tokens` tokens: the context ends an answer that is asked to go beyond it.
    fn options(&self, server: &Server, prompt_tokens: usize) -> Result<GenerateOptions, ApiError> {
        let room = server.engine().model_info().max_prompt_tokens();
        if prompt_tokens > room {
            let param = match self.form {
                Form::Chat => "messages",
                Form::Completion => "prompt",
            };
            return Err(ApiError::prompt_too_long(param, prompt_tokens, room));
        }
        let most = server.options().max_new_tokens.unwrap_or(usize::MAX);
        let asked = self.parameters.max_new_tokens;
        if let Some(asked) = asked.filter(|&asked| asked > most) {
            let message = format!("is {asked}, wanted at most {most}, the limit of this server");
            return Err(ApiError::parameter("max_tokens", message));
        }
        Ok(GenerateOptions {
            max_new_tokens: asked.unwrap_or(most).min((room - prompt_tokens).max(1)),
            sampling: self.parameters.sampling.clone(),
            stop_strings: self.parameters.stop_strings.clone(),
            ..GenerateOptions::default()
        })
    }
}

/// The response once all answers are complete.
async fn whole(head: &Head, mut answers: Answers) -> Result<Response, ApiError> {
    let mut pieces = vec![Piece::default(); answers.len()];
    let mut reasons = vec![FinishReason::Stop; answers.len()];
    while let Some((index, news)) = answers.next().await? {
        let (Some(whole), Some(reason)) = (pieces.get_mut(index), reasons.get_mut(index)) else { continue };
        let more = match news {
            News::More(piece) => piece,
            News::Last(piece, why) => {
                *reason = why;
                piece
            }
        };
        whole.append(more);
    }
    let choices =
        pieces.into_iter().zip(reasons).map(|(piece, finish_reason)| Choice { piece, finish_reason });
    Ok(Json(head.whole(&choices.collect::<Vec<_>>(), answers.counts())).into_response())
}
