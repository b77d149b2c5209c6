//! Arguments that say what to compress and in which layout.

use clap::ValueEnum;
use codecllm::checkpoint::{CompressOptions, Target};
use codecllm::codec::Layout;

/// Which matrices, and in which layout.
#[derive(Debug, clap::Args)]
pub(crate) struct SelectionArgs {
    /// Layout of weights on a grid [default: fast, but small for a matrix where fast takes more than 0.40 bits a weight over the
    /// entropy of its grid]
    #[arg(long, value_enum)]
    pub(crate) layout: Option<LayoutArg>,
    /// Compress only what matches GLOB, over full tensor paths; may be repeated [default: every linear, the embedding
    /// and the head]
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// Leave what matches GLOB as it is; may be repeated
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum LayoutArg {
    /// What the fused kernels want
    #[default]
    Fast,
    /// The fewest bits
    Small,
}

impl LayoutArg {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Small => "small",
        }
    }
}

impl SelectionArgs {
    pub(crate) fn options(self, target: Target) -> CompressOptions {
        let layout = self.layout.map(|layout| match layout {
            LayoutArg::Fast => Layout::Fast,
            LayoutArg::Small => Layout::Small,
        });
        CompressOptions { target, layout, include: self.include, exclude: self.exclude }
    }
}
