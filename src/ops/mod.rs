//! What a compressed weight can do: multiply while it decodes, decode into scratch, give rows. Tensor in, tensor out.

pub(crate) mod cuda;
mod decode_to_scratch;
mod fused_linear;
mod parallel;
mod rows;
#[cfg(test)]
mod tests;
pub(crate) mod transformer;
mod weight;

pub(crate) use decode_to_scratch::{decode_to_scratch, ScratchElement};
pub(crate) use fused_linear::fused_linear;
pub(crate) use rows::gather_rows;
pub(crate) use weight::WeightRef;
