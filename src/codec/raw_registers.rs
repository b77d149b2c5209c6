//! The raw bits of a group of whole lanes, unpacked into registers: one rotation and one mask each.

use super::fragments::Fragments;
use crate::rans::simd::{LaneArray, U32x32};
use crate::rans::LANES;
use crate::tile::raw_bits::RawPart;
use crate::tile::Group;

/// Which lanes a group of whole lanes has.
pub(super) struct PresentLanes {
    /// All 32.
    pub all: bool,
    count: usize,
    /// 1 where present.
    pub present: LaneArray,
    /// Index among the present lanes.
    ranks: LaneArray,
}

impl PresentLanes {
    pub fn of(group: &Group) -> Self {
        let mut present = LaneArray([0; LANES]);
        let mut ranks = LaneArray([0; LANES]);
        let mut count = 0;
        for lane in (0..LANES).filter(|&lane| group.has_lane(lane)) {
            present.0[lane] = 1;
            ranks.0[lane] = count;
            count += 1;
        }
        Self { all: group.is_full(), count: count as usize, present, ranks }
    }
}

/// Unpacks the raw bits of a group of whole lanes.
///
/// # Safety
/// As for all of [`U32x32`]; `raw` holds the group's raw bits.
#[inline(always)]
pub(super) unsafe fn raw_registers<V: U32x32>(
    parts: &[RawPart],
    raw: &[u8],
    lanes: &PresentLanes,
    fragments: &mut Fragments,
) {
    if parts.is_empty() {
        *fragments = Fragments::zero();
        return;
    }
    for (index, part) in parts.iter().enumerate() {
        let run = part.bits.min(4);
        for word in (0..part.bits).step_by(run) {
            // SAFETY: the run's offset is `RawPart::word_offset` of the first present lane, and the runs of all present
            // lanes follow it inside `raw`.
            unsafe {
                let base = raw.as_ptr().add(4 * part.word_offset(word, 0, lanes.count));
                let packed = load_runs::<V>(base, run, lanes);
                for (next, packed) in packed.into_iter().take(run).enumerate() {
                    unpack_word(part, word + next, packed, index == 0, fragments);
                }
            }
        }
    }
}

/// The words of a run of every lane, zero for lanes that have none.
///
/// # Safety
/// As for all of [`U32x32`]; the runs of all present lanes lie at `base`.
#[inline(always)]
unsafe fn load_runs<V: U32x32>(base: *const u8, run: usize, lanes: &PresentLanes) -> [V; 4] {
    // SAFETY: the runs of `count` present lanes are `count * run` words from `base` on: with all 32 lanes `load_runs4`, `load_runs2` and
    // `load` read just those; with fewer, each lane reads the words of its own rank, and one that is absent those of rank 0.
    unsafe {
        let zero = V::splat(0);
        if lanes.all {
            return match run {
                4 => V::load_runs4(base),
                2 => {
                    let [a, b] = V::load_runs2(base);
                    [a, b, zero, zero]
                }
                _ => [V::load(base.cast()), zero, zero, zero],
            };
        }
        let present = V::load(lanes.present.0.as_ptr()).nonzero();
        let own = V::load(lanes.ranks.0.as_ptr()).mul(V::splat(4 * run as u32));
        let mut words = [zero; 4];
        for (next, word) in words.iter_mut().enumerate().take(run) {
            *word = V::select(present, V::gather_bytes(base.add(4 * next), own), zero);
        }
        words
    }
}

/// Sets (`first`) or adds the bits of one word of a part in its registers.
///
/// # Safety
/// As for all of [`U32x32`].
#[inline(always)]
unsafe fn unpack_word<V: U32x32>(
    part: &RawPart,
    word: usize,
    packed: V,
    first: bool,
    fragments: &mut Fragments,
) {
    // SAFETY: `V` loads and stores 32 integers, which is what each register of `fragments` has; the index into those is checked; the
    // instructions are the caller's word.
    unsafe {
        let mask = V::splat(part.mask);
        for register in part.registers_of(word) {
            let slot = fragments.0[register].as_mut_ptr();
            let mut value = packed.rotate_right(part.rotation(register)).and(mask);
            if !first {
                value = value.or(V::load(slot));
            }
            value.store(slot);
        }
    }
}
