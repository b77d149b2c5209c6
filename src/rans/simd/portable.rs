//! 32 lanes in plain Rust, for processors without the vector instructions (and for Miri).

use super::U32x32;
use crate::rans::LANES;

/// 32 integers in an array.
#[derive(Clone, Copy)]
pub(crate) struct Portable([u32; LANES]);

impl Portable {
    #[inline(always)]
    fn map(self, f: impl Fn(u32) -> u32) -> Self {
        Self(self.0.map(f))
    }

    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(u32, u32) -> u32) -> Self {
        Self(std::array::from_fn(|lane| f(self.0[lane], other.0[lane])))
    }
}

// SAFETY: needs no instruction beyond the baseline; pointers are used exactly as each method says.
unsafe impl U32x32 for Portable {
    type Mask = [bool; LANES];

    #[inline(always)]
    unsafe fn splat(value: u32) -> Self {
        Self([value; LANES])
    }
    #[inline(always)]
    unsafe fn load(from: *const u32) -> Self {
        // SAFETY: the caller gives 32 readable integers.
        Self(unsafe { from.cast::<[u32; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut u32) {
        // SAFETY: the caller gives 32 writable integers.
        unsafe { to.cast::<[u32; LANES]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn and(self, other: Self) -> Self {
        self.zip(other, |a, b| a & b)
    }
    #[inline(always)]
    unsafe fn or(self, other: Self) -> Self {
        self.zip(other, |a, b| a | b)
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, u32::wrapping_add)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, u32::wrapping_mul)
    }
    #[inline(always)]
    unsafe fn shl(self, counts: Self) -> Self {
        self.zip(counts, |a, count| a << count)
    }
    #[inline(always)]
    unsafe fn shr(self, counts: Self) -> Self {
        self.zip(counts, |a, count| a >> count)
    }
    #[inline(always)]
    unsafe fn rotate_right(self, count: u32) -> Self {
        self.map(|a| a.rotate_right(count))
    }
    #[inline(always)]
    unsafe fn gather(base: *const u32, index: Self) -> Self {
        // SAFETY: the caller vouches for every index.
        index.map(|index| unsafe { base.add(index as usize).read_unaligned() })
    }
    #[inline(always)]
    unsafe fn gather_bytes(base: *const u8, offset: Self) -> Self {
        // SAFETY: the caller vouches for 4 readable bytes at every offset.
        offset.map(|offset| unsafe { base.add(offset as usize).cast::<u32>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn below_2_16(self) -> Self::Mask {
        self.0.map(|a| a < 1 << 16)
    }
    #[inline(always)]
    unsafe fn nonzero(self) -> Self::Mask {
        self.0.map(|a| a != 0)
    }
    #[inline(always)]
    unsafe fn mask_and(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        std::array::from_fn(|lane| a[lane] && b[lane])
    }
    #[inline(always)]
    unsafe fn select(mask: Self::Mask, a: Self, b: Self) -> Self {
        Self(std::array::from_fn(|lane| if mask[lane] { a.0[lane] } else { b.0[lane] }))
    }
}
