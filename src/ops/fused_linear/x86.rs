//! The inner loops with AVX2 and AVX-512. Both sum in the order of the portable loop: eight independent sums a row,
//! fused multiply-adds, so the answers agree bit for bit.

use std::arch::x86_64::{
    __m256, __m512, _mm256_castps_pd, _mm256_castsi256_ps, _mm256_cvtepu16_epi32, _mm256_cvtph_ps,
    _mm256_fmadd_ps, _mm256_load_ps, _mm256_load_si256, _mm256_loadu_ps, _mm256_slli_epi32, _mm256_store_ps,
    _mm512_broadcast_f64x4, _mm512_castpd_ps, _mm512_castsi512_ps, _mm512_cvtepu16_epi32, _mm512_cvtph_ps,
    _mm512_fmadd_ps, _mm512_load_ps, _mm512_slli_epi32, _mm512_store_ps, _mm_load_si128,
};

use super::{GroupFloats, Multiply, StripeSums};
use crate::codec::{Fragments, HalfKind, Level};
use crate::tile::LANE_REGISTERS;

/// The loops for halves of `kind` on this processor, if it has vectors.
pub(super) fn detect(kind: HalfKind) -> Option<Multiply> {
    match kind {
        HalfKind::Grid | HalfKind::Fp16 => detect_for::<false>(),
        HalfKind::Bf16 => detect_for::<true>(),
    }
}

fn detect_for<const BF16: bool>() -> Option<Multiply> {
    of_level::<BF16>(Level::detect())
}

/// The loops of `level`, which this processor must have.
pub(super) fn of_level<const BF16: bool>(level: Level) -> Option<Multiply> {
    match level {
        Level::Avx512 => Some(Multiply {
            widen: widen_avx512::<BF16>,
            accumulate: accumulate_avx512,
            widen_and_accumulate: both_avx512::<BF16>,
        }),
        Level::Avx2 => Some(Multiply {
            widen: widen_avx2::<BF16>,
            accumulate: accumulate_avx2,
            widen_and_accumulate: both_avx2::<BF16>,
        }),
        _ => None,
    }
}

/// Sixteen halves to floats, as [`HalfKind::read`].
///
/// # Safety
/// AVX-512 F; 32 readable bytes, aligned to as many.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn read_avx512<const BF16: bool>(from: *const u32) -> __m512 {
    // SAFETY: the caller gives 32 bytes, aligned as this load needs.
    let halves = unsafe { _mm256_load_si256(from.cast()) };
    if BF16 {
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
    } else {
        _mm512_cvtph_ps(halves)
    }
}

/// Eight halves to floats, as [`HalfKind::read`].
///
/// # Safety
/// AVX2 and F16C; 16 readable bytes, aligned to as many.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn read_avx2<const BF16: bool>(from: *const u32) -> __m256 {
    // SAFETY: the caller gives 16 bytes, aligned as this load needs.
    let halves = unsafe { _mm_load_si128(from.cast()) };
    if BF16 {
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
    } else {
        _mm256_cvtph_ps(halves)
    }
}

/// Eight values of `x` for register `4t + i`.
#[inline(always)]
fn x_of_register(register: usize) -> usize {
    (register / 4 * 2 + register % 4 / 2) * 8
}

/// # Safety
/// AVX-512 F.
#[target_feature(enable = "avx512f")]
unsafe fn widen_avx512<const BF16: bool>(fragments: &Fragments, floats: &mut GroupFloats) {
    for register in 0..LANE_REGISTERS {
        for part in 0..4 {
            // SAFETY: 8 of 32 lanes in, 16 of 64 floats out, both aligned to 64 bytes at multiples of 32 and 64.
            unsafe {
                let read = read_avx512::<BF16>(fragments.0[register].as_ptr().add(8 * part));
                _mm512_store_ps(floats.0[register].as_mut_ptr().add(16 * part), read);
            }
        }
    }
}

/// # Safety
/// AVX-512 F and AVX; `x` has 64 values.
#[target_feature(enable = "avx512f")]
unsafe fn accumulate_avx512(floats: &GroupFloats, x: &[f32], sums: &mut StripeSums) {
    debug_assert_eq!(x.len(), 64);
    for half in 0..2 {
        for part in 0..4 {
            // SAFETY: all offsets are inside the arrays, which are aligned to 64 bytes.
            unsafe {
                let slot = sums.0[half].as_mut_ptr().add(16 * part);
                let mut sum = _mm512_load_ps(slot);
                for register in (half..LANE_REGISTERS).step_by(2) {
                    let eight = _mm256_castps_pd(_mm256_loadu_ps(x.as_ptr().add(x_of_register(register))));
                    let x = _mm512_castpd_ps(_mm512_broadcast_f64x4(eight));
                    let weights = _mm512_load_ps(floats.0[register].as_ptr().add(16 * part));
                    sum = _mm512_fmadd_ps(weights, x, sum);
                }
                _mm512_store_ps(slot, sum);
            }
        }
    }
}

/// # Safety
/// AVX-512 F and AVX; `x` has 64 values.
#[target_feature(enable = "avx512f")]
unsafe fn both_avx512<const BF16: bool>(fragments: &Fragments, x: &[f32], sums: &mut StripeSums) {
    debug_assert_eq!(x.len(), 64);
    for half in 0..2 {
        // SAFETY: all offsets are inside the arrays, which are aligned to 64 bytes.
        unsafe {
            let slot = sums.0[half].as_mut_ptr();
            let mut sum: [_; 4] = std::array::from_fn(|part| _mm512_load_ps(slot.add(16 * part)));
            for register in (half..LANE_REGISTERS).step_by(2) {
                let eight = _mm256_castps_pd(_mm256_loadu_ps(x.as_ptr().add(x_of_register(register))));
                let x = _mm512_castpd_ps(_mm512_broadcast_f64x4(eight));
                for (part, sum) in sum.iter_mut().enumerate() {
                    let read = read_avx512::<BF16>(fragments.0[register].as_ptr().add(8 * part));
                    *sum = _mm512_fmadd_ps(read, x, *sum);
                }
            }
            for (part, sum) in sum.into_iter().enumerate() {
                _mm512_store_ps(slot.add(16 * part), sum);
            }
        }
    }
}

/// # Safety
/// AVX2 and F16C.
#[target_feature(enable = "avx2,f16c")]
unsafe fn widen_avx2<const BF16: bool>(fragments: &Fragments, floats: &mut GroupFloats) {
    for register in 0..LANE_REGISTERS {
        for part in 0..8 {
            // SAFETY: 4 of 32 lanes in, 8 of 64 floats out, aligned at multiples of 16 and 32 bytes.
            unsafe {
                let read = read_avx2::<BF16>(fragments.0[register].as_ptr().add(4 * part));
                _mm256_store_ps(floats.0[register].as_mut_ptr().add(8 * part), read);
            }
        }
    }
}

/// # Safety
/// AVX and FMA; `x` has 64 values.
#[target_feature(enable = "avx,fma")]
unsafe fn accumulate_avx2(floats: &GroupFloats, x: &[f32], sums: &mut StripeSums) {
    debug_assert_eq!(x.len(), 64);
    for half in 0..2 {
        for part in 0..8 {
            // SAFETY: all offsets are inside the arrays, which are aligned to 64 bytes.
            unsafe {
                let slot = sums.0[half].as_mut_ptr().add(8 * part);
                let mut sum = _mm256_load_ps(slot);
                for register in (half..LANE_REGISTERS).step_by(2) {
                    let x = _mm256_loadu_ps(x.as_ptr().add(x_of_register(register)));
                    let weights = _mm256_load_ps(floats.0[register].as_ptr().add(8 * part));
                    sum = _mm256_fmadd_ps(weights, x, sum);
                }
                _mm256_store_ps(slot, sum);
            }
        }
    }
}

/// # Safety
/// AVX2, F16C and FMA; `x` has 64 values.
#[target_feature(enable = "avx2,f16c,fma")]
unsafe fn both_avx2<const BF16: bool>(fragments: &Fragments, x: &[f32], sums: &mut StripeSums) {
    debug_assert_eq!(x.len(), 64);
    for half in 0..2 {
        // SAFETY: all offsets are inside the arrays, which are aligned to 64 bytes.
        unsafe {
            let slot = sums.0[half].as_mut_ptr();
            let mut sum: [_; 8] = std::array::from_fn(|part| _mm256_load_ps(slot.add(8 * part)));
            for register in (half..LANE_REGISTERS).step_by(2) {
                let x = _mm256_loadu_ps(x.as_ptr().add(x_of_register(register)));
                for (part, sum) in sum.iter_mut().enumerate() {
                    let read = read_avx2::<BF16>(fragments.0[register].as_ptr().add(4 * part));
                    *sum = _mm256_fmadd_ps(read, x, *sum);
                }
            }
            for (part, sum) in sum.into_iter().enumerate() {
                _mm256_store_ps(slot.add(8 * part), sum);
            }
        }
    }
}
