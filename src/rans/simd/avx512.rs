//! 32 lanes in two AVX-512 registers.

use std::arch::x86_64::{
    __m512i, __mmask16, _mm512_add_epi32, _mm512_and_si512, _mm512_i32gather_epi32, _mm512_loadu_si512,
    _mm512_mask_blend_epi32, _mm512_mullo_epi32, _mm512_or_si512, _mm512_rorv_epi32, _mm512_set1_epi32,
    _mm512_sllv_epi32, _mm512_srlv_epi32, _mm512_storeu_si512, _mm512_test_epi32_mask,
    _mm512_testn_epi32_mask,
};

use super::U32x32;

/// 32 integers in two registers.
#[derive(Clone, Copy)]
pub(crate) struct Avx512([__m512i; 2]);

impl Avx512 {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(__m512i, __m512i) -> __m512i) -> Self {
        Self([f(self.0[0], other.0[0]), f(self.0[1], other.0[1])])
    }
}

// SAFETY: every method needs AVX-512 F, which the trait's contract asks of its callers.
unsafe impl U32x32 for Avx512 {
    type Mask = [__mmask16; 2];

    #[inline(always)]
    unsafe fn splat(value: u32) -> Self {
        // SAFETY: AVX-512 F by contract.
        Self([unsafe { _mm512_set1_epi32(value as i32) }; 2])
    }
    #[inline(always)]
    unsafe fn load(from: *const u32) -> Self {
        // SAFETY: the caller gives 32 readable integers.
        unsafe { Self([_mm512_loadu_si512(from.cast()), _mm512_loadu_si512(from.add(16).cast())]) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut u32) {
        // SAFETY: the caller gives 32 writable integers.
        unsafe {
            _mm512_storeu_si512(to.cast(), self.0[0]);
            _mm512_storeu_si512(to.add(16).cast(), self.0[1]);
        }
    }
    #[inline(always)]
    unsafe fn and(self, other: Self) -> Self {
        // SAFETY: AVX-512 F by contract.
        self.zip(other, |a, b| unsafe { _mm512_and_si512(a, b) })
    }
    #[inline(always)]
    unsafe fn or(self, other: Self) -> Self {
        // SAFETY: AVX-512 F by contract.
        self.zip(other, |a, b| unsafe { _mm512_or_si512(a, b) })
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: AVX-512 F by contract.
        self.zip(other, |a, b| unsafe { _mm512_add_epi32(a, b) })
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: AVX-512 F by contract.
        self.zip(other, |a, b| unsafe { _mm512_mullo_epi32(a, b) })
    }
    #[inline(always)]
    unsafe fn shl(self, counts: Self) -> Self {
        // SAFETY: AVX-512 F by contract.
        self.zip(counts, |a, b| unsafe { _mm512_sllv_epi32(a, b) })
    }
    #[inline(always)]
    unsafe fn shr(self, counts: Self) -> Self {
        // SAFETY: AVX-512 F by contract.
        self.zip(counts, |a, b| unsafe { _mm512_srlv_epi32(a, b) })
    }
    #[inline(always)]
    unsafe fn rotate_right(self, count: u32) -> Self {
        // SAFETY: AVX-512 F by contract.
        unsafe { self.zip(Self::splat(count), |a, b| _mm512_rorv_epi32(a, b)) }
    }
    #[inline(always)]
    unsafe fn gather(base: *const u32, index: Self) -> Self {
        // SAFETY: the caller vouches for every index.
        Self(index.0.map(|index| unsafe { _mm512_i32gather_epi32::<4>(index, base.cast()) }))
    }
    #[inline(always)]
    unsafe fn gather_bytes(base: *const u8, offset: Self) -> Self {
        // SAFETY: the caller vouches for 4 readable bytes at every offset.
        Self(offset.0.map(|offset| unsafe { _mm512_i32gather_epi32::<1>(offset, base.cast()) }))
    }
    #[inline(always)]
    unsafe fn below_2_16(self) -> Self::Mask {
        // SAFETY: AVX-512 F by contract.
        self.0.map(|a| unsafe { _mm512_testn_epi32_mask(a, _mm512_set1_epi32(0xFFFF_0000_u32 as i32)) })
    }
    #[inline(always)]
    unsafe fn nonzero(self) -> Self::Mask {
        // SAFETY: AVX-512 F by contract.
        self.0.map(|a| unsafe { _mm512_test_epi32_mask(a, a) })
    }
    #[inline(always)]
    unsafe fn mask_and(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        [a[0] & b[0], a[1] & b[1]]
    }
    #[inline(always)]
    unsafe fn select(mask: Self::Mask, a: Self, b: Self) -> Self {
        // SAFETY: AVX-512 F by contract.
        unsafe {
            Self([
                _mm512_mask_blend_epi32(mask[0], b.0[0], a.0[0]),
                _mm512_mask_blend_epi32(mask[1], b.0[1], a.0[1]),
            ])
        }
    }
}
