//! `codecllm bench`: encode, decode, fused and scratch forward, with the dense matmul beside each; on a GPU the layers of
//! Llama-3.1-8B, and with `generate` and `batch` the whole model.

mod batch;
mod cuda;
mod generate;
mod layers;
mod matrix;
mod model;
mod random;
mod text;
mod timing;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{bail, Result};
use clap::Subcommand;
use codecllm::codec::{EncodeOptions, Layout};
use codecllm::Error;
use serde::Serialize;

use self::matrix::{bench_matrix, gaussian, MatrixReport, Plan};
use self::model::{bench_model, ModelReport};
use super::device::DeviceArg;
use super::model::{at_least_one, budget, float, DtypeArg};
use super::output::Output;
use super::selection::LayoutArg;
use super::steps::Steps;

const EXAMPLES: &str = "\
Examples:
  codecllm bench
  codecllm bench --shape 4096x4096 --bits 5.3 --threads 1
  codecllm bench --model MODEL_DIR --batch 1             all linears of a real model, one token
  codecllm bench --device cuda --bits 5.3 --json         the layers of Llama-3.1-8B on the GPU, and their sum over a step
  codecllm bench --device cuda --lossless --dtype bf16   the same of BF16 weights kept bit for bit
  codecllm bench generate --config 8b                    a random model of that shape generates, dense and compressed
  codecllm bench batch --config 8b                       the same answers several clients at once

Figures are medians after a warm-up, with the fastest run beside them. Weights are rotated over more memory than the caches
hold. On a machine that does other work, believe the fastest run. On a GPU all paths are CUDA graphs, replayed in turn and
timed by the GPU; q, k and v are one launch, and gate and up, of the compressed layers as of the dense ones.";

/// The libtorch that the crate is built for: no other one links.
const TORCH_VERSION: &str = "2.11.0";

/// Rows of the activations on the CPU where none are named.
const CPU_BATCHES: [usize; 6] = [1, 2, 4, 8, 16, 32];

/// Time encode, decode, fused and scratch forward, with the dense matmul beside each
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: Option<What>,
    /// Where to compute
    #[arg(long, value_enum, default_value_t)]
    device: DeviceArg,
    /// Rows and columns of a Gaussian matrix; may be repeated [default: 576x576, 1536x576, 576x1536, 4096x4096; on a GPU
    /// the layers of Llama-3.1-8B]
    #[arg(long, value_name = "RxC", value_parser = shape, conflicts_with = "model")]
    shape: Vec<[usize; 2]>,
    /// Time the linears of this (uncompressed) model instead, all together; on the CPU only
    #[arg(long, value_name = "MODEL_DIR")]
    model: Option<PathBuf>,
    /// Bits a weight [default: INT8, one step per row]
    #[arg(long, value_name = "B", value_parser = budget)]
    bits: Option<f64>,
    /// Weights of the activations' dtype, kept bit for bit; on a GPU only
    #[arg(long, conflicts_with_all = ["bits", "layout", "model"])]
    lossless: bool,
    /// Layout of the compressed weights
    #[arg(long, value_enum, default_value_t)]
    layout: LayoutArg,
    /// Rows of the activations [default: 1,2,4,8,16,32; on a GPU 64,256,2048 too]
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = at_least_one)]
    batch: Vec<usize>,
    /// The dtype of the compressed layers' activations
    #[arg(long, value_enum, default_value_t)]
    dtype: DtypeArg,
    /// Seconds for each figure
    #[arg(long, value_name = "S", default_value_t = 0.3, value_parser = seconds)]
    seconds: f64,
}

#[derive(Debug, Subcommand)]
enum What {
    Generate(generate::Args),
    Batch(batch::Args),
}

impl Args {
    pub(crate) fn device(&self) -> DeviceArg {
        match &self.what {
            Some(What::Generate(args)) => args.device(),
            Some(What::Batch(args)) => args.device(),
            None => self.device,
        }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    bits: Option<f64>,
    layout: &'static str,
    /// Of libtorch, and of encoding and decoding.
    threads: usize,
    /// The best instructions of this processor.
    level: String,
    matrices: Vec<MatrixReport>,
    model: Option<ModelReport>,
}

pub(crate) fn run(args: Args, output: &Output) -> Result<()> {
    match args.what {
        Some(What::Generate(args)) => return generate::run(args, output),
        Some(What::Batch(args)) => return batch::run(args, output),
        None => {}
    }
    let plan = plan(&args);
    match args.device {
        DeviceArg::Cpu if args.lossless => {
            bail!("--lossless: is timed on a GPU only, add --device cuda")
        }
        DeviceArg::Cpu => run_on_cpu(args, plan, output),
        DeviceArg::Cuda if args.model.is_some() => {
            bail!("--model: is timed on the CPU only, drop --device cuda")
        }
        DeviceArg::Cuda => cuda::run(&args.shape, &plan, output),
    }
}

fn run_on_cpu(args: Args, plan: Plan, output: &Output) -> Result<()> {
    let mut steps = Steps::new(output);
    let mut matrices = Vec::new();
    let mut model = None;
    if let Some(dir) = &args.model {
        model =
            Some(bench_model(dir, &plan, &mut |done, total, next| steps.show("model", done, total, next))?);
    } else {
        let shapes = shapes(&args.shape);
        for (done, shape) in shapes.iter().enumerate() {
            let path = format!("{}x{}", shape[0], shape[1]);
            let mut progress =
                |next: &str| steps.show("matrices", done, shapes.len(), &format!("{path}: {next}"));
            matrices.push(bench_matrix(&path, &gaussian(*shape)?, &plan, &mut progress)?);
        }
    }
    drop(steps);
    let level = level_name(codecllm::codec::Level::detect());
    let report =
        Report { bits: args.bits, layout: args.layout.name(), threads: plan.threads, level, matrices, model };
    output.report(&report, text::report)
}

fn plan(args: &Args) -> Plan {
    let layout = match args.layout {
        _ if args.lossless => match args.dtype {
            DtypeArg::Bf16 => Layout::ExactBf16,
            DtypeArg::Fp16 | DtypeArg::Fp32 => Layout::ExactFp16,
        },
        LayoutArg::Fast => Layout::Fast,
        LayoutArg::Small => Layout::Small,
    };
    let batches = match args.device {
        _ if !args.batch.is_empty() => args.batch.clone(),
        DeviceArg::Cpu => CPU_BATCHES.to_vec(),
        DeviceArg::Cuda => cuda::BATCHES.to_vec(),
    };
    Plan {
        bits: args.bits,
        options: EncodeOptions { layout, ..EncodeOptions::default() },
        batches,
        kind: args.dtype.kind(),
        threads: usize::try_from(tch::get_num_threads()).unwrap_or(1).max(1),
        budget: Duration::from_secs_f64(args.seconds),
    }
}

fn shapes(wanted: &[[usize; 2]]) -> Vec<[usize; 2]> {
    if wanted.is_empty() {
        vec![[576, 576], [1536, 576], [576, 1536], [4096, 4096]]
    } else {
        wanted.to_vec()
    }
}

/// A level's name in figures.
fn level_name(level: codecllm::codec::Level) -> String {
    format!("{level:?}").to_lowercase()
}

/// `tch`'s errors, about an argument.
fn torch_error(subject: &str) -> impl FnOnce(tch::TchError) -> Error + '_ {
    move |source| Error::torch(subject, source)
}

fn shape(text: &str) -> Result<[usize; 2], String> {
    let parse = || {
        let (rows, cols) = text.split_once('x')?;
        let shape: [usize; 2] = [rows.parse().ok()?, cols.parse().ok()?];
        let weights = shape[0].checked_mul(shape[1])?;
        (1..=1 << 30).contains(&weights).then_some(shape)
    };
    parse().ok_or_else(|| "wanted ROWSxCOLUMNS, such as 4096x4096, of at most 2^30 weights".to_owned())
}

fn seconds(text: &str) -> Result<f64, String> {
    float(text, |seconds| seconds > 0.0 && seconds <= 60.0, "more than 0 and at most 60")
}
