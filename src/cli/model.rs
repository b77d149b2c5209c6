//! Arguments and steps that the verbs share which run a model.

use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{bail, Result};
use clap::ValueEnum;
use codecllm::codec::BUDGET_RANGE;
use codecllm::cuda::PeakMemory;
use codecllm::runtime::{GenerateOptions, Generation, Generator, LoadOptions, Prompt, SamplerOptions};
use tch::Kind;

use super::checksums::ChecksumArgs;
use super::device::DeviceArg;
use super::output::Output;

/// Which model, and how to run it.
#[derive(Debug, clap::Args)]
pub(crate) struct ModelArgs {
    /// A model directory, compressed or not
    pub(crate) model: PathBuf,
    /// Where to compute
    #[arg(long, value_enum, default_value_t)]
    device: DeviceArg,
    /// The dtype to compute in
    #[arg(long, value_enum, default_value_t)]
    dtype: DtypeArg,
    /// Most tokens of prompt and answer together [default: 4096, or less if the model allows less]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    context: Option<usize>,
    #[command(flatten)]
    checksums: ChecksumArgs,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum DtypeArg {
    #[default]
    Fp16,
    Bf16,
    Fp32,
}

impl ModelArgs {
    /// Where to compute.
    pub(crate) fn device(&self) -> DeviceArg {
        self.device
    }

    /// Loads the model with its tokenizer; the GPU's memory is watched from before.
    pub(crate) fn open(&self, output: &Output) -> Result<(Generator, Option<PeakMemory>)> {
        let memory = self.device.watch_memory()?;
        let options = LoadOptions {
            device: self.device.device(),
            kind: self.dtype.kind(),
            context: self.context,
            threads: None, // set for the whole process already
            checksums: self.checksums.choice(),
        };
        let _loading = output.spinner("loading the model");
        Ok((Generator::open(&self.model, &options)?, memory))
    }
}

impl DtypeArg {
    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::Fp16 => Kind::Half,
            Self::Bf16 => Kind::BFloat16,
            Self::Fp32 => Kind::Float,
        }
    }

    /// As in reports and arguments.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
            Self::Fp32 => "fp32",
        }
    }
}

/// How long the answer gets and how its tokens are picked.
#[derive(Debug, clap::Args)]
pub(crate) struct SamplingArgs {
    /// Most tokens to generate
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_new_tokens: usize,
    /// What logits are divided by; 0 picks the likeliest token always
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = temperature)]
    temperature: f64,
    /// Consider the K likeliest tokens only (matters with a temperature)
    #[arg(long, value_name = "K", value_parser = at_least_one)]
    top_k: Option<usize>,
    /// Consider the likeliest tokens only that together reach probability P (matters with a temperature)
    #[arg(long, value_name = "P", value_parser = probability)]
    top_p: Option<f64>,
    /// The same seed gives the same answer
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
}

impl SamplingArgs {
    pub(crate) fn options(&self) -> GenerateOptions {
        let sampling = SamplerOptions {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            seed: self.seed,
        };
        GenerateOptions { max_new_tokens: self.max_new_tokens, sampling, ..GenerateOptions::default() }
    }
}

/// Answers one prompt; the text goes out as it comes, with a line end behind it.
pub(crate) fn answer(
    generator: &Generator,
    prompt: Prompt,
    options: &GenerateOptions,
    output: &Output,
) -> Result<Generation> {
    let reading = output.spinner("reading the prompt");
    let mut printed = Ok(());
    let mut generations = generator.generate(&[prompt], options, &mut |piece| {
        reading.finish_and_clear();
        printed = output.text(piece.text);
        match printed {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    })?;
    reading.finish_and_clear();
    printed?;
    output.text("\n")?;
    match generations.pop() {
        Some(generation) => Ok(generation),
        None => bail!("prompt: got no answer"),
    }
}

pub(crate) fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&count| count >= 1).ok_or_else(|| "wanted a number, 1 or more".to_owned())
}

fn temperature(text: &str) -> Result<f64, String> {
    float(text, |value| value.is_finite() && value >= 0.0, "0 or more")
}

fn probability(text: &str) -> Result<f64, String> {
    float(text, |value| value > 0.0 && value <= 1.0, "more than 0 and at most 1")
}

/// Bits a weight.
pub(crate) fn budget(text: &str) -> Result<f64, String> {
    float(text, |bits| BUDGET_RANGE.contains(&bits), "2.5 to 8.5")
}

/// A number that `holds`, or what was wanted.
pub(crate) fn float(text: &str, holds: impl Fn(f64) -> bool, wanted: &str) -> Result<f64, String> {
    text.parse().ok().filter(|&value| holds(value)).ok_or_else(|| format!("wanted a number, {wanted}"))
}
