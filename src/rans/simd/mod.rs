//! 32 lanes at once: the decoder step over one vector type, and what each processor offers as that type.
//!
//! [`U32x32`] is the only thing an instruction set implements. The step in [`LaneVectors`] and everything above it
//! are written once and inlined into a function compiled for that set.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
mod lanes;
pub(crate) mod portable;

pub(crate) use lanes::{all_ended, EntryTable, LaneVectors, StepConstants};

use super::LANES;

/// One unsigned 32-bit integer in each of the 32 lanes.
///
/// # Safety
/// Every function may use instructions that the running processor must have: it is called only from code compiled
/// for them and reached through [`Level::detect`].
pub(crate) unsafe trait U32x32: Copy {
    /// One truth value a lane.
    type Mask: Copy;

    unsafe fn splat(value: u32) -> Self;
    /// Loads 32 integers; no alignment is needed.
    unsafe fn load(from: *const u32) -> Self;
    /// Stores 32 integers; no alignment is needed.
    unsafe fn store(self, to: *mut u32);
    unsafe fn and(self, other: Self) -> Self;
    unsafe fn or(self, other: Self) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    /// The low 32 bits of the product.
    unsafe fn mul(self, other: Self) -> Self;
    /// Shifts every lane left by its count in `counts` (below 32).
    unsafe fn shl(self, counts: Self) -> Self;
    /// Shifts every lane right by its count in `counts` (below 32).
    unsafe fn shr(self, counts: Self) -> Self;
    /// Rotates every lane right by `count` in 1 to 31, or 0.
    unsafe fn rotate_right(self, count: u32) -> Self;
    /// `base[index]` for each lane.
    unsafe fn gather(base: *const u32, index: Self) -> Self;
    /// The 4 bytes at `base + offset` for each lane.
    unsafe fn gather_bytes(base: *const u8, offset: Self) -> Self;
    /// Runs of four integers a lane, lane after lane, as four vectors: the first integer of every lane, and so on.
    #[inline(always)]
    unsafe fn load_runs4(from: *const u8) -> [Self; 4] {
        // SAFETY: the caller gives 32 * 16 readable bytes.
        unsafe {
            let own = Self::load(LANE_INDEX.0.as_ptr()).mul(Self::splat(16));
            [0, 4, 8, 12].map(|byte| Self::gather_bytes(from.add(byte), own))
        }
    }
    /// Runs of two integers a lane, as two vectors.
    #[inline(always)]
    unsafe fn load_runs2(from: *const u8) -> [Self; 2] {
        // SAFETY: the caller gives 32 * 8 readable bytes.
        unsafe {
            let own = Self::load(LANE_INDEX.0.as_ptr()).mul(Self::splat(8));
            [0, 4].map(|byte| Self::gather_bytes(from.add(byte), own))
        }
    }
    /// Lanes whose upper 16 bits are zero.
    unsafe fn below_2_16(self) -> Self::Mask;
    /// Lanes that are not zero.
    unsafe fn nonzero(self) -> Self::Mask;
    unsafe fn mask_and(a: Self::Mask, b: Self::Mask) -> Self::Mask;
    /// `a` where `mask` is set, `b` elsewhere.
    unsafe fn select(mask: Self::Mask, a: Self, b: Self) -> Self;
}

/// Asks for the cache lines of `count` bytes from `from` on. Any address will do.
#[inline(always)]
pub(crate) fn prefetch(from: *const u8, count: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..count).step_by(64) {
        use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};
        // SAFETY: SSE is part of x86-64, and a prefetch faults at no address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(line).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (from, count);
}

/// Every lane's own number.
static LANE_INDEX: LaneArray = {
    let mut index = [0; LANES];
    let mut lane = 0;
    while lane < LANES {
        index[lane] = lane as u32;
        lane += 1;
    }
    LaneArray(index)
};

/// What the running processor can do.
///
/// Taken by a [`TileDecoder`](crate::codec::TileDecoder); see its example.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// No vector instructions: plain Rust.
    Portable,
    /// AVX2, F16C and FMA.
    Avx2,
    /// AVX-512 F, BW and VL.
    Avx512,
}

impl Level {
    /// The best level of this processor.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl");
            if avx2 && avx512 {
                return Self::Avx512;
            }
            if avx2 {
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    /// The levels that this processor has, slowest first.
    pub fn available() -> Vec<Self> {
        [Self::Portable, Self::Avx2, Self::Avx512].into_iter().filter(|l| *l <= Self::detect()).collect()
    }
}

/// 32 integers in memory, aligned for the widest vector.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct LaneArray(pub [u32; LANES]);
