//! Arguments in, a verb's run, an exit code out: 0 done, 1 failed, 2 bad arguments.

mod bench;
mod chat;
mod checksums;
mod compress;
mod decompress;
mod device;
mod generate;
mod import;
mod inspect;
mod interrupt;
mod model;
mod output;
mod parity;
mod patch;
mod plan;
mod progress;
mod selection;
#[cfg(feature = "serve")]
mod serve;
mod shape;
mod size;
mod stats;
mod steps;
mod verify;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use device::DeviceArg;
use output::Output;

const EXAMPLES: &str = "\
Examples:
  codecllm import MODEL.gguf -o MODEL_DIR              a model directory from a GGUF file
  codecllm stats MODEL_DIR                             what each choice would give; writes nothing
  codecllm compress MODEL_DIR -o OUT                   8-bit grade, the default
  codecllm compress MODEL_DIR -o OUT --bits 5.3        5.3 bits a weight, everything counted
  codecllm compress MODEL_DIR -o OUT --preset lossless every bit of every weight
  codecllm verify OUT --against MODEL_DIR              checksums, and the error against the original
  codecllm generate OUT --prompt 'Why is the sky blue?'
  codecllm serve OUT                                   the same for many clients, as OpenAI's API
  codecllm parity MODEL_DIR OUT --text FILE            perplexity and divergence of the two on a text
  codecllm decompress OUT -o DENSE_DIR                 an ordinary checkpoint again
  codecllm plan MODEL_DIR --memory 24GB                which choices fit, and how fast they would be
  codecllm patch MODEL.pt -o PATCHED.pt                the same for a TorchScript file
  codecllm parity MODEL.pt PATCHED.pt --inputs FILE    its outputs against the original's

Exit codes: 0 done, 1 failed (a checkpoint that does not verify included), 2 bad arguments.
`codecllm VERB --help` tells more about each verb.";

const EVERY_VERB: &str = "Options of every verb";

/// Keeps the weights of a large language model entropy-coded in memory and decodes them inside the forward pass.
///
/// MODEL_DIR is a Hugging Face directory of a Llama: config.json, tokenizer.json and safetensors files.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES, subcommand_value_name = "VERB", subcommand_help_heading = "Verbs")]
struct Cli {
    /// Print one JSON object on stdout, and nothing else there
    #[arg(long, global = true, help_heading = EVERY_VERB)]
    json: bool,
    /// Threads of libtorch and of encoding and decoding [default: one a core]
    #[arg(long, global = true, help_heading = EVERY_VERB, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Plan(plan::Args),
    Import(import::Args),
    Stats(stats::Args),
    Compress(compress::Args),
    Decompress(decompress::Args),
    Inspect(inspect::Args),
    Patch(patch::Args),
    Verify(verify::Args),
    Generate(generate::Args),
    Chat(chat::Args),
    #[cfg(feature = "serve")]
    Serve(serve::Args),
    Parity(parity::Args),
    Bench(bench::Args),
}

impl Verb {
    /// Where the verb computes.
    fn device(&self) -> DeviceArg {
        match self {
            Self::Generate(args) => args.device(),
            Self::Chat(args) => args.device(),
            #[cfg(feature = "serve")]
            Self::Serve(args) => args.device(),
            Self::Parity(args) => args.device(),
            Self::Bench(args) => args.device(),
            Self::Plan(_)
            | Self::Import(_)
            | Self::Stats(_)
            | Self::Compress(_)
            | Self::Decompress(_)
            | Self::Inspect(_)
            | Self::Patch(_)
            | Self::Verify(_) => DeviceArg::Cpu,
        }
    }

    fn run(self, output: &Output) -> Result<()> {
        match self {
            Self::Plan(args) => plan::run(args, output),
            Self::Import(args) => import::run(args, output),
            Self::Stats(args) => stats::run(args, output),
            Self::Compress(args) => compress::run(args, output),
            Self::Decompress(args) => decompress::run(args, output),
            Self::Inspect(args) => inspect::run(args, output),
            Self::Patch(args) => patch::run(args, output),
            Self::Verify(args) => verify::run(args, output),
            Self::Generate(args) => generate::run(args, output),
            Self::Chat(args) => chat::run(args, output),
            #[cfg(feature = "serve")]
            Self::Serve(args) => serve::run(args, output),
            Self::Parity(args) => parity::run(args, output),
            Self::Bench(args) => bench::run(args, output),
        }
    }
}

/// Runs the command line of this process.
pub(crate) fn main() -> ExitCode {
    // Bad arguments end here, with exit code 2.
    let cli = Cli::parse();
    let output = Output::new(cli.json);
    match prepare(&cli).and_then(|()| cli.verb.run(&output)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            interrupt::wait_if_ending();
            // Where stderr is closed, the exit code still tells.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whoever read our stdout has seen enough. (The library's own I/O errors are of another type.)
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

/// What concerns the whole process. The number of threads is libtorch's affair, so the GPU comes first.
fn prepare(cli: &Cli) -> Result<()> {
    cli.verb.device().prepare()?;
    set_threads(cli.threads)
}

fn set_threads(threads: Option<u16>) -> Result<()> {
    if let Some(threads) = threads {
        tch::set_num_threads(i32::from(threads));
        rayon::ThreadPoolBuilder::new().num_threads(usize::from(threads)).build_global()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_arguments_do_not_contradict_each_other() {
        super::Cli::command().debug_assert();
    }
}
