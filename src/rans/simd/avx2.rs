//! 32 lanes in four AVX2 registers.

use std::arch::x86_64::{
    __m256i, _mm256_add_epi32, _mm256_and_si256, _mm256_blendv_epi8, _mm256_cmpeq_epi32,
    _mm256_i32gather_epi32, _mm256_loadu_si256, _mm256_mullo_epi32, _mm256_or_si256, _mm256_set1_epi32,
    _mm256_setzero_si256, _mm256_sllv_epi32, _mm256_srli_epi32, _mm256_srlv_epi32, _mm256_storeu_si256,
    _mm256_xor_si256,
};

use super::U32x32;

/// 32 integers in four registers.
#[derive(Clone, Copy)]
pub(crate) struct Avx2([__m256i; 4]);

impl Avx2 {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(__m256i, __m256i) -> __m256i) -> Self {
        Self(std::array::from_fn(|part| f(self.0[part], other.0[part])))
    }
}

// SAFETY: every method needs AVX2, which the trait's contract asks of its callers.
unsafe impl U32x32 for Avx2 {
    type Mask = [__m256i; 4];

    #[inline(always)]
    unsafe fn splat(value: u32) -> Self {
        // SAFETY: AVX2 by contract.
        Self([unsafe { _mm256_set1_epi32(value as i32) }; 4])
    }
    #[inline(always)]
    unsafe fn load(from: *const u32) -> Self {
        // SAFETY: the caller gives 32 readable integers.
        Self(std::array::from_fn(|part| unsafe { _mm256_loadu_si256(from.add(8 * part).cast()) }))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut u32) {
        for (part, value) in self.0.into_iter().enumerate() {
            // SAFETY: the caller gives 32 writable integers.
            unsafe { _mm256_storeu_si256(to.add(8 * part).cast(), value) }
        }
    }
    #[inline(always)]
    unsafe fn and(self, other: Self) -> Self {
        // SAFETY: AVX2 by contract.
        self.zip(other, |a, b| unsafe { _mm256_and_si256(a, b) })
    }
    #[inline(always)]
    unsafe fn or(self, other: Self) -> Self {
        // SAFETY: AVX2 by contract.
        self.zip(other, |a, b| unsafe { _mm256_or_si256(a, b) })
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: AVX2 by contract.
        self.zip(other, |a, b| unsafe { _mm256_add_epi32(a, b) })
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: AVX2 by contract.
        self.zip(other, |a, b| unsafe { _mm256_mullo_epi32(a, b) })
    }
    #[inline(always)]
    unsafe fn shl(self, counts: Self) -> Self {
        // SAFETY: AVX2 by contract.
        self.zip(counts, |a, b| unsafe { _mm256_sllv_epi32(a, b) })
    }
    #[inline(always)]
    unsafe fn shr(self, counts: Self) -> Self {
        // SAFETY: AVX2 by contract.
        self.zip(counts, |a, b| unsafe { _mm256_srlv_epi32(a, b) })
    }
    #[inline(always)]
    unsafe fn rotate_right(self, count: u32) -> Self {
        // A shift by 32 gives zero here, so a rotation by 0 is right too.
        // SAFETY: AVX2 by contract.
        unsafe { self.shr(Self::splat(count)).or(self.shl(Self::splat(32 - count))) }
    }
    #[inline(always)]
    unsafe fn gather(base: *const u32, index: Self) -> Self {
        // SAFETY: the caller vouches for every index.
        Self(index.0.map(|index| unsafe { _mm256_i32gather_epi32::<4>(base.cast(), index) }))
    }
    #[inline(always)]
    unsafe fn gather_bytes(base: *const u8, offset: Self) -> Self {
        // SAFETY: the caller vouches for 4 readable bytes at every offset.
        Self(offset.0.map(|offset| unsafe { _mm256_i32gather_epi32::<1>(base.cast(), offset) }))
    }
    #[inline(always)]
    unsafe fn below_2_16(self) -> Self::Mask {
        // SAFETY: AVX2 by contract.
        self.0.map(|a| unsafe { _mm256_cmpeq_epi32(_mm256_srli_epi32::<16>(a), _mm256_setzero_si256()) })
    }
    #[inline(always)]
    unsafe fn nonzero(self) -> Self::Mask {
        // SAFETY: AVX2 by contract.
        self.0.map(|a| unsafe {
            let zero = _mm256_cmpeq_epi32(a, _mm256_setzero_si256());
            _mm256_xor_si256(zero, _mm256_set1_epi32(-1))
        })
    }
    #[inline(always)]
    unsafe fn mask_and(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        // SAFETY: AVX2 by contract.
        Self(a).zip(Self(b), |a, b| unsafe { _mm256_and_si256(a, b) }).0
    }
    #[inline(always)]
    unsafe fn select(mask: Self::Mask, a: Self, b: Self) -> Self {
        // SAFETY: AVX2 by contract.
        Self(std::array::from_fn(|part| unsafe { _mm256_blendv_epi8(b.0[part], a.0[part], mask[part]) }))
    }
}
