//! The server's promises to clients: answers as OpenAI's API gives them, limits, keys, and a good end.
#![cfg(feature = "serve")]

mod server;
mod tiny_llama;

use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use codecllm::runtime::{GenerateOptions, Generator, LoadOptions, Message, Prompt};
use codecllm::serve::{router, Engine, EngineOptions, ServerOptions};
use serde_json::{json, Value};
use server::{tiny_model, Reply, Server, Told, PATIENCE};
use tiny_llama::TinyLlama;

const CHAT: &str = "/v1/chat/completions";
const COMPLETION: &str = "/v1/completions";
const ARGUMENTS: [&str; 2] = ["--threads", "1"];

fn model() -> &'static TinyLlama {
    static MODEL: OnceLock<TinyLlama> = OnceLock::new();
    MODEL.get_or_init(tiny_model)
}

fn server(arguments: &[&str]) -> Server {
    Server::start(&model().dir(), &[&ARGUMENTS, arguments].concat())
}

/// A greedy completion of `prompt`, `tokens` long.
fn order(prompt: impl Into<Value>, tokens: usize) -> Value {
    json!({ "prompt": prompt.into(), "max_tokens": tokens, "temperature": 0 })
}

fn generator() -> Generator {
    Generator::open(model().dir(), &LoadOptions::default()).unwrap()
}

fn answer_alone(prompt: Prompt, max_new_tokens: usize) -> String {
    let options = GenerateOptions { max_new_tokens, ..GenerateOptions::default() };
    generator().generate(&[prompt], &options, &mut |_| ControlFlow::Continue(())).unwrap().remove(0).text
}

fn with(mut body: Value, name: &str, value: impl Into<Value>) -> Value {
    body[name] = value.into();
    body
}

#[test]
fn answers_are_those_of_the_library() {
    let server = server(&[]);
    let wanted = answer_alone(Prompt::Text("Hello".to_owned()), 40);
    let reply = server.post(COMPLETION, &order("Hello", 40)).ok();
    assert_eq!(reply["choices"][0]["text"], wanted);
    assert_eq!(reply["usage"], json!({ "prompt_tokens": 5, "completion_tokens": 40, "total_tokens": 45 }));
    assert_eq!((&reply["object"], &reply["model"]), (&json!("text_completion"), &json!("m")));
    let tokens: Vec<u32> = "Hello".bytes().map(u32::from).collect();
    assert_eq!(server.post(COMPLETION, &order(tokens, 40)).ok()["choices"][0]["text"], wanted);

    let wanted =
        answer_alone(Prompt::Chat(vec![Message::new("user", "Hi"), Message::new("assistant", "Ho")]), 30);
    let messages = json!([{ "role": "user", "content": "Hi" }, { "role": "assistant", "content": [{ "type": "text", "text": "Ho" }] }]);
    let chat = json!({ "model": "m", "messages": messages, "max_completion_tokens": 30, "temperature": 0 });
    let reply = server.post(CHAT, &chat).ok();
    assert_eq!(
        reply["choices"][0]["message"],
        json!({ "role": "assistant", "content": wanted, "refusal": null })
    );
    assert_eq!(
        (&reply["object"], &reply["choices"][0]["finish_reason"]),
        (&json!("chat.completion"), &json!("length"))
    );
    let told = Told::of(server.stream(CHAT, &with(chat, "stream", true)));
    assert_eq!(told, Told { text: wanted, finish_reason: "length".to_owned(), done: true });
}

#[test]
fn a_stream_is_chunks_in_openais_order() {
    let server = server(&[]);
    let body = json!({ "messages": [{ "role": "user", "content": "Hi" }], "max_tokens": 5, "temperature": 0, "n": 2,
        "stream": true, "stream_options": { "include_usage": true } });
    let mut events: Vec<String> = server.stream(CHAT, &body).collect();
    assert_eq!(events.pop().unwrap(), "[DONE]");
    let chunks: Vec<Value> = events.iter().map(|data| serde_json::from_str(data).unwrap()).collect();
    for chunk in &chunks {
        assert_eq!((&chunk["object"], &chunk["id"]), (&json!("chat.completion.chunk"), &chunks[0]["id"]));
        assert!(chunk.as_object().unwrap().contains_key("usage"));
    }
    let (last, chunks) = chunks.split_last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &json!(10)));
    for index in 0..2 {
        let mine: Vec<_> =
            chunks.iter().map(|chunk| &chunk["choices"][0]).filter(|c| c["index"] == index).collect();
        assert_eq!(mine[0]["delta"]["role"], "assistant");
        let (end, rest) = mine.split_last().unwrap();
        assert_eq!((&end["finish_reason"], &end["delta"]), (&json!("length"), &json!({})));
        assert!(rest.iter().all(|choice| choice["finish_reason"].is_null()));
    }
}

#[test]
fn characters_are_never_split() {
    let server = server(&[]);
    // A random model of bytes writes much that is no UTF-8, and some that is: seeds enough for characters of several bytes.
    let mut long_characters = 0;
    for seed in 0..20 {
        let body = json!({ "prompt": "é", "max_tokens": 200, "seed": seed, "temperature": 2 });
        let whole = server.post(COMPLETION, &body).ok()["choices"][0]["text"].as_str().unwrap().to_owned();
        let told = Told::of(server.stream(COMPLETION, &with(body, "stream", true)));
        assert_eq!(told.text, whole, "seed {seed}");
        long_characters +=
            whole.chars().filter(|&c| c.len_utf8() > 1 && c != char::REPLACEMENT_CHARACTER).count();
    }
    assert!(long_characters > 0);
}

#[test]
fn stop_strings_seeds_and_choices_are_honored() {
    let server = server(&[]);
    let whole =
        server.post(COMPLETION, &order("Hello", 60)).ok()["choices"][0]["text"].as_str().unwrap().to_owned();
    // The last three characters of the answer's first half: the answer ends where they come up first.
    let half: Vec<char> = whole.chars().take(20).collect();
    let stop: String = half[half.len() - 3..].iter().collect();
    let reply = server.post(COMPLETION, &with(order("Hello", 60), "stop", json!(["\0never\0", stop]))).ok();
    assert_eq!(reply["choices"][0]["text"], whole[..whole.find(&stop).unwrap()]);
    assert_eq!(reply["choices"][0]["finish_reason"], "stop");

    let sampled = |seed: i64, n: usize| {
        let body = json!({ "prompt": ["a", "b"], "max_tokens": 30, "seed": seed, "n": n });
        let reply = server.post(COMPLETION, &body).ok();
        reply["choices"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["text"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let (one, two) = (sampled(5, 1), sampled(5, 2));
    assert_eq!(one, sampled(5, 1));
    // Choices of the first prompt, then of the second; choice 1 has the next seed.
    assert_eq!([&two[0], &two[2]], [&one[0], &one[1]]);
    assert_eq!([&two[1], &two[3]], [&sampled(6, 1)[0], &sampled(6, 1)[1]]);
    assert_ne!(two[0], two[1]);
}

#[test]
fn logprobs_come_in_both_forms() {
    let server = server(&[]);
    let reply = server.post(COMPLETION, &with(order("Hello", 8), "logprobs", 3)).ok();
    let logprobs = &reply["choices"][0]["logprobs"];
    for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(logprobs[name].as_array().unwrap().len(), 8, "{name}");
    }
    let chat = json!({ "messages": [{ "role": "user", "content": "Hi" }], "max_tokens": 8, "temperature": 0,
        "logprobs": true, "top_logprobs": 2 });
    let reply = server.post(CHAT, &chat).ok();
    let tokens = reply["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    assert_eq!(tokens.len(), 8);
    for token in &tokens {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!((top.len(), &top[0]["bytes"]), (2, &token["bytes"]), "greedy picks the likeliest");
        let logprob = token["logprob"].as_f64().unwrap();
        assert!(logprob <= 0.0 && logprob > -10.0, "{logprob}");
    }
    // The same tokens in a stream, those too whose text was held back.
    let streamed: Vec<Value> = (server.stream(CHAT, &with(chat.clone(), "stream", true)))
        .filter(|data| data != "[DONE]")
        .map(|data| {
            serde_json::from_str::<Value>(&data).unwrap()["choices"][0]["logprobs"]["content"].clone()
        })
        .flat_map(|tokens| tokens.as_array().cloned().unwrap_or_default())
        .collect();
    assert_eq!(streamed, tokens);
    assert!(server.post(CHAT, &with(chat, "logprobs", false)).error(400)["param"] == "top_logprobs");
}

#[test]
fn errors_name_what_is_wrong() {
    let server = server(&["--max-body-bytes", "5000", "--max-new-tokens", "50", "--context", "300"]);
    assert_eq!(server.post(COMPLETION, &with(order("a", 5), "echo", true)).error(400)["param"], "echo");
    assert_eq!(server.post(COMPLETION, &order("a", 51)).error(400)["param"], "max_tokens");
    let long = server.post(COMPLETION, &order("a".repeat(301), 5)).error(400);
    assert_eq!((&long["param"], &long["code"]), (&json!("prompt"), &json!("context_length_exceeded")));
    assert!(long["message"].as_str().unwrap().contains("is 301 tokens, wanted at most 300"));
    let chat = json!({ "messages": [{ "role": "user", "content": "a".repeat(300) }] });
    assert_eq!(server.post(CHAT, &chat).error(400)["param"], "messages");
    assert_eq!(server.post(COMPLETION, &order("", 5)).error(400)["type"], "invalid_request_error");
    assert_eq!(server.post(COMPLETION, &order([300], 5)).error(400)["type"], "invalid_request_error");
    assert_eq!(
        server.post(COMPLETION, &with(order("a", 5), "model", "x")).error(404)["code"],
        "model_not_found"
    );
    let most = server.post(COMPLETION, &with(order(vec!["a"; 9], 5), "n", 20)).error(400);
    assert_eq!(most["param"], "n");
    assert_eq!(server.post_bytes(COMPLETION, b"{\"prompt\": \"\xff\"}").error(400)["param"], Value::Null);
    assert_eq!(server.post_bytes(COMPLETION, &[b' '; 5001]).error(413)["code"], "body_too_long");
    assert_eq!(server.post_bytes(COMPLETION, &vec![b' '; 1 << 20]).error(413)["code"], "body_too_long");
    server.raw(&format!("POST {COMPLETION} HTTP/1.1\r\nContent-Type: text/plain"), b"{}").error(415);
    assert_eq!(server.get("/nowhere").error(404)["code"], "unknown_url");
    let reply = server.get(COMPLETION);
    reply.error(405);
    assert_eq!(reply.header("allow"), "POST");
    // An answer that is asked to go beyond the context ends with it.
    let reply = server.post(COMPLETION, &order("a".repeat(290), 50)).ok();
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
    assert_eq!(
        server.post(CHAT, &json!({ "messages": [{ "role": "user", "content": "a" }] })).ok()["usage"]
            ["completion_tokens"],
        50
    );
}

#[test]
fn the_small_endpoints_answer() {
    let server = server(&[]);
    let models = server.get("/v1/models").ok();
    assert_eq!((&models["object"], &models["data"][0]["id"]), (&json!("list"), &json!("m")));
    assert_eq!(server.get("/v1/models/m").ok(), models["data"][0]);
    assert_eq!(server.get("/v1/models/other/one").error(404)["code"], "model_not_found");
    assert_eq!(server.get("/health").ok(), json!({ "status": "running" }));
    server.post(COMPLETION, &order("Hello", 7)).ok();
    let stats = server.stats();
    assert_eq!((&stats["completion_tokens"], &stats["prompt_tokens"]), (&json!(7), &json!(5)));
    assert!(stats["rss_bytes"].as_u64().unwrap() > 1 << 20);
    let page = server.get("/");
    assert_eq!((page.status, page.header("content-type")), (200, "text/html; charset=utf-8"));
    assert!(page.header("content-security-policy").starts_with("default-src 'none'; script-src"));
    assert_eq!(page.header("x-content-type-options"), "nosniff");
    assert!(page.headers.iter().all(|(name, _)| !name.starts_with("access-control-")));
}

#[test]
fn metrics_are_in_prometheus_format() {
    let server = server(&[]);
    server.post(COMPLETION, &order("Hello", 7)).ok();
    server.get("/nowhere");
    let reply = server.get("/metrics");
    assert_eq!(
        (reply.status, reply.header("content-type")),
        (200, "text/plain; version=0.0.4; charset=utf-8")
    );
    let text = reply.text();
    let sample = |name: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} in {text}")).parse().unwrap()
    };
    assert_eq!(sample("codecllm_completion_tokens_total"), 7.0);
    assert_eq!(sample("codecllm_requests_total{outcome=\"length\"}"), 1.0);
    assert_eq!(sample("codecllm_http_responses_total{status=\"404\"}"), 1.0);
    assert_eq!(sample("codecllm_time_to_first_token_seconds_count"), 1.0);
    assert_eq!(sample("codecllm_time_to_first_token_seconds_bucket{le=\"+Inf\"}"), 1.0);
    assert!(sample("codecllm_resident_bytes") > 1e6);
    let mut family = "";
    for line in text.lines() {
        match line.strip_prefix("# ") {
            Some(comment) => family = comment.split(' ').nth(1).unwrap(),
            None => assert!(line.starts_with(family) && line.split(' ').count() == 2, "{line} in {family}"),
        }
    }
}

#[test]
fn a_key_is_wanted_where_there_are_keys() {
    let file = model().dir().with_file_name("keys");
    std::fs::write(&file, "first-key\n\nsecond-key\n").unwrap();
    let server = server(&["--api-key-file", file.to_str().unwrap()]);
    let get =
        |path: &str, key: &str| server.raw(&format!("GET {path} HTTP/1.1\r\nAuthorization: {key}"), b"");
    for key in ["Bearer first-key", "bearer second-key"] {
        get("/v1/models", key).ok();
        get("/metrics", key);
        get("/stats", key).ok();
    }
    for key in [
        "Bearer first-ke",
        "Bearer first-keys",
        "Bearer ",
        "Basic first-key",
        "first-key",
        "Bearer first-key second-key",
    ] {
        for path in ["/v1/models", "/metrics", "/stats", "/nowhere"] {
            let reply = get(path, key);
            assert_eq!(reply.error(401)["code"], "invalid_api_key", "{key}");
            assert_eq!(reply.header("www-authenticate"), "Bearer");
        }
    }
    assert_eq!(server.post(COMPLETION, &order("a", 1)).error(401)["type"], "authentication_error");
    server.get("/health").ok();
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn a_name_that_points_here_is_not_enough() {
    let server = server(&[]);
    let get = |target: &str, host: &str| server.raw(&format!("GET {target} HTTP/1.1\r\nHost: {host}"), b"");
    for host in ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]", "[::1]:8080"] {
        assert_eq!(get("/health", host).status, 200, "{host}");
    }
    for host in [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "10.0.0.1",
        "0.0.0.0",
        "",
        "localhost\r\nHost: evil.example",
    ] {
        for path in ["/health", "/", "/v1/models"] {
            assert_eq!(get(path, host).error(403)["code"], "host_not_allowed", "{host}");
        }
    }
    assert_eq!(get("http://evil.example/health", "localhost").status, 403);
}

#[test]
fn an_address_for_others_wants_keys() {
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_codecllm"))
            .args(["serve", model().dir().to_str().unwrap(), "--port", "0"])
            .args(arguments)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, message) = run(&["--host", "0.0.0.0"]);
    assert_eq!(code, Some(1));
    assert!(message.contains("error: --host 0.0.0.0: ") && message.contains("--api-key-file"), "{message}");
    let file = model().dir().with_file_name("no-keys");
    std::fs::write(&file, "\n\n").unwrap();
    let (code, message) = run(&["--host", "0.0.0.0", "--api-key-file", file.to_str().unwrap()]);
    assert_eq!(code, Some(1));
    assert!(message.contains("has no key"), "{message}");
    let (code, message) = run(&["--api-key-file", "/nowhere/keys"]);
    assert_eq!(code, Some(1));
    assert!(message.contains("error: /nowhere/keys: "), "{message}");
    for (arguments, about) in [
        (&["--port", "70000"][..], "--port"),
        (&["--max-batch", "0"], "--max-batch"),
        (&["--read-seconds", "0"], "--read-seconds"),
        (&["--request-seconds=-1"], "--request-seconds"),
    ] {
        let (code, message) = run(arguments);
        assert_eq!(code, Some(2), "{message}");
        assert!(message.contains(about), "{message}");
    }
}

#[test]
fn a_full_queue_says_when_to_come_again() {
    let server = server(&["--max-batch", "1", "--max-queue", "1", "--context", "90000"]);
    let running = server.stream(COMPLETION, &with(order("a", 80_000), "stream", true));
    server.wait_for("one runs", |stats| stats["running"] == 1);
    let waiting = server.stream(COMPLETION, &with(order("b", 10), "stream", true));
    server.wait_for("one waits", |stats| stats["waiting"] == 1);
    let reply = server.post(COMPLETION, &order("c", 10));
    let error = reply.error(429);
    assert_eq!((&error["type"], &error["code"]), (&json!("rate_limit_error"), &json!("queue_full")));
    assert_eq!(reply.header("retry-after"), "1");
    // Two choices need two places, and can have them later: 429. Three never fit.
    server.post(COMPLETION, &with(order("c", 10), "n", 2)).error(429);
    server.post(COMPLETION, &with(order("c", 10), "n", 3)).error(400);
    // The one that waits gets the place of the one that leaves.
    drop(running);
    assert!(Told::of(waiting).done);
    server.post(COMPLETION, &order("c", 10)).ok();
}

#[test]
fn a_client_that_leaves_frees_its_place() {
    let server = server(&["--max-batch", "1", "--context", "90000"]);
    let free = |what: &str| {
        server.wait_for(what, |stats| stats["running"] == 0 && stats["pages"] == stats["pages_free"]);
    };
    let long = order("a", 80_000);
    let mut events = server.stream(COMPLETION, &with(long.clone(), "stream", true));
    events.next().unwrap();
    drop(events);
    free("left in a stream");
    // Before the first byte of an answer that comes in one piece.
    for half_closed in [false, true] {
        let mut stream = server.connect();
        let body = long.to_string();
        let head = format!("POST {COMPLETION} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(head.as_bytes()).unwrap();
        server.wait_for("it runs", |stats| stats["running"] == 1);
        if half_closed {
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            free("closed its side");
        } else {
            drop(stream);
            free("left while waiting");
        }
    }
    // While waiting in the queue.
    let running = server.stream(COMPLETION, &with(long.clone(), "stream", true));
    let waiting = server.stream(COMPLETION, &with(long, "stream", true));
    server.wait_for("one waits", |stats| stats["waiting"] == 1);
    drop(waiting);
    server.wait_for("left in the queue", |stats| stats["waiting"] == 0);
    drop(running);
    free("all left");
    assert_eq!(server.stats()["requests"]["left"], 5);
    assert_eq!(server.post(COMPLETION, &order("a", 3)).ok()["usage"]["completion_tokens"], 3);
}

#[test]
fn an_answer_that_takes_too_long_is_cut_off() {
    let server = server(&["--request-seconds", "1", "--context", "90000"]);
    let reply = server.post(COMPLETION, &order("a", 80_000));
    assert_eq!(reply.error(504)["code"], "time_limit");
    assert_eq!(reply.header("x-should-retry"), "false");
    let events: Vec<String> = server.stream(COMPLETION, &with(order("a", 80_000), "stream", true)).collect();
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "time_limit");
    server.wait_for("no place is kept", |stats| stats["running"] == 0);
}

#[test]
fn slow_clients_are_not_waited_for() {
    let server = server(&["--read-seconds", "1"]);
    let closed = |sent: &str| {
        let mut stream = server.connect();
        stream.write_all(sent.as_bytes()).unwrap();
        let start = Instant::now();
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        assert!(start.elapsed() < PATIENCE);
        Reply::parse(&bytes)
    };
    assert!(closed("").is_none_or(|reply| reply.status == 408));
    assert!(closed("POST /v1/comple").is_none_or(|reply| reply.status == 408));
    let head = format!("POST {COMPLETION} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n");
    closed(&format!("{head}{{\"prompt\"")).expect("a reply").error(408);
    let chunked = head.replace("Content-Length: 100", "Transfer-Encoding: chunked");
    closed(&format!("{chunked}5\r\nabcde\r\n")).expect("a reply").error(408);
    // One that sends a byte now and then is slow, too.
    let mut stream = server.connect();
    let start = Instant::now();
    let sent = format!("{head}{{");
    let slow = sent.bytes().chain(std::iter::repeat(b' ')).take_while(|byte| {
        thread::sleep(Duration::from_millis(20));
        start.elapsed() < PATIENCE && stream.write_all(&[*byte]).is_ok()
    });
    assert!(slow.count() > 0 && start.elapsed() < PATIENCE, "the server closes");
    server.get("/health").ok();
}

#[test]
fn connections_beyond_the_limit_wait_for_one_to_end() {
    let server = server(&["--max-connections", "2"]);
    let idle = [server.connect(), server.connect()];
    thread::sleep(Duration::from_millis(300)); // for the server to accept both
    let mut third = server.connect();
    third.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    third.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(third.read(&mut [0; 1]).is_err(), "it waits");
    drop(idle);
    third.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(Reply::read(third).unwrap().status, 200);
}

#[test]
fn a_server_asked_to_end_finishes_its_answers() {
    for signal in ["TERM", "INT"] {
        let mut server = server(&["--shutdown-seconds", "100"]);
        let wanted = answer_alone(Prompt::Text("Hello".to_owned()), 800);
        let mut idle = server.connect();
        let events = server.stream(COMPLETION, &with(order("Hello", 800), "stream", true));
        server.signal(signal);
        let told = Told::of(events);
        assert_eq!(told, Told { text: wanted, finish_reason: "length".to_owned(), done: true });
        assert_eq!(server.wait().code(), Some(0));
        assert!(matches!(idle.read(&mut [0; 1]), Ok(0) | Err(_)), "idle connections are closed");
        assert!(std::net::TcpStream::connect(&server.address).is_err());
    }
}

#[test]
fn what_does_not_finish_in_time_is_cut_off() {
    let mut server = server(&["--shutdown-seconds", "1", "--context", "90000"]);
    let events = server.stream(COMPLETION, &with(order("a", 80_000), "stream", true));
    server.signal("TERM");
    let events: Vec<String> = events.collect();
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "shutting_down");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_second_signal_ends_at_once() {
    let mut server = server(&["--shutdown-seconds", "1000", "--context", "90000"]);
    let mut events = server.stream(COMPLETION, &with(order("a", 80_000), "stream", true));
    events.next().unwrap();
    server.signal("INT");
    // The listener is closed: the first signal has come through.
    let start = Instant::now();
    while std::net::TcpStream::connect(&server.address).is_ok() {
        assert!(start.elapsed() < PATIENCE);
        thread::sleep(Duration::from_millis(5));
    }
    server.signal("INT");
    assert_eq!(server.wait().signal(), Some(2));
}

#[test]
fn a_port_can_be_served_again_at_once() {
    let mut first = server(&[]);
    let port = first.port();
    let mut kept = first.stream(COMPLETION, &with(order("a", 50), "stream", true));
    kept.next().unwrap();
    first.child.kill().unwrap();
    first.wait();
    let second = Server::start_at(&model().dir(), port, &ARGUMENTS);
    assert_eq!(second.post(COMPLETION, &order("a", 3)).ok()["usage"]["completion_tokens"], 3);
    // But not twice at the same time.
    let run = Command::new(env!("CARGO_BIN_EXE_codecllm"))
        .args(["serve", model().dir().to_str().unwrap(), "--port", &port.to_string()])
        .output()
        .unwrap();
    assert_eq!(run.status.code(), Some(1));
    assert!(String::from_utf8(run.stderr)
        .unwrap()
        .contains(&format!("127.0.0.1:{port}: can't listen there")));
}

#[test]
fn the_router_serves_in_an_application_of_ones_own() {
    let engine = Engine::start(generator(), EngineOptions::default()).unwrap();
    let app = router(engine.clone(), ServerOptions::new("tiny")).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(async move { axum::serve(listener, app).await });
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let get = |path: &str| agent.get(format!("http://{address}{path}")).call().unwrap();
    assert_eq!(get("/health").status(), 200);
    engine.shut_down(Duration::from_secs(10));
    let mut health = get("/health");
    assert_eq!(health.status(), 503);
    assert_eq!(health.body_mut().read_to_string().unwrap(), "{\"status\":\"stopped\"}");
    let refused = agent.post(format!("http://{address}{COMPLETION}")).send_json(order("a", 3)).unwrap();
    assert_eq!(refused.status(), 503);
}
