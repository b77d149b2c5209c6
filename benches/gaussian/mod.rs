//! Gaussian matrices in FP16, the same every time.
#![allow(dead_code, reason = "each bench uses its own part")]

use codecllm::codec::{CompressedTensor, EncodeOptions, Layout, Matrix, StepRule};
use codecllm::quantize::Quantized;
use tch::{Device, Kind, Tensor};

/// Shapes of a small model's linears and of a large one's.
pub const SHAPES: [[usize; 2]; 3] = [[576, 576], [1536, 576], [4096, 4096]];

/// Both layouts by name.
pub const LAYOUTS: [(Layout, &str); 2] = [(Layout::Fast, "fast"), (Layout::Small, "small")];

/// A weight, on its INT8 grid, and encoded.
pub struct Sample {
    pub name: String,
    pub weight: Tensor,
    pub matrix: Matrix,
    pub quantized: Quantized,
    pub options: EncodeOptions,
    pub compressed: CompressedTensor,
}

/// A Gaussian weight of `shape`, encoded in `layout`.
pub fn sample([rows, cols]: [usize; 2], (layout, name): (Layout, &str)) -> Sample {
    tch::manual_seed(0x5EED);
    let weight = Tensor::randn([rows as i64, cols as i64], (Kind::Float, Device::Cpu)) * 0.02;
    let weight = weight.to_kind(Kind::Half);
    let matrix = Matrix::of("gaussian", &weight).unwrap();
    let quantized = StepRule::RowAbsmax.quantize(&matrix, "gaussian").unwrap();
    let options = EncodeOptions { layout, ..EncodeOptions::default() };
    let compressed = CompressedTensor::encode("gaussian", &matrix, &quantized, options).unwrap();
    Sample { name: format!("{rows}x{cols}/{name}"), weight, matrix, quantized, options, compressed }
}
