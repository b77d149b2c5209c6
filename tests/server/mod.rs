//! Runs of `codecllm serve`, clients of it, and a tiny model for it.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{json, Value};

use crate::tiny_llama::{byte_tokenizer_json, plain_config, TinyLlama};

/// How long a test waits for what should come at once: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(120);
const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";

/// A tiny model that reads and writes bytes, never stops by itself, and has room for long answers.
pub fn tiny_model() -> TinyLlama {
    let mut config = plain_config();
    config["vocab_size"] = 258.into();
    config["max_position_embeddings"] = 100_000.into();
    let tiny = TinyLlama::new(&config, 7);
    tiny.write("tokenizer.json", &byte_tokenizer_json());
    tiny.write("tokenizer_config.json", &json!({ "chat_template": TEMPLATE }).to_string());
    tiny
}

/// A server in a process of its own, killed when dropped.
pub struct Server {
    pub child: Child,
    pub address: String,
}

impl Server {
    /// Serves the model directory `model` as `m`.
    pub fn start(model: &Path, arguments: &[&str]) -> Self {
        Self::start_at(model, 0, arguments)
    }

    pub fn start_at(model: &Path, port: u16, arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_codecllm"));
        command.arg("serve").arg(model).args(["--model-id", "m", "--json", "--port", &port.to_string()]);
        let mut child = command.args(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let listening: Value = serde_json::from_str(&line).expect("the address on stdout");
        let address = listening["address"].as_str().unwrap().strip_prefix("http://").unwrap().to_owned();
        Self { child, address }
    }

    pub fn port(&self) -> u16 {
        self.address.rsplit_once(':').unwrap().1.parse().unwrap()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// A connection of its own.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// Sends `head` (request line and headers, without the line ends behind them) and `body`; the reply.
    pub fn raw(&self, head: &str, body: &[u8]) -> Reply {
        let mut stream = self.connect();
        let host = if head.to_ascii_lowercase().contains("\r\nhost:") {
            String::new()
        } else {
            format!("\r\nHost: {}", self.address)
        };
        let head = format!("{head}{host}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).unwrap();
        // A server that has read enough may close before all is sent.
        let _ = stream.write_all(body);
        Reply::read(stream).expect("a reply")
    }

    pub fn get(&self, path: &str) -> Reply {
        self.raw(&format!("GET {path} HTTP/1.1"), b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.post_bytes(path, body.to_string().as_bytes())
    }

    pub fn post_bytes(&self, path: &str, body: &[u8]) -> Reply {
        self.raw(&format!("POST {path} HTTP/1.1\r\nContent-Type: application/json"), body)
    }

    /// The events of a streamed answer, as they come.
    pub fn stream(&self, path: &str, body: &Value) -> Events {
        let body = body.to_string();
        let response = ureq::post(self.url(path)).content_type("application/json").send(body).unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Events { lines: BufReader::new(Box::new(response.into_body().into_reader())) }
    }

    pub fn stats(&self) -> Value {
        self.get("/stats").json()
    }

    /// Waits until `holds` of the server's figures.
    pub fn wait_for(&self, what: &str, holds: impl Fn(&Value) -> bool) {
        let start = Instant::now();
        while !holds(&self.stats()) {
            assert!(start.elapsed() < PATIENCE, "{what}: {}", self.stats());
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    pub fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "the server does not end");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Resident memory, bytes.
    pub fn rss_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().trim().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An HTTP response.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    /// Reads until the server closes; `None` if it sent no response.
    pub fn read(mut stream: TcpStream) -> Option<Self> {
        let mut bytes = Vec::new();
        // A reset behind the response loses nothing of it.
        let _ = stream.read_to_end(&mut bytes);
        Self::parse(&bytes)
    }

    /// `None` if that is no whole head.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
        let head = std::str::from_utf8(&bytes[..end]).expect("a head of ASCII");
        let mut lines = head.split("\r\n");
        let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
        let headers: Vec<(String, String)> = lines
            .map(|line| line.split_once(": ").expect("a header"))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let chunked = headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
        let length = headers.iter().find(|(name, _)| name == "content-length");
        let rest = &bytes[end + 4..];
        let body = match length {
            _ if chunked => unchunked(rest),
            // Behind it, there may be a reply to what was sent behind the request.
            Some((_, length)) => rest[..length.parse::<usize>().unwrap().min(rest.len())].to_vec(),
            None => rest.to_vec(),
        };
        Some(Self { status, headers, body })
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("UTF-8")
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(self.text()).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// The body of a success.
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }

    /// The error, in OpenAI's form.
    pub fn error(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        let error = self.json()["error"].clone();
        assert!(error["message"].is_string() && error["type"].is_string(), "{error}");
        assert_eq!(error.as_object().unwrap().len(), 4, "{error}");
        error
    }
}

fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = bytes.windows(2).position(|window| window == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        let Some(chunk) = bytes.get(end + 2..end + 2 + size).filter(|chunk| !chunk.is_empty()) else { break };
        body.extend_from_slice(chunk);
        bytes = bytes.get(end + 4 + size..).unwrap_or_default();
    }
    body
}

/// Server-sent events, read as they come. To drop them is to leave.
pub struct Events {
    lines: BufReader<Box<dyn Read>>,
}

impl Iterator for Events {
    type Item = String;

    /// The data of the next event.
    fn next(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if let Some(data) = line.strip_prefix("data: ") {
                return Some(data.trim_end_matches('\n').to_owned());
            }
            assert!(line == "\n" || line.starts_with(':'), "{line:?}");
        }
    }
}

/// What a stream told of its choice 0.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    pub text: String,
    pub finish_reason: String,
    /// The stream ended as it should.
    pub done: bool,
}

impl Told {
    pub fn of(events: Events) -> Self {
        let mut told = Self::default();
        for data in events {
            if data == "[DONE]" {
                told.done = true;
                continue;
            }
            assert!(!told.done, "{data} behind [DONE]");
            let chunk: Value = serde_json::from_str(&data).expect("JSON");
            let choice = &chunk["choices"][0];
            told.text += choice["text"].as_str().or(choice["delta"]["content"].as_str()).unwrap_or_default();
            if let Some(reason) = choice["finish_reason"].as_str() {
                told.finish_reason = reason.to_owned();
            }
        }
        told
    }
}
