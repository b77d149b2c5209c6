//! One matrix: every choice tried on a sample of it.

use tch::Tensor;

use super::tally::Tally;
use super::StatsTensor;
use crate::checkpoint::compress::Target;
use crate::checkpoint::selection::EMBEDDING;
use crate::codec::{
    CompressedTensor, EncodeOptions, ExactMatrix, Layout, Matrix, StepRule, TileShape, Unsettled,
};
use crate::error::Result;
use crate::quantize::{check_finite, root_mean_square};

/// Weights of a tensor that are tried.
const SAMPLE_WEIGHTS: usize = 1 << 18;
/// Relative steps of the curve, as powers of two of a tensor's root mean square, from about 9 bits to less than 2.
pub(super) const CURVE_EXPONENTS: [f64; 13] =
    [-7.0, -6.0, -5.0, -4.0, -3.5, -3.0, -2.5, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5];

/// A matrix and what was tried on it.
#[derive(Debug)]
pub(super) struct Measured {
    /// Still without the choices.
    pub(super) stats: StatsTensor,
    pub(super) weights: u64,
    /// At each of [`CURVE_EXPONENTS`].
    pub(super) curve: Vec<Tally>,
    /// At each choice; nothing at those that are a place on the curve.
    pub(super) fixed: Vec<Tally>,
}

/// What a point of the curve is called.
pub(super) fn step_name(exponent: f64) -> String {
    format!("step {:.4} rms", exponent.exp2())
}

/// Tries `choices` and the curve on a sample of `matrix`, which was read from `tensor`.
pub(super) fn measure(
    name: &str,
    tensor: &Tensor,
    matrix: &Matrix,
    layout: Option<Layout>,
    choices: &[(String, Target)],
) -> Result<Measured> {
    check_finite(&matrix.weights, matrix.shape[1], name)?;
    let rms = root_mean_square(&matrix.weights);
    let grid = GridSample::new(name, matrix, layout);
    let curve: Vec<Tally> = CURVE_EXPONENTS
        .iter()
        .map(|exponent| grid.tally(StepRule::Step((rms * exponent.exp2()) as f32)))
        .collect::<Result<_>>()?;
    let fixed = choices.iter().map(|(_, target)| match target {
        Target::Lossless => exact_tally(name, tensor),
        Target::Int8 => grid.tally(StepRule::RowAbsmax),
        Target::Bits(_) => Ok(Tally::default()),
    });
    let points = CURVE_EXPONENTS.iter().zip(&curve);
    Ok(Measured {
        stats: StatsTensor {
            tensor_path: name.to_owned(),
            shape: matrix.shape,
            dtype: format!("{:?}", matrix.dtype),
            rms,
            absmax: f64::from(matrix.weights.iter().fold(0f32, |most, weight| most.max(weight.abs()))),
            choices: Vec::new(),
            curve: points.map(|(exponent, tally)| tally.point(&step_name(*exponent))).collect(),
        },
        weights: matrix.weights.len() as u64,
        fixed: fixed.collect::<Result<_>>()?,
        curve,
    })
}

/// A sample to be put on grids.
struct GridSample<'a> {
    name: &'a str,
    sample: Matrix,
    whole: [usize; 2],
    /// `None`: whichever suits.
    layout: Option<Layout>,
}

impl<'a> GridSample<'a> {
    fn new(name: &'a str, matrix: &Matrix, layout: Option<Layout>) -> Self {
        Self { name, sample: matrix.sample(SAMPLE_WEIGHTS), whole: matrix.shape, layout }
    }

    fn tally(&self, rule: StepRule) -> Result<Tally> {
        let Self { name, sample, whole, layout } = self;
        let quantized = rule.quantize(sample, name)?;
        let options = options_for(name, *whole, layout.unwrap_or(Layout::Fast));
        let coded = match layout {
            Some(_) => CompressedTensor::encode(name, sample, &quantized, options)?,
            None => {
                let quantized = &quantized;
                let unsettled =
                    Unsettled { tensor_path: name, matrix: sample, quantized, whole: *whole, options };
                unsettled.settle()?.compressed
            }
        };
        Tally::of_sample(&coded, whole[0] * whole[1])
    }
}

/// A sample of the tensor bit for bit, or the whole of it as it is where it is stored so.
fn exact_tally(name: &str, tensor: &Tensor) -> Result<Tally> {
    let weights = tensor.numel();
    let Ok(matrix) = ExactMatrix::of(name, tensor)? else {
        return Ok(Tally::as_it_is(weights, 32.0));
    };
    let options = options_for(name, matrix.shape, matrix.layout);
    let coded = CompressedTensor::encode_exact(name, &matrix.sample(SAMPLE_WEIGHTS), options)?;
    if coded.stats().compressed_bytes >= coded.stats().original_bytes {
        return Ok(Tally::as_it_is(weights, 8.0 * matrix.dtype.bytes() as f64));
    }
    Tally::of_sample(&coded, weights)
}

/// With the tiles of the whole matrix: the sample alone would be cut in another way.
fn options_for(name: &str, [rows, cols]: [usize; 2], layout: Layout) -> EncodeOptions {
    let row_access = name == EMBEDDING;
    let tile = Some(TileShape::choose(rows, cols, layout, row_access));
    EncodeOptions { layout, row_access, allow_left: true, tile }
}
