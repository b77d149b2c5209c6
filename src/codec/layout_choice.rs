//! Which layout a matrix gets where nobody asked for one: `fast`, unless that costs too much.

use super::encode::EncodeOptions;
use super::header::{Layout, HEADER_BYTES};
use super::plan::TileShape;
use super::tensor::{CompressedTensor, Matrix, SMALL_WEIGHTS};
use crate::error::Result;
use crate::quantize::Quantized;

/// Bits a weight that `fast` may take over its grid's entropy. On a bell around zero it takes 0.1 to 0.25, in an embedding whose mean
/// is far from zero up to 0.8.
const MOST_OVER_ENTROPY: f64 = 0.40;
/// Bits a weight that `small` must save to be worth twice the time.
const MUST_SAVE: f64 = 0.10;
/// From this many weights on a sample decides, so that little is encoded twice.
const SAMPLED_FROM: usize = 1 << 19;
/// Weights of that sample.
const SAMPLE_WEIGHTS: usize = 1 << 16;

/// A matrix on its grid, or a sample of one, before its layout is known.
///
/// ```
/// use codecllm::codec::{EncodeOptions, Layout, Matrix, StepRule, Unsettled};
/// use tch::{Device, Kind, Tensor};
/// let settle = |weight: &Tensor| {
///     let matrix = Matrix::of("w", weight)?;
///     let quantized = StepRule::TensorAbsmax.quantize(&matrix, "w")?;
///     let (tensor_path, options) = ("w", EncodeOptions::default());
///     Unsettled { tensor_path, matrix: &matrix, quantized: &quantized, whole: matrix.shape, options }.settle()
/// };
/// let bell = Tensor::randn([512, 512], (Kind::Float, Device::Cpu));
/// assert_eq!(settle(&bell)?.layout, Layout::Fast);
/// // All of one sign: a sign a weight, stored raw, would be wasted.
/// let settled = settle(&bell.abs())?;
/// assert_eq!((settled.layout, settled.compressed.tensor_path()), (Layout::Small, "w"));
/// assert!(settled.reason.unwrap().contains("entropy"));
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Unsettled<'a> {
    /// The whole matrix's full name.
    pub tensor_path: &'a str,
    /// What is to be encoded.
    pub matrix: &'a Matrix,
    /// The same on its grid.
    pub quantized: &'a Quantized,
    /// Rows and columns of the whole matrix, which says how it is cut into tiles.
    pub whole: [usize; 2],
    /// How to encode it; the layout is the preferred one.
    pub options: EncodeOptions,
}

/// A matrix in the layout that it got, and why if it is not the preferred one.
///
/// Given by [`Unsettled::settle`], as an [`Unsettled`] shows; see its example.
#[derive(Clone, Debug)]
pub struct Settled {
    /// What was encoded.
    pub compressed: CompressedTensor,
    /// Its layout.
    pub layout: Layout,
    /// Why it is another than was preferred.
    pub reason: Option<String>,
}

impl Unsettled<'_> {
    /// Encodes in the preferred layout; in `small` where that was `fast` and takes more than 0.40 bits a weight over the grid's
    /// entropy, of which `small` saves at least 0.10. Of a large matrix a sample decides.
    ///
    /// Errors where the matrix cannot be encoded.
    pub fn settle(&self) -> Result<Settled> {
        let weights = self.matrix.weights.len();
        if self.options.layout != Layout::Fast || weights < SMALL_WEIGHTS {
            return self.encoded(self.options.layout, None);
        }
        if weights < SAMPLED_FROM {
            return self.compared();
        }
        let rows = self.matrix.sample_rows(SAMPLE_WEIGHTS);
        let (matrix, quantized) =
            (self.matrix.take_rows(&rows), self.quantized.take_rows(&rows, self.matrix.shape[1]));
        let sample = Unsettled { matrix: &matrix, quantized: &quantized, ..*self };
        let Settled { layout, reason, .. } = sample.compared()?;
        self.encoded(layout, reason)
    }

    fn compared(&self) -> Result<Settled> {
        let fast = self.encoded(Layout::Fast, None)?;
        let entropy = fast.compressed.stats().grid_entropy_bits.unwrap_or_default();
        let fast_bits = self.bits(&fast.compressed)?;
        if fast_bits - entropy <= MOST_OVER_ENTROPY {
            return Ok(fast);
        }
        let mut small = self.encoded(Layout::Small, None)?;
        let small_bits = self.bits(&small.compressed)?;
        if fast_bits - small_bits < MUST_SAVE {
            return Ok(fast);
        }
        let over = |bits: f64| bits - entropy;
        small.reason = Some(format!(
            "fast takes {:.2} bits a weight over its grid's entropy, small {:.2}",
            over(fast_bits),
            over(small_bits)
        ));
        Ok(small)
    }

    fn encoded(&self, layout: Layout, reason: Option<String>) -> Result<Settled> {
        let [rows, cols] = self.whole;
        let tile = Some(TileShape::choose(rows, cols, layout, self.options.row_access));
        let options = EncodeOptions { layout, tile, ..self.options };
        let compressed = CompressedTensor::encode(self.tensor_path, self.matrix, self.quantized, options)?;
        Ok(Settled { compressed, layout, reason })
    }

    /// Bits a weight of the whole matrix: header and tables weigh less there than in a sample.
    fn bits(&self, coded: &CompressedTensor) -> Result<f64> {
        let view = coded.buffers().view(self.tensor_path)?;
        let fixed = (HEADER_BYTES + view.header.tables_bytes) as f64;
        let rest = view.total_bytes() as f64 - fixed;
        let [rows, cols] = self.whole;
        Ok(8.0 * (fixed / (rows * cols) as f64 + rest / self.matrix.weights.len() as f64))
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::super::SourceDtype;
    use super::*;

    /// `settle` of a grid of a bell of this mean and deviation.
    fn settled(mean: f64, deviation: f64, shape: [usize; 2], layout: Layout) -> Settled {
        let mut state = 1u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as f64 / 2f64.powi(31)
        };
        let mut bell = || (0..12).map(|_| uniform()).sum::<f64>() - 6.0;
        let values: Vec<i16> =
            (0..shape[0] * shape[1]).map(|_| (mean + deviation * bell()).round() as i16).collect();
        let weights = values.iter().map(|&value| f32::from(value)).collect();
        let matrix = Matrix { weights, shape, dtype: SourceDtype::F32 };
        let quantized = Quantized { values, scales: vec![bf16::ONE] };
        let options = EncodeOptions { layout, ..EncodeOptions::default() };
        Unsettled { tensor_path: "w", matrix: &matrix, quantized: &quantized, whole: shape, options }
            .settle()
            .unwrap()
    }

    #[test]
    fn what_fast_suits_stays_fast() {
        for shape in [[512, 256], [1024, 768]] {
            let settled = settled(0.0, 20.0, shape, Layout::Fast);
            assert_eq!((settled.layout, settled.reason), (Layout::Fast, None));
            assert_eq!(settled.compressed.buffers().view("w").unwrap().header.layout, Layout::Fast);
        }
    }

    #[test]
    fn a_mean_far_from_zero_is_small_with_its_reason() {
        for shape in [[512, 256], [1024, 768]] {
            let settled = settled(30.0, 8.0, shape, Layout::Fast);
            assert_eq!(settled.layout, Layout::Small);
            let reason = settled.reason.unwrap();
            assert!(reason.starts_with("fast takes ") && reason.contains("small 0.0"), "{reason}");
            let stats = settled.compressed.stats();
            assert!(
                stats.bits_per_weight - stats.grid_entropy_bits.unwrap() < MOST_OVER_ENTROPY,
                "{stats:?}"
            );
            assert_eq!(settled.compressed.buffers().view("w").unwrap().header.layout, Layout::Small);
        }
    }

    #[test]
    fn what_was_asked_for_otherwise_is_not_compared() {
        let settled = settled(0.0, 20.0, [512, 256], Layout::Small);
        assert_eq!((settled.layout, settled.reason), (Layout::Small, None));
    }
}
