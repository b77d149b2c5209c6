//! `codecllm generate`: one prompt, one answer.

use anyhow::Result;
use codecllm::cuda::PeakMemory;
use codecllm::runtime::{peak_rss_bytes, Generation, Generator, Message, Prompt};
use serde::Serialize;

use super::device::DeviceArg;
use super::model::{answer, ModelArgs, SamplingArgs};
use super::output::{bytes, Output};

const EXAMPLES: &str = "\
Examples:
  codecllm generate OUT --prompt 'Name three rivers.'
  codecllm generate OUT --prompt 'Once upon a time' --raw --temperature 0.8 --top-p 0.95 --seed 7
  codecllm generate OUT --prompt 'Name three rivers.' --json | jq .tokens_per_second
  codecllm generate OUT --prompt 'Name three rivers.' --device cuda --json | jq .peak_device_bytes

If the model has a chat template, PROMPT is what the user says and the model answers it; with --raw, or without a template,
the model continues PROMPT as it is. The text goes to stdout as it comes; the figures behind it go to stderr.";

/// Generate text from a prompt
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// What to answer or to continue
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// Continue the prompt as it is, without the model's chat template
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
}

#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    generation: Generation,
    weight_bytes: usize,
    peak_rss_bytes: Option<u64>,
    /// Most memory taken of the GPU, loading included.
    peak_device_bytes: Option<u64>,
}

impl Args {
    pub(crate) fn device(&self) -> DeviceArg {
        self.model.device()
    }
}

pub(crate) fn run(args: Args, output: &Output) -> Result<()> {
    let (generator, memory) = args.model.open(output)?;
    let prompt = make_prompt(&generator, args.prompt, args.raw);
    let generation = answer(&generator, prompt, &args.sampling.options(), output)?;
    let weight_bytes = generator.model().weight_bytes();
    let peak_device_bytes = memory.map(PeakMemory::finish);
    let report = Report { generation, weight_bytes, peak_rss_bytes: peak_rss_bytes(), peak_device_bytes };
    if output.is_json() {
        return output.report(&report, |_| String::new());
    }
    output.note(figures(&report));
    Ok(())
}

fn make_prompt(generator: &Generator, text: String, raw: bool) -> Prompt {
    if raw || generator.chat().is_none() {
        Prompt::Text(text)
    } else {
        Prompt::Chat(vec![Message::new("user", text)])
    }
}

fn figures(report: &Report) -> String {
    let Generation { prompt_tokens, new_tokens, prefill_seconds, tokens_per_second, .. } = report.generation;
    let peak = report.peak_rss_bytes.map_or_else(|| "unknown".to_owned(), bytes);
    let device =
        report.peak_device_bytes.map_or_else(String::new, |peak| format!(", of the GPU {}", bytes(peak)));
    format!(
        "\n[prompt: {prompt_tokens} tokens in {prefill_seconds:.2} s; answer: {new_tokens} tokens, \
         {tokens_per_second:.1} tokens/s; weights {}, peak memory {peak}{device}]",
        bytes(report.weight_bytes as u64),
    )
}
