//! 32 lanes in two AVX-512 registers.

use std::arch::x86_64::{
    __m512i, __mmask16, _mm512_add_epi32, _mm512_and_si512, _mm512_i32gather_epi32, _mm512_loadu_si512,
    _mm512_mask_blend_epi32, _mm512_mullo_epi32, _mm512_or_si512, _mm512_permutex2var_epi32,
    _mm512_rorv_epi32, _mm512_set1_epi32, _mm512_setr_epi32, _mm512_shuffle_i64x2, _mm512_sllv_epi32,
    _mm512_srlv_epi32, _mm512_storeu_si512, _mm512_test_epi32_mask, _mm512_testn_epi32_mask,
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

/// 16 runs of four integers to four vectors of 16: a gather would take five times as long.
///
/// # Safety
/// AVX-512 F; 256 readable bytes.
#[inline(always)]
unsafe fn transpose4(from: *const u8) -> [__m512i; 4] {
    // SAFETY: the four loads read 256 bytes, which the caller gives; the rest is arithmetic in registers. AVX-512 F by contract.
    unsafe {
        let part = |index: usize| _mm512_loadu_si512(from.add(64 * index).cast());
        // Integers 0 (or 2) of eight lanes, then integers 1 (or 3).
        let low = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
        let high = _mm512_setr_epi32(2, 6, 10, 14, 18, 22, 26, 30, 3, 7, 11, 15, 19, 23, 27, 31);
        let [a, b, c, d] = [part(0), part(1), part(2), part(3)];
        let first = [_mm512_permutex2var_epi32(a, low, b), _mm512_permutex2var_epi32(a, high, b)];
        let second = [_mm512_permutex2var_epi32(c, low, d), _mm512_permutex2var_epi32(c, high, d)];
        [
            _mm512_shuffle_i64x2::<0x44>(first[0], second[0]),
            _mm512_shuffle_i64x2::<0xEE>(first[0], second[0]),
            _mm512_shuffle_i64x2::<0x44>(first[1], second[1]),
            _mm512_shuffle_i64x2::<0xEE>(first[1], second[1]),
        ]
    }
}

/// 16 runs of two integers to two vectors of 16.
///
/// # Safety
/// AVX-512 F; 128 readable bytes.
#[inline(always)]
unsafe fn transpose2(from: *const u8) -> [__m512i; 2] {
    // SAFETY: the two loads read 128 bytes, which the caller gives; the rest is arithmetic in registers. AVX-512 F by contract.
    unsafe {
        let a = _mm512_loadu_si512(from.cast());
        let b = _mm512_loadu_si512(from.add(64).cast());
        let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        let odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
        [_mm512_permutex2var_epi32(a, even, b), _mm512_permutex2var_epi32(a, odd, b)]
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
    unsafe fn load_runs4(from: *const u8) -> [Self; 4] {
        // SAFETY: the caller gives 32 * 16 readable bytes: 16 lanes a half.
        unsafe {
            let [a0, a1, a2, a3] = transpose4(from);
            let [b0, b1, b2, b3] = transpose4(from.add(256));
            [Self([a0, b0]), Self([a1, b1]), Self([a2, b2]), Self([a3, b3])]
        }
    }
    #[inline(always)]
    unsafe fn load_runs2(from: *const u8) -> [Self; 2] {
        // SAFETY: the caller gives 32 * 8 readable bytes: 16 lanes a half.
        unsafe {
            let [a0, a1] = transpose2(from);
            let [b0, b1] = transpose2(from.add(128));
            [Self([a0, b0]), Self([a1, b1])]
        }
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
