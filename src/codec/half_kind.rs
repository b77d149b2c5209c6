//! What the 16 bits of a decoded weight stand for: the one place where a half becomes a value.

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};

/// A half read as FP16 is the grid value times 2^-24.
const GRID_UNIT: f32 = 16_777_216.0;

/// How a half (the 16 bits that fragments hold) is read.
///
/// A half is also passed on as a *value*, a signed number of 16 bits: the grid value, or where there is no grid the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HalfKind {
    /// Magnitude from bit 0 up, sign at bit 15, times the row's scale: a grid value.
    Grid,
    /// A BF16.
    Bf16,
    /// An FP16.
    Fp16,
}

impl HalfKind {
    /// The half of `value`.
    #[inline]
    pub fn half_of(self, value: i16) -> u32 {
        match self {
            Self::Grid => u32::from(value.unsigned_abs()) | if value < 0 { 0x8000 } else { 0 },
            Self::Bf16 | Self::Fp16 => u32::from(value.cast_unsigned()),
        }
    }

    /// The value of a half: the inverse of [`Self::half_of`].
    #[inline]
    pub fn value_of(self, half: u32) -> i16 {
        match self {
            Self::Grid => {
                let magnitude = (half & 0x7FFF) as i16;
                if half & 0x8000 == 0 {
                    magnitude
                } else {
                    -magnitude
                }
            }
            Self::Bf16 | Self::Fp16 => (half as u16).cast_signed(),
        }
    }

    /// A half as the hardware reads it, in units of [`Self::unit`].
    #[inline]
    pub fn read(self, half: u16) -> f32 {
        match self {
            Self::Grid | Self::Fp16 => f16::from_bits(half).to_f32(),
            Self::Bf16 => f32::from_bits(u32::from(half) << 16),
        }
    }

    /// What [`Self::read`] is to be multiplied by, beside the row's scale.
    pub fn unit(self) -> f32 {
        match self {
            Self::Grid => GRID_UNIT,
            Self::Bf16 | Self::Fp16 => 1.0,
        }
    }

    /// The FP32 weight of `value` in a row of this scale.
    pub fn weight(self, value: i16, scale: f32) -> f32 {
        match self {
            Self::Grid => f32::from(value) * scale,
            Self::Bf16 => self.read(value.cast_unsigned()),
            Self::Fp16 => widen_fp16(value.cast_unsigned()),
        }
    }

    /// The FP32 weights of `halves` in a row of this scale. Without a grid the scale is 1 and is not multiplied by: that
    /// would quiet a signaling NaN.
    pub fn weights(self, halves: &[u16], scale: f32, weights: &mut [f32]) {
        match self {
            Self::Grid => {
                halves.reinterpret_cast::<f16>().convert_to_f32_slice(weights);
                weights.iter_mut().for_each(|weight| *weight = *weight * GRID_UNIT * scale);
            }
            Self::Bf16 => {
                weights.iter_mut().zip(halves).for_each(|(weight, half)| *weight = self.read(*half));
            }
            Self::Fp16 => {
                halves.reinterpret_cast::<f16>().convert_to_f32_slice(weights);
                // The conversion quiets signaling NaNs.
                if halves.iter().any(|half| is_fp16_nan(*half)) {
                    weights.iter_mut().zip(halves).for_each(|(weight, half)| *weight = widen_fp16(*half));
                }
            }
        }
    }

    /// The half that stands for exactly these bits of an FP32, a NaN's payload included; `None` where there is none.
    pub fn narrow(self, weight: f32) -> Option<u16> {
        let bits = weight.to_bits();
        let half = match self {
            Self::Grid => return None,
            Self::Bf16 => (bits >> 16) as u16,
            Self::Fp16 if weight.is_nan() => (bits >> 16 & 0x8000 | 0x7C00 | bits >> 13 & 0x3FF) as u16,
            Self::Fp16 => f16::from_f32(weight).to_bits(),
        };
        (self.weight(half.cast_signed(), 1.0).to_bits() == bits).then_some(half)
    }

    /// Whether a half's bits are those of a BF16.
    pub fn is_bf16(self) -> bool {
        self == Self::Bf16
    }

    /// Whether a half's bits are those of an FP16 weight.
    pub fn is_fp16(self) -> bool {
        self == Self::Fp16
    }

    /// Whether a half is a grid value.
    pub fn is_grid(self) -> bool {
        self == Self::Grid
    }

    /// The BF16s that `halves` are, if they are.
    pub fn as_bf16(self, halves: &[u16]) -> Option<&[bf16]> {
        self.is_bf16().then(|| halves.reinterpret_cast())
    }

    /// The FP16 weights that `halves` are, if they are.
    pub fn as_fp16(self, halves: &[u16]) -> Option<&[f16]> {
        self.is_fp16().then(|| halves.reinterpret_cast())
    }
}

fn is_fp16_nan(half: u16) -> bool {
    half & 0x7FFF > 0x7C00
}

/// Exact, a NaN's payload included.
fn widen_fp16(half: u16) -> f32 {
    if !is_fp16_nan(half) {
        return f16::from_bits(half).to_f32();
    }
    let half = u32::from(half);
    f32::from_bits((half & 0x8000) << 16 | 0x7F80_0000 | (half & 0x3FF) << 13)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_is_widened_and_narrowed_exactly() {
        let halves: Vec<u16> = (0..=u16::MAX).collect();
        for kind in [HalfKind::Bf16, HalfKind::Fp16] {
            let mut weights = vec![0.0; halves.len()];
            kind.weights(&halves, 1.0, &mut weights);
            for (&half, weight) in halves.iter().zip(&weights) {
                let value = kind.value_of(u32::from(half));
                assert_eq!(kind.half_of(value), u32::from(half));
                assert_eq!(kind.weight(value, 1.0).to_bits(), weight.to_bits(), "{kind:?} {half:#x}");
                assert_eq!(kind.narrow(*weight), Some(half), "{kind:?} {half:#x}");
                if !weight.is_nan() {
                    assert_eq!(kind.read(half).to_bits(), weight.to_bits());
                }
            }
        }
        // A signaling NaN stays one.
        assert_eq!(HalfKind::Fp16.weight(0x7C01, 1.0).to_bits(), 0x7F80_2000);
        assert_eq!(HalfKind::Bf16.weight(0x7F81, 1.0).to_bits(), 0x7F81_0000);
    }

    #[test]
    fn what_a_half_has_no_room_for_is_not_narrowed() {
        for kind in [HalfKind::Bf16, HalfKind::Fp16] {
            for bits in [0x3F80_0001, 0x7F80_0001, 1, 0x0000_8000, 0x3F80_1FFF] {
                assert_eq!(kind.narrow(f32::from_bits(bits)), None, "{kind:?} {bits:#x}");
            }
        }
        assert_eq!(HalfKind::Fp16.narrow(65536.0), None);
        assert_eq!(HalfKind::Fp16.narrow(f32::powi(2.0, -25)), None);
        assert_eq!(HalfKind::Fp16.narrow(f32::powi(2.0, -24)), Some(1));
    }

    #[test]
    fn grid_values_are_sign_and_magnitude() {
        for value in [0, 1, -1, 32_767, -32_767] {
            let half = HalfKind::Grid.half_of(value);
            assert_eq!(half & 0x7FFF, u32::from(value.unsigned_abs()));
            assert_eq!(HalfKind::Grid.value_of(half), value);
        }
        assert_eq!(HalfKind::Grid.weight(-3, 0.5), -1.5);
        let mut weights = [0.0; 2];
        HalfKind::Grid.weights(&[0x8005, 7], 2.0, &mut weights);
        assert_eq!(weights, [-10.0, 14.0]);
    }
}
