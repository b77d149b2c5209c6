//! Who may come in: the host that a request is addressed to, and its key.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, HOST};
use axum::http::uri::Authority;
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Server;
use crate::serve::openai::ApiError;

/// What anybody may see: that the server is there, and the page, which asks for the key.
const OPEN_PATHS: [&str; 2] = ["/", "/health"];

/// Lets a request pass or answers it.
pub(super) async fn admit(State(server): State<Server>, request: Request, next: Next) -> Response {
    let mut response = match check(&server, &request) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    super::headers::harden(response.headers_mut());
    server.counters().note(response.status());
    response
}

fn check(server: &Server, request: &Request) -> Result<(), ApiError> {
    let options = server.options();
    if options.loopback_hosts_only {
        check_host(request)?;
    }
    if options.keys.is_empty() || OPEN_PATHS.contains(&request.uri().path()) {
        return Ok(());
    }
    match bearer(request.headers()) {
        Some(key) if options.keys.contains(key) => Ok(()),
        Some(_) => Err(ApiError::unauthorized("this API key is not one of the server's")),
        None => Err(ApiError::unauthorized("no API key; send it as: Authorization: Bearer KEY")),
    }
}

/// Refuses what is not addressed to a loopback name.
fn check_host(request: &Request) -> Result<(), ApiError> {
    let mut named = request.headers().get_all(HOST).iter();
    let host = match (named.next(), named.next()) {
        (Some(host), None) => host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()),
        _ => None,
    };
    // A request line with a whole URL names the host, too.
    let target = request.uri().authority();
    if host.as_ref().is_some_and(is_loopback) && target.is_none_or(is_loopback) {
        return Ok(());
    }
    let message =
        "this server answers requests to localhost, 127.0.0.1 or [::1] only (the Host header says where)";
    Err(ApiError::refused(403, message).with_code("host_not_allowed"))
}

/// Addresses can't be rebound, names but `localhost` can.
fn is_loopback(authority: &Authority) -> bool {
    let host = authority.host();
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost")
        || address.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// The key in `Authorization: Bearer KEY`.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, key) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}
