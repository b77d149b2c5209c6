//! A tch matrix to compressed buffers and back, in its own dtype.

use half::slice::HalfBitsSliceExt;
use half::{bf16, f16};
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use super::buffers::{Buffers, View};
use super::decode::{decode_bits, decode_grid, zeros};
use super::encode::{encode, encode_exact, EncodeOptions};
use super::exact::ExactMatrix;
use super::header::{Layout, SourceDtype};
use super::plan_exact::exponent_entropy;
use super::step::StepRule;
use crate::error::{Error, Result, TorchContext};
use crate::quantize::{dequantize_row, Distortion, Quantized};
use crate::tile::STRIPE_ROWS;

/// A matrix in compressed form.
///
/// ```
/// use codecllm::codec::{CompressedTensor, EncodeOptions, StepRule};
/// use tch::{Device, Kind, Tensor};
/// let weight = Tensor::randn([64, 128], (Kind::Half, Device::Cpu));
/// let compressed = CompressedTensor::compress("w", &weight, StepRule::RowAbsmax, EncodeOptions::default())?;
/// assert!(compressed.stats().bits_per_weight < 9.0 && compressed.stats().snr_db > 35.0);
/// let back = compressed.decompress()?;
/// assert_eq!((back.kind(), back.size()), (Kind::Half, vec![64, 128]));
/// assert!((back - weight).abs().max().double_value(&[]) < 0.05);
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct CompressedTensor {
    tensor_path: String,
    buffers: Buffers,
    stats: TensorStats,
}

/// What compression made of one matrix.
///
/// Given by a [`CompressedTensor`]; see its example.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TensorStats {
    /// Number of weights.
    pub weights: usize,
    /// Bytes before.
    pub original_bytes: usize,
    /// Bytes after, everything counted.
    pub compressed_bytes: usize,
    /// `8 * compressed_bytes / weights`.
    pub bits_per_weight: f64,
    /// Order-0 entropy of the grid values, bits a weight; none where there is no grid.
    pub grid_entropy_bits: Option<f64>,
    /// In the exact layouts, what the grid's entropy is elsewhere: order-0 entropy of the exponents, and sign and mantissa as they
    /// are, bits a weight.
    pub exponent_entropy_and_raw_bits: Option<f64>,
    /// Signal-to-noise ratio, dB.
    pub snr_db: f64,
    /// Largest absolute error.
    pub max_error: f64,
    /// Sum of squared weights and of squared errors, for totals over several tensors.
    #[serde(skip)]
    pub distortion: Distortion,
}

impl TensorStats {
    /// No weights.
    pub(crate) const EMPTY: Self = Self {
        weights: 0,
        original_bytes: 0,
        compressed_bytes: 0,
        bits_per_weight: 0.0,
        grid_entropy_bits: None,
        exponent_entropy_and_raw_bits: None,
        snr_db: 0.0,
        max_error: 0.0,
        distortion: Distortion { signal: 0.0, noise: 0.0, max_error: 0.0 },
    };

    /// All but the entropy.
    fn of_sizes(weights: usize, dtype: SourceDtype, buffers: &Buffers, distortion: Distortion) -> Self {
        Self {
            weights,
            original_bytes: weights * dtype.bytes(),
            compressed_bytes: buffers.total_bytes(),
            bits_per_weight: 8.0 * buffers.total_bytes() as f64 / weights as f64,
            snr_db: distortion.snr_db(),
            max_error: distortion.max_error,
            distortion,
            ..Self::EMPTY
        }
    }
}

impl CompressedTensor {
    /// Quantizes and encodes `weight`, a matrix in FP32, FP16 or BF16. `tensor_path` is its full name.
    ///
    /// Errors where the tensor is not such a matrix or holds a NaN or an infinity.
    pub fn compress(
        tensor_path: &str,
        weight: &Tensor,
        rule: StepRule,
        options: EncodeOptions,
    ) -> Result<Self> {
        let matrix = Matrix::of(tensor_path, weight)?;
        let quantized = rule.quantize(&matrix, tensor_path)?;
        Self::encode(tensor_path, &matrix, &quantized, options)
    }

    /// Encodes a matrix that is already on its grid.
    pub fn encode(
        tensor_path: &str,
        matrix: &Matrix,
        quantized: &Quantized,
        options: EncodeOptions,
    ) -> Result<Self> {
        let values = &quantized.values;
        let buffers = encode_smallest(tensor_path, matrix, quantized, options)?;
        let distortion = quantized.distortion(&matrix.weights, matrix.shape[1]);
        let sizes = TensorStats::of_sizes(values.len(), matrix.dtype, &buffers, distortion);
        let stats = TensorStats { grid_entropy_bits: Some(grid_entropy(values)), ..sizes };
        Ok(Self { tensor_path: tensor_path.to_owned(), buffers, stats })
    }

    /// Encodes `weight`, a matrix in BF16 or FP16, or one in FP32 that is exactly such, bit for bit: whatever NaN or infinity it
    /// holds. `options.layout` is not asked: the dtype says which of the exact layouts it is.
    ///
    /// Errors where the tensor is no such matrix; `Unsupported` where FP32 weights have more bits.
    ///
    /// ```
    /// use codecllm::codec::{CompressedTensor, EncodeOptions};
    /// use tch::{Device, Kind, Tensor};
    /// let weight = Tensor::randn([64, 128], (Kind::BFloat16, Device::Cpu));
    /// let compressed = CompressedTensor::compress_exact("w", &weight, EncodeOptions::default())?;
    /// assert_eq!(compressed.decompress()?, weight);
    /// # Ok::<(), codecllm::Error>(())
    /// ```
    pub fn compress_exact(tensor_path: &str, weight: &Tensor, options: EncodeOptions) -> Result<Self> {
        let matrix = ExactMatrix::of(tensor_path, weight)?
            .map_err(|inexact| Error::unsupported(tensor_path, inexact.to_string()))?;
        Self::encode_exact(tensor_path, &matrix, options)
    }

    /// Encodes a matrix of which the bits are known.
    pub fn encode_exact(tensor_path: &str, matrix: &ExactMatrix, options: EncodeOptions) -> Result<Self> {
        let ExactMatrix { halves, shape, layout, dtype } = matrix;
        let options = EncodeOptions { layout: *layout, ..options };
        let buffers = encode_exact(tensor_path, halves, *shape, *dtype, options)?;
        let sizes = TensorStats::of_sizes(halves.len(), *dtype, &buffers, matrix.distortion());
        let raw_bits = layout.raw_field(*layout.raw_magnitude_bits(true).end()).bits();
        let bound = exponent_entropy(halves, *layout) + raw_bits as f64;
        let stats = TensorStats { exponent_entropy_and_raw_bits: Some(bound), ..sizes };
        Ok(Self { tensor_path: tensor_path.to_owned(), buffers, stats })
    }

    /// The tensor's full name.
    pub fn tensor_path(&self) -> &str {
        &self.tensor_path
    }

    /// The buffers.
    pub fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    /// What compression made of it.
    pub fn stats(&self) -> &TensorStats {
        &self.stats
    }

    /// The matrix again, in its own dtype, on the CPU.
    pub fn decompress(&self) -> Result<Tensor> {
        decompress(&self.buffers, &self.tensor_path)
    }
}

/// Below this many weights a table or a tile weighs more than speed: the layout that is smaller is taken.
pub(super) const SMALL_WEIGHTS: usize = 1 << 16;

fn encode_smallest(
    tensor_path: &str,
    matrix: &Matrix,
    quantized: &Quantized,
    options: EncodeOptions,
) -> Result<Buffers> {
    let Quantized { values, scales } = quantized;
    let with = |options| encode(tensor_path, values, matrix.shape, scales, matrix.dtype, options);
    let asked = with(options)?;
    if values.len() >= SMALL_WEIGHTS || options.layout == Layout::Small {
        return Ok(asked);
    }
    let small = with(EncodeOptions { layout: Layout::Small, ..options })?;
    Ok(if small.total_bytes() < asked.total_bytes() { small } else { asked })
}

/// Decodes `buffers` into a tensor of the original dtype, on the CPU: a grid dequantized, floats bit for bit.
///
/// What [`Buffers`] hold; see its example.
pub fn decompress(buffers: &Buffers, tensor_path: &str) -> Result<Tensor> {
    let view = buffers.view(tensor_path)?;
    view.verify_checksum()?;
    decompress_view(&view)
}

/// As [`decompress`], of buffers whose checksum was compared, or need not be.
///
/// What a [`View`] looks at; see its example.
pub fn decompress_view(view: &View) -> Result<Tensor> {
    let shape = [view.header.grid.rows() as i64, view.header.grid.cols() as i64];
    let flat = if view.header.layout.is_grid() { dequantized(view)? } else { floats(view)? };
    flat.f_reshape(shape).about(view.subject())
}

/// The weights of a grid, row-major in the original dtype.
fn dequantized(view: &View) -> Result<Tensor> {
    let values = decode_grid(view, None)?;
    let scales = view.scales()?;
    let cols = view.header.grid.cols();
    let mut weights = zeros::<f32>(values.len(), view.subject())?;
    for (row, (weights, values)) in weights.chunks_exact_mut(cols).zip(values.chunks_exact(cols)).enumerate()
    {
        let scale = scales.get(row).or(scales.first()).copied().unwrap_or_default();
        dequantize_row(values, scale, weights);
    }
    Tensor::f_from_slice(&weights)
        .and_then(|flat| flat.f_to_kind(view.header.dtype.kind()))
        .about(view.subject())
}

/// The weights of an exact layout, row-major in the original dtype: that of the layout, or FP32.
fn floats(view: &View) -> Result<Tensor> {
    let halves = decode_bits(view, None)?;
    let kind = view.header.layout.half_kind();
    if view.header.dtype == SourceDtype::F32 {
        let mut weights = zeros::<f32>(halves.len(), view.subject())?;
        kind.weights(&halves, 1.0, &mut weights);
        return Tensor::f_from_slice(&weights).about(view.subject());
    }
    // tch takes a slice of bf16 for one of FP16: the dtype is set afterwards.
    Tensor::f_from_slice(halves.reinterpret_cast::<f16>())
        .and_then(|flat| flat.f_view_dtype(view.header.dtype.kind()))
        .about(view.subject())
}

/// A float matrix in FP32, with the dtype it came in.
///
/// ```
/// use codecllm::codec::{Matrix, SourceDtype};
/// use tch::{Device, Kind, Tensor};
/// let matrix = Matrix::of("w", &Tensor::ones([160, 64], (Kind::BFloat16, Device::Cpu)))?;
/// assert_eq!((matrix.shape, matrix.dtype, matrix.weights[0]), ([160, 64], SourceDtype::BF16, 1.0));
/// assert_eq!(matrix.sample(2048).shape, [32, 64]); // two stripes of sixteen rows
/// assert!(Matrix::of("ids", &Tensor::ones([2, 2], (Kind::Int64, Device::Cpu))).is_err());
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Matrix {
    /// Row-major weights.
    pub weights: Vec<f32>,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// The dtype of the tensor it was read from.
    pub dtype: SourceDtype,
}

impl Matrix {
    /// Reads a matrix in FP32, FP16 or BF16 on any device.
    pub fn of(tensor_path: &str, tensor: &Tensor) -> Result<Self> {
        let (dtype, shape) = kind_and_shape(tensor_path, tensor)?;
        let flat = tensor
            .f_to_device(Device::Cpu)
            .and_then(|t| t.f_to_kind(Kind::Float))
            .and_then(|t| t.f_contiguous())
            .about(tensor_path)?;
        let len = shape[0] * shape[1];
        let mut weights = vec![0f32; len];
        flat.f_copy_data(&mut weights, len).about(tensor_path)?;
        Ok(Self { weights, shape, dtype })
    }

    /// Some whole stripes of 16 rows spread evenly over the matrix, about `weights` of them in all.
    #[must_use]
    pub fn sample(&self, weights: usize) -> Self {
        self.take_rows(&self.sample_rows(weights))
    }

    /// The rows of [`Matrix::sample`].
    pub(super) fn sample_rows(&self, weights: usize) -> Vec<usize> {
        sample_rows(self.shape, weights)
    }

    /// The matrix of these `rows`, which must be its own.
    pub(super) fn take_rows(&self, rows: &[usize]) -> Self {
        let cols = self.shape[1];
        let weights =
            rows.iter().flat_map(|row| &self.weights[row * cols..(row + 1) * cols]).copied().collect();
        Self { weights, shape: [rows.len(), cols], dtype: self.dtype }
    }
}

/// The rows of some whole stripes spread evenly over a matrix, about `wanted` weights in all.
fn sample_rows([rows, cols]: [usize; 2], wanted: usize) -> Vec<usize> {
    let stripes = rows / STRIPE_ROWS;
    let wanted = wanted.div_ceil(STRIPE_ROWS * cols).max(1);
    if stripes <= wanted {
        return (0..rows).collect();
    }
    let first = |index| STRIPE_ROWS * (index * stripes / wanted);
    (0..wanted).flat_map(|index| first(index)..first(index) + STRIPE_ROWS).collect()
}

/// These rows of a matrix, one after the other, and their shape.
pub(super) fn sample_stripes<T: Copy>(
    weights: &[T],
    shape: [usize; 2],
    wanted: usize,
) -> (Vec<T>, [usize; 2]) {
    let (rows, cols) = (sample_rows(shape, wanted), shape[1]);
    let chosen = rows.iter().flat_map(|row| &weights[row * cols..(row + 1) * cols]).copied().collect();
    (chosen, [rows.len(), cols])
}

/// The dtype and shape of a matrix in FP32, FP16 or BF16; an error for any other tensor.
pub(super) fn kind_and_shape(tensor_path: &str, tensor: &Tensor) -> Result<(SourceDtype, [usize; 2])> {
    let dtype = SourceDtype::of_kind(tensor.kind(), tensor_path)?;
    let [rows, cols] = tensor.size()[..] else {
        return Err(Error::invalid(
            tensor_path,
            format!("shape {:?}, only matrices are compressed (exclude this tensor)", tensor.size()),
        ));
    };
    if rows == 0 || cols == 0 {
        return Err(Error::invalid(
            tensor_path,
            format!("shape [{rows}, {cols}] has no weights (exclude this tensor)"),
        ));
    }
    Ok((dtype, [rows as usize, cols as usize]))
}

impl SourceDtype {
    /// Whether `weight` stays finite when rounded to this dtype.
    pub fn holds(self, weight: f32) -> bool {
        match self {
            Self::F32 => weight.is_finite(),
            Self::F16 => f16::from_f32(weight).is_finite(),
            Self::BF16 => bf16::from_f32(weight).is_finite(),
        }
    }

    /// The libtorch dtype.
    pub fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::F16 => Kind::Half,
            Self::BF16 => Kind::BFloat16,
        }
    }

    /// The dtype that is `kind`.
    pub fn of_kind(kind: Kind, subject: &str) -> Result<Self> {
        match kind {
            Kind::Float => Ok(Self::F32),
            Kind::Half => Ok(Self::F16),
            Kind::BFloat16 => Ok(Self::BF16),
            other => Err(Error::invalid(
                subject,
                format!("dtype {other:?}, wanted Float, Half or BFloat16 (exclude this tensor)"),
            )),
        }
    }
}

/// The elements of a tensor on any device, row-major, as bytes.
pub(crate) fn raw_bytes(tensor: &Tensor, subject: &str) -> Result<Vec<u8>> {
    if tensor.numel() == 0 {
        return Ok(Vec::new());
    }
    let bytes = tensor
        .f_to_device(Device::Cpu)
        .and_then(|t| t.f_contiguous())
        .and_then(|t| t.f_reshape([-1]))
        .and_then(|t| t.f_view_dtype(Kind::Uint8))
        .about(subject)?;
    if bytes.data_ptr().is_null() {
        return Err(Error::corrupt(subject, "the tensor has no memory (file damaged?)"));
    }
    let mut out = vec![0u8; bytes.numel()];
    let len = out.len();
    bytes.f_copy_data(&mut out, len).about(subject)?;
    Ok(out)
}

/// Order-0 entropy of grid values, bits each.
///
/// What [`encode`](super::encode()) comes near to; see its example.
pub fn grid_entropy(values: &[i16]) -> f64 {
    let mut counts = vec![0u64; 1 << 16];
    values.iter().for_each(|&value| counts[usize::from(value as u16)] += 1);
    let total = values.len() as f64;
    counts
        .iter()
        .filter(|&&count| count > 0)
        .map(|&count| count as f64 / total * (total / count as f64).log2())
        .sum()
}
