//! `codecllm decompress`: a compressed directory to an ordinary checkpoint.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use codecllm::checkpoint::{self, Reader};
use serde::Serialize;

use super::checksums::ChecksumArgs;
use super::interrupt;
use super::output::{bytes, pairs, Measured, Output};

const EXAMPLES: &str = "\
Example:
  codecllm decompress OUT -o DENSE_DIR

The weights keep their own dtype and the values they have on the grid. DENSE_DIR must not exist; it appears when it is
complete.";

/// Turn a compressed directory into an ordinary checkpoint, which any other program loads
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The compressed directory
    compressed_dir: PathBuf,
    /// The directory to write
    #[arg(short, long, value_name = "DENSE_DIR")]
    output: PathBuf,
    #[command(flatten)]
    checksums: ChecksumArgs,
}

#[derive(Debug, Serialize)]
struct Report {
    bytes_written: u64,
}

pub(crate) fn run(args: Args, output: &Output) -> Result<()> {
    let start = Instant::now();
    interrupt::clean_up()?;
    let mut bar = output.progress();
    let reader = Reader::open(&args.compressed_dir)?.with_checksums(args.checksums.choice());
    let bytes_written = checkpoint::decompress_from(&reader, &args.output, &mut |p| bar.show(&p))?;
    drop(bar);
    output.report(&Measured::since(start, Report { bytes_written }), |measured| {
        pairs([("written", bytes(bytes_written))].into_iter().chain(measured.rows()))
    })
}
