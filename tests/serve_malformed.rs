//! Requests that are wrong in every way we could think of: the server answers or closes each, and goes on serving.
#![cfg(feature = "serve")]

mod server;
mod tiny_llama;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{json, Value};
use server::{tiny_model, Reply, Server, PATIENCE};

const REQUESTS: usize = 10_000;
const CLIENTS: usize = 8;
/// What the server allows a body.
const BODY_BYTES: usize = 20_000;
/// A good request comes behind so many bad ones, of each client.
const GOOD_AFTER: usize = 50;

/// A way to be wrong: what is sent, in which pieces, and what the client does then.
struct Attack {
    name: &'static str,
    pieces: Vec<Vec<u8>>,
    then: Then,
}

#[derive(Clone, Copy, PartialEq)]
enum Then {
    /// Waits for the answer, or for the server to close.
    Wait,
    /// Sends no more, says so, and waits.
    Finish,
    /// Goes away.
    Leave,
}

fn valid_bodies() -> Vec<Value> {
    vec![
        json!({ "model": "m", "prompt": "Hello", "max_tokens": 3, "temperature": 0, "stop": ["x", "y"], "seed": 5 }),
        json!({ "prompt": ["a", "b"], "max_tokens": 2, "n": 2, "logprobs": 2, "stream": true, "stream_options": { "include_usage": true } }),
        json!({ "prompt": [72, 101], "max_tokens": 2, "top_p": 0.9, "top_k": 3, "user": "me" }),
        json!({ "model": "m", "messages": [{ "role": "system", "content": "Be" }, { "role": "user", "content": [{ "type": "text", "text": "é" }] }],
            "max_completion_tokens": 2, "logprobs": true, "top_logprobs": 2 }),
        json!({ "messages": [{ "role": "user", "content": "Hi" }], "max_tokens": 2, "stream": true, "metadata": { "a": "b" } }),
    ]
}

fn path_of(body: &Value) -> &'static str {
    if body.get("messages").is_some() {
        "/v1/chat/completions"
    } else {
        "/v1/completions"
    }
}

fn post(path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n{headers}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

fn post_whole(path: &str, body: &[u8]) -> Vec<u8> {
    post(path, &format!("Content-Length: {}", body.len()), body)
}

/// Bytes changed, put in, taken out, doubled or cut off.
fn mutated(rng: &mut StdRng, mut bytes: Vec<u8>) -> Vec<u8> {
    for _ in 0..rng.random_range(1..6) {
        let at = rng.random_range(0..=bytes.len());
        match rng.random_range(0..6) {
            0 if at < bytes.len() => bytes[at] = rng.random(),
            1 if at < bytes.len() => drop(bytes.remove(at)),
            2 => bytes.insert(at, *b"{}[]\",:0-.eE\\\0\n\xff\x80 ".choose(rng).unwrap()),
            3 => {
                let end = rng.random_range(at..=bytes.len());
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            4 => bytes.truncate(at),
            _ => {
                let end = rng.random_range(at..=bytes.len().min(at + 8));
                bytes.drain(at..end);
            }
        }
    }
    bytes
}

fn strange_value(rng: &mut StdRng) -> Value {
    match rng.random_range(0..16) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(-1),
        3 => json!(1e308),
        4 => json!(u64::MAX),
        5 => json!(i64::MIN),
        6 => json!(0.5),
        7 => json!(""),
        8 => json!("x".repeat(rng.random_range(1..3000))),
        9 => json!([]),
        10 => json!({}),
        11 => json!([[[1]], {}, null]),
        12 => json!(vec![""; 20]),
        13 => json!({ "type": "text", "role": 5, "content": null }),
        14 => json!(["\0", "\u{10FFFF}", "\u{FFFD}"]),
        _ => json!([0, -1, 1e30, u32::MAX, "1"]),
    }
}

/// A valid body with a value, somewhere in it, that is something else.
fn wrong_types(rng: &mut StdRng, body: &mut Value) {
    let strange = strange_value(rng);
    match body {
        Value::Object(map) if rng.random_bool(0.9) => {
            let names: Vec<String> = map.keys().cloned().collect();
            match names.choose(rng) {
                Some(name) if rng.random_bool(0.3) => wrong_types(rng, &mut map[name]),
                Some(name) => drop(map.insert(name.clone(), strange)),
                None => drop(map.insert("x".to_owned(), strange)),
            }
        }
        Value::Array(list) if !list.is_empty() && rng.random_bool(0.7) => {
            let at = rng.random_range(0..list.len());
            wrong_types(rng, &mut list[at]);
        }
        other => *other = strange,
    }
}

fn attack(rng: &mut StdRng) -> Attack {
    let body = valid_bodies().choose(rng).unwrap().clone();
    let (path, text) = (path_of(&body), body.to_string().into_bytes());
    let whole = |name, body: &[u8]| Attack { name, pieces: vec![post_whole(path, body)], then: Then::Wait };
    let sent = |name, bytes: Vec<u8>, then| Attack { name, pieces: vec![bytes], then };
    match rng.random_range(0..100) {
        0..25 => whole("mutated JSON", &mutated(rng, text)),
        25..45 => {
            let mut body = body;
            for _ in 0..rng.random_range(1..3) {
                wrong_types(rng, &mut body);
            }
            whole("wrong types", body.to_string().as_bytes())
        }
        45..50 => whole("deep nesting", &deep(rng)),
        50..55 => {
            let bytes: Vec<u8> = (0..rng.random_range(0..500)).map(|_| rng.random()).collect();
            whole("no text", &bytes)
        }
        55..60 => {
            let mut bytes = text;
            let at = rng.random_range(0..bytes.len());
            bytes.splice(
                at..at,
                rng.sample_iter(rand::distr::Uniform::new(0x80u8, 0xff).unwrap()).take(2).collect::<Vec<_>>(),
            );
            whole("invalid UTF-8", &bytes)
        }
        60..65 => oversized(rng, path),
        65..75 => sent("bad head", bad_head(rng, path, &text), Then::Finish),
        75..80 => sent("bad method or path", bad_target(rng, &text), Then::Wait),
        80..85 => {
            let cut = rng.random_range(0..text.len());
            let bytes = post(path, &format!("Content-Length: {}", text.len()), &text[..cut]);
            sent("truncated body", bytes, *[Then::Finish, Then::Leave].choose(rng).unwrap())
        }
        85..90 => {
            let bytes = post_whole(path, &text);
            let cut = rng.random_range(0..=bytes.len());
            sent("left midway", bytes[..cut].to_vec(), Then::Leave)
        }
        90..95 => sent("no HTTP", not_http(rng), Then::Finish),
        95..97 => {
            let two = [post_whole(path, &text), mutated(rng, post_whole(path, &text))].concat();
            sent("two at once", two, Then::Finish)
        }
        97..99 => {
            let bytes = post_whole(path, &text);
            Attack {
                name: "in pieces",
                pieces: bytes.chunks(rng.random_range(20..80)).map(<[u8]>::to_vec).collect(),
                then: Then::Wait,
            }
        }
        _ => {
            let bytes = post_whole(path, &text);
            let cut = rng.random_range(0..bytes.len());
            sent("never finished", bytes[..cut].to_vec(), Then::Wait)
        }
    }
}

fn deep(rng: &mut StdRng) -> Vec<u8> {
    let depth = rng.random_range(100..BODY_BYTES / 12);
    let (open, close) = *[("[", "]"), ("{\"a\":", "}"), ("[{\"content\":", "}]")].choose(rng).unwrap();
    let inner =
        format!("{}0{}", open.repeat(depth), if rng.random() { close.repeat(depth) } else { String::new() });
    match rng.random_range(0..3) {
        0 => inner.into_bytes(),
        1 => format!("{{\"prompt\":\"a\",\"logit_bias\":{inner}}}").into_bytes(),
        _ => format!("{{\"messages\":{inner}}}").into_bytes(),
    }
}

fn oversized(rng: &mut StdRng, path: &str) -> Attack {
    let size = rng.random_range(BODY_BYTES + 1..20 * BODY_BYTES);
    let body = vec![b' '; size];
    let (bytes, then) = match rng.random_range(0..4) {
        0 => (post_whole(path, &body), Then::Wait),
        1 => {
            let chunked = [format!("{size:x}\r\n").as_bytes(), &body, b"\r\n0\r\n\r\n"].concat();
            (post(path, "Transfer-Encoding: chunked", &chunked), Then::Wait)
        }
        2 => (post(path, "Content-Length: 99999999999999999", &body), Then::Finish),
        _ => (post(path, &format!("Expect: 100-continue\r\nContent-Length: {size}"), b""), Then::Wait),
    };
    Attack { name: "oversized", pieces: vec![bytes], then }
}

fn bad_head(rng: &mut StdRng, path: &str, body: &[u8]) -> Vec<u8> {
    let length = format!("Content-Length: {}", body.len());
    let header = match rng.random_range(0..12) {
        0 => "Content-Length: -5".to_owned(),
        1 => "Content-Length: 18446744073709551616".to_owned(),
        2 => format!("{length}\r\nContent-Length: 3"),
        3 => format!("{length}\r\nTransfer-Encoding: chunked"),
        4 => "Transfer-Encoding: gzip, identity".to_owned(),
        5 => format!("{length}\r\nX: {}", "y".repeat(rng.random_range(1..200_000))),
        6 => format!("{length}{}", "\r\nA: b".repeat(rng.random_range(1..2000))),
        7 => format!("{length}\r\nX: a\0b"),
        8 => format!("{length}\r\n folded"),
        9 => format!("{length}\r\nno colon"),
        10 => format!("{length}\r\nHost: evil.example"),
        _ => format!("{length}\r\nAuthorization: Bearer \u{7f}\r\nContent-Type: \u{e9}"),
    };
    let whole = post(path, &header, body);
    if rng.random_bool(0.3) {
        mutated(rng, whole)
    } else {
        whole
    }
}

fn bad_target(rng: &mut StdRng, body: &[u8]) -> Vec<u8> {
    let method = *["DELETE", "PUT", "PATCH", "OPTIONS", "TRACE", "CONNECT", "HEAD", "GET", "BREW", "post"]
        .choose(rng)
        .unwrap();
    let long = format!("/{}", "a".repeat(rng.random_range(1..100_000)));
    let paths = [
        "/v1/completions",
        "/v1/models/%00",
        "/v1/models/%ff%fe",
        "/v1/../etc/passwd",
        "/v1/models/m/../../x",
        "//",
        "/?a=b",
        "*",
        "http://evil.example/",
        "/v1/models/é",
        "x",
        "/v1/chat/completions/",
        long.as_str(),
    ];
    let version = *["HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/9", ""].choose(rng).unwrap();
    let path = paths.choose(rng).unwrap();
    let head = format!(
        "{method} {path} {version}\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn not_http(rng: &mut StdRng) -> Vec<u8> {
    match rng.random_range(0..4) {
        0 => b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), // how TLS begins
        1 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        2 => b"\r\n\r\n\r\n".to_vec(),
        _ => (0..rng.random_range(1..5000)).map(|_| rng.random()).collect(),
    }
}

/// Does what the attack is; the reply, if it waits for one and the server does not just close.
fn carry_out(server: &Server, attack: &Attack) -> Option<Reply> {
    let mut stream = server.connect();
    for piece in &attack.pieces {
        // The server may have closed already.
        if stream.write_all(piece).is_err() {
            break;
        }
        if attack.pieces.len() > 1 {
            thread::sleep(Duration::from_millis(2));
        }
    }
    match attack.then {
        Then::Leave => return None,
        Then::Finish => drop(stream.shutdown(Shutdown::Write)),
        Then::Wait => {}
    }
    let bytes = read_all(stream, attack.name);
    // An interim response is not the reply.
    let interim = b"HTTP/1.1 100 Continue\r\n\r\n";
    Reply::parse(bytes.strip_prefix(interim).unwrap_or(&bytes))
}

/// Reads until the server closes, which it has to do.
fn read_all(mut stream: TcpStream, name: &str) -> Vec<u8> {
    let start = Instant::now();
    let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return bytes,
            Ok(count) => bytes.extend_from_slice(&piece[..count]),
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return bytes,
            Err(e) => panic!("{name}: neither answered nor closed: {e}"),
        }
        assert!(start.elapsed() < PATIENCE, "{name}: no end");
    }
}

/// Whether a reply is one that a server in good order gives; how it is counted.
fn judge(attack: &Attack, reply: Option<&Reply>) -> String {
    let Some(reply) = reply else { return format!("{}: closed", attack.name) };
    let Reply { status, .. } = *reply;
    let expected = matches!(status, 200 | 400 | 403 | 404 | 405 | 408 | 413 | 414 | 415 | 431);
    assert!(expected, "{}: {reply:?} to {:?}", attack.name, String::from_utf8_lossy(&attack.pieces.concat()));
    // Where the request could be read at all, the error is in OpenAI's form.
    if status >= 400 && !reply.body.is_empty() {
        reply.error(status);
    }
    format!("{}: {status}", attack.name)
}

fn good_answer(server: &Server) -> Value {
    let body = json!({ "prompt": "Hello", "max_tokens": 12, "temperature": 0, "logprobs": 1 });
    server.post("/v1/completions", &body).ok()["choices"].clone()
}

#[test]
fn ten_thousand_malformed_requests_are_answered_or_closed() {
    let tiny = tiny_model();
    let body_bytes = BODY_BYTES.to_string();
    let arguments = [
        "--threads",
        "1",
        "--max-body-bytes",
        &body_bytes,
        "--max-new-tokens",
        "16",
        "--max-queue",
        "4000",
        "--read-seconds",
        "1",
    ];
    let mut server = Server::start(&tiny.dir(), &arguments);
    let wanted = good_answer(&server);
    let start = Instant::now();
    let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(BTreeMap::<String, usize>::new()));
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= REQUESTS {
                    break;
                }
                let attack = attack(&mut StdRng::seed_from_u64(number as u64));
                let outcome = judge(&attack, carry_out(&server, &attack).as_ref());
                *outcomes.lock().unwrap().entry(outcome).or_default() += 1;
                if number % GOOD_AFTER == 0 {
                    assert_eq!(good_answer(&server), wanted, "after request {number}");
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().unwrap();
    eprintln!("{REQUESTS} malformed requests in {:.1} s:", start.elapsed().as_secs_f64());
    outcomes.iter().for_each(|(outcome, count)| eprintln!("  {count:5} {outcome}"));
    assert!(server.child.try_wait().unwrap().is_none(), "the server lives");
    server.wait_for("no place is kept", |stats| stats["running"] == 0 && stats["waiting"] == 0);
    let stats = server.stats();
    assert_eq!((&stats["pages"], &stats["requests"]["failed"]), (&stats["pages_free"], &json!(0)));
    assert_eq!(good_answer(&server), wanted);
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0));
}
