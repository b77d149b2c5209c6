//! A compressed weight, or a run of its bands, to a row-major dense tensor on its GPU.

use std::ops::Range;

use tch::{Kind, Tensor};

use super::launch::{kernel, Element, Limits, Rows};
use super::sources::sources_of;
use super::tables::table_bytes;
use super::weight::{number, DeviceWeight, Weight, WeightFacts};
use crate::codec::Layout;
use crate::cuda::{arg, kernels, Kernel, Launch, Source};
use crate::error::{Error, Result};
use crate::ops::transformer::Launcher;
use crate::rans::LANES;

/// Mirrors `Arguments` of `csrc/kernels/decode_to_scratch.cu`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct ScratchArguments {
    weight: Weight,
    out: u64,
    first_tile: u32,
    tile_count: u32,
    words_bytes: u32,
    padding: u32,
}

const _: () = assert!(size_of::<ScratchArguments>() == 96);

/// Fewer warps take long to bring the tables into shared memory.
const FEWEST_WARPS: usize = 8;

/// Warps of a block, and blocks of a multiprocessor, as in the kernel's launch bounds.
const WARPS: usize = 16;
const BLOCKS: usize = 2;

/// Decodes the bands (rows of tiles) `bands` of `weight` into `out`, contiguous `[rows of the bands, cols]` in FP32, FP16 or
/// BF16, on the launcher's stream. Every element is written.
///
/// # Errors
/// `Unsupported` where the weight's tables don't fit the shared memory, `InvalidArgument` for an `out` that is not as said.
pub(crate) fn decode_to_scratch(
    launcher: &Launcher,
    weight: &DeviceWeight,
    bands: Range<usize>,
    out: &Tensor,
) -> Result<()> {
    let (facts, subject) = (&weight.facts, weight.subject());
    let rows = facts.rows.min(bands.end * facts.tile_rows).saturating_sub(bands.start * facts.tile_rows);
    let device = tch::Device::Cuda(weight.ordinal());
    let element = Element::of(out.kind(), subject)?;
    let output = Rows::of(out, [rows, facts.cols], device, subject)?;
    if output.stride != facts.cols || bands.end > facts.bands || launcher.device.ordinal != weight.ordinal() {
        return Err(Error::invalid(
            subject,
            format!("scratch of bands {bands:?} has rows {} apart, wanted {}", output.stride, facts.cols),
        ));
    }
    if rows == 0 {
        return Ok(());
    }
    let limits = Limits::of(launcher);
    let tiles = bands.len() * facts.tiles_across;
    let plan =
        DecodePlan::new(limits, facts, tiles).ok_or_else(|| too_many_tables(subject, facts, limits))?;
    let arguments = ScratchArguments {
        weight: weight.mirror,
        out: output.address,
        first_tile: number(subject, bands.start * facts.tiles_across)?,
        tile_count: number(subject, tiles)?,
        words_bytes: number(subject, facts.words_bytes)?,
        padding: 0,
    };
    let kernel = decode_kernel(launcher, facts.layout, element)?;
    let launch = plan.launch(subject)?;
    // SAFETY: the one parameter is `ScratchArguments`, whose size both sides check. The weight was checked on the host, is on
    // this device, and kept by the caller; the kernel bounds every read of it. It writes the rows of these bands,
    // which `out` holds, checked above. Shared memory: as the kernel divides it, see `DecodePlan`.
    unsafe { kernel.launch(launcher.stream, &launch, &[arg(&arguments)]) }
}

/// Makes ready what decodes `weight` to `kind`, so that [`decode_to_scratch`] does not wait for the compiler: its caller may hold
/// what others wait for.
pub(crate) fn prepare_decode(launcher: &Launcher, weight: &DeviceWeight, kind: Kind) -> Result<()> {
    let element = Element::of(kind, weight.subject())?;
    decode_kernel(launcher, weight.facts.layout, element).map(|_| ())
}

fn decode_kernel(launcher: &Launcher, layout: Layout, element: Element) -> Result<Kernel> {
    kernel(launcher, decode_source(layout, element), || sources_of(layout, element))
}

pub(super) fn decode_source(layout: Layout, element: Element) -> &'static Source {
    match (layout, element) {
        (Layout::Fast, Element::F32) => &kernels::DECODE_TO_SCRATCH_FAST_F32,
        (Layout::Fast, Element::F16) => &kernels::DECODE_TO_SCRATCH_FAST_F16,
        (Layout::Fast, Element::BF16) => &kernels::DECODE_TO_SCRATCH_FAST_BF16,
        (Layout::Small, Element::F32) => &kernels::DECODE_TO_SCRATCH_SMALL_F32,
        (Layout::Small, Element::F16) => &kernels::DECODE_TO_SCRATCH_SMALL_F16,
        (Layout::Small, Element::BF16) => &kernels::DECODE_TO_SCRATCH_SMALL_BF16,
        (Layout::ExactBf16, Element::F32) => &kernels::DECODE_TO_SCRATCH_EXACT_BF16_F32,
        (Layout::ExactBf16, Element::F16) => &kernels::DECODE_TO_SCRATCH_EXACT_BF16_F16,
        (Layout::ExactBf16, Element::BF16) => &kernels::DECODE_TO_SCRATCH_EXACT_BF16_BF16,
        (Layout::ExactFp16, Element::F32) => &kernels::DECODE_TO_SCRATCH_EXACT_FP16_F32,
        (Layout::ExactFp16, Element::F16) => &kernels::DECODE_TO_SCRATCH_EXACT_FP16_F16,
        (Layout::ExactFp16, Element::BF16) => &kernels::DECODE_TO_SCRATCH_EXACT_FP16_BF16,
    }
}

pub(super) fn too_many_tables(subject: &str, facts: &WeightFacts, limits: Limits) -> Error {
    Error::unsupported(
        subject,
        format!(
            "{} decode tables take {} bytes of shared memory, this GPU has {} (use the CPU, or compress it again)",
            facts.table_count,
            facts.table_bytes(),
            limits.shared_bytes
        ),
    )
}

/// How a launch that decodes tiles, a warp each, is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DecodePlan {
    grid: usize,
    warps: usize,
    shared_bytes: usize,
}

impl DecodePlan {
    /// The most warps on a multiprocessor that fit, in two blocks if possible; `None` where not even one warp fits.
    pub(super) fn new(limits: Limits, facts: &WeightFacts, tiles: usize) -> Option<Self> {
        // The tables, aligned to the size of one, the warps' words, and what a damaged stream may reach behind them.
        let shared_bytes = |warps: usize| {
            let tables = table_bytes(facts.layout) + facts.table_bytes();
            tables + warps * facts.words_bytes + facts.slack_bytes
        };
        let warps_of = |blocks: usize| {
            let fits = |warps: &usize| {
                shared_bytes(*warps) <= limits.shared_bytes && limits.fits(blocks, shared_bytes(*warps))
            };
            (1..=WARPS).rev().find(fits).unwrap_or(0)
        };
        let blocks = (1..=BLOCKS).max_by_key(|&blocks| blocks * warps_of(blocks))?;
        let warps = warps_of(blocks);
        if warps == 0 {
            return None;
        }
        let grid = (limits.multiprocessors * blocks).min(tiles).max(1);
        let warps = warps.min(tiles.div_ceil(grid).max(FEWEST_WARPS));
        Some(Self { grid, warps, shared_bytes: shared_bytes(warps) })
    }

    pub(super) fn launch(&self, subject: &str) -> Result<Launch> {
        Ok(Launch {
            grid: [number(subject, self.grid)?, 1, 1],
            block: (self.warps * LANES) as u32,
            shared_bytes: self.shared_bytes,
            overlap: true,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    fn facts(table_count: usize, words_bytes: usize) -> WeightFacts {
        WeightFacts {
            layout: Layout::Fast,
            rows: 4096,
            cols: 4096,
            tile_rows: 16,
            tile_cols: 1024,
            tiles_across: 4,
            bands: 256,
            table_count,
            words_bytes,
            slack_bytes: 272,
            has_left: false,
            quarter_raw_bits: 8,
        }
    }

    #[test]
    fn the_mirror_has_the_offsets_of_the_kernel() {
        assert_eq!((offset_of!(ScratchArguments, out), offset_of!(ScratchArguments, words_bytes)), (72, 88));
    }

    #[test]
    fn two_blocks_share_a_multiprocessor_where_they_fit() {
        let plan = DecodePlan::new(Limits::H200, &facts(4, 3000 / 16 * 16), 1 << 20).unwrap();
        assert_eq!((plan.grid, plan.warps), (264, 16));
        assert!(Limits::H200.fits(2, plan.shared_bytes));
    }

    #[test]
    fn many_tables_leave_one_block() {
        let plan = DecodePlan::new(Limits::H200, &facts(20, 2048), 1 << 20).unwrap();
        assert_eq!((plan.grid, plan.warps), (132, 16));
        assert!(plan.shared_bytes <= Limits::H200.shared_bytes);
        assert!(DecodePlan::new(Limits::H200, &facts(28, 2048), 1 << 20).is_none());
    }

    #[test]
    fn few_tiles_get_few_warps() {
        let plan = DecodePlan::new(Limits::H200, &facts(4, 2048), 1).unwrap();
        assert_eq!((plan.grid, plan.warps), (1, 8));
        let plan = DecodePlan::new(Limits::H200, &facts(4, 2048), 1024).unwrap();
        assert_eq!((plan.grid, plan.warps), (264, 8));
    }
}
