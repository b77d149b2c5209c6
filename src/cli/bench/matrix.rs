//! Encode, decode and forward of one matrix, with the dense matmul beside it.

use std::time::Duration;

use codecllm::codec::{
    decode_grid, encode, solve_exponent, Buffers, CompressedTensor, DecodeTables, EncodeOptions, Fragments,
    Level, Matrix, RateSample, StepRule, TileDecoder, TileSink,
};
use codecllm::tile::Group;
use codecllm::{Error, Result};
use rayon::prelude::*;
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use super::layers::{copies_of, crossover, ForwardTime, Layers};
use super::timing::{measure, Timing};
use super::{level_name, torch_error};

/// What to measure, and for how long.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Bits a weight, or INT8 by rows.
    pub(super) bits: Option<f64>,
    pub(super) options: EncodeOptions,
    pub(super) batches: Vec<usize>,
    /// Dtype of the activations of the compressed layers.
    pub(super) kind: Kind,
    pub(super) threads: usize,
    /// Time for each figure.
    pub(super) budget: Duration,
}

/// All figures of one matrix.
#[derive(Clone, Debug, Serialize)]
pub(super) struct MatrixReport {
    /// `[out_features, in_features]`.
    pub(super) shape: [usize; 2],
    pub(super) bits_per_weight: f64,
    pub(super) grid_entropy_bits: Option<f64>,
    pub(super) encode: Vec<CodingTime>,
    pub(super) decode: Vec<CodingTime>,
    pub(super) forward: Vec<ForwardTime>,
    /// The smallest batch timed at which scratch beats fused.
    pub(super) scratch_wins_at: Option<usize>,
}

/// Time to encode or decode the matrix.
#[derive(Clone, Debug, Serialize)]
pub(super) struct CodingTime {
    /// What it is made from, or into: `grid`, `fragments` (what the fused kernels multiply).
    pub(super) what: &'static str,
    pub(super) level: String,
    pub(super) threads: usize,
    #[serde(flatten)]
    pub(super) timing: Timing,
    pub(super) gweights_per_second: f64,
    /// Bytes of the matrix in FP16.
    pub(super) fp16_mb_per_second: f64,
}

/// A Gaussian matrix `[out_features, in_features]` in FP16, the same every time.
pub(super) fn gaussian([rows, cols]: [usize; 2]) -> Result<Tensor> {
    tch::manual_seed(0x5EED);
    let size = [rows as i64, cols as i64];
    Tensor::f_randn(size, (Kind::Float, Device::Cpu))
        .and_then(|t| t.f_mul_scalar(0.02))
        .and_then(|t| t.f_to_kind(Kind::Half))
        .map_err(torch_error("--shape"))
}

/// Times everything about `weight`.
pub(super) fn bench_matrix(
    path: &str,
    weight: &Tensor,
    plan: &Plan,
    progress: &mut dyn FnMut(&str),
) -> Result<MatrixReport> {
    let matrix = Matrix::of(path, weight)?;
    let rule = step_rule(path, &matrix, plan)?;
    let compressed = compress_checked(path, &matrix, rule, plan.options)?;
    progress("encode");
    let encode = time_encode(path, &matrix, rule, plan)?;
    progress("decode");
    let decode = time_decode(path, compressed.buffers(), plan)?;
    let layers = Layers::new(std::slice::from_ref(&compressed), vec![weight.shallow_clone()])?;
    let forward = layers.time(plan, progress)?;
    let stats = compressed.stats();
    Ok(MatrixReport {
        shape: matrix.shape,
        bits_per_weight: stats.bits_per_weight,
        grid_entropy_bits: stats.grid_entropy_bits,
        encode,
        decode,
        scratch_wins_at: crossover(&forward),
        forward,
    })
}

/// INT8 by rows, or the step that gives this matrix its bits.
pub(super) fn step_rule(path: &str, matrix: &Matrix, plan: &Plan) -> Result<StepRule> {
    let Some(bits) = plan.bits else { return Ok(StepRule::RowAbsmax) };
    let sample = RateSample::new(path, matrix, plan.options)?;
    let exponent = solve_exponent(std::slice::from_ref(&sample), 0, sample.weights(), bits)?;
    Ok(StepRule::Step(sample.step(exponent)))
}

/// Quantizes and encodes; a figure of a wrong result is worth nothing, so the result is decoded and compared.
pub(super) fn compress_checked(
    path: &str,
    matrix: &Matrix,
    rule: StepRule,
    options: EncodeOptions,
) -> Result<CompressedTensor> {
    let quantized = rule.quantize(matrix, path)?;
    let compressed = CompressedTensor::encode(path, matrix, &quantized, options)?;
    if decode_grid(&compressed.buffers().view(path)?, None)? != quantized.values {
        return Err(Error::corrupt(path, "does not decode to the grid that was encoded"));
    }
    Ok(compressed)
}

fn time_encode(path: &str, matrix: &Matrix, rule: StepRule, plan: &Plan) -> Result<Vec<CodingTime>> {
    let quantized = rule.quantize(matrix, path)?;
    let mut times = Vec::new();
    for threads in thread_counts(plan.threads) {
        let timing = in_pool(threads, || {
            measure(plan.budget, || {
                encode(path, &quantized.values, matrix.shape, &quantized.scales, matrix.dtype, plan.options)
                    .map(|_| ())
            })
        })?;
        times.push(coding_time("grid", "-".into(), threads, timing, matrix.weights.len()));
    }
    Ok(times)
}

fn time_decode(path: &str, buffers: &Buffers, plan: &Plan) -> Result<Vec<CodingTime>> {
    let weights = buffers.view(path)?.header.grid.rows() * buffers.view(path)?.header.grid.cols();
    let copies = vec![buffers.clone(); copies_of(buffers.total_bytes())];
    let views = copies.iter().map(|copy| copy.view(path)).collect::<Result<Vec<_>>>()?;
    let tables = DecodeTables::new(&views[0])?;
    let mut times = Vec::new();
    for level in Level::available() {
        for threads in thread_counts(plan.threads) {
            let timing = in_pool(threads, || {
                measure(plan.budget, || {
                    views.iter().try_for_each(|view| decode_fragments(view, &tables, level))
                })
            })?;
            times.push(coding_time(
                "fragments",
                level_name(level),
                threads,
                timing.per(copies.len()),
                weights,
            ));
        }
    }
    let timing = in_pool(plan.threads, || {
        let decode = |view| decode_grid(view, None).map(|values| drop(std::hint::black_box(values)));
        measure(plan.budget, || views.iter().try_for_each(decode))
    })?;
    let timing = timing.per(copies.len());
    times.push(coding_time("grid", level_name(Level::detect()), plan.threads, timing, weights));
    Ok(times)
}

/// Decodes all tiles and throws them away, on the threads of the current pool.
fn decode_fragments(view: &codecllm::codec::View, tables: &DecodeTables, level: Level) -> Result<()> {
    struct Discard(u32);
    impl TileSink for Discard {
        fn group(&mut self, _: &Group, fragments: &Fragments) {
            self.0 ^= fragments.0[0][0];
        }
        fn escape(&mut self, _: usize, _: usize, value: i16) -> bool {
            self.0 ^= value as u32;
            true
        }
    }
    let lacking = || Error::unsupported(view.subject(), format!("this processor has no {level:?}"));
    let tiles = view.header.grid.tile_count();
    (0..tiles).into_par_iter().with_min_len(8).try_for_each_init(
        || (TileDecoder::with_level(level), Discard(0)),
        |(decoder, sink), index| {
            let decoder = decoder.as_mut().ok_or_else(lacking)?;
            decoder.decode(view, tables, index, sink)?;
            std::hint::black_box(sink.0);
            Ok(())
        },
    )
}

fn coding_time(
    what: &'static str,
    level: String,
    threads: usize,
    timing: Timing,
    weights: usize,
) -> CodingTime {
    CodingTime {
        what,
        level,
        threads,
        timing,
        gweights_per_second: timing.rate(weights) / 1e9,
        fp16_mb_per_second: timing.rate(2 * weights) / 1e6,
    }
}

/// One and all, or only one where that is all.
fn thread_counts(threads: usize) -> Vec<usize> {
    if threads > 1 {
        vec![1, threads]
    } else {
        vec![1]
    }
}

/// Runs `work` with `threads` of rayon's threads.
fn in_pool<T: Send>(threads: usize, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|e| Error::invalid("--threads", format!("{threads}: {e}")))?
        .install(work)
}
