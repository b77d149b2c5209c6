//! Range asymmetric numeral systems (rANS) over an 8-bit alphabet, 32 independent lanes.
//!
//! READ ME FIRST
//! * rANS is a stack: the encoder runs over the symbols backwards, so that the decoder reads them forwards.
//! * A lane is one 32-bit state and the 16-bit words it owns. With the state's lower bound at `2^16` and words of
//!   16 bits, renormalization moves at most one word a symbol and never loops.
//! * Every lane starts encoding from [`STATE_LOWER_BOUND`], so a decoder must end there: an integrity check that
//!   costs nothing.
//! * [`decoder`] is the definition. It is never optimized; everything in `simd` is held to it bit for bit.
//!
//! This module knows no tensor: it maps symbols to words and back.
//!
//! [`decoder::LaneDecoder`] pops what a lane's encoder pushed; see its example.

pub mod decoder;
pub mod encoder;
pub mod frequency_table;
pub(crate) mod simd;

pub use frequency_table::FrequencyTable;

/// Lanes of a tile: one GPU warp, two AVX-512 or four AVX2 vectors.
///
/// A [`Group`](crate::tile::Group) has as many; see its example.
pub const LANES: usize = 32;

/// Symbols of the alphabet.
///
/// A [`FrequencyTable`] has a frequency for each; see its example.
pub const SYMBOLS: usize = 256;

/// The smallest normalized state, and the state every lane starts encoding from.
///
/// A [`LaneEncoder`](encoder::LaneEncoder) begins there; see its example.
pub const STATE_LOWER_BOUND: u32 = 1 << 16;

/// Bits of one renormalization word.
///
/// What a [`LaneEncoder`](encoder::LaneEncoder) moves at a time; see its example.
pub const WORD_BITS: u32 = 16;

/// Smallest and largest `scale_bits`: frequencies of a table sum to `1 << scale_bits`.
///
/// A [`FrequencyTable`] takes one of them; see its example.
pub const SCALE_BITS_RANGE: std::ops::RangeInclusive<u32> = 8..=12;
