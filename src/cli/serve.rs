//! `codecllm serve`: a model for many clients, over HTTP.

use std::future::Future;
use std::net::{IpAddr, SocketAddr, TcpListener, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{bail, Context, Result};
use codecllm::serve::{run as serve, ApiKeys, Engine, EngineOptions, ServerOptions};
use serde::Serialize;

use super::device::DeviceArg;
use super::interrupt;
use super::model::{at_least_one, ModelArgs};
use super::output::Output;

const EXAMPLES: &str = "\
Examples:
  codecllm serve OUT                                   then open http://127.0.0.1:8080
  codecllm serve OUT --port 0 --json                   a free port; stdout says {\"address\": ...}
  codecllm serve OUT --host 0.0.0.0 --api-key-file KEYS
  curl http://127.0.0.1:8080/v1/completions -H 'Content-Type: application/json' -d '{\"prompt\": \"Once upon\"}'

What OpenAI's API does is done as there: POST /v1/chat/completions and /v1/completions, GET /v1/models. GET /health, /metrics and
/stats tell how the server is. Requests are answered together, token by token; where there is no room, they wait, and beyond
--max-queue are answered 429. Ctrl-C or SIGTERM ends the server when the answers under way are complete; a second one ends it at once.";

/// Answer many clients over HTTP, as OpenAI's API does
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The address to listen at; one that other machines reach wants --api-key-file
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: String,
    /// The port to listen at; 0 picks a free one
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    port: u16,
    /// A file of API keys, one a line, of which clients have to send one
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// The model's id, as clients name it [default: the name of its directory]
    #[arg(long, value_name = "ID")]
    model_id: Option<String>,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    limits: LimitArgs,
}

/// How requests are run together.
#[derive(Debug, clap::Args)]
struct EngineArgs {
    /// Most answers that are generated together [default: 32]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    max_batch: Option<usize>,
    /// Most requests that wait for a place [default: 128]
    #[arg(long, value_name = "N")]
    max_queue: Option<usize>,
    /// Tokens of all running requests together that there is memory for, taken at the start [default: a whole context for each of --max-batch, or less where memory is short, taken as it is used]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    cache_tokens: Option<usize>,
    /// Tokens of a prompt that are read between two steps of the running answers [default: 512 on a GPU, 64 on a CPU]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    prefill_tokens: Option<usize>,
}

/// What clients may do.
#[derive(Debug, clap::Args)]
struct LimitArgs {
    /// Most tokens of an answer, whatever a request asks for [default: the context]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    max_new_tokens: Option<usize>,
    /// Most bytes of a request's body [default: 4194304]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    max_body_bytes: Option<usize>,
    /// Most connections; further ones wait [default: 512]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    max_connections: Option<usize>,
    /// Most time from a request to the end of its answer [default: 600]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    request_seconds: Option<Duration>,
    /// Most time that a client takes to send a request's head, and again its body [default: 30]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    read_seconds: Option<Duration>,
    /// Most time that a client takes nothing of its answer, or less than a kilobyte a second on average [default: 30]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    write_seconds: Option<Duration>,
    /// Most time that running answers have to finish when the server is to end [default: 30]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    shutdown_seconds: Option<Duration>,
}

/// Where the server listens, for machines.
#[derive(Debug, Serialize)]
struct Listening {
    address: String,
}

impl Args {
    pub(crate) fn device(&self) -> DeviceArg {
        self.model.device()
    }

    fn options(&self, address: SocketAddr, output: &Output) -> Result<ServerOptions> {
        let mut options = ServerOptions::new(self.model_id()?);
        options.loopback_hosts_only = address.ip().is_loopback();
        if let Some(file) = &self.api_key_file {
            options.keys = ApiKeys::from_file(file)?;
            warn_if_readable(file, output);
        }
        self.limits.apply(&mut options);
        Ok(options)
    }

    fn model_id(&self) -> Result<String> {
        if let Some(id) = &self.model_id {
            return Ok(id.clone());
        }
        let dir = &self.model.model;
        let dir = dir.canonicalize().with_context(|| dir.display().to_string())?;
        Ok(dir.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned()))
    }
}

impl EngineArgs {
    fn options(&self) -> EngineOptions {
        let mut options = EngineOptions::default();
        set(&mut options.max_batch, self.max_batch);
        set(&mut options.max_queue, self.max_queue);
        options.prefill_tokens = self.prefill_tokens;
        options.cache_tokens = self.cache_tokens;
        options
    }
}

impl LimitArgs {
    fn apply(&self, options: &mut ServerOptions) {
        options.max_new_tokens = self.max_new_tokens;
        set(&mut options.max_body_bytes, self.max_body_bytes);
        set(&mut options.max_connections, self.max_connections);
        set(&mut options.request_time, self.request_seconds);
        set(&mut options.read_time, self.read_seconds);
        set(&mut options.write_time, self.write_seconds);
        set(&mut options.shutdown_time, self.shutdown_seconds);
    }
}

pub(crate) fn run(args: Args, output: &Output) -> Result<()> {
    // What can be wrong is said before a large model is read; clients that come meanwhile wait.
    let addresses = resolve(&args.host, args.port)?;
    if args.api_key_file.is_none() && !addresses.iter().all(|address| address.ip().is_loopback()) {
        bail!(
            "--host {}: is reached from other machines, wanted --api-key-file for that (or --host 127.0.0.1)",
            args.host
        );
    }
    let listener = TcpListener::bind(&*addresses)
        .with_context(|| format!("{}:{}: can't listen there", args.host, args.port))?;
    let address = listener.local_addr().context("the listening socket")?;
    let options = args.options(address, output)?;
    let engine = Engine::start(args.model.open(output)?.0, args.engine.options())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let end = interrupt::asked_to_end()?;
    let listening = Listening { address: format!("http://{}", shown(address)) };
    match output.is_json() {
        true => output.report(&listening, |_| String::new())?,
        false => output.note(format_args!("listening on {} (Ctrl-C ends it)", listening.address)),
    }
    runtime.block_on(listen(listener, engine, options, end, output))
}

async fn listen(
    listener: TcpListener,
    engine: Engine,
    options: ServerOptions,
    end: impl Future<Output = ()>,
    output: &Output,
) -> Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let shutdown_time = options.shutdown_time;
    let end = async {
        end.await;
        output.note(format_args!(
            "ending when the answers under way are complete, in {} s at most; Ctrl-C again ends at once",
            shutdown_time.as_secs_f64()
        ));
    };
    Ok(serve(listener, engine, options, end).await?)
}

fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>> {
    // An IPv6 address may come in the brackets that URLs want.
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let addresses =
        (host, port).to_socket_addrs().with_context(|| format!("--host {host}: is no address"))?;
    Ok(addresses.collect())
}

/// Where to point a browser.
fn shown(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        ip if !ip.is_unspecified() => address,
        IpAddr::V4(_) => SocketAddr::new(IpAddr::from([127, 0, 0, 1]), address.port()),
        IpAddr::V6(_) => SocketAddr::new(IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]), address.port()),
    }
}

/// Says so if others than its owner can read the file of keys.
fn warn_if_readable(file: &std::path::Path, output: &Output) {
    use std::os::unix::fs::PermissionsExt;
    let Ok(metadata) = std::fs::metadata(file) else { return };
    if metadata.permissions().mode() & 0o077 != 0 {
        let file = file.display();
        output.note(format_args!(
            "warning: {file}: others than its owner can read the keys; chmod 600 {file} mends that"
        ));
    }
}

fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let most = ServerOptions::MOST_TIME;
    let wanted = || format!("wanted seconds, more than 0 and at most {}", most.as_secs());
    let seconds: f64 = text.parse().map_err(|_| wanted())?;
    let time = Duration::try_from_secs_f64(seconds).ok();
    time.filter(|time| !time.is_zero() && *time <= most).ok_or_else(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_more_than_none_and_no_more_than_a_clock_takes() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(seconds("1e9"), Ok(ServerOptions::MOST_TIME));
        for text in ["0", "-1", "1e-12", "1.1e9", "1e19", "1e300", "inf", "NaN", "s", ""] {
            assert!(seconds(text).unwrap_err().starts_with("wanted seconds"), "{text}");
        }
    }
}
