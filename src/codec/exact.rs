//! A tch matrix of BF16 or FP16 weights, or of FP32 ones that are exactly such, as the bits that the exact layouts code.

use std::fmt;

use tch::Tensor;

use super::header::{Layout, SourceDtype};
use super::tensor::{kind_and_shape, raw_bytes, sample_stripes};
use crate::error::Result;
use crate::quantize::Distortion;

/// A matrix as the bits of its weights.
///
/// ```
/// use codecllm::codec::{CompressedTensor, EncodeOptions, ExactMatrix, Inexact, Layout};
/// use tch::Tensor;
/// // FP32 in which a half lies: as it is after a model was widened.
/// let half = ExactMatrix::of("w", &Tensor::from_slice(&[1.5f32, -0.25, 0.0, 65504.0]).view([2, 2]))?.unwrap();
/// assert_eq!((half.layout, half.halves[0]), (Layout::ExactFp16, 0x3E00));
/// let compressed = CompressedTensor::encode_exact("w", &half, EncodeOptions::default())?;
/// assert_eq!(compressed.decompress()?.double_value(&[1, 1]), 65504.0);
/// // And one that has more bits.
/// let inexact: Inexact = ExactMatrix::of("w", &Tensor::from_slice(&[1.0f32, 0.1]).view([1, 2]))?.unwrap_err();
/// assert!(inexact.to_string().contains("1e-1"), "{inexact}");
/// assert_eq!(half.sample(4).shape, half.shape); // all of so small a matrix
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ExactMatrix {
    /// Row-major bits, of the element type of `layout`.
    pub halves: Vec<u16>,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// [`Layout::ExactBf16`] or [`Layout::ExactFp16`].
    pub layout: Layout,
    /// The dtype of the tensor it was read from.
    pub dtype: SourceDtype,
}

impl ExactMatrix {
    /// Reads a matrix in BF16 or FP16, or one in FP32 whose weights all are exactly BF16, or else all exactly FP16.
    ///
    /// Errors where the tensor is no matrix of floats; the inner result says where an FP32 one has weights of more bits.
    pub fn of(tensor_path: &str, tensor: &Tensor) -> Result<std::result::Result<Self, Inexact>> {
        let (dtype, shape) = kind_and_shape(tensor_path, tensor)?;
        let bytes = raw_bytes(tensor, tensor_path)?;
        let exact = |layout, halves| Ok(Ok(Self { halves, shape, layout, dtype }));
        let halves = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
        match dtype {
            SourceDtype::BF16 => return exact(Layout::ExactBf16, halves()),
            SourceDtype::F16 => return exact(Layout::ExactFp16, halves()),
            SourceDtype::F32 => {}
        }
        let weights: Vec<f32> =
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let bf16 = match narrow(&weights, Layout::ExactBf16) {
            Ok(halves) => return exact(Layout::ExactBf16, halves),
            Err(at) => Element::new(&weights, at, shape),
        };
        match narrow(&weights, Layout::ExactFp16) {
            Ok(halves) => exact(Layout::ExactFp16, halves),
            Err(at) => Ok(Err(Inexact { bf16, fp16: Element::new(&weights, at, shape) })),
        }
    }

    /// As [`Matrix::sample`](super::Matrix::sample).
    #[must_use]
    pub fn sample(&self, weights: usize) -> Self {
        let (halves, shape) = sample_stripes(&self.halves, self.shape, weights);
        Self { halves, shape, ..*self }
    }

    /// The sum of squares of what is finite; nothing is lost.
    pub(super) fn distortion(&self) -> Distortion {
        let kind = self.layout.half_kind();
        let weights = self.halves.iter().map(|&half| f64::from(kind.read(half)));
        let signal = weights.filter(|weight| weight.is_finite()).map(|weight| weight * weight).sum();
        Distortion { signal, ..Distortion::default() }
    }
}

/// The halves of `weights`, or the first weight that has none.
fn narrow(weights: &[f32], layout: Layout) -> std::result::Result<Vec<u16>, usize> {
    let kind = layout.half_kind();
    weights.iter().enumerate().map(|(at, &weight)| kind.narrow(weight).ok_or(at)).collect()
}

/// Why a matrix in FP32 is not coded: its first weight that BF16 does not hold, and the first that FP16 does not.
///
/// Said of a matrix by [`ExactMatrix::of`], as an [`ExactMatrix`] shows; see its example.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Inexact {
    bf16: Element,
    fp16: Element,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Element {
    row: usize,
    col: usize,
    weight: f32,
}

impl Element {
    fn new(weights: &[f32], at: usize, [_, cols]: [usize; 2]) -> Self {
        Self { row: at / cols, col: at % cols, weight: weights[at] }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "element [{}, {}] is {:e}", self.row, self.col, self.weight)
    }
}

impl fmt::Display for Inexact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bf16, fp16 } = self;
        if bf16 == fp16 {
            return write!(f, "{bf16}, which neither BF16 nor FP16 holds exactly");
        }
        write!(f, "{bf16}, which BF16 does not hold exactly, and {fp16}, which FP16 does not")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    fn of(weights: &[f32]) -> std::result::Result<ExactMatrix, Inexact> {
        let tensor = Tensor::from_slice(weights).reshape([1, -1]);
        ExactMatrix::of("w", &tensor).unwrap()
    }

    #[test]
    fn fp32_is_taken_for_bf16_first_then_for_fp16() {
        let both = of(&[1.0, -0.0, 0.5]).unwrap();
        assert_eq!((both.layout, both.dtype), (Layout::ExactBf16, SourceDtype::F32));
        assert_eq!(both.halves, [0x3F80, 0x8000, 0x3F00]);
        assert_eq!(
            of(&[1e30_f32.to_bits() & 0xFFFF_0000].map(f32::from_bits)).unwrap().layout,
            Layout::ExactBf16
        );
        // Eleven bits of mantissa are FP16's alone.
        let fp16 = of(&[1.0, 1.0 + f32::powi(2.0, -10)]).unwrap();
        assert_eq!((fp16.layout, fp16.halves.as_slice()), (Layout::ExactFp16, &[0x3C00, 0x3C01][..]));
    }

    #[test]
    fn what_neither_holds_is_named() {
        let text = of(&[1.0, 0.1]).unwrap_err().to_string();
        assert_eq!(text, "element [0, 1] is 1e-1, which neither BF16 nor FP16 holds exactly");
        let text = of(&[1.0 + f32::powi(2.0, -10), f32::powi(2.0, 100)]).unwrap_err().to_string();
        assert!(text.starts_with("element [0, 0] is ") && text.contains("and element [0, 1] is "), "{text}");
    }

    #[test]
    fn other_tensors_are_errors() {
        for tensor in [
            Tensor::zeros([4], (Kind::BFloat16, Device::Cpu)),
            Tensor::zeros([4, 0], (Kind::BFloat16, Device::Cpu)),
            Tensor::zeros([4, 4], (Kind::Int, Device::Cpu)),
        ] {
            assert!(ExactMatrix::of("w", &tensor).is_err());
        }
    }
}
