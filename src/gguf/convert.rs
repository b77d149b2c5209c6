//! One tensor's blocks to the bytes of a safetensors tensor.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;
use tch::Kind;

use super::blocks::widen;
use super::file::{zeros, GgufFile, TensorInfo};
use super::tensors::Import;
use crate::error::{Error, ErrorKind, Result};

/// Weights that are widened at a time: whole blocks, and few enough to stay in the nearest cache.
const PIECE_WEIGHTS: usize = 2048;

/// What a row cannot be written as.
#[derive(Clone, Copy, Debug)]
enum Misfit {
    /// NaN or infinite in the file already.
    NotFinite,
    /// Too large for the dtype.
    TooLarge(f32),
}

/// How safetensors names the dtype.
pub(super) fn element(kind: Kind) -> Dtype {
    match kind {
        Kind::Half => Dtype::F16,
        Kind::BFloat16 => Dtype::BF16,
        _ => Dtype::F32,
    }
}

/// The tensor's weights in `kind`, rounded to the nearest with ties to even, rows in Hugging Face's order.
pub(super) fn convert(file: &GgufFile, import: &Import<'_>, kind: Kind) -> Result<Vec<u8>> {
    let info = import.info;
    let stored = file.read(info)?;
    let rows = rows(info, import.rotary_heads)?;
    let row_bytes = stored.len() / rows;
    let element_bytes = element(kind).bitsize() / 8;
    let row_weights = info.weights as usize / rows;
    let head_rows = import.rotary_heads.map(|heads| rows / heads);
    let mut out = zeros((info.weights as usize).saturating_mul(element_bytes), &info.name)?;
    let failed = out.par_chunks_mut(row_weights * element_bytes).enumerate().find_map_any(|(row, out)| {
        let from = head_rows.map_or(row, |head_rows| rotary_source(row, head_rows));
        let stored = stored.get(from * row_bytes..(from + 1) * row_bytes).unwrap_or_default();
        convert_row(info, stored, kind, out).err()
    });
    failed.map_or(Ok(out), |misfit| Err(error(info, kind, misfit)))
}

/// A bias has a row for each of its weights.
fn rows(info: &TensorInfo, rotary_heads: Option<usize>) -> Result<usize> {
    match (info.shape.as_slice(), rotary_heads) {
        ([_], None) => Ok(1),
        ([length], Some(_)) if info.kind.block_weights() > 1 => {
            let message = format!(
                "is {length} weights in {}, whose rotary order cannot be undone; wanted F32, F16 or BF16",
                info.kind.name()
            );
            Err(Error::unsupported(&*info.name, message))
        }
        ([rows, ..], _) => Ok(*rows),
        ([], _) => Ok(1),
    }
}

/// Where row `row` of Hugging Face's order lies in GGUF's: within a head, GGUF rotates neighboring rows with each other, Hugging Face
/// those of the first half with those of the second.
fn rotary_source(row: usize, head_rows: usize) -> usize {
    let (head, place) = (row / head_rows, row % head_rows);
    let half = head_rows / 2;
    head * head_rows + place % half * 2 + place / half
}

fn convert_row(
    info: &TensorInfo,
    stored: &[u8],
    kind: Kind,
    out: &mut [u8],
) -> std::result::Result<(), Misfit> {
    let (block_weights, block_bytes) = (info.kind.block_weights(), info.kind.block_bytes());
    let piece_blocks = PIECE_WEIGHTS / block_weights;
    let element_bytes = element(kind).bitsize() / 8;
    let mut scratch = [0.0; PIECE_WEIGHTS];
    let pieces = stored.chunks(piece_blocks * block_bytes);
    for (stored, out) in pieces.zip(out.chunks_mut(PIECE_WEIGHTS * element_bytes)) {
        let scratch = scratch.get_mut(..out.len() / element_bytes).unwrap_or_default();
        widen(info.kind, stored, scratch);
        if !scratch.iter().all(|weight| weight.is_finite()) {
            return Err(Misfit::NotFinite);
        }
        narrow(scratch, kind, out)?;
    }
    Ok(())
}

/// Writes finite weights in `kind`.
fn narrow(weights: &[f32], kind: Kind, out: &mut [u8]) -> std::result::Result<(), Misfit> {
    match kind {
        Kind::Half => {
            let mut narrow = [f16::ZERO; PIECE_WEIGHTS];
            let narrow = narrow.get_mut(..weights.len()).unwrap_or_default();
            narrow.convert_from_f32_slice(weights);
            check(weights, narrow.iter().map(|weight| weight.is_finite()))?;
            fill(out, narrow.iter().map(|weight| weight.to_le_bytes()));
        }
        Kind::BFloat16 => {
            let mut narrow = [bf16::ZERO; PIECE_WEIGHTS];
            let narrow = narrow.get_mut(..weights.len()).unwrap_or_default();
            narrow.convert_from_f32_slice(weights);
            check(weights, narrow.iter().map(|weight| weight.is_finite()))?;
            fill(out, narrow.iter().map(|weight| weight.to_le_bytes()));
        }
        _ => fill(out, weights.iter().map(|weight| weight.to_le_bytes())),
    }
    Ok(())
}

fn check(weights: &[f32], mut fits: impl Iterator<Item = bool>) -> std::result::Result<(), Misfit> {
    match fits.position(|fits| !fits).and_then(|at| weights.get(at)) {
        None => Ok(()),
        Some(weight) => Err(Misfit::TooLarge(*weight)),
    }
}

fn fill<const N: usize>(out: &mut [u8], weights: impl Iterator<Item = [u8; N]>) {
    let (elements, _) = out.as_chunks_mut();
    elements.iter_mut().zip(weights).for_each(|(element, weight)| *element = weight);
}

fn error(info: &TensorInfo, kind: Kind, misfit: Misfit) -> Error {
    match misfit {
        Misfit::NotFinite => {
            Error::corrupt(&*info.name, "has a weight that is NaN or infinite (file damaged?)")
        }
        Misfit::TooLarge(weight) => {
            let message =
                format!("has the weight {weight:e}, beyond {:?}; take --dtype bf16 or fp32", element(kind));
            Error::new(ErrorKind::InvalidArgument, &*info.name, message)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_head_come_apart_into_two_halves() {
        let sources: Vec<usize> = (0..12).map(|row| rotary_source(row, 6)).collect();
        assert_eq!(sources, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let mut out = [0; 8];
        narrow(&[65504.0, -1.0], Kind::Half, &mut out[..4]).unwrap();
        assert!(matches!(narrow(&[1.0, 65520.0], Kind::Half, &mut out[..4]), Err(Misfit::TooLarge(65520.0))));
        assert!(narrow(&[f32::MAX, 0.0], Kind::BFloat16, &mut out[..4]).is_err());
        narrow(&[f32::MAX, 0.0], Kind::Float, &mut out).unwrap();
    }
}
