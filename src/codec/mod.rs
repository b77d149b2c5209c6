//! A matrix on an integer grid to compressed buffers and back, exactly.
//!
//! Quantizing (lossy) is [`crate::quantize`]'s work; this module is exact. It knows no file: the container is
//! [`crate::checkpoint`]'s.

mod buffers;
mod decode;
mod encode;
mod fragments;
mod header;
mod importance;
mod plan;
mod raw_registers;
mod reference;
mod step;
mod tensor;
mod tile_payload;

pub use buffers::{Buffers, View, BUFFER_NAMES};
pub use decode::{decode_grid, DecodeTables, Level, TileDecoder, TileSink};
pub use encode::{encode, EncodeOptions};
pub use fragments::Fragments;
pub use header::{Header, Layout, ScaleGranularity, SourceDtype, FORMAT_VERSION, HEADER_BYTES, MAGIC};
pub use importance::{Importance, InputMoments};
pub use plan::TileShape;
pub use reference::decode_grid_reference;
pub use step::{solve_exponent, GridRule, RateSample, StepRule, BUDGET_RANGE};
pub(crate) use tensor::raw_bytes;
pub use tensor::{decompress, grid_entropy, CompressedTensor, Matrix, TensorStats};
pub use tile_payload::{Predictor, TileHeader, TILE_HEADER_BYTES};

/// The value of an FP16-like half: sign at bit 15, magnitude at bit 0.
#[inline]
pub(crate) fn half_value(half: u32) -> i32 {
    let magnitude = (half & 0x7FFF) as i32;
    if half & 0x8000 == 0 {
        magnitude
    } else {
        -magnitude
    }
}

/// The FP16-like half of a value whose magnitude fits.
#[inline]
pub(crate) fn value_half(value: i16) -> u32 {
    u32::from(value.unsigned_abs()) | if value < 0 { 0x8000 } else { 0 }
}
