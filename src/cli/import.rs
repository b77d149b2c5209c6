//! `codecllm import`: a GGUF file to a model directory.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use codecllm::gguf::{self, ImportOptions, ImportReport};

use super::interrupt;
use super::model::DtypeArg;
use super::output::{bytes, pairs, Measured, Output};

const EXAMPLES: &str = "\
Examples:
  codecllm import MODEL.Q4_K_M.gguf -o MODEL_DIR
  codecllm import MODEL.F16.gguf -o MODEL_DIR --tokenizer tokenizer.json

A Llama in F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K or Q6_K, with its tokenizer and chat template. A file with anything
that would change what the model computes and that a Hugging Face directory cannot say is refused by name. MODEL_DIR must not exist; it
appears when it is complete.";

/// Turn a Llama in a GGUF file into a Hugging Face directory
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The GGUF file
    file: PathBuf,
    /// The directory to write
    #[arg(short, long, value_name = "MODEL_DIR")]
    output: PathBuf,
    /// The dtype to write [default: fp32 or bf16 where all of the file's matrices are such, else fp16, which holds what blocks of
    /// 4 to 8 bits say]
    #[arg(long, value_enum)]
    dtype: Option<DtypeArg>,
    /// A token that ends an answer, beside those that the file tells; may be repeated
    #[arg(long, value_name = "TEXT")]
    stop_token: Vec<String>,
    /// Take this tokenizer.json instead of the file's own tokenizer
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
}

pub(crate) fn run(args: Args, output: &Output) -> Result<()> {
    let start = Instant::now();
    interrupt::clean_up()?;
    let options = ImportOptions {
        dtype: args.dtype.map(DtypeArg::kind),
        stop_tokens: args.stop_token,
        tokenizer: args.tokenizer,
    };
    let mut bar = output.progress();
    let report = gguf::import(&args.file, &args.output, &options, &mut |p| bar.show(&p))?;
    drop(bar);
    output.report(&Measured::since(start, report), text)
}

fn text(measured: &Measured<ImportReport>) -> String {
    let report = &measured.report;
    let types: Vec<String> = report.types.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    let stops: Vec<String> = report.stop_tokens.iter().map(u32::to_string).collect();
    let rows = [
        ("weights", report.weights.to_string()),
        ("tensors", types.join(", ")),
        ("tokenizer", format!("{}, {} tokens", report.tokenizer, report.tokens)),
        ("answers end at", stops.join(", ")),
        ("chat template", if report.chat_template { "yes" } else { "no" }.to_owned()),
        ("read", bytes(report.source_bytes)),
        ("written", format!("{} in {}", bytes(report.bytes_written), report.dtype)),
    ];
    pairs(rows.into_iter().chain(measured.rows()))
}
