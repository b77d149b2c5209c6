//! One function a route.

use axum::extract::{Path, Request as HttpRequest, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::Json;
use serde_json::{json, Value};
use tokio::time::Instant;

use super::answers::{Answers, News};
use super::{body, metrics as metrics_text, page as chat_page, stream, Server};
use crate::runtime::{GenerateOptions, Prompt};
use crate::serve::engine::Request;
use crate::serve::openai::{ApiError, ChatRequest, Choice, CompletionRequest, FinishReason, Form, Head, Parameters, Piece};

pub(super) async fn chat(State(server): State<Server>, request: HttpRequest) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let chat = ChatRequest::parse(&body::read(request, server.options()).await?)?;
    check_model(&server, chat.model.as_deref())?;
    let order = Order {
        form: Form::Chat,
        prompts: vec![Prompt::Chat(chat.messages)],
        parameters: chat.parameters,
        logprobs: chat.logprobs,
    };
    order.answer(&server, arrived).await
}

pub(super) async fn completion(
    State(server): State<Server>,
    request: HttpRequest,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let completion = CompletionRequest::parse(&body::read(request, server.options()).await?)?;
    check_model(&server, completion.model.as_deref())?;
    let order = Order {
        form: Form::Completion,
        prompts: completion.prompts,
        parameters: completion.parameters,
        logprobs: completion.logprobs,
    };
    order.answer(&server, arrived).await
}

pub(super) async fn models(State(server): State<Server>) -> Json<Value> {
    Json(json!({ "object": "list", "data": [model_card(&server)] }))
}

pub(super) async fn model(State(server): State<Server>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    check_model(&server, Some(&id))?;
    Ok(Json(model_card(&server)))
}

pub(super) async fn page(State(server): State<Server>) -> Response {
    chat_page::response(server.page_policy())
}

pub(super) async fn no_such_path(method: Method, uri: Uri) -> ApiError {
    ApiError::refused(404, format!("there is no {method} {}", clip(uri.path()))).with_code("unknown_url")
}

pub(super) async fn no_such_method(method: Method, uri: Uri) -> ApiError {
    ApiError::refused(405, format!("{} does not take {}", clip(uri.path()), clip(method.as_str())))
}

/// What a client wants answered, whichever endpoint it asked.
struct Order {
    form: Form,
    prompts: Vec<Prompt>,
    parameters: Parameters,
    logprobs: Option<usize>,
}

impl Order {
    async fn answer(self, server: &Server, arrived: Instant) -> Result<Response, ApiError> {
        let requests = self.requests(server)?;
        let Parameters { choices, stream: streaming, include_usage, .. } = self.parameters;
        let answers = Answers::begin(server, requests, choices, arrived).await?;
        let model = &server.options().model_id;
        let head = Head::new(self.form, model, self.logprobs.is_some(), streaming && include_usage);
        if streaming {
            return Ok(stream::response(head, answers));
        }
        whole(&head, answers).await
    }

    /// One request to the engine for each choice of each prompt.
    fn requests(&self, server: &Server) -> Result<Vec<Request>, ApiError> {
        let options = self.generate_options(server)?;
        let choices = 0..self.parameters.choices as u64;
        let request = |prompt: &Prompt, choice: u64| {
            let mut options = options.clone();
            options.sampling.seed = options.sampling.seed.wrapping_add(choice);
            Request { prompt: prompt.clone(), options, logprobs: self.logprobs, deadline: None }
        };
        let each = self.prompts.iter().flat_map(|prompt| choices.clone().map(move |choice| (prompt, choice)));
        Ok(each.map(|(prompt, choice)| request(prompt, choice)).collect())
    }

    fn generate_options(&self, server: &Server) -> Result<GenerateOptions, ApiError> {
        let most = server.max_new_tokens();
        let max_new_tokens = match (self.parameters.max_new_tokens, server.options().max_new_tokens) {
            (Some(asked), Some(_)) if asked > most => {
                let message = format!("is {asked}, wanted at most {most}, the limit of this server");
                return Err(ApiError::parameter("max_tokens", message));
            }
            // The context ends an answer that is asked to go beyond it.
            (asked, _) => asked.unwrap_or(most).min(most),
        };
        Ok(GenerateOptions {
            max_new_tokens,
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
    let choices = pieces.into_iter().zip(reasons).map(|(piece, finish_reason)| Choice { piece, finish_reason });
    Ok(Json(head.whole(&choices.collect::<Vec<_>>(), answers.counts())).into_response())
}

/// A request may leave the model out: there is only one.
fn check_model(server: &Server, asked: Option<&str>) -> Result<(), ApiError> {
    let served = &server.options().model_id;
    match asked {
        Some(asked) if asked != served => Err(ApiError::no_such_model(&clip(asked), served)),
        _ => Ok(()),
    }
}

fn model_card(server: &Server) -> Value {
    let info = server.engine().model_info();
    json!({
        "id": server.options().model_id,
        "object": "model",
        "created": server.started(),
        "owned_by": "codecllm",
        "context_length": info.context,
    })
}

pub(super) async fn health(State(_server): State<Server>) -> Response {
    (StatusCode::OK, Json(json!({ "status": "ok" }))).into_response()
}

pub(super) async fn metrics(State(server): State<Server>) -> Response {
    ([(CONTENT_TYPE, super::exposition::CONTENT_TYPE)], metrics_text::text(&server)).into_response()
}

pub(super) async fn stats(State(server): State<Server>) -> Response {
    Json(server.engine().stats()).into_response()
}
