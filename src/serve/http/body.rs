//! A request's body: JSON, not too long, and not forever on its way.

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::header::{CONTENT_TYPE, EXPECT};
use axum::http::HeaderMap;
use http_body_util::{BodyExt, Limited};

use super::ServerOptions;
use crate::serve::openai::ApiError;

/// Most of a body too long that is read and thrown away, so that the client gets to read why.
const MOST_DISCARDED_BYTES: usize = 64 << 20;

/// The body of `request`.
pub(super) async fn read(request: Request, options: &ServerOptions) -> Result<Vec<u8>, ApiError> {
    check_content_type(request.headers())?;
    let asks_first = request.headers().contains_key(EXPECT);
    let reading = read_limited(request.into_body(), options.max_body_bytes, asks_first);
    match tokio::time::timeout(options.read_time, reading).await {
        Ok(body) => body,
        Err(_) => {
            let seconds = options.read_time.as_secs_f64();
            Err(ApiError::refused(408, format!("the body did not arrive within {seconds} s")))
        }
    }
}

/// A browser sends other types to any server that a page names; for this one it has to ask first, and is told no.
fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(ApiError::refused(415, "wanted the header Content-Type: application/json"))
}

async fn read_limited(mut body: Body, most: usize, asks_first: bool) -> Result<Vec<u8>, ApiError> {
    let told = body.size_hint().lower();
    if told > most as u64 {
        if !asks_first && told <= MOST_DISCARDED_BYTES as u64 {
            discard(body).await;
        }
        return Err(too_long(most));
    }
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| ApiError::refused(400, format!("the body broke off: {e}")))?;
        bytes.extend(frame.into_data().unwrap_or_default());
        if bytes.len() > most {
            discard(body).await;
            return Err(too_long(most));
        }
    }
    Ok(bytes)
}

fn too_long(most: usize) -> ApiError {
    ApiError::refused(413, format!("the body is too long, wanted at most {most} bytes"))
        .with_code("body_too_long")
}

async fn discard(body: Body) {
    let mut body = Limited::new(body, MOST_DISCARDED_BYTES);
    while let Some(Ok(_)) = body.frame().await {}
}
