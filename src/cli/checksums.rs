//! The argument of the verbs that read a compressed directory and may skip its checksums.

use codecllm::codec::Checksums;

#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct ChecksumArgs {
    /// Don't compare checksums: a little faster, and files edited by hand are accepted, but damage gives wrong weights
    #[arg(long)]
    no_verify: bool,
}

impl ChecksumArgs {
    pub(crate) fn choice(self) -> Checksums {
        if self.no_verify {
            Checksums::Ignore
        } else {
            Checksums::Verify
        }
    }
}
