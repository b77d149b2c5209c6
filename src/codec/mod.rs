//! A matrix on an integer grid, or of BF16 or FP16 weights as they are, to compressed buffers and back, exactly.
//!
//! Quantizing (lossy) is [`crate::quantize`]'s work; this module is exact. It knows no file: the container is
//! [`crate::checkpoint`]'s.
//!
//! [`CompressedTensor`] does all of it; see its example.

mod buffers;
mod classes;
mod coded_table;
mod decode;
mod encode;
mod encode_tile;
mod exact;
mod fragments;
mod half_kind;
mod header;
mod importance;
mod layout_choice;
mod plan;
mod plan_exact;
mod raw_registers;
mod reference;
mod step;
mod tensor;
mod tile_payload;

pub use buffers::{Buffers, Checksums, View, BUFFER_NAMES};
#[cfg(test)]
pub(crate) use classes::Classes;
pub(crate) use coded_table::CodedTable;
pub use decode::{decode_bits, decode_grid, DecodeTables, Level, TileDecoder, TileSink};
pub use encode::{encode, encode_exact, EncodeOptions};
pub use exact::{ExactMatrix, Inexact};
pub use fragments::Fragments;
pub(crate) use half_kind::HalfKind;
pub use header::{Header, Layout, ScaleGranularity, SourceDtype, FORMAT_VERSION, HEADER_BYTES, MAGIC};
pub use importance::{Importance, InputMoments};
pub use layout_choice::{Settled, Unsettled};
pub use plan::TileShape;
pub use reference::{decode_bits_reference, decode_grid_reference};
pub(crate) use step::Budget;
pub use step::{solve_exponent, GridRule, RateSample, StepRule, BUDGET_RANGE};
pub(crate) use tensor::raw_bytes;
pub use tensor::{decompress, decompress_view, grid_entropy, CompressedTensor, Matrix, TensorStats};
pub use tile_payload::{Predictor, TileHeader, TileSections, TILE_HEADER_BYTES};
