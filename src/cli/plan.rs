//! `codecllm plan`: what fits, before anything is loaded.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{bail, Result};
use clap::ValueEnum;
use codecllm::checkpoint::{self, CompressOptions};
use codecllm::model::LlamaConfig;
use codecllm::plan::{
    self, Basis, Choice, Gpu, Machine, ModelShape, Plan, PlannedChoice, SpeedBasis, Workload,
};

use super::model::{at_least_one, DtypeArg};
use super::output::{bytes, pairs, table, Output};
use super::shape::Shape;
use super::size;

const EXAMPLES: &str = "\
Examples:
  codecllm plan MODEL_DIR --memory 24GB
  codecllm plan MODEL_DIR --gpu 4090 --context 8192 --batch 4
  codecllm plan MODEL_DIR --memory 16GiB --cpu --exact
  codecllm plan --config 70b --gpu h100 --json

For every preset: the weights, keys and values, everything else that lies in memory, whether it fits, the longest context and the most
sequences that would, and tokens a second of all sequences together. config.json and the headers of the safetensors files are read, no
weight. Sizes of presets are estimates from other models; --exact tries them on samples, as `stats` does. A compressed directory is
counted. GB are 10^9 bytes, GiB 2^30. Speeds are expectations where the kernels were measured on that GPU (h100, h200), else a bound
by its bandwidth, marked \"<\". The exit code is 1 if nothing fits.";

/// Show what fits into how much memory, and how fast it would be, before anything is loaded
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The model directory, compressed or not
    #[arg(required_unless_present = "config")]
    model: Option<PathBuf>,
    /// Plan for the shape of a known model instead
    #[arg(long, value_enum, conflicts_with_all = ["model", "exact"])]
    config: Option<Shape>,
    /// Memory there is, such as 24GB or 24GiB [default: the GPU's]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    memory: Option<u64>,
    /// Tokens of each sequence, prompt and answer together [default: 4096, or less if the model allows less]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    context: Option<usize>,
    /// Sequences at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    batch: usize,
    /// The dtype to compute in
    #[arg(long, value_enum, default_value_t)]
    dtype: DtypeArg,
    /// Which GPU
    #[arg(long, value_enum)]
    gpu: Option<GpuArg>,
    /// What the GPU's memory moves, such as 1008GB/s, where it is not one of those
    #[arg(long, value_name = "RATE", value_parser = size::parse_rate, conflicts_with = "gpu")]
    device_bandwidth: Option<u64>,
    /// Plan for the CPU and its memory
    #[arg(long, conflicts_with_all = ["gpu", "device_bandwidth"], requires = "memory")]
    cpu: bool,
    /// Try the presets on samples of the weights, which reads all of them
    #[arg(long)]
    exact: bool,
}

/// A GPU, by name or found.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum GpuArg {
    /// The first GPU of this machine
    Detected,
    H200,
    H100,
    A100,
    L40s,
    L4,
    A10,
    #[value(name = "5090")]
    Rtx5090,
    #[value(name = "4090")]
    Rtx4090,
    #[value(name = "3090")]
    Rtx3090,
}

impl GpuArg {
    /// `None`: whichever is found.
    fn known(self) -> Option<Gpu> {
        Some(match self {
            Self::Detected => return None,
            Self::H200 => Gpu::H200,
            Self::H100 => Gpu::H100,
            Self::A100 => Gpu::A100,
            Self::L40s => Gpu::L40s,
            Self::L4 => Gpu::L4,
            Self::A10 => Gpu::A10,
            Self::Rtx5090 => Gpu::Rtx5090,
            Self::Rtx4090 => Gpu::Rtx4090,
            Self::Rtx3090 => Gpu::Rtx3090,
        })
    }
}

impl Args {
    fn machine(&self) -> Result<Machine> {
        if let (true, Some(memory)) = (self.cpu, self.memory) {
            return Ok(Machine::cpu(memory));
        }
        let found = match (self.gpu, self.memory) {
            (Some(gpu), memory) => gpu.known().map(|gpu| Machine::gpu(Some(gpu), memory)),
            (None, Some(memory)) => Some(Machine::gpu(None, Some(memory))),
            (None, None) => None,
        };
        let mut machine = match found {
            Some(machine) => machine,
            None => Machine::detected().map_err(|error| {
                anyhow::anyhow!("{error}; name the memory with --memory 24GB, or a GPU with --gpu")
            })?,
        };
        machine.memory_bytes = self.memory.unwrap_or(machine.memory_bytes);
        if let Some(bandwidth) = self.device_bandwidth {
            machine.bytes_per_second = Some(bandwidth as f64);
        }
        Ok(machine)
    }

    fn config(&self) -> Result<LlamaConfig> {
        match (&self.model, self.config) {
            (Some(dir), _) => Ok(LlamaConfig::from_dir(dir)?),
            (None, Some(shape)) => Ok(shape.config()),
            (None, None) => bail!("MODEL: wanted a directory, or --config"),
        }
    }

    fn workload(&self, config: &LlamaConfig) -> Result<Workload> {
        let most = config.max_position_embeddings;
        let usual = Workload::default().context.min(most);
        let context = self.context.unwrap_or(usual);
        if context > most {
            bail!(
                "--context: {context} tokens, wanted at most {most} (max_position_embeddings of the model)"
            );
        }
        Ok(Workload { context, batch: self.batch, kind: self.dtype.kind() })
    }

    fn choices(&self, config: &LlamaConfig, output: &Output) -> Result<Vec<Choice>> {
        let (shape, kind) = (ModelShape::of(config), self.dtype.kind());
        let Some(dir) = &self.model else {
            return Ok(plan::estimates(&shape, kind, None));
        };
        let (stored, dtype) = plan::stored(dir, kind)?;
        if let Some(stored) = stored {
            return Ok(vec![stored]);
        }
        if !self.exact {
            return Ok(plan::estimates(&shape, kind, dtype));
        }
        let mut bar = output.progress();
        let stats = checkpoint::stats(dir, &CompressOptions::default(), &mut |p| bar.show(&p))?;
        Ok(plan::sampled(&shape, kind, &stats))
    }
}

pub(crate) fn run(args: Args, output: &Output) -> Result<()> {
    let start = Instant::now();
    let config = args.config()?;
    let workload = args.workload(&config)?;
    let machine = args.machine()?;
    let choices = args.choices(&config, output)?;
    let plan = plan::plan(&config, &choices, &workload, &machine);
    let report = super::output::Measured::since(start, plan);
    output.report(&report, |measured| text(&measured.report))?;
    match report.report.fits() {
        true => Ok(()),
        false => bail!(needed(&report.report)),
    }
}

/// What would have to be there.
fn needed(plan: &Plan) -> String {
    let there = size::both(plan.memory_bytes);
    let asked = format!("{} tokens of {} sequences", plan.context, plan.batch);
    match plan.smallest() {
        None => format!("nothing to plan for {there}"),
        Some(least) => {
            let shorter = match least.largest_context {
                0 => "not even one token would fit".to_owned(),
                context => format!("--context {context} would fit"),
            };
            format!(
                "nothing fits {there}: {} needs {} for {asked}, the least of all; {shorter}",
                least.choice.name,
                size::both(least.total_bytes)
            )
        }
    }
}

fn text(plan: &Plan) -> String {
    let facts = pairs([
        ("weights", plan.weights.to_string()),
        ("memory", size::both(plan.memory_bytes)),
        ("planned for", format!("{} tokens, {} at once", plan.context, plan.batch)),
    ]);
    let mut fits =
        table(&["choice", "bits/weight", "needs", "fits", "longest context", "most at once", "tokens/s"]);
    let mut memory = table(&[
        "of that",
        "weights",
        "keys, values",
        "scratch",
        "prompt",
        "step",
        "rounding",
        "libraries",
        "CUDA",
    ]);
    for planned in &plan.choices {
        fits.add_row(row(planned));
        memory.add_row(parts(planned));
    }
    let note = format!("{}{}", sizes_note(plan), speeds_note(plan));
    format!("{facts}\n\n{fits}\n\n{memory}{note}")
}

fn sizes_note(plan: &Plan) -> &'static str {
    match plan.choices.iter().any(|planned| planned.choice.basis == Basis::Estimate) {
        true => "\n\n~ bits estimated from other models; --exact tries them on this one",
        false => "",
    }
}

fn speeds_note(plan: &Plan) -> String {
    let has =
        |basis| plan.choices.iter().filter_map(|planned| planned.speed).any(|speed| speed.basis == basis);
    let mut note = String::new();
    if has(SpeedBasis::Extrapolated) {
        note += "\n~ tokens/s from kernels measured at other sizes";
    }
    if has(SpeedBasis::Bound) {
        note += "\n< tokens/s that bandwidth allows: a bound, nobody measured the kernels there";
    }
    note
}

fn row(planned: &PlannedChoice) -> [String; 7] {
    let mark = if planned.choice.basis == Basis::Estimate { "~" } else { "" };
    let count = |count: usize| if count == 0 { "-".to_owned() } else { count.to_string() };
    let speed = planned.speed.map_or_else(
        || "unknown".to_owned(),
        |speed| {
            let mark = match speed.basis {
                SpeedBasis::Measured => "",
                SpeedBasis::Extrapolated => "~",
                SpeedBasis::Bound => "<",
            };
            format!("{mark}{:.0}", speed.tokens_per_second)
        },
    );
    [
        planned.choice.name.clone(),
        format!("{mark}{:.2}", planned.choice.bits_per_weight),
        size::both(planned.total_bytes),
        if planned.fits { "yes" } else { "no" }.to_owned(),
        count(planned.largest_context),
        count(planned.largest_batch),
        speed,
    ]
}

fn parts(planned: &PlannedChoice) -> [String; 9] {
    let memory = &planned.memory;
    [
        planned.choice.name.clone(),
        bytes(memory.weight_bytes),
        bytes(memory.cache_bytes),
        bytes(memory.scratch_bytes),
        bytes(memory.prefill_bytes),
        bytes(memory.step_bytes),
        bytes(memory.table_bytes.saturating_add(memory.rounding_bytes)),
        bytes(memory.library_bytes),
        bytes(memory.context_bytes),
    ]
}
