//! `y = x W^T + bias` from compressed weights on a GPU, for a few rows of x.

use std::cmp::Reverse;

use tch::{Kind, Tensor};

use super::activations::{pieces, with_activations, Activations};
use super::launch::{kernel, Element, Limits, Rows};
use super::sources::sources_of;
use super::tables::table_bytes;
use super::weight::{number, DeviceWeight, Weight, WeightFacts};
use crate::codec::Layout;
use crate::cuda::{arg, kernels, Launch, Source};
use crate::error::{Error, Result, TorchContext};
use crate::ops::transformer::Launcher;
use crate::rans::LANES;
use crate::tile::STRIPE_ROWS;

/// Weights of one launch, at most.
pub(crate) const MOST_WEIGHTS: usize = 3;
/// Rows of x of one launch, at most.
pub(crate) const MOST_ROWS: usize = 64;

/// Rows of x that the kernels are built for. Those for more have more code.
const ROWS: [usize; 4] = [MOST_ROWS, 32, 16, 8];

/// A warp's share of the tensor cores' columns: rows of x.
const MMA_COLS: usize = 8;
/// Sums that a lane has for [`MMA_COLS`] rows of x.
const LANE_SUMS: usize = 4;
/// What a warp keeps of the tile it decodes and of the next: twice `Record::BYTES` of the kernel.
const RECORD_BYTES: usize = 64;
/// As many warps keep a multiprocessor busy: with fewer it waits for memory, more share its time.
const BUSY_WARPS: usize = 16;
/// More rows of x are packed, and warps that work at the same time work on the same columns of them, which they then find in the L1.
const FEW_ROWS: usize = 8;

/// One of the weights that share x. Mirrors `Part` of `csrc/kernels/fused_linear.cu`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Part {
    weight: Weight,
    y: u64,
    bias: u64,
    bands: u32,
    first_table: u32,
}

const _: () = assert!(size_of::<Part>() == 96);

/// Mirrors `Arguments` of `csrc/kernels/fused_linear.cu`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Arguments {
    parts: [Part; MOST_WEIGHTS],
    part_count: u32,
    bands: u32,
    tiles_across: u32,
    batch: u32,
    x: u64,
    x_exponents: u64,
    x_stride: u32,
    y_stride: u32,
    y_type: u32,
    table_bytes: u32,
    words_bytes: u32,
    slots: u32,
    set: u32,
    places: u32,
    x_pieces: u32,
    x_second: f32,
}

const _: () = assert!(size_of::<Arguments>() == 360);

/// One weight of a launch, and where its product goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FusedPart<'a> {
    pub(crate) weight: &'a DeviceWeight,
    /// `[rows]` in FP32 on the weight's device.
    pub(crate) bias: Option<&'a Tensor>,
    /// `[batch, rows]` in FP32, FP16 or BF16; rows as far apart as the other parts'.
    pub(crate) y: &'a Tensor,
}

/// Whether one launch can multiply all of `weights` by `batch` rows of x: at most [`MOST_WEIGHTS`] weights of one layout and
/// one number of columns, at most [`MOST_ROWS`] rows, no tile that codes differences, and tables that leave room beside them.
pub(crate) fn can_fuse(launcher: &Launcher, weights: &[&DeviceWeight], batch: usize) -> bool {
    let here = weights.iter().all(|weight| weight.ordinal() == launcher.device.ordinal);
    // An FP32 row of x becomes two.
    let fits = |rows| Plan::new(Limits::of(launcher), &facts(weights), rows).is_some();
    here && fits(batch) && fits((2 * batch).min(MOST_ROWS))
}

/// Whether one launch can multiply all of `weights` and is expected to take no longer than one launch for each: the tables of
/// several weights may leave room for few warps.
pub(crate) fn should_merge(launcher: &Launcher, weights: &[&DeviceWeight], batch: usize) -> bool {
    can_fuse(launcher, weights, batch) && Plan::pays_merged(Limits::of(launcher), &facts(weights), batch)
}

fn facts(weights: &[&DeviceWeight]) -> Vec<WeightFacts> {
    weights.iter().map(|weight| weight.facts).collect()
}

/// `x` `[batch, cols]` in FP32, FP16 or BF16 to the `y` of every part, on the launcher's stream. The result does not depend on the
/// launch, nor a row's on the other rows. Allocates only where the columns of `x` are apart.
///
/// # Errors
/// `Unsupported` where [`can_fuse`] says no, `InvalidArgument` for a tensor of another shape, dtype or device.
pub(crate) fn fused_linear(launcher: &Launcher, x: &Tensor, parts: &[FusedPart]) -> Result<()> {
    let Some(first) = parts.first() else { return Ok(()) };
    let subject = first.weight.subject();
    let device = tch::Device::Cuda(launcher.device.ordinal);
    let cols = first.weight.facts.cols;
    let size = x.size();
    if x.device() != device || size.len() != 2 || size.last() != Some(&(cols as i64)) {
        return Err(Error::invalid(
            subject,
            format!("input is {size:?} on {:?}, wanted [batch, {cols}] on {device:?}", x.device()),
        ));
    }
    let layout = first.weight.facts.layout;
    let at_once = (MOST_ROWS / pieces(x.kind(), layout)) as i64;
    if size[0] > at_once {
        return in_pieces(launcher, x, parts, at_once);
    }
    let weights: Vec<&DeviceWeight> = parts.iter().map(|part| part.weight).collect();
    let rows = size[0] as usize * pieces(x.kind(), layout);
    let Some(plan) = Plan::new(Limits::of(launcher), &facts(&weights), rows) else {
        return Err(Error::unsupported(
            subject,
            "can't be multiplied while it is decoded; decode it into scratch",
        ));
    };
    let output = Output::of(parts, size[0] as usize, device)?;
    let neighbors = cols == 1 || x.stride().last() == Some(&1);
    let x = &if neighbors { x.shallow_clone() } else { x.f_contiguous().about(subject)? };
    // Before the pool lends anything: nobody waits behind it for the compiler.
    let kernel = kernel(launcher, plan.source, || sources_of(first.weight.facts.layout, output.element))?;
    with_activations(launcher, x, layout, plan.packed_rows(), subject, |x| {
        let arguments = arguments(&plan, parts, &output, x)?;
        let launch = Launch {
            grid: [number(subject, plan.grid)?, 1, 1],
            block: (plan.warps * LANES) as u32,
            shared_bytes: plan.shared_bytes,
            overlap: true,
        };
        // SAFETY: the one parameter is `Arguments`, whose size both sides check. Weights: checked on the host before, on this
        // device, kept by the caller; the kernel bounds every read of theirs by their sizes. x: `batch` rows of whole
        // groups, or packed for as many rows as this kernel multiplies, from `with_activations`. y and biases: of the sizes that the
        // kernel writes and reads, checked by `Output::of`. Shared memory: as the kernel divides it, see `Plan`.
        unsafe { kernel.launch(launcher.stream, &launch, &[arg(&arguments)]) }
    })
}

/// `at_once` rows of x after the other: every piece decodes the weights anew.
fn in_pieces(launcher: &Launcher, x: &Tensor, parts: &[FusedPart], at_once: i64) -> Result<()> {
    let batch = x.size()[0];
    for start in (0..batch).step_by(at_once as usize) {
        let cut = |tensor: &Tensor, subject: &str| {
            tensor.f_narrow(0, start, at_once.min(batch - start)).about(subject)
        };
        let subject = |part: &FusedPart| part.weight.subject().to_owned();
        let outputs =
            parts.iter().map(|part| cut(part.y, &subject(part))).collect::<Result<Vec<Tensor>>>()?;
        let own: Vec<FusedPart> = parts
            .iter()
            .zip(&outputs)
            .map(|(part, y)| FusedPart { weight: part.weight, bias: part.bias, y })
            .collect();
        fused_linear(launcher, &cut(x, "input")?, &own)?;
    }
    Ok(())
}

/// Where the products go.
#[derive(Debug)]
struct Output {
    rows: Vec<Rows>,
    element: Element,
}

impl Output {
    /// Checks the parts' y and biases.
    fn of(parts: &[FusedPart], batch: usize, device: tch::Device) -> Result<Self> {
        let mut output = Self { rows: Vec::with_capacity(parts.len()), element: Element::F32 };
        for part in parts {
            let (subject, out_features) = (part.weight.subject(), part.weight.facts.rows);
            let element = Element::of(part.y.kind(), subject)?;
            let rows = Rows::of(part.y, [batch, out_features], device, subject)?;
            let stride = output.rows.first().map_or(rows.stride, |first| first.stride);
            if (batch > 1 && rows.stride != stride) || (!output.rows.is_empty() && element != output.element)
            {
                return Err(Error::invalid(
                    subject,
                    "outputs of one launch differ in dtype or distance of their rows, wanted views of one tensor",
                ));
            }
            output.element = element;
            output.rows.push(rows);
            check_bias(part, device)?;
        }
        Ok(output)
    }
}

fn check_bias(part: &FusedPart, device: tch::Device) -> Result<()> {
    let Some(bias) = part.bias else { return Ok(()) };
    let fits = bias.kind() == Kind::Float
        && bias.size() == [part.weight.facts.rows as i64]
        && bias.is_contiguous()
        && bias.device() == device;
    if fits {
        return Ok(());
    }
    Err(Error::invalid(
        part.weight.subject(),
        format!(
            "bias is {:?} {:?} on {:?}, wanted Float [{}] on {device:?}",
            bias.kind(),
            bias.size(),
            bias.device(),
            part.weight.facts.rows
        ),
    ))
}

fn arguments(plan: &Plan, parts: &[FusedPart], output: &Output, x: &Activations) -> Result<Arguments> {
    let subject = parts.first().map_or("fused linear", |part| part.weight.subject());
    let mut mirrors = [Part::default(); MOST_WEIGHTS];
    let mut first_table = 0;
    // A band of one tile passes the kernel's meeting by, where bands are counted: none may come before a band that is counted.
    let mut order: Vec<_> = parts.iter().zip(&output.rows).collect();
    order.sort_by_key(|(part, _)| Reverse(part.weight.facts.tiles_across));
    for (mirror, (part, rows)) in mirrors.iter_mut().zip(order) {
        let facts = &part.weight.facts;
        *mirror = Part {
            weight: part.weight.mirror,
            y: rows.address,
            bias: part.bias.map_or(0, |bias| bias.data_ptr() as u64),
            bands: number(subject, facts.bands)?,
            first_table,
        };
        first_table += facts.table_count as u32;
    }
    Ok(Arguments {
        parts: mirrors,
        part_count: parts.len() as u32,
        bands: number(subject, plan.bands)?,
        tiles_across: number(subject, plan.tiles_across)?,
        batch: x.rows,
        x: x.address,
        x_exponents: x.exponents,
        x_stride: x.row_stride,
        y_stride: number(subject, output.rows.first().map_or(0, |rows| rows.stride))?,
        y_type: output.element as u32,
        table_bytes: number(subject, plan.table_bytes)?,
        words_bytes: number(subject, plan.words_bytes)?,
        slots: number(subject, plan.slots)?,
        set: number(subject, plan.set)?,
        places: number(subject, plan.places)?,
        x_pieces: x.pieces,
        x_second: x.second,
    })
}

/// How a launch is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    source: &'static Source,
    /// Rows of x that the kernel is built for.
    rows: usize,
    grid: usize,
    warps: usize,
    /// Bands of a block that may be unfinished at once.
    slots: usize,
    /// Tiles whose sums a slot has room for: all of a band, which meet, or one, where they take turns.
    places: usize,
    /// Bands of a block whose tiles are taken column by column, before those of the next set.
    set: usize,
    bands: usize,
    tiles_across: usize,
    table_bytes: usize,
    words_bytes: usize,
    shared_bytes: usize,
}

impl Plan {
    /// `None` where the kernel can't do it.
    fn new(limits: Limits, weights: &[WeightFacts], batch: usize) -> Option<Self> {
        let first = weights.first().filter(|_| weights.len() <= MOST_WEIGHTS)?;
        if !weights.iter().all(|weight| alike(first, weight) && takes(weight)) {
            return None;
        }
        let plans = Variant::of(first.layout, batch)
            .filter_map(|variant| Some((Self::with(limits, weights, variant)?, variant)));
        // Fewer warps have more registers each, but more of them decode at once.
        let (plan, _) = plans.min_by_key(|(plan, variant)| (plan.rounds(), variant.warps))?;
        Some(plan)
    }

    /// The most warps that fit; no more than share the tiles evenly.
    fn with(limits: Limits, weights: &[WeightFacts], variant: Variant) -> Option<Self> {
        let most = |of: fn(&WeightFacts) -> usize| weights.iter().map(of).max().unwrap_or(0);
        let bands: usize = weights.iter().map(|weight| weight.bands).sum();
        let plan = Self {
            source: variant.source,
            rows: variant.rows,
            grid: limits.multiprocessors.min(bands).max(1),
            warps: 0,
            slots: 0,
            places: 0,
            set: 0,
            bands,
            tiles_across: most(|weight| weight.tiles_across),
            table_bytes: weights.iter().map(WeightFacts::table_bytes).sum(),
            words_bytes: most(|weight| weight.words_bytes),
            shared_bytes: 0,
        };
        let layout = weights.first()?.layout;
        let with = |warps: usize, [slots, places]: [usize; 2]| {
            let set = if plan.is_for_few() { 1 } else { slots.max(1) };
            let plan = Self { warps, slots, places, set, ..plan };
            Self { shared_bytes: plan.shared_bytes(layout, most(|weight| weight.slack_bytes)), ..plan }
        };
        let most_warps = variant.warps.min(plan.tasks());
        let mut plans = (1..=most_warps)
            .rev()
            .flat_map(|warps| plan.in_flight(warps).map(move |in_flight| with(warps, in_flight)));
        let largest = plans.find(|plan| plan.shared_bytes <= limits.shared_bytes)?;
        Some(with(largest.tasks().div_ceil(largest.rounds()), [largest.slots, largest.places]))
    }

    /// Whether this is for so few rows of x that they are read as they are.
    fn is_for_few(&self) -> bool {
        self.rows <= FEW_ROWS
    }

    /// Rows that x is packed for, if the kernel takes it packed.
    fn packed_rows(&self) -> Option<usize> {
        (!self.is_for_few()).then_some(self.rows)
    }

    /// Slots and their places, the best first. A band of one tile needs neither.
    ///
    /// Few rows of x: the bands that `warps` work on and one that waits for its last tile; where their sums take much room, fewer, for
    /// which the next bands wait. Many: all of the block's bands, where most tiles of a band are decoded at once and would
    /// wait for their turn; else turns, for all bands or as many as fit.
    fn in_flight(&self, warps: usize) -> impl Iterator<Item = [usize; 2]> {
        let (tiles_across, own_bands) = (self.tiles_across, self.own_bands());
        let together = 2 * own_bands < warps;
        let (meeting, turns) = match (tiles_across, self.is_for_few()) {
            (1, _) => (0..1, 0..0),
            (_, true) => (1..warps / tiles_across + 3, 0..0),
            (_, false) if together => (own_bands..own_bands + 1, 1..own_bands + 1),
            (_, false) => (0..0, 1..own_bands + 1),
        };
        meeting.rev().map(move |slots| [slots, tiles_across]).chain(turns.rev().map(|slots| [slots, 1]))
    }

    /// Bands of a block, at most.
    fn own_bands(&self) -> usize {
        self.bands.div_ceil(self.grid)
    }

    /// Tiles of a block, at most.
    fn tasks(&self) -> usize {
        self.own_bands() * self.tiles_across
    }

    /// Tiles of a warp, at most.
    fn rounds(&self) -> usize {
        self.tasks().div_ceil(self.warps)
    }

    /// Whether the launch for all is expected to take no longer than those for each.
    fn pays_merged(limits: Limits, weights: &[WeightFacts], batch: usize) -> bool {
        let cost = |weights: &[WeightFacts]| Self::new(limits, weights, batch).map(|plan| plan.cost());
        let apart: Option<Vec<usize>> = weights.iter().map(|&weight| cost(&[weight])).collect();
        match (cost(weights), apart) {
            (Some(merged), Some(apart)) => merged <= apart.iter().sum(),
            _ => false,
        }
    }

    /// How long a block works on its tiles, up to a factor.
    fn cost(&self) -> usize {
        self.tasks() * self.warps.max(BUSY_WARPS) * BUSY_WARPS / self.warps
    }

    /// What the kernel takes: the tables, aligned to the size of one, the warps' words, two records each, sums and counts of the slots
    /// and the next task; and behind it what a damaged stream may reach.
    fn shared_bytes(&self, layout: Layout, slack_bytes: usize) -> usize {
        let sums = self.rows / MMA_COLS * LANE_SUMS * LANES * size_of::<f32>();
        table_bytes(layout)
            + self.table_bytes
            + self.warps * (self.words_bytes + RECORD_BYTES)
            + self.slots * (self.places * sums + size_of::<u32>())
            + size_of::<u128>()
            + slack_bytes
    }
}

/// Whether two weights can share a launch.
fn alike(a: &WeightFacts, b: &WeightFacts) -> bool {
    (a.layout, a.cols) == (b.layout, b.cols)
}

/// Whether the kernel can multiply a weight: it takes no differences, and adds up the tiles of a band stripe by stripe only
/// where a tile is one.
fn takes(weight: &WeightFacts) -> bool {
    !weight.has_left && (weight.tiles_across == 1 || weight.tile_rows == STRIPE_ROWS)
}

/// The modules of the kernels for weights of this layout, by any number of rows.
pub(super) fn fused_sources(layout: Layout) -> impl Iterator<Item = &'static Source> {
    ROWS.into_iter().flat_map(move |rows| Variant::of(layout, rows)).map(|variant| variant.source)
}

/// A kernel for up to so many rows of x.
#[derive(Clone, Copy, Debug)]
struct Variant {
    rows: usize,
    /// Of a block, at most: what the registers allow, as in the kernel's launch bounds.
    warps: usize,
    source: &'static Source,
}

impl Variant {
    /// Those for `batch` rows; none for no row, or too many.
    fn of(layout: Layout, batch: usize) -> impl Iterator<Item = Self> {
        let all = match layout {
            Layout::Fast => &FAST,
            Layout::Small => &SMALL,
            Layout::ExactBf16 => &EXACT_BF16,
            Layout::ExactFp16 => &EXACT_FP16,
        };
        let rows = ROWS.into_iter().filter(|&rows| 0 < batch && batch <= rows).min();
        all.iter().copied().filter(move |variant| Some(variant.rows) == rows)
    }
}

/// `[rows, warps: module]`, what takes longest to compile first.
macro_rules! variants {
    ($([$rows:literal, $warps:literal: $source:ident]),* $(,)?) => {
        [$(Variant { rows: $rows, warps: $warps, source: &kernels::$source }),*]
    };
}

static FAST: [Variant; 7] = variants![
    [64, 20: FUSED_LINEAR_FAST_64_20],
    [32, 20: FUSED_LINEAR_FAST_32_20],
    [16, 24: FUSED_LINEAR_FAST_16_24],
    [16, 16: FUSED_LINEAR_FAST_16_16],
    [8, 32: FUSED_LINEAR_FAST_8_32],
    [8, 24: FUSED_LINEAR_FAST_8_24],
    [8, 16: FUSED_LINEAR_FAST_8_16],
];

static SMALL: [Variant; 7] = variants![
    [64, 20: FUSED_LINEAR_SMALL_64_20],
    [32, 20: FUSED_LINEAR_SMALL_32_20],
    [16, 24: FUSED_LINEAR_SMALL_16_24],
    [16, 16: FUSED_LINEAR_SMALL_16_16],
    [8, 32: FUSED_LINEAR_SMALL_8_32],
    [8, 24: FUSED_LINEAR_SMALL_8_24],
    [8, 16: FUSED_LINEAR_SMALL_8_16],
];

static EXACT_BF16: [Variant; 7] = variants![
    [64, 20: FUSED_LINEAR_EXACT_BF16_64_20],
    [32, 20: FUSED_LINEAR_EXACT_BF16_32_20],
    [16, 24: FUSED_LINEAR_EXACT_BF16_16_24],
    [16, 16: FUSED_LINEAR_EXACT_BF16_16_16],
    [8, 32: FUSED_LINEAR_EXACT_BF16_8_32],
    [8, 24: FUSED_LINEAR_EXACT_BF16_8_24],
    [8, 16: FUSED_LINEAR_EXACT_BF16_8_16],
];

static EXACT_FP16: [Variant; 7] = variants![
    [64, 20: FUSED_LINEAR_EXACT_FP16_64_20],
    [32, 20: FUSED_LINEAR_EXACT_FP16_32_20],
    [16, 24: FUSED_LINEAR_EXACT_FP16_16_24],
    [16, 16: FUSED_LINEAR_EXACT_FP16_16_16],
    [8, 32: FUSED_LINEAR_EXACT_FP16_8_32],
    [8, 24: FUSED_LINEAR_EXACT_FP16_8_24],
    [8, 16: FUSED_LINEAR_EXACT_FP16_8_16],
];

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    /// A weight as the encoder cuts it: tiles of 16 x 1024.
    fn weight(rows: usize, cols: usize) -> WeightFacts {
        WeightFacts {
            layout: Layout::Fast,
            rows,
            cols,
            tile_rows: 16,
            tile_cols: 1024.min(cols.next_multiple_of(64)),
            tiles_across: cols.div_ceil(1024),
            bands: rows.div_ceil(16),
            table_count: 4,
            words_bytes: 4096,
            slack_bytes: 272,
            has_left: false,
            quarter_raw_bits: 8,
        }
    }

    #[test]
    fn the_mirrors_have_the_offsets_of_the_kernel() {
        assert_eq!((offset_of!(Part, y), offset_of!(Part, bands)), (72, 88));
        assert_eq!((offset_of!(Arguments, part_count), offset_of!(Arguments, x)), (288, 304));
        assert_eq!((offset_of!(Arguments, x_stride), offset_of!(Arguments, slots)), (320, 340));
        assert_eq!((offset_of!(Arguments, places), offset_of!(Arguments, x_second)), (348, 356));
    }

    #[test]
    fn every_number_of_rows_has_its_module() {
        let built: Vec<_> = fused_sources(Layout::Small).map(|source| source.name).collect();
        assert_eq!(built.len(), SMALL.len());
        for rows in 1..=MOST_ROWS {
            assert!(Variant::of(Layout::Small, rows).count() > 0, "{rows}");
            for variant in Variant::of(Layout::Small, rows) {
                assert!(built.contains(&variant.source.name) && rows <= variant.rows, "{rows}");
            }
        }
    }

    #[test]
    fn a_large_weight_fills_the_gpu() {
        let plan = Plan::new(Limits::H200, &[weight(28672, 4096)], 1).unwrap();
        // 56 tiles a block: two each for 28 warps.
        assert_eq!((plan.grid, plan.warps, plan.slots), (132, 28, 10));
        assert_eq!((plan.bands, plan.tiles_across, plan.source.name), (1792, 4, "fused_linear_fast_8_32"));
        assert_eq!(plan.shared_bytes, 8192 + 4 * 8192 + 28 * (4096 + 64) + 10 * (4 * 512 + 4) + 16 + 272);
    }

    #[test]
    fn a_plan_never_passes_the_shared_memory() {
        for batch in 1..=MOST_ROWS {
            for words_bytes in [0, 16, 4096, 9000 / 16 * 16] {
                for table_count in 1..24 {
                    let own = WeightFacts { words_bytes, table_count, ..weight(4096, 4096) };
                    if let Some(plan) = Plan::new(Limits::H200, &[own, own], batch) {
                        assert!(plan.shared_bytes <= Limits::H200.shared_bytes);
                        assert!(plan.warps >= 1 && plan.warps * LANES <= 1024);
                    }
                }
            }
        }
    }

    #[test]
    fn more_rows_take_fewer_threads() {
        let warps = |batch| Plan::new(Limits::H200, &[weight(128256, 4096)], batch).unwrap().warps;
        assert_eq!([1, 8, 9, 16, 17, 64].map(warps), [31, 31, 23, 23, 19, 19]);
        assert!(Plan::new(Limits::H200, &[weight(28672, 4096)], 65).is_none());
        assert!(Plan::new(Limits::H200, &[weight(28672, 4096)], 0).is_none());
    }

    #[test]
    fn tiles_of_few_bands_meet_and_those_of_many_take_turns() {
        let plan = |weight, batch| {
            let plan = Plan::new(Limits::H200, &[weight], batch).unwrap();
            (plan.slots, plan.places, plan.set)
        };
        // Two bands a block.
        assert_eq!(plan(weight(4096, 14336), 16), (2, 14, 2));
        // 14 bands a block.
        assert_eq!(plan(weight(28672, 4096), 16), (14, 1, 14));
        assert_eq!(plan(weight(28672, 4096), 8), (10, 4, 1));
        // 61 bands a block, more than have room.
        let (slots, places, set) = plan(weight(128256, 4096), 64);
        assert!(slots < 61 && places == 1 && set == slots);
        // Bands of one tile.
        assert_eq!(plan(weight(28672, 1000), 64), (0, 1, 1));
        // The sums of all tiles have no room.
        assert_eq!(plan(weight(8192, 60_000), 64).1, 1);
    }

    #[test]
    fn many_rows_are_packed_for_as_many_as_the_kernel_multiplies() {
        let packed = |batch| Plan::new(Limits::H200, &[weight(4096, 4096)], batch).unwrap().packed_rows();
        assert_eq!([1, 8, 9, 16, 17, 32, 33, 64].map(packed), {
            let [none, sixteen, thirty_two, all] = [None, Some(16), Some(32), Some(64)];
            [none, none, sixteen, sixteen, thirty_two, thirty_two, all, all]
        });
    }

    #[test]
    fn a_small_weight_gets_no_idle_warps_or_blocks() {
        let plan = Plan::new(Limits::H200, &[weight(1, 1)], 1).unwrap();
        assert_eq!((plan.grid, plan.warps), (1, 1));
        let plan = Plan::new(Limits::H200, &[weight(1024, 4096)], 1).unwrap();
        assert_eq!((plan.grid, plan.warps), (64, 4));
    }

    #[test]
    fn weights_are_merged_if_they_are_alike() {
        let [q, k] = [weight(4096, 4096), weight(1024, 4096)];
        let plan = Plan::new(Limits::H200, &[q, k, k], 1).unwrap();
        assert_eq!((plan.bands, plan.table_bytes), (384, 12 * 8192));
        assert!(Plan::new(Limits::H200, &[q, k, k, k], 1).is_none());
        assert!(Plan::new(Limits::H200, &[q, weight(1024, 2048)], 1).is_none());
        let narrow = WeightFacts { tile_cols: 512, tiles_across: 8, ..k };
        assert_eq!(Plan::new(Limits::H200, &[q, narrow], 1).unwrap().tiles_across, 8);
        assert!(Plan::new(Limits::H200, &[q, WeightFacts { layout: Layout::Small, ..k }], 1).is_none());
        assert!(Plan::new(Limits::H200, &[], 1).is_none());
    }

    #[test]
    fn merging_pays_unless_the_tables_crowd_out_the_warps() {
        let with = |rows, table_count| WeightFacts { table_count, words_bytes: 3312, ..weight(rows, 4096) };
        let pays = |weights: &[WeightFacts]| Plan::pays_merged(Limits::H200, weights, 1);
        assert!(pays(&[with(4096, 8), with(1024, 5), with(1024, 5)]));
        assert!(pays(&[with(14336, 8), with(14336, 8)]));
        assert!(!pays(&[with(14336, 12), with(14336, 12)]));
        assert!(!pays(&[with(4096, 8), with(4096, 27)]));
    }

    #[test]
    fn what_the_kernel_does_not_take_goes_through_scratch() {
        let own = weight(4096, 4096);
        assert!(Plan::new(Limits::H200, &[WeightFacts { has_left: true, ..own }], 1).is_none());
        assert!(Plan::new(Limits::H200, &[WeightFacts { tile_rows: 32, ..own }], 1).is_none());
        assert!(Plan::new(Limits::H200, &[WeightFacts { tile_rows: 256, ..weight(4096, 48) }], 1).is_some());
        assert!(Plan::new(Limits::H200, &[WeightFacts { table_count: 28, ..own }], 1).is_none());
    }
}
