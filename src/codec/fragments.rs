//! Decodes a tile group by group into fragments: the registers of 32 lanes, two halves each.
//!
//! Written once over [`U32x32`]; groups with partial lanes, which only occur at a matrix's edge, go lane by lane.

use super::classes::Classes;
use super::decode::TileSink;
use super::header::Layout;
use super::raw_registers::{raw_registers, PresentLanes};
use super::tile_payload::TileSections;
use crate::rans::simd::{
    all_ended, prefetch, EntryTable, LaneArray, LaneVectors, Level, StepConstants, U32x32,
};
use crate::rans::{LANES, STATE_LOWER_BOUND, WORD_BITS};
use crate::tile::raw_bits::{RawField, RawPart};
use crate::tile::{Group, Tile, GROUP_COLS, LANE_COLS, LANE_REGISTERS, LANE_WEIGHTS, STRIPE_ROWS};

/// The registers of a group: `[register][lane]`, each two halves (a grid value's magnitude at bit 0 and sign at bit 15, or a float),
/// zero outside the matrix.
///
/// ```
/// use codecllm::codec::Fragments;
/// use codecllm::tile::lane_weight;
/// let mut fragments = Fragments::zero();
/// fragments.add_half(4, 3, 0x8005); // minus five
/// assert_eq!(lane_weight(4, 3), (9, 1)); // of row 9 the right one of the first pair
/// assert_eq!(fragments.row_pairs()[9][0], 0x8005_0000);
/// ```
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Fragments(pub [[u32; LANES]; LANE_REGISTERS]);

impl Fragments {
    /// No weights.
    pub fn zero() -> Self {
        Self([[0; LANES]; LANE_REGISTERS])
    }

    /// The group row by row: 32 pairs of neighbouring halves each, the left one in the low 16 bits.
    pub fn row_pairs(&self) -> [[u32; GROUP_COLS / 2]; STRIPE_ROWS] {
        let mut rows = [[0; GROUP_COLS / 2]; STRIPE_ROWS];
        for (register, lanes) in self.0.iter().enumerate() {
            let (t, i) = (register / 4, register % 4);
            for (lane, pair) in lanes.iter().enumerate() {
                rows[lane / 4 + 8 * (i & 1)][lane % 4 * (LANE_COLS / 2) + 2 * t + (i >> 1)] = *pair;
            }
        }
        rows
    }

    /// ORs `half` into a lane's `n`-th weight.
    #[inline]
    pub fn add_half(&mut self, lane: usize, n: usize, half: u32) {
        self.0[n / 2][lane] |= half << (16 * (n % 2));
    }
}

/// Words are read in windows of two: this many bytes past a lane's last word may be read.
const WINDOW_SLACK_BYTES: usize = 8;

/// How far ahead raw bits are fetched: a few groups, about the latency of memory in decoding time.
const PREFETCH_BYTES: usize = 4096;

/// Roughly what a payload has beside raw bits and words.
const PAYLOAD_OVERHEAD_BYTES: usize = 192;

/// One tile, checked and ready to decode.
pub(super) struct TileJob<'a> {
    pub layout: Layout,
    pub tile: Tile,
    pub sections: &'a TileSections<'a>,
    pub field: RawField,
    /// `None` for a tile without symbols.
    pub table: Option<TileTable<'a>>,
}

/// What the symbols of one tile mean.
pub(super) struct TileTable<'a> {
    pub entries: &'a EntryTable,
    pub classes: Classes,
}

/// The words of a tile, copied so that a lane which runs past its own (in a damaged tile) stays inside.
#[derive(Default)]
pub(super) struct WordBuffer(Vec<u8>);

impl WordBuffer {
    fn fill(&mut self, job: &TileJob) {
        // A step takes at most one word, so no lane gets further than this past where it starts.
        let steps =
            job.tile.stripes() * job.tile.groups_across() * LANE_WEIGHTS / job.layout.weights_per_symbol();
        // The words of the tile that most likely comes next lie as far ahead as this tile is long.
        let ahead = job.sections.raw.len() + job.sections.words.len() + PAYLOAD_OVERHEAD_BYTES;
        prefetch(job.sections.words.as_ptr().wrapping_add(ahead), job.sections.words.len());
        self.0.clear();
        self.0.extend_from_slice(job.sections.words);
        self.0.resize(job.sections.words.len() + 2 * steps + WINDOW_SLACK_BYTES, 0);
    }
}

/// Decodes one tile into `sink`. `false`: a lane did not end as it should, and what the sink got is worthless.
pub(super) fn decode_fragments(
    level: Level,
    job: &TileJob,
    words: &mut WordBuffer,
    sink: &mut dyn TileSink,
) -> bool {
    words.fill(job);
    match level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `words` was filled for this job above; a decoder has this level only where `Level::detect` found AVX-512 F, BW and VL.
        Level::Avx512 => unsafe { decode_avx512(job, &words.0, sink) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `words` was filled for this job above; a decoder has this level only where `Level::detect` found AVX2.
        Level::Avx2 => unsafe { decode_avx2(job, &words.0, sink) },
        // SAFETY: `words` was filled for this job above; needs no instruction beyond the baseline.
        _ => unsafe { decode_tile::<crate::rans::simd::portable::Portable>(job, &words.0, sink) },
    }
}

/// # Safety
/// As [`decode_tile`], on a processor with the three.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn decode_avx512(job: &TileJob, words: &[u8], sink: &mut dyn TileSink) -> bool {
    // SAFETY: `Avx512` uses AVX-512 F, BW and VL, which the caller vouches for as for the rest of `decode_tile`'s contract.
    unsafe { decode_tile::<crate::rans::simd::avx512::Avx512>(job, words, sink) }
}

/// # Safety
/// As [`decode_tile`], on a processor with AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn decode_avx2(job: &TileJob, words: &[u8], sink: &mut dyn TileSink) -> bool {
    // SAFETY: `Avx2` uses AVX2, which the caller vouches for as for the rest of `decode_tile`'s contract.
    unsafe { decode_tile::<crate::rans::simd::avx2::Avx2>(job, words, sink) }
}

/// # Safety
/// As for all of [`U32x32`]; `words` is a filled [`WordBuffer`] of `job`.
#[inline(always)]
unsafe fn decode_tile<V: U32x32>(job: &TileJob, words: &[u8], sink: &mut dyn TileSink) -> bool {
    let mut states = LaneArray(job.sections.states);
    let (mut offsets, ends) = word_offsets(&job.sections.lengths);
    let parts: Vec<RawPart> = job.field.parts().collect();
    let mut raw = job.sections.raw;
    let mut fragments = Fragments::zero();
    for group in job.tile.groups() {
        let (own, rest) = raw.split_at(job.field.group_bytes(&group));
        raw = rest;
        prefetch(own.as_ptr().wrapping_add(PREFETCH_BYTES), own.len());
        if !group.lanes_are_whole() {
            fragments = Fragments::zero();
            job.field.read_group(&group, own, |lane, n, half| fragments.add_half(lane, n, half));
            if let Some(table) = &job.table {
                partial_lanes(job, table, words, &group, &mut states, &mut offsets, &mut fragments);
            }
        } else {
            let lanes = PresentLanes::of(&group);
            // SAFETY: `own` is `group_bytes` long, which for a group of whole lanes is all words of its present lanes; a lane starts
            // inside the tile's words and moves by at most a word a step, and behind those words `words` has room for a word of every
            // step of the tile and for the window, so a lane of a damaged tile stays inside too.
            unsafe {
                raw_registers::<V>(&parts, own, &lanes, &mut fragments);
                if let Some(table) = &job.table {
                    whole_lanes::<V>(table, words, &lanes, &mut states, &mut offsets, &mut fragments);
                }
            }
        }
        sink.group(&group, &fragments);
    }
    job.table.is_none() || all_ended(&states, &offsets, &ends)
}

/// Byte offsets at which each lane's words start, and where they end.
fn word_offsets(lengths: &[usize; LANES]) -> (LaneArray, [u32; LANES]) {
    let mut starts = LaneArray([0; LANES]);
    let mut ends = [0; LANES];
    let mut next = 0u32;
    for lane in 0..LANES {
        starts.0[lane] = next;
        // At most 32 * 65535 words.
        next += 2 * lengths[lane] as u32;
        ends[lane] = next;
    }
    (starts, ends)
}

/// Pops the symbols of a group of whole lanes.
///
/// # Safety
/// As for all of [`U32x32`]; `words` has room for a word a step of every lane.
#[inline(always)]
unsafe fn whole_lanes<V: U32x32>(
    table: &TileTable,
    words: &[u8],
    lanes: &PresentLanes,
    states: &mut LaneArray,
    offsets: &mut LaneArray,
    fragments: &mut Fragments,
) {
    // SAFETY: the table outlives `constants`, which does not leave this function; `present` has 32 integers; `words` is the caller's word,
    // as are the instructions.
    unsafe {
        let constants = StepConstants::<V>::new(table.entries);
        let mut vectors = LaneVectors::<V>::new(states, offsets);
        if lanes.all {
            pop_group(table.classes, &constants, words, &mut vectors, None, fragments);
        } else {
            let present = V::load(lanes.present.0.as_ptr()).nonzero();
            pop_group(table.classes, &constants, words, &mut vectors, Some(present), fragments);
        }
        vectors.save(states, offsets);
    }
}

/// # Safety
/// As [`whole_lanes`]; `constants` are of a table that is alive.
#[inline(always)]
unsafe fn pop_group<V: U32x32>(
    classes: Classes,
    constants: &StepConstants<V>,
    words: &[u8],
    vectors: &mut LaneVectors<V>,
    active: Option<V::Mask>,
    fragments: &mut Fragments,
) {
    // SAFETY: the three have this function's own contract.
    unsafe {
        match classes {
            Classes::Fast { raw_bits } => pop_fast(constants, words, vectors, active, raw_bits, fragments),
            Classes::Small { raw_bits } => pop_small(constants, words, vectors, active, raw_bits, fragments),
            Classes::Exponents { mantissa_bits, first } => {
                pop_exponents(constants, words, vectors, active, mantissa_bits, first, fragments);
            }
        }
    }
}

/// ORs `bits` into a register of the lanes in `active`.
///
/// # Safety
/// The processor has what `V` uses.
#[inline(always)]
unsafe fn merge<V: U32x32>(register: &mut [u32; LANES], bits: V, active: Option<V::Mask>) {
    // SAFETY: `V` loads and stores 32 integers, which is what the array behind the reference has; the instructions are the caller's word.
    unsafe {
        let bits = match active {
            Some(active) => V::select(active, bits, V::splat(0)),
            None => bits,
        };
        V::load(register.as_ptr()).or(bits).store(register.as_mut_ptr());
    }
}

/// Eight symbols of four 2-bit classes.
///
/// # Safety
/// As [`pop_group`].
#[inline(always)]
unsafe fn pop_fast<V: U32x32>(
    constants: &StepConstants<V>,
    words: &[u8],
    vectors: &mut LaneVectors<V>,
    active: Option<V::Mask>,
    raw_bits: u32,
    fragments: &mut Fragments,
) {
    // SAFETY: a window of two words is opened before every second step, while the lanes' offsets are inside `words`; the indices into
    // `fragments` are checked. The rest is the caller's word.
    unsafe {
        let (class, shift, two) = (V::splat(0x0003_0003), V::splat(raw_bits), V::splat(2));
        for symbol in 0..LANE_WEIGHTS / 4 {
            if symbol % 2 == 0 {
                vectors.open_window(words.as_ptr());
            }
            let entry = vectors.step(constants, active);
            let first = entry.and(class).shl(shift);
            let second = entry.shr(two).and(class).shl(shift);
            merge(&mut fragments.0[2 * symbol], first, active);
            merge(&mut fragments.0[2 * symbol + 1], second, active);
        }
    }
}

/// 32 symbols of one weight.
///
/// # Safety
/// As [`pop_group`].
#[inline(always)]
unsafe fn pop_small<V: U32x32>(
    constants: &StepConstants<V>,
    words: &[u8],
    vectors: &mut LaneVectors<V>,
    active: Option<V::Mask>,
    raw_bits: u32,
    fragments: &mut Fragments,
) {
    // SAFETY: a window of two words is opened before every second step, while the lanes' offsets are inside `words`; the indices into
    // `fragments` are checked. The rest is the caller's word.
    unsafe {
        let (low, high, sign) = (V::splat(0xF), V::splat(0x70), V::splat(0x8000));
        let (twelve, four, shift) = (V::splat(12), V::splat(4), V::splat(raw_bits));
        for n in 0..LANE_WEIGHTS {
            if n % 2 == 0 {
                vectors.open_window(words.as_ptr());
            }
            let entry = vectors.step(constants, active);
            let magnitude = entry.and(low).or(entry.shr(twelve).and(high)).shl(shift);
            let mut half = magnitude.or(entry.shr(four).and(sign));
            if n % 2 == 1 {
                half = half.shl(V::splat(16));
            }
            merge(&mut fragments.0[n / 2], half, active);
        }
    }
}

/// 16 symbols of two exponents.
///
/// # Safety
/// As [`pop_group`].
#[inline(always)]
unsafe fn pop_exponents<V: U32x32>(
    constants: &StepConstants<V>,
    words: &[u8],
    vectors: &mut LaneVectors<V>,
    active: Option<V::Mask>,
    mantissa_bits: u32,
    first: u32,
    fragments: &mut Fragments,
) {
    // SAFETY: a window of two words is opened before every second step, while the lanes' offsets are inside `words`; the indices into
    // `fragments` are checked. The rest is the caller's word.
    unsafe {
        let (class, one, four) = (V::splat(0x000F_000F), V::splat(0x0001_0001), V::splat(4));
        let (before_first, shift) = (V::splat(first - 1), V::splat(mantissa_bits));
        for (register, halves) in fragments.0.iter_mut().enumerate() {
            if register % 2 == 0 {
                vectors.open_window(words.as_ptr());
            }
            let classes = vectors.step(constants, active).and(class);
            // 15 more carries into the fifth bit of a half unless its class is 0. No sum or product leaves its half: an
            // exponent is at most 255.
            let normal = classes.add(class).shr(four).and(one);
            merge(halves, classes.add(normal.mul(before_first)).shl(shift), active);
        }
    }
}

/// An entry's symbol bits for a layout: the inverse is in [`pop_fast`], [`pop_small`] and [`pop_exponents`].
pub(super) fn spread(layout: Layout, symbol: u8) -> u32 {
    let symbol = u32::from(symbol);
    match layout {
        Layout::Fast => {
            let class = |index: u32| symbol >> (2 * index) & 3;
            class(0) | class(2) << 2 | class(1) << 16 | class(3) << 18
        }
        Layout::Small | Layout::ExactBf16 | Layout::ExactFp16 => (symbol & 0xF) | (symbol & 0xF0) << 12,
    }
}

/// The symbol of an entry: the inverse of [`spread`].
fn gather_symbol(layout: Layout, entry: u32) -> u8 {
    let bits = |at: u32, count: u32| entry >> at & ((1 << count) - 1);
    let symbol = match layout {
        Layout::Fast => bits(0, 2) | bits(16, 2) << 2 | bits(2, 2) << 4 | bits(18, 2) << 6,
        Layout::Small | Layout::ExactBf16 | Layout::ExactFp16 => bits(0, 4) | bits(16, 4) << 4,
    };
    symbol as u8
}

/// Pops the symbols of a group in which lanes own some of their weights.
fn partial_lanes(
    job: &TileJob,
    table: &TileTable,
    words: &[u8],
    group: &Group,
    states: &mut LaneArray,
    offsets: &mut LaneArray,
    fragments: &mut Fragments,
) {
    let count = job.layout.weights_per_symbol();
    for lane in (0..LANES).filter(|&lane| group.has_lane(lane)) {
        for first in (0..LANE_WEIGHTS).step_by(count) {
            if !group.has_symbol(lane, first, count) {
                continue;
            }
            let (entry, mut state) = table.entries.advance(states.0[lane]);
            if state < STATE_LOWER_BOUND {
                let at = offsets.0[lane] as usize;
                state = state << WORD_BITS | u32::from(u16::from_le_bytes([words[at], words[at + 1]]));
                offsets.0[lane] += 2;
            }
            states.0[lane] = state;
            let symbol = gather_symbol(job.layout, entry);
            for index in (0..count).filter(|index| group.weight(lane, first + index).is_some()) {
                fragments.add_half(lane, first + index, table.classes.symbol_half(symbol, index));
            }
        }
    }
}
