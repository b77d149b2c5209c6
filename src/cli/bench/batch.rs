//! `codecllm bench batch`: clients that are answered together by a random model, dense and compressed.
//!
//! As in a server, every client has a prompt of its own and pages of one pool, and one decoding step serves them all. Each of
//! the two models runs in a process of its own, as in `bench generate`.

mod measure;
mod text;

use anyhow::{bail, Result};
use codecllm::cuda::DeviceInfo;
use codecllm::model::PagedKvCache;
use serde::{Deserialize, Serialize};

use self::measure::{measure, Workload};
use super::generate::{child, Which};
use super::{budget, DeviceArg, TORCH_VERSION};
use crate::cli::model::{at_least_one, DtypeArg};
use crate::cli::output::Output;
use crate::cli::shape::Shape;
use crate::cli::steps::Steps;

const EXAMPLES: &str = "\
Examples:
  codecllm bench batch --config 8b --json
  codecllm bench batch --config 8b --clients 1,32 --bits 6.3 --dtype bf16
  codecllm bench batch --config 15m --device cpu --prompt 32 --new 32      small enough for a quick look

The weights are those of `bench generate`. Every client's prompt is processed by itself, then all are answered together, token
by token, greedily: the tokens of a step come to the host and go back with the next one, as in a server. Figures are medians of
three rounds.";

/// Answer several clients at once with a random model, dense and compressed: tokens/s of all together
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The shape of the model
    #[arg(long, value_enum)]
    config: Shape,
    /// Bits a weight of the compressed model
    #[arg(long, value_name = "B", default_value_t = 5.3, value_parser = budget)]
    bits: f64,
    /// Clients that are answered together
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = at_least_one, default_values_t = [1, 8, 32, 64])]
    clients: Vec<usize>,
    /// Tokens of each client's prompt
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = at_least_one)]
    prompt: usize,
    /// Tokens of each client's answer
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = at_least_one)]
    new: usize,
    /// Where to compute
    #[arg(long, value_enum, default_value = "cuda")]
    device: DeviceArg,
    /// The dtype to compute in
    #[arg(long, value_enum, default_value_t)]
    dtype: DtypeArg,
    /// Measure one of the two only, in this process
    #[arg(long, value_enum)]
    only: Option<Which>,
}

impl Args {
    pub(super) fn device(&self) -> DeviceArg {
        self.device
    }

    fn workload(&self) -> Result<Workload> {
        let config = self.config.config();
        let (tokens, context) = (self.prompt + self.new, config.max_position_embeddings);
        if tokens > context {
            bail!(
                "--prompt: {} tokens and {} new ones, wanted at most {context} together",
                self.prompt,
                self.new
            );
        }
        let mut clients = self.clients.clone();
        clients.sort_unstable();
        clients.dedup();
        let most = PagedKvCache::MOST_SEQUENCES;
        if let Some(&clients) = clients.last().filter(|&&clients| clients > most) {
            bail!("--clients: {clients}, wanted at most {most}");
        }
        Ok(Workload {
            config,
            bits: self.bits,
            kind: self.dtype.kind(),
            device: self.device,
            clients,
            prompt_tokens: self.prompt,
            new_tokens: self.new,
        })
    }
}

/// One model's figures.
#[derive(Debug, Deserialize, Serialize)]
struct ModelFigures {
    weight_bytes: usize,
    clients: Vec<ClientFigures>,
}

/// Of one number of clients.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct ClientFigures {
    clients: usize,
    /// One client's prompt, from its tokens to the first of its answer.
    prompt_seconds: f64,
    /// Of all answers together, behind the prompts.
    tokens_per_second: f64,
    /// One token of each client.
    step_us: f64,
    /// Tokens/s over those of the fewest clients measured.
    gain: f64,
    /// Of the key-value cache.
    cache_bytes: usize,
}

#[derive(Debug, Serialize)]
struct Report {
    config: &'static str,
    device: Option<DeviceInfo>,
    torch: &'static str,
    bits: f64,
    dtype: &'static str,
    prompt_tokens: usize,
    new_tokens: usize,
    dense: ModelFigures,
    compressed: ModelFigures,
}

pub(crate) fn run(args: Args, output: &Output) -> Result<()> {
    let workload = args.workload()?;
    if let Some(which) = args.only {
        let mut steps = Steps::new(output);
        let figures =
            measure(which, &workload, &mut |done, total, next| steps.show(which.name(), done, total, next))?;
        drop(steps);
        return output.report(&figures, |figures| text::model(which.name(), figures));
    }
    let [dense, compressed] = child::measure_both(output)?;
    let device = args.device.info()?;
    let report = Report {
        config: args.config.name(),
        device,
        torch: TORCH_VERSION,
        bits: args.bits,
        dtype: args.dtype.name(),
        prompt_tokens: args.prompt,
        new_tokens: args.new,
        dense,
        compressed,
    };
    output.report(&report, text::report)
}
