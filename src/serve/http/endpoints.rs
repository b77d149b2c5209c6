//! One function a route.

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request as HttpRequest, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::Json;
use serde_json::{json, Value};
use tokio::time::Instant;

use super::order::Order;
use super::{body, exposition, metrics as metrics_text, page as chat_page, Server};
use crate::runtime::Prompt;
use crate::serve::engine::EngineState;
use crate::serve::openai::{clip, ApiError, ChatRequest, CompletionRequest, Form};

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

pub(super) async fn model(
    State(server): State<Server>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    let Path(id) = id.map_err(|rejection| ApiError::refused(400, rejection.body_text()))?;
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

pub(super) async fn health(State(server): State<Server>) -> Response {
    let state = server.engine().state();
    let status = match state {
        EngineState::Running => StatusCode::OK,
        EngineState::ShuttingDown | EngineState::Stopped | EngineState::Broken => {
            StatusCode::SERVICE_UNAVAILABLE
        }
    };
    (status, Json(json!({ "status": state }))).into_response()
}

pub(super) async fn metrics(State(server): State<Server>) -> Response {
    ([(CONTENT_TYPE, exposition::CONTENT_TYPE)], metrics_text::text(&server)).into_response()
}

pub(super) async fn stats(State(server): State<Server>) -> Response {
    Json(server.engine().stats()).into_response()
}
