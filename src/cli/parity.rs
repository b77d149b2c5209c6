//! `codecllm parity`: what compression changes of a model's answers.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{anyhow, Result};
use codecllm::parity::{compare, Options, Report};
use codecllm::torchscript::{self, InputSet, Module, TorchscriptParity};
use codecllm::Error;

use super::device::DeviceArg;
use super::model::{at_least_one, float, DtypeArg};
use super::output::{pairs, table, Measured, Output};
use super::steps::Steps;

const EXAMPLES: &str = "\
Examples:
  codecllm parity MODEL_DIR OUT --text FILE
  codecllm parity MODEL_DIR OUT --text FILE --max-windows 20 --prompts PROMPTS --new-tokens 64
  codecllm parity MODEL_DIR OUT --text FILE --max-kl 0.05      exit code 1 above that mean divergence
  codecllm parity MODEL_DIR OUT --text FILE --html REPORT.html the same as a page with charts
  codecllm parity MODEL.pt PATCHED.pt --inputs INPUTS.safetensors
  codecllm parity MODEL.pt PATCHED.pt --text FILE --tokenizer MODEL_DIR

Either side may be a directory, compressed or not, or a TorchScript file. Divergences are KL(MODEL || OUT) of the next token, in nats. The text is cut into
windows that are read from nothing; all tokens of a window but the first are scored. Embedding, layers and head are compared over the
first window: with the error piled up behind each, and with the error of its own, fed what the reference's is fed; not so TorchScript.

A TorchScript file reads a text if its forward takes token ids [1, seq] and gives logits [1, seq, vocab], alone or first. Of any other
the outputs are compared: INPUTS.safetensors holds the arguments of forward as arg0, arg1, ..., or of several calls as NAME/arg0, ...";

/// Compare the answers of a compressed model with the original's on a text
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The model directory or TorchScript file that is right
    #[arg(value_name = "MODEL")]
    model_dir: PathBuf,
    /// The model directory or TorchScript file to compare with it
    out: PathBuf,
    /// The UTF-8 text that both models read
    #[arg(long, value_name = "FILE", required_unless_present = "inputs")]
    text: Option<PathBuf>,
    /// Arguments of both TorchScript files' forward, whose outputs are compared
    #[arg(long, value_name = "FILE", conflicts_with_all = ["text", "tokenizer", "window", "max_windows", "prompts", "html"])]
    inputs: Option<PathBuf>,
    /// The model directory whose tokenizer reads the text for TorchScript files [default: the other side, if it is a directory]
    #[arg(long, value_name = "MODEL_DIR")]
    tokenizer: Option<PathBuf>,
    /// Tokens of a window [default: 512, or less if the model allows less]
    #[arg(long, value_name = "N")]
    window: Option<usize>,
    /// Windows to read [default: all of the text]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    max_windows: Option<usize>,
    /// Where to compute
    #[arg(long, value_enum, default_value_t)]
    device: DeviceArg,
    /// The dtype to compute in; on the CPU fp32 is faster here than fp16. A TorchScript file has its own
    #[arg(long, value_enum, default_value = "fp32")]
    dtype: DtypeArg,
    /// Prompts that both models answer greedily, one a line
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = at_least_one)]
    new_tokens: usize,
    /// Continue the prompts as they are, without the model's chat template
    #[arg(long)]
    raw: bool,
    /// Write the report as one HTML page with charts, over what is there
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Fail if the mean divergence is above this many nats
    #[arg(long, value_name = "NATS", value_parser = divergence)]
    max_kl: Option<f64>,
}

impl Args {
    pub(crate) fn device(&self) -> DeviceArg {
        self.device
    }
}

pub(crate) fn run(args: Args, output: &Output) -> Result<()> {
    let start = Instant::now();
    if let Some(inputs) = &args.inputs {
        return run_on_inputs(&args, inputs, output);
    }
    let options = Options {
        text: args.text.unwrap_or_default(),
        tokenizer: args.tokenizer,
        window: args.window,
        max_windows: args.max_windows,
        kind: args.dtype.kind(),
        device: args.device.device(),
        threads: None, // set for the whole process already
        prompts: args.prompts.as_deref().map(read_prompts).transpose()?.unwrap_or_default(),
        raw: args.raw,
        new_tokens: args.new_tokens,
    };
    let mut steps = Steps::new(output);
    let report = compare(&args.model_dir, &args.out, &options, &mut |at| {
        steps.show(at.stage, at.done, at.total, "");
    })?;
    drop(steps);
    if let Some(file) = &args.html {
        std::fs::write(file, report.html()?).map_err(|e| Error::io(file, e))?;
    }
    let measured = Measured::since(start, report);
    output.report(&measured, text)?;
    match args.max_kl {
        Some(most) => Ok(measured.report.check(most)?),
        None => Ok(()),
    }
}

/// Compares the outputs of two TorchScript files.
fn run_on_inputs(args: &Args, inputs: &Path, output: &Output) -> Result<()> {
    let start = Instant::now();
    let inputs = InputSet::read(inputs)?;
    let load = |path: &Path| Module::load(path, args.device.device());
    let report = torchscript::compare(&load(&args.model_dir)?, &load(&args.out)?, &inputs)?;
    let measured = Measured::since(start, report);
    output.report(&measured, outputs)?;
    match args.max_kl {
        Some(most) => Ok(measured.report.check(most)?),
        None => Ok(()),
    }
}

fn outputs(measured: &Measured<TorchscriptParity>) -> String {
    let mut outputs =
        table(&["output", "shape", "largest difference", "relative error", "same top", "KL mean"]);
    let optional = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.6}"));
    for output in &measured.report.outputs {
        outputs.add_row([
            output.name.clone(),
            output.shape.iter().map(i64::to_string).collect::<Vec<_>>().join("x"),
            format!("{:.3e}", output.max_difference),
            format!("{:.3e}", output.relative_error),
            optional(output.same_top),
            optional(output.mean_divergence),
        ]);
    }
    let exact = if measured.report.is_exact() { "yes" } else { "no" };
    let rows = [("exact", exact.to_owned())].into_iter().chain(measured.rows());
    format!("{outputs}\n\n{}", pairs(rows))
}

fn read_prompts(file: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(file).map_err(|e| Error::io(file, e))?;
    let prompts: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect();
    if prompts.is_empty() {
        return Err(anyhow!("{}: has no prompts, wanted one a line", file.display()));
    }
    Ok(prompts)
}

fn divergence(text: &str) -> Result<f64, String> {
    float(text, |most| most.is_finite() && most >= 0.0, "0 or more")
}

fn text(measured: &Measured<Report>) -> String {
    let report = &measured.report;
    let mut parts = vec![pairs(report.figures().into_iter().chain(measured.rows()))];
    if !report.layers.is_empty() {
        parts.push(layers(report));
    }
    if !report.greedy.is_empty() {
        parts.push(answers(report));
    }
    parts.join("\n\n")
}

fn layers(report: &Report) -> String {
    let mut layers = table(&["layer", "error behind it", "of its own", ""]);
    for error in &report.layers {
        layers.add_row([
            error.layer.clone(),
            format!("{:.6}", error.relative_error),
            format!("{:.6}", error.own_error),
            report.remark(error),
        ]);
    }
    layers.to_string()
}

fn answers(report: &Report) -> String {
    let mut answers = table(&["prompt", "tokens that agree"]);
    for answer in &report.greedy {
        let tokens = match answer.agrees {
            true => format!("all {}", answer.reference_tokens),
            false => format!("{} of {}", answer.agreed_tokens, answer.reference_tokens),
        };
        answers.add_row([answer.prompt.clone(), tokens]);
    }
    format!("{answers}\n\n{}", report.greedy_summary())
}
