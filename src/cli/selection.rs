//! Arguments that say what to compress, to what, and in which layout.

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

/// A named choice.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Preset {
    /// One step per output row, its largest magnitude over 127
    Int8,
    /// Every weight bit for bit: BF16, FP16, and FP32 where a whole tensor is exactly BF16 or FP16
    Lossless,
    /// At most 7.4 bits a weight: no measurable loss
    Near,
    /// At most 6.2 bits a weight: a loss that a benchmark shows
    Balanced,
    /// At most 5.2 bits a weight, meant for --calibrate
    Small,
}

impl Preset {
    /// What `--bits` or else `--preset` asks for.
    pub(crate) fn target_or(preset: Option<Self>, bits: Option<f64>) -> Target {
        bits.map_or_else(|| preset.unwrap_or(Self::Int8).target(), Target::Bits)
    }

    fn target(self) -> Target {
        match self {
            Self::Int8 => Target::Int8,
            Self::Lossless => Target::Lossless,
            Self::Near => Target::NEAR,
            Self::Balanced => Target::BALANCED,
            Self::Small => Target::SMALL,
        }
    }
}
