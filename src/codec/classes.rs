//! What a symbol's classes are of the halves that it covers, in one tile.

use super::header::Layout;

/// How symbols and halves correspond under one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Classes {
    /// Four weights, the top two bits of each magnitude.
    Fast {
        /// Low bits of a magnitude that are raw.
        raw_bits: u32,
    },
    /// One weight, the top seven bits of its magnitude and its sign.
    Small {
        /// As above.
        raw_bits: u32,
    },
    /// Two weights, the rank of each exponent in a window: class 0 is exponent 0, class `c` is `first + c - 1`.
    Exponents {
        /// Bits below the exponent.
        mantissa_bits: u32,
        /// The exponent of class 1.
        first: u32,
    },
}

/// Exponents that have a class, beside zero.
pub(super) const WINDOW: u32 = 15;

impl Classes {
    /// The classes of `layout` in a tile with these raw bits and, where classes are exponents, this first one.
    pub fn new(layout: Layout, raw_magnitude_bits: u32, first_exponent: u32) -> Self {
        match layout {
            Layout::Fast => Self::Fast { raw_bits: raw_magnitude_bits },
            Layout::Small => Self::Small { raw_bits: raw_magnitude_bits },
            Layout::ExactBf16 | Layout::ExactFp16 => {
                Self::Exponents { mantissa_bits: raw_magnitude_bits, first: first_exponent }
            }
        }
    }

    /// Whether raw bits and a class give this half. The others are escapes.
    #[inline]
    pub fn hold(self, half: u32) -> bool {
        let magnitude = half & 0x7FFF;
        match self {
            Self::Fast { raw_bits } => magnitude >> raw_bits < 4,
            Self::Small { raw_bits } => magnitude >> raw_bits < 128,
            Self::Exponents { mantissa_bits, first } => {
                let exponent = magnitude >> mantissa_bits;
                exponent == 0 || exponent.wrapping_sub(first) < WINDOW
            }
        }
    }

    /// The symbol of up to four halves.
    #[inline]
    pub fn symbol(self, halves: &[u32]) -> u8 {
        match self {
            Self::Fast { raw_bits } => halves
                .iter()
                .enumerate()
                .fold(0, |symbol, (index, half)| symbol | ((half >> raw_bits & 3) << (2 * index)) as u8),
            Self::Small { raw_bits } => {
                halves.first().map_or(0, |half| (half >> raw_bits & 0x7F) as u8 | (half >> 8 & 0x80) as u8)
            }
            Self::Exponents { mantissa_bits, first } => {
                halves.iter().enumerate().fold(0, |symbol, (index, half)| {
                    let class = match (half & 0x7FFF) >> mantissa_bits {
                        0 => 0,
                        exponent => exponent - first + 1,
                    };
                    symbol | (class << (4 * index)) as u8
                })
            }
        }
    }

    /// The bits of a half that weight `index` of `symbol` sets.
    #[inline]
    pub fn symbol_half(self, symbol: u8, index: usize) -> u32 {
        let symbol = u32::from(symbol);
        match self {
            Self::Fast { raw_bits } => (symbol >> (2 * index) & 3) << raw_bits,
            Self::Small { raw_bits } => (symbol & 0x7F) << raw_bits | (symbol & 0x80) << 8,
            Self::Exponents { mantissa_bits, first } => match symbol >> (4 * index) & 15 {
                0 => 0,
                class => (first + class - 1) << mantissa_bits,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_give_back_what_they_hold() {
        for (layout, raw) in
            [(Layout::Fast, 3), (Layout::Small, 2), (Layout::ExactBf16, 7), (Layout::ExactFp16, 10)]
        {
            let classes = Classes::new(layout, raw, 9);
            let field = layout.raw_field(raw);
            let raw_mask = ((1 << field.magnitude_bits) - 1) | if field.signed { 0x8000 } else { 0 };
            let mut held = 0;
            for half in (0..=0xFFFF).filter(|&half| classes.hold(half)) {
                held += 1;
                let count = layout.weights_per_symbol();
                for index in 0..count {
                    let mut halves = vec![0; count];
                    halves[index] = half;
                    let symbol = classes.symbol(&halves);
                    assert_eq!(classes.symbol_half(symbol, index) | half & raw_mask, half, "{layout:?}");
                }
            }
            let exponents = if layout.half_kind().is_grid() { 0 } else { 16 << 1 << raw };
            let wanted = match layout {
                Layout::Fast => 4 << raw << 1,
                Layout::Small => 128 << raw << 1,
                _ => exponents,
            };
            assert_eq!(held, wanted, "{layout:?}");
        }
    }
}
