//! Attention of one query a sequence over the cache.

use std::ffi::c_void;

use tch::{Kind, Tensor};

use super::launcher::{blocks, by_kind, int, Launcher};
use super::pages::{CachePlanes, PlaneAddresses};
use crate::cuda::{arg, kernels, Kernel, Source};
use crate::error::{Error, Result, TorchContext};

/// Threads of a block, and query heads that share it, as the kernel is built.
const THREADS: u32 = 256;
const GROUP: i64 = 4;
/// Most parts that the slots are cut into, as the kernel has room for.
const MOST_PARTS: i64 = 64;
const SUBJECT: &str = "attention";

/// Heads that share keys, by the number of sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    batch: i64,
    heads: i64,
    kv_heads: i64,
    head_dim: i64,
}

/// Where blocks leave their parts' results, shared by all layers of a step.
#[derive(Debug)]
pub(crate) struct AttentionScratch {
    layout: Layout,
    parts: i64,
    sums: Tensor,
    softmaxes: Tensor,
    /// Zero between launches: each leaves them so.
    tickets: Tensor,
}

/// The kernel's `Partials`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Partials {
    sums: *mut c_void,
    softmaxes: *mut c_void,
    tickets: *mut c_void,
}

/// The kernel's `Shape`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Shape {
    heads: i32,
    kv_heads: i32,
    head_dim: i32,
}

/// Whether the kernel takes heads of this width.
pub(crate) fn takes_head(head_dim: usize) -> bool {
    (8..=256).contains(&head_dim) && head_dim.is_multiple_of(8)
}

impl Layout {
    fn check(&self) -> Result<()> {
        let width_fits = usize::try_from(self.head_dim).is_ok_and(takes_head);
        if self.batch > 0
            && self.kv_heads > 0
            && self.heads > 0
            && self.heads % self.kv_heads == 0
            && width_fits
        {
            return Ok(());
        }
        Err(Error::invalid(
            SUBJECT,
            format!("{self:?}, wanted kv_heads a divisor of heads and head_dim a multiple of 8 up to 256"),
        ))
    }

    /// Blocks that one part of one sequence takes.
    fn blocks_across(&self) -> i64 {
        let group = self.heads / self.kv_heads;
        self.kv_heads * (group as u64).div_ceil(GROUP as u64) as i64
    }

    /// The module of the kernel for these heads in this dtype.
    fn source(&self, kind: Kind) -> Result<&'static Source> {
        use kernels as k;
        let shared = self.heads > self.kv_heads;
        let sources = match (self.head_dim, shared) {
            (..=64, false) => [&k::ATTENTION_F32_64_1, &k::ATTENTION_F16_64_1, &k::ATTENTION_BF16_64_1],
            (..=64, true) => [&k::ATTENTION_F32_64_4, &k::ATTENTION_F16_64_4, &k::ATTENTION_BF16_64_4],
            (65..=128, false) => [&k::ATTENTION_F32_128_1, &k::ATTENTION_F16_128_1, &k::ATTENTION_BF16_128_1],
            (65..=128, true) => [&k::ATTENTION_F32_128_4, &k::ATTENTION_F16_128_4, &k::ATTENTION_BF16_128_4],
            (_, false) => [&k::ATTENTION_F32_256_1, &k::ATTENTION_F16_256_1, &k::ATTENTION_BF16_256_1],
            (_, true) => [&k::ATTENTION_F32_256_4, &k::ATTENTION_F16_256_4, &k::ATTENTION_BF16_256_4],
        };
        by_kind(SUBJECT, kind, sources)
    }

    fn kernel(&self, launcher: &Launcher, kind: Kind) -> Result<Kernel> {
        let source = self.source(kind)?;
        launcher.device.kernel(source, source.name)
    }
}

/// The module of the kernel for heads like these in this dtype.
pub(super) fn attention_source(kind: Kind, [heads, kv_heads, head_dim]: [i64; 3]) -> Result<&'static Source> {
    let layout = Layout { batch: 1, heads, kv_heads, head_dim };
    layout.check()?;
    layout.source(kind)
}

impl AttentionScratch {
    /// Scratch for `batch` sequences in dtype `kind`, with so many parts that the device is full.
    pub(crate) fn new(
        launcher: &Launcher,
        kind: Kind,
        [batch, heads, kv_heads, head_dim]: [i64; 4],
    ) -> Result<Self> {
        let layout = Layout { batch, heads, kv_heads, head_dim };
        layout.check()?;
        let at_once = layout.kernel(launcher, kind)?.occupancy(THREADS, 0)? * launcher.device.multiprocessors;
        let parts = (i64::from(at_once) / (batch * layout.blocks_across())).clamp(1, MOST_PARTS);
        Self::with_parts(launcher, layout, parts)
    }

    fn with_parts(launcher: &Launcher, layout: Layout, parts: i64) -> Result<Self> {
        let device = tch::Device::Cuda(launcher.device.ordinal);
        let Layout { batch, heads, head_dim, .. } = layout;
        Ok(Self {
            layout,
            parts,
            sums: Tensor::f_empty([batch, heads, parts, head_dim], (Kind::Float, device)).about(SUBJECT)?,
            softmaxes: Tensor::f_empty([batch, heads, parts, 2], (Kind::Float, device)).about(SUBJECT)?,
            tickets: Tensor::f_zeros([batch, layout.blocks_across()], (Kind::Int, device)).about(SUBJECT)?,
        })
    }

    fn partials(&self, launcher: &Launcher) -> Result<Partials> {
        let (Layout { batch, heads, head_dim, .. }, parts) = (self.layout, self.parts);
        let float = |tensor, shape: &[i64]| launcher.address("attention scratch", tensor, Kind::Float, shape);
        Ok(Partials {
            sums: float(&self.sums, &[batch, heads, parts, head_dim])?,
            softmaxes: float(&self.softmaxes, &[batch, heads, parts, 2])?,
            tickets: launcher.address(
                "attention tickets",
                &self.tickets,
                Kind::Int,
                &[batch, self.layout.blocks_across()],
            )?,
        })
    }
}

/// The queries of `qkv` `[batch, (heads + 2 * kv_heads) * head_dim]` attend to their sequence's slots `padding` to `lengths` (both
/// `[batch]`, `Int`); `out` is `[batch, heads * head_dim]`.
pub(crate) fn attention(
    launcher: &Launcher,
    out: &Tensor,
    qkv: &Tensor,
    cache: CachePlanes<'_>,
    scratch: &AttentionScratch,
    [lengths, padding]: [&Tensor; 2],
) -> Result<()> {
    let layout = scratch.layout;
    let Layout { batch, heads, kv_heads, head_dim } = layout;
    if cache.heads()? != [kv_heads, head_dim] {
        return Err(Error::invalid(
            SUBJECT,
            format!("{:?} cached, wanted [{kv_heads}, {head_dim}] (key heads, their width)", cache.heads()?),
        ));
    }
    let kind = qkv.kind();
    let all_heads = heads + 2 * kv_heads;
    let out = launcher.address("attended", out, kind, &[batch, heads * head_dim])?;
    let qkv = launcher.address("queries, keys and values", qkv, kind, &[batch, all_heads * head_dim])?;
    let PlaneAddresses { keys, values, pages } = cache.addresses(launcher, kind, batch)?;
    let lengths = launcher.address("lengths", lengths, Kind::Int, &[batch])?;
    let padding = launcher.address("padding", padding, Kind::Int, &[batch])?;
    let partials = scratch.partials(launcher)?;
    let shape = Shape {
        heads: int("heads", heads)?,
        kv_heads: int("kv_heads", kv_heads)?,
        head_dim: int("head_dim", head_dim)?,
    };
    let scale = (std::f64::consts::LOG2_E / (head_dim as f64).sqrt()) as f32;
    let grid =
        [blocks("parts", scratch.parts)?, blocks("heads", layout.blocks_across())?, blocks("batch", batch)?];
    let args = [
        arg(&out),
        arg(&qkv),
        arg(&keys),
        arg(&values),
        arg(&partials),
        arg(&lengths),
        arg(&padding),
        arg(&pages),
        arg(&shape),
        arg(&scale),
    ];
    let kernel = layout.kernel(launcher, kind)?;
    // SAFETY: the parameters of `attention` in order, the structs laid out as its own; the tensors have the sizes it is
    // told, checked above; no more parts than it has room for; it reads no slot outside the cache.
    unsafe { launcher.launch(kernel, grid, THREADS, &args) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_get_the_module_that_is_built_for_them() {
        for (kind, dtype) in [(Kind::Float, "f32"), (Kind::Half, "f16"), (Kind::BFloat16, "bf16")] {
            for (width, built) in [(8, 64), (64, 64), (72, 128), (128, 128), (136, 256), (256, 256)] {
                for (heads, group) in [(8, 1), (16, 4), (32, 4), (256, 4)] {
                    let source = attention_source(kind, [heads, 8, width]).unwrap();
                    assert_eq!(source.name, format!("attention_{dtype}_{built}_{group}"));
                }
            }
        }
        for heads in [[8, 8, 264], [8, 8, 12], [8, 3, 64]] {
            assert!(attention_source(Kind::Half, heads).is_err(), "{heads:?}");
        }
        assert!(attention_source(Kind::Double, [8, 8, 64]).is_err());
    }
}
