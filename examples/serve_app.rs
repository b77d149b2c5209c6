//! A model inside one's own axum application: its routes under `/llm`, beside a route of one's own that asks the same engine.
//!
//! ```text
//! scripts/fetch_stories15m.sh
//! cargo run --release --example serve_app -- .cache/models/stories15M 127.0.0.1:8081
//! listening on http://127.0.0.1:8081
//!
//! curl http://127.0.0.1:8081/story
//! Once upon a time, there was a little girl named Lily. ...
//! curl http://127.0.0.1:8081/llm/v1/completions -H 'Content-Type: application/json' -d '{"prompt": "One day", "max_tokens": 16, "temperature": 0}'
//! {"choices":[{"finish_reason":"length",...,"text":", a little girl named Lily went to the park with her mom. They"}],...
//! ```
//!
//! Requests of both are batched together, token by token. Ctrl-C lets answers under way finish.

use std::time::Duration;

use anyhow::{bail, Context, Result};
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::Router;
use codecllm::runtime::{GenerateOptions, Generator, LoadOptions, Prompt};
use codecllm::serve::engine::{Event, Request};
use codecllm::serve::{router, Engine, EngineOptions, ServerOptions};

const DEFAULTS: [&str; 2] = [".cache/models/stories15M", "127.0.0.1:8081"];
/// How long answers under way have when the application ends.
const GRACE: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, address] = match &arguments[..] {
        [] => DEFAULTS,
        [model, address] => [model.as_str(), address.as_str()],
        _ => bail!("usage: serve_app [MODEL_DIR ADDRESS]"),
    };
    let generator = Generator::open(model, &LoadOptions::default())
        .with_context(|| format!("{model}: run scripts/fetch_stories15m.sh, or name a model directory"))?;
    let engine = Engine::start(generator, EngineOptions { max_batch: 8, ..EngineOptions::default() })?;
    let application = Router::new()
        .route("/story", get(story))
        .with_state(engine.clone())
        .nest("/llm", router(engine.clone(), ServerOptions::new("my-model"))?);
    let listener = tokio::net::TcpListener::bind(address).await.with_context(|| address.to_owned())?;
    println!("listening on http://{}", listener.local_addr()?);
    let end = async {
        // Where signals can't be watched, the default ends the process.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    axum::serve(listener, application).with_graceful_shutdown(end).await?;
    tokio::task::spawn_blocking(move || engine.shut_down(GRACE)).await?;
    Ok(())
}

/// A story from the beginning, told by the engine that serves all others too.
async fn story(State(engine): State<Engine>) -> Result<String, (StatusCode, String)> {
    const BEGIN: &str = "Once upon a time";
    let failed = |status, error: &dyn std::fmt::Display| (status, format!("{error}\n"));
    let options = GenerateOptions { max_new_tokens: 48, ..GenerateOptions::default() };
    let request = Request::new(Prompt::Text(BEGIN.to_owned()), options);
    // Encoding a prompt takes a while: not on a thread that serves others.
    let submitted = tokio::task::spawn_blocking(move || engine.submit(request)).await;
    let submitted = submitted.map_err(|error| failed(StatusCode::INTERNAL_SERVER_ERROR, &error))?;
    let mut answer = submitted.map_err(|refusal| failed(StatusCode::SERVICE_UNAVAILABLE, &refusal))?;
    let mut story = BEGIN.to_owned();
    while let Some(event) = answer.next().await {
        match event {
            Event::Started { .. } => {}
            Event::Token { text, .. } | Event::Ended { text, .. } => story.push_str(&text),
            Event::Failed(error) => return Err(failed(StatusCode::INTERNAL_SERVER_ERROR, &error)),
        }
    }
    story.push('\n');
    Ok(story)
}
