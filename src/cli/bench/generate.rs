//! `codecllm bench generate`: a random model of a known shape generates, dense and compressed.
//!
//! Each of the two models runs in a process of its own, one after the other: libtorch keeps the memory of tensors that are
//! gone, and the peak of the second would count it.

pub(super) mod child;
mod decode;
mod measure;
mod report;
mod text;
mod weights;

use anyhow::Result;
use clap::ValueEnum;
use tch::Kind;

pub(super) use self::measure::{load, median};
use self::measure::{measure, Workload};
use self::report::Report;
pub(super) use self::report::Which;
use super::{budget, DeviceArg};
use crate::cli::model::at_least_one;
use crate::cli::output::Output;
use crate::cli::shape::Shape;
use crate::cli::steps::Steps;

const EXAMPLES: &str = "\
Examples:
  codecllm bench generate --config 8b --json
  codecllm bench generate --config 8b --bits 6.3 --batch 1 --dtype bf16
  codecllm bench generate --config 15m --device cpu      small enough for a quick look

The weights are Gaussian. Of a layer's seven matrices one of each kind is encoded, and every layer gets its own copy; the
embedding and the head are encoded too. The prompt is shared out: at batch 8 each sequence begins with an eighth of its
tokens. Answers are greedy; on a GPU a step is one CUDA graph that feeds its own tokens back, of both models. The dense model
is measured first, then the compressed one, each in a process of its own; memory counts from before loading.";

/// Generate with a random model, dense and compressed: tokens/s, time to the first token, peak memory
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The shape of the model
    #[arg(long, value_enum)]
    config: Shape,
    /// Bits a weight of the compressed model
    #[arg(long, value_name = "B", default_value_t = 5.3, value_parser = budget)]
    bits: f64,
    /// Sequences generated together
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = at_least_one, default_values_t = [1, 8, 64])]
    batch: Vec<usize>,
    /// Tokens of all prompts of a batch together [default: 2048, or half of what the model allows]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    prompt: Option<usize>,
    /// Tokens to generate for each prompt [default: 256, or a quarter of what the model allows]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    new: Option<usize>,
    /// Where to compute
    #[arg(long, value_enum, default_value = "cuda")]
    device: DeviceArg,
    /// The dtype to compute in
    #[arg(long, value_enum, default_value_t)]
    dtype: HalfArg,
    /// Measure one of the two only, in this process
    #[arg(long, value_enum)]
    only: Option<Which>,
}

/// The dtypes that models are kept in.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum HalfArg {
    #[default]
    Fp16,
    Bf16,
}

impl HalfArg {
    fn kind(self) -> Kind {
        match self {
            Self::Fp16 => Kind::Half,
            Self::Bf16 => Kind::BFloat16,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
        }
    }
}

impl Args {
    pub(super) fn device(&self) -> DeviceArg {
        self.device
    }

    fn workload(&self) -> Result<Workload> {
        let config = self.config.config();
        let context = config.max_position_embeddings;
        let prompt = self.prompt.unwrap_or_else(|| 2048.min(context / 2));
        let new = self.new.unwrap_or_else(|| 256.min(context / 4));
        let mut batches = self.batch.clone();
        batches.sort_unstable();
        batches.dedup();
        Ok(Workload {
            config,
            bits: self.bits,
            kind: self.dtype.kind(),
            device: self.device,
            batches,
            prompt_tokens: prompt,
            new_tokens: new,
        })
    }
}

pub(crate) fn run(args: Args, output: &Output) -> Result<()> {
    let workload = args.workload()?;
    workload.check()?;
    if let Some(which) = args.only {
        let mut steps = Steps::new(output);
        let figures = measure(which, &workload, &mut |done, total, next| {
            steps.show(which.name(), done, total, next);
        })?;
        drop(steps);
        return output.report(&figures, |figures| text::model(which.name(), figures));
    }
    let [dense, compressed] = child::measure_both(output)?;
    let device = args.device.info()?;
    let report = Report::new(args.config.name(), device, args.dtype.name(), &workload, dense, compressed);
    output.report(&report, text::report)
}
