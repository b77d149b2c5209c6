//! Compressed layers on a GPU against the CPU reference. Every test skips, with a message, where there is no GPU.
//!
//! Tests that watch the device's memory want the others to be still: run the binary with `--test-threads=1`.

use codecllm::codec::{
    CompressedTensor, EncodeOptions, Layout, Predictor, StepRule, TileShape, BUFFER_NAMES,
};
use codecllm::cuda::PeakMemory;
use codecllm::nn::{CompressedEmbedding, CompressedLinear, Linear, MergedLinear};
use codecllm::tile::STRIPE_ROWS;
use codecllm::ErrorKind;
use tch::nn::VarStore;
use tch::{nn, Device, Kind, Tensor};

pub(super) const CUDA: Device = Device::Cuda(0);
pub(super) const KINDS: [Kind; 3] = [Kind::Float, Kind::Half, Kind::BFloat16];
const LAYOUTS: [Layout; 2] = [Layout::Fast, Layout::Small];

/// What each stresses: one weight; one ragged stripe; ragged columns; ragged in both directions and several tiles; several
/// stripes a tile; one whole group; a tall tile of narrow stripes; lanes that are whole in a cut group; bands of several
/// tiles; bands of several tiles of several stripes.
const SHAPES: [[i64; 2]; 12] = [
    [1, 1],
    [5, 1000],
    [77, 300],
    [333, 577],
    [300, 300],
    [16, 64],
    [1000, 48],
    [2000, 7],
    [64, 2080],
    [48, 3000],
    [100, 1100],
    [160, 4096],
];

/// From 2.5 to 8.5 bits for weights of standard deviation 1.
const STEPS: [f32; 5] = [0.73, 0.36, 0.1, 0.03, 0.0114];

pub(super) fn no_gpu() -> bool {
    match codecllm::cuda::load() {
        Ok(()) => false,
        Err(error) => {
            println!("SKIPPED: {error}");
            true
        }
    }
}

macro_rules! need_gpu {
    () => {
        if crate::ops::no_gpu() {
            return;
        }
    };
}
pub(super) use need_gpu;

pub(super) fn random(shape: &[i64], seed: i64) -> Tensor {
    tch::manual_seed(seed);
    Tensor::randn(shape, (Kind::Float, Device::Cpu))
}

pub(super) fn heavy_tailed(shape: &[i64], seed: i64) -> Tensor {
    let normal = random(shape, seed);
    normal.shallow_clone() * (normal.abs() - 2.3).relu().exp().square()
}

/// Rows that rise slowly: differences are smaller than values.
fn smooth(shape: &[i64]) -> Tensor {
    let [rows, cols] = *shape else { panic!("a matrix is wanted") };
    let down = Tensor::arange(rows, (Kind::Float, Device::Cpu)).view([rows, 1]);
    let across = Tensor::arange(cols, (Kind::Float, Device::Cpu)).view([1, cols]);
    ((down * 0.37 + across * 0.11).sin() * 30.0) + random(shape, 1) * 0.1
}

fn compress_by(weight: &Tensor, layout: Layout, rule: StepRule) -> CompressedTensor {
    let options = EncodeOptions { layout, ..EncodeOptions::default() };
    CompressedTensor::compress("layer.weight", weight, rule, options).unwrap()
}

fn compress(weight: &Tensor, layout: Layout, step: f32) -> CompressedTensor {
    compress_by(weight, layout, StepRule::Step(step))
}

pub(super) fn linear(compressed: &CompressedTensor, bias: Option<&Tensor>) -> (VarStore, CompressedLinear) {
    let vs = VarStore::new(CUDA);
    let linear = CompressedLinear::new(&(vs.root() / "layer"), compressed, bias).unwrap();
    (vs, linear)
}

/// The elements as integers: equal only if they are the same bits.
fn bits(tensor: &Tensor) -> Tensor {
    let integers = if tensor.kind() == Kind::Float { Kind::Int } else { Kind::Int16 };
    tensor.to_device(Device::Cpu).contiguous().view_dtype(integers)
}

#[track_caller]
pub(super) fn assert_same_bits(got: &Tensor, want: &Tensor, what: &str) {
    assert_eq!(got.size(), want.size(), "{what}");
    let different = bits(got).ne_tensor(&bits(want)).nonzero();
    let count = different.size()[0];
    assert_eq!(count, 0, "{what}: the first of {count} is at {:?}", Vec::<i64>::try_from(different.get(0)));
}

/// Linears of one input as one, fused whatever the number of rows.
pub(super) fn merged(parts: &[&CompressedTensor]) -> (VarStore, MergedLinear) {
    let vs = VarStore::new(CUDA);
    let linear = |(index, part): (usize, &&CompressedTensor)| {
        Linear::Compressed(CompressedLinear::new(&(vs.root() / index), part, None).unwrap())
    };
    let linears: Vec<Linear> = parts.iter().enumerate().map(linear).collect();
    let merged = MergedLinear::new(&linears.iter().collect::<Vec<_>>()).unwrap();
    merged.set_fused_rows(usize::MAX);
    (vs, merged)
}

pub(super) fn poisoned(shape: &[i64], kind: Kind) -> Tensor {
    Tensor::full(shape, f64::NAN, (kind, CUDA))
}

fn check_decode(compressed: &CompressedTensor, what: &str) {
    let (_vs, linear) = linear(compressed, None);
    let dense = compressed.decompress().unwrap();
    for kind in KINDS {
        let out = poisoned(&dense.size(), kind);
        linear.decode_into(&out).unwrap();
        assert_same_bits(&out, &dense.to_kind(kind), &format!("{what} {kind:?}"));
    }
}

#[test]
fn decoding_is_the_cpus_bit_for_bit_in_every_shape_and_layout() {
    need_gpu!();
    for shape in SHAPES {
        for layout in LAYOUTS {
            for step in STEPS {
                let weight = random(&shape, shape[0] + shape[1]);
                check_decode(&compress(&weight, layout, step), &format!("{shape:?} {layout:?} step {step}"));
            }
            let int8 = compress_by(&random(&shape, 2), layout, StepRule::RowAbsmax);
            check_decode(&int8, &format!("{shape:?} {layout:?} int8"));
        }
    }
}

#[test]
fn escapes_differences_and_tiles_without_symbols_are_decoded() {
    need_gpu!();
    for shape in SHAPES {
        for layout in LAYOUTS {
            let what = |kind: &str| format!("{shape:?} {layout:?} {kind}");
            check_decode(&compress(&heavy_tailed(&shape, 3), layout, 0.3), &what("narrow escapes"));
            let wide = heavy_tailed(&shape, 4) * 200.0;
            check_decode(&compress(&wide, layout, 0.5), &what("wide escapes"));
            check_decode(&compress(&smooth(&shape), layout, 0.05), &what("differences"));
            check_decode(&compress(&smooth(&shape), layout, 0.002), &what("escaped differences"));
            check_decode(
                &compress(&Tensor::zeros(shape, (Kind::Float, Device::Cpu)), layout, 1.0),
                &what("zeros"),
            );
            let even = Tensor::rand(shape, (Kind::Float, Device::Cpu)) * 60.0 - 30.0;
            check_decode(&compress(&even, layout, 1.0), &what("even"));
        }
    }
}

#[test]
fn scales_outside_the_range_of_fp16_are_decoded() {
    let mut cases = Vec::new();
    // In FP16 the rows of the first are 600 bytes apart, which can't be stored 16 bytes at a time, those of the others 640 and
    // 656, which can; the last ends within a group.
    for shape in [[77, 300], [80, 320], [77, 328]] {
        for layout in LAYOUTS {
            let case = |factor: f64, step: f64| {
                let compressed = compress(&(random(&shape, 5) * factor), layout, (step * factor) as f32);
                (format!("{shape:?} {layout:?} factor {factor} step {step}"), compressed)
            };
            cases.extend([1e-30, 1e-8, 1e-4, 60.0, 1e4, 1e30].map(|factor| case(factor, 0.1)));
            // Products of many units in the last place of a scale that has few bits left in FP16.
            cases.push(case(3e-7, 0.01));
        }
    }
    cases.iter().for_each(|(what, compressed)| assert_plain_symbols(compressed, what));
    need_gpu!();
    cases.iter().for_each(|(what, compressed)| check_decode(compressed, what));
}

/// Only tiles like these are decoded whole groups at a time.
#[track_caller]
fn assert_plain_symbols(compressed: &CompressedTensor, what: &str) {
    let view = compressed.buffers().view("w").unwrap();
    for index in 0..view.header.grid.tile_count() {
        let header = view.tile_header(index).unwrap();
        assert!(header.has_symbols() && header.predictor == Predictor::None, "{what}: {header:?}");
    }
}

/// Whether FP16 holds the scale, or else decoding to it must take another way.
fn is_easy(scale: f32) -> bool {
    scale == 0.0 || (2f32.powi(-24)..32.0).contains(&scale.abs())
}

#[test]
fn one_hard_scale_makes_its_stripe_hard_and_no_other() {
    const HARD: [(i64, f64); 4] = [(5, 1e4), (40, 1e-8), (41, 1e4), (90, 1e4)];
    let weight = random(&[96, 328], 6);
    for (row, factor) in HARD {
        let _ = weight.narrow(0, row, 1).g_mul_scalar_(factor);
    }
    let cases = LAYOUTS.map(|layout| (layout, compress_by(&weight, layout, StepRule::RowAbsmax)));
    for (layout, compressed) in &cases {
        assert_plain_symbols(compressed, &format!("{layout:?}"));
        let view = compressed.buffers().view("w").unwrap();
        // The first tile has hard stripes before and behind an easy one.
        assert!(view.header.grid.tile_rows() >= 3 * STRIPE_ROWS, "{layout:?}");
        let hard: Vec<usize> = (0..)
            .zip(view.scales().unwrap())
            .filter(|(_, scale)| !is_easy(*scale))
            .map(|(row, _)| row)
            .collect();
        assert_eq!(hard, [5, 40, 41, 90], "{layout:?}");
    }
    need_gpu!();
    for (layout, compressed) in &cases {
        check_decode(compressed, &format!("{layout:?}"));
    }
}

/// The product in FP64, from what the rounding of the weights left.
pub(super) fn product(compressed: &CompressedTensor, x: &Tensor, bias: Option<&Tensor>) -> Tensor {
    let dense = compressed.decompress().unwrap().to_kind(Kind::Double);
    let y = x.to_device(Device::Cpu).to_kind(Kind::Double).matmul(&dense.tr());
    bias.map_or(y.shallow_clone(), |bias| y + bias.to_kind(Kind::Double))
}

/// Largest difference in a row relative to the row's largest value, over all rows.
pub(super) fn row_error(got: &Tensor, want: &Tensor) -> f64 {
    let (got, want) = (got.to_device(Device::Cpu).to_kind(Kind::Double), want.to_kind(Kind::Double));
    let most = |tensor: Tensor| tensor.abs().amax([-1i64].as_slice(), true);
    (most(&got - &want) / most(want)).max().double_value(&[])
}

/// Half a unit in the last place of the dtype, and the sum's own error, which the rounding of the weights in scratch leads.
pub(super) fn tolerance(kind: Kind) -> f64 {
    match kind {
        Kind::BFloat16 => 1e-2,
        Kind::Half => 1.5e-3,
        _ => 1e-5,
    }
}

#[test]
fn fused_is_the_product_for_every_batch_and_dtype() {
    need_gpu!();
    for shape in [[333, 577], [16, 64], [5, 1000], [64, 2080], [1000, 48], [300, 4096]] {
        for layout in LAYOUTS {
            let compressed = compress(&random(&shape, 6), layout, 0.1);
            let bias = random(&[shape[0]], 7);
            let (_vs, linear) = linear(&compressed, Some(&bias));
            linear.set_fused_rows(usize::MAX);
            for kind in KINDS {
                for batch in [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 130] {
                    let x = random(&[batch, shape[1]], batch).to_kind(kind);
                    let want = product(&compressed, &x, Some(&bias));
                    let on_device = x.to_device(CUDA);
                    let got = linear.try_forward(&on_device).unwrap();
                    assert_eq!((got.kind(), got.device()), (kind, CUDA));
                    let error = row_error(&got, &want);
                    let fused = linear.is_fused(&on_device).unwrap();
                    assert!(
                        error < tolerance(kind),
                        "{shape:?} {layout:?} {kind:?} {batch} fused {fused}: {error}"
                    );
                }
            }
        }
    }
}

#[test]
fn what_the_kernel_takes_is_fused() {
    need_gpu!();
    for shape in [[333, 577], [16, 64], [5, 1000], [64, 2080], [1000, 48], [300, 4096]] {
        let (_vs, linear) = linear(&compress(&random(&shape, 6), Layout::Fast, 0.1), None);
        linear.set_fused_rows(usize::MAX);
        for batch in [1, 16, 64, 200] {
            assert!(linear.is_fused(&poisoned(&[batch, shape[1]], Kind::Half)).unwrap(), "{shape:?} {batch}");
        }
        linear.set_fused_rows(0);
        assert!(!linear.is_fused(&poisoned(&[1, shape[1]], Kind::Half)).unwrap());
    }
}

#[test]
fn escapes_and_differences_count_in_both_paths() {
    need_gpu!();
    for shape in [[96, 200], [333, 577], [32, 4096]] {
        for (weight, step) in [
            (heavy_tailed(&shape, 8), 0.3),
            (heavy_tailed(&shape, 9) * 200.0, 0.5),
            (smooth(&shape), 0.05),
            (smooth(&shape), 0.002),
        ] {
            for layout in LAYOUTS {
                let compressed = compress(&weight, layout, step);
                let (_vs, linear) = linear(&compressed, None);
                for batch in [1, 5, 40] {
                    let x = random(&[batch, shape[1]], batch);
                    let want = product(&compressed, &x, None);
                    for fused_rows in [0, usize::MAX] {
                        linear.set_fused_rows(fused_rows);
                        let error = row_error(&linear.try_forward(&x.to_device(CUDA)).unwrap(), &want);
                        assert!(error < 3e-5, "{shape:?} {layout:?} {batch} {fused_rows}: {error}");
                    }
                }
            }
        }
    }
}

#[test]
fn escapes_of_tiles_without_symbols_count() {
    need_gpu!();
    for shape in [[20, 70], [16, 64], [64, 128]] {
        // Even magnitudes, which a table can't shorten, and some beyond the raw bits.
        tch::manual_seed(41);
        let even = Tensor::rand(shape, (Kind::Float, Device::Cpu)) * 2040.0 - 1020.0;
        let mut weights: Vec<f32> = Vec::try_from(even.view([-1])).unwrap();
        weights.iter_mut().step_by(53).for_each(|weight| *weight *= 20.0);
        let weight = Tensor::from_slice(&weights).view(shape);
        let options = EncodeOptions { allow_left: false, ..EncodeOptions::default() };
        let compressed = CompressedTensor::compress("w", &weight, StepRule::Step(1.0), options).unwrap();
        let header = compressed.buffers().view("w").unwrap().tile_header(0).unwrap();
        assert!(!header.has_symbols() && header.escapes > 0, "{shape:?} {header:?}");
        check_decode(&compressed, &format!("{shape:?}"));
        let (_vs, linear) = linear(&compressed, None);
        linear.set_fused_rows(usize::MAX);
        let x = random(&[3, shape[1]], 41);
        let got = linear.try_forward(&x.to_device(CUDA)).unwrap();
        assert!(linear.is_fused(&x.to_device(CUDA)).unwrap());
        let error = row_error(&got, &product(&compressed, &x, None));
        assert!(error < 1.5e-3, "{shape:?}: {error}");
    }
}

#[test]
fn the_scratch_path_is_the_dense_product_bit_for_bit() {
    need_gpu!();
    for kind in KINDS {
        let compressed = compress(&random(&[200, 128], 10), Layout::Fast, 0.1);
        let (_vs, linear) = linear(&compressed, None);
        linear.set_fused_rows(0);
        let dense = compressed.decompress().unwrap().to_kind(kind).to_device(CUDA);
        for batch in [1, 3, 100] {
            let x = random(&[batch, 128], 11).to_kind(kind).to_device(CUDA);
            assert_same_bits(
                &linear.try_forward(&x).unwrap(),
                &x.matmul(&dense.tr()),
                &format!("{kind:?} {batch}"),
            );
        }
    }
}

#[test]
fn a_wide_head_goes_through_scratch_in_stripes() {
    need_gpu!();
    // 140,000 x 512 in FP16 is 143 MB: more than one scratch buffer.
    let compressed = compress(&random(&[140_000, 512], 12), Layout::Fast, 0.3);
    let bias = random(&[140_000], 13);
    let (_vs, linear) = linear(&compressed, Some(&bias));
    linear.set_fused_rows(0);
    let x = random(&[3, 512], 14).to_kind(Kind::Half);
    let error =
        row_error(&linear.try_forward(&x.to_device(CUDA)).unwrap(), &product(&compressed, &x, Some(&bias)));
    assert!(error < 2e-3, "{error}");
}

#[test]
fn a_row_is_the_same_alone_in_any_batch_and_in_every_run() {
    need_gpu!();
    for shape in [[333, 577], [96, 4096], [1000, 48]] {
        for kind in KINDS {
            let (_vs, linear) = linear(&compress(&heavy_tailed(&shape, 15), Layout::Fast, 0.2), None);
            linear.set_fused_rows(usize::MAX);
            let x = random(&[64, shape[1]], 16).to_kind(kind).to_device(CUDA);
            let all = linear.try_forward(&x).unwrap();
            for run in 0..5 {
                assert_same_bits(
                    &linear.try_forward(&x).unwrap(),
                    &all,
                    &format!("{shape:?} {kind:?} run {run}"),
                );
            }
            for batch in [1, 2, 8, 9, 16, 20, 32, 50] {
                let first = linear.try_forward(&x.narrow(0, 0, batch)).unwrap();
                assert_same_bits(
                    &first,
                    &all.narrow(0, 0, batch),
                    &format!("{shape:?} {kind:?} {batch} rows"),
                );
            }
            let last = linear.try_forward(&x.narrow(0, 63, 1)).unwrap();
            assert_same_bits(&last, &all.narrow(0, 63, 1), &format!("{shape:?} {kind:?} the last alone"));
        }
    }
}

#[test]
fn inputs_beyond_fp16_are_brought_into_its_range() {
    need_gpu!();
    let weight = random(&[100, 320], 17);
    // What the large inputs meet, so that the small ones decide the result.
    let _ = weight.narrow(1, 0, 4).zero_();
    let compressed = compress(&weight, Layout::Fast, 0.1);
    let (_vs, linear) = linear(&compressed, None);
    linear.set_fused_rows(usize::MAX);
    for kind in [Kind::Float, Kind::BFloat16] {
        for (scale, large) in [(1e30, 1e30), (1e-30, 0.0), (1e-42, 0.0), (1e-3, 1e5), (1.0, 3e4)] {
            if kind == Kind::BFloat16 && scale == 1e-42 {
                continue;
            }
            let x = random(&[5, 320], 18) * scale;
            let _ = x.narrow(1, 0, 4).fill_(large);
            let x = x.to_kind(kind);
            let want = product(&compressed, &x, None);
            let got = linear.try_forward(&x.to_device(CUDA)).unwrap();
            let error = row_error(&got, &want);
            // What FP32 itself leaves of numbers that small.
            let tolerance = if scale < 1e-40 { 5e-2 } else { tolerance(kind) };
            assert!(error < tolerance, "{kind:?} {scale} beside {large}: {error}");
        }
    }
}

#[test]
fn rows_that_are_zero_or_not_finite_stay_among_themselves() {
    need_gpu!();
    for kind in KINDS {
        let compressed = compress(&random(&[50, 128], 19), Layout::Fast, 0.1);
        let (_vs, linear) = linear(&compressed, None);
        linear.set_fused_rows(usize::MAX);
        let x = random(&[6, 128], 20).to_kind(kind).to_device(CUDA);
        let want = linear.try_forward(&x).unwrap();
        let spoiled = x.copy();
        let _ = spoiled.get(1).zero_();
        let _ = spoiled.get(2).narrow(0, 7, 1).fill_(f64::NAN);
        let _ = spoiled.get(4).narrow(0, 100, 1).fill_(f64::INFINITY);
        let got = linear.try_forward(&spoiled).unwrap();
        for row in [0, 3, 5] {
            assert_same_bits(&got.get(row), &want.get(row), &format!("{kind:?} row {row}"));
        }
        assert_eq!(got.get(1).abs().max().double_value(&[]), 0.0, "{kind:?}");
        assert!(bool::try_from(got.get(2).isnan().all()).unwrap(), "{kind:?}");
        let finite = got.get(4).isfinite().logical_and(&compressed_column(&compressed, 100));
        assert!(!bool::try_from(finite.any()).unwrap(), "{kind:?}");
    }
}

/// Where the weight's column is not zero.
fn compressed_column(compressed: &CompressedTensor, col: i64) -> Tensor {
    compressed.decompress().unwrap().select(1, col).ne(0.0).to_device(CUDA)
}

#[test]
fn any_alignment_and_stride_of_the_input_gives_the_same() {
    need_gpu!();
    for kind in KINDS {
        let (_vs, linear) = linear(&compress(&random(&[50, 192], 21), Layout::Fast, 0.1), None);
        linear.set_fused_rows(usize::MAX);
        let storage = random(&[9, 200], 22).to_kind(kind).to_device(CUDA);
        for offset in 0..8 {
            let x = storage.narrow(1, offset, 192);
            let want = linear.try_forward(&x.copy()).unwrap();
            assert_same_bits(&linear.try_forward(&x).unwrap(), &want, &format!("{kind:?} offset {offset}"));
            let across = x.copy().tr().contiguous().tr();
            assert_same_bits(&linear.try_forward(&across).unwrap(), &want, &format!("{kind:?} by columns"));
        }
    }
}

#[test]
fn leading_dimensions_and_empty_inputs_keep_their_shape() {
    need_gpu!();
    let (_vs, linear) = linear(&compress(&random(&[50, 192], 23), Layout::Fast, 0.1), None);
    let x = random(&[2, 3, 192], 24).to_device(CUDA);
    assert_eq!(linear.try_forward(&x).unwrap().size(), [2, 3, 50]);
    assert_eq!(linear.try_forward(&x.get(0).get(0)).unwrap().size(), [50]);
    let empty = linear.try_forward(&x.narrow(0, 0, 0)).unwrap();
    assert_eq!((empty.size(), empty.device()), (vec![0, 3, 50], CUDA));
}

#[test]
fn a_batch_in_doubt_is_measured_and_right() {
    need_gpu!();
    let compressed = compress(&random(&[512, 1024], 25), Layout::Fast, 0.1);
    let (_vs, linear) = linear(&compressed, None);
    for batch in [9, 16, 17, 33, 64, 65, 300] {
        let x = random(&[batch, 1024], batch).to_kind(Kind::Half);
        let on_device = x.to_device(CUDA);
        let got = linear.try_forward(&on_device).unwrap();
        assert!(row_error(&got, &product(&compressed, &x, None)) < 2e-3);
        assert_same_bits(&linear.try_forward(&on_device).unwrap(), &got, &format!("{batch} rows again"));
    }
}

fn embedding(
    weight: &Tensor,
    layout: Layout,
    step: f32,
    row_access: bool,
    kind: Kind,
) -> (VarStore, CompressedEmbedding, Tensor) {
    let options = EncodeOptions { layout, row_access, ..EncodeOptions::default() };
    let compressed =
        CompressedTensor::compress("embed.weight", weight, StepRule::Step(step), options).unwrap();
    let vs = VarStore::new(CUDA);
    let embedding = CompressedEmbedding::new(&(vs.root() / "embed"), &compressed, kind).unwrap();
    (vs, embedding, compressed.decompress().unwrap().to_kind(kind))
}

#[test]
fn looked_up_rows_are_those_of_the_decompressed_table() {
    need_gpu!();
    for shape in [[333, 577], [1000, 48], [300, 300], [50, 4096], [1, 1]] {
        for (weight, step) in
            [(heavy_tailed(&shape, 26), 0.2), (smooth(&shape), 0.05), (smooth(&shape), 0.002)]
        {
            for (layout, row_access) in [(Layout::Fast, true), (Layout::Fast, false), (Layout::Small, false)]
            {
                for kind in KINDS {
                    let (_vs, embedding, table) = embedding(&weight, layout, step, row_access, kind);
                    let ids: Vec<i64> = (0..77).map(|n| n * 31 % shape[0]).collect();
                    let ids = Tensor::from_slice(&ids).view([7, 11]);
                    let got = embedding.try_forward(&ids.to_device(CUDA)).unwrap();
                    assert_eq!((got.kind(), got.size()), (kind, vec![7, 11, shape[1]]));
                    let want = table.index_select(0, &ids.view([-1])).view([7, 11, shape[1]]);
                    assert_same_bits(
                        &got,
                        &want,
                        &format!("{shape:?} {layout:?} {row_access} {kind:?} step {step}"),
                    );
                }
            }
        }
    }
}

#[test]
fn a_token_outside_the_table_gives_nan_and_nothing_else() {
    need_gpu!();
    for kind in KINDS {
        let (_vs, embedding, table) = embedding(&random(&[40, 100], 27), Layout::Fast, 0.1, true, kind);
        let got = embedding
            .try_forward(&Tensor::from_slice(&[3i64, -1, 39, 40, i64::MAX]).to_device(CUDA))
            .unwrap();
        assert_same_bits(&got.get(0), &table.get(3), "first");
        assert_same_bits(&got.get(2), &table.get(39), "third");
        for row in [1, 3, 4] {
            assert!(bool::try_from(got.get(row).isnan().all()).unwrap());
        }
    }
}

#[test]
fn the_tied_head_multiplies_by_the_same_table() {
    need_gpu!();
    let (_vs, embedding, table) = embedding(&random(&[333, 256], 28), Layout::Fast, 0.1, true, Kind::Float);
    let head = embedding.tied_head();
    let x = random(&[4, 256], 29);
    let want = x.to_kind(Kind::Double).matmul(&table.to_kind(Kind::Double).tr());
    for fused_rows in [0, usize::MAX] {
        head.set_fused_rows(fused_rows);
        assert!(row_error(&head.try_forward(&x.to_device(CUDA)).unwrap(), &want) < 1.5e-3);
    }
}

#[test]
fn a_store_may_move_and_change_its_dtype() {
    need_gpu!();
    let compressed = compress(&random(&[100, 300], 30), Layout::Fast, 0.1);
    let bias = random(&[100], 31);
    let mut vs = VarStore::new(Device::Cpu);
    let linear = CompressedLinear::new(&(vs.root() / "layer"), &compressed, Some(&bias)).unwrap();
    let x = random(&[3, 300], 32);
    let on_cpu = linear.try_forward(&x).unwrap();
    let mut on_cuda: Option<Tensor> = None;
    for round in 0..2 {
        vs.set_device(CUDA);
        for change in [VarStore::half, VarStore::bfloat16, VarStore::float] {
            let got = linear.try_forward(&x.to_device(CUDA)).unwrap();
            assert!(row_error(&got, &on_cpu) < 1.5e-3);
            let first = on_cuda.get_or_insert_with(|| got.copy());
            assert_same_bits(&got, first, &format!("round {round}"));
            change(&mut vs);
        }
        vs.set_kind(Kind::Half);
        assert_same_bits(
            &linear.try_forward(&x.to_device(CUDA)).unwrap(),
            on_cuda.as_ref().unwrap(),
            "set_kind",
        );
        assert_eq!(linear.try_forward(&x).unwrap_err().kind(), ErrorKind::InvalidArgument);
        vs.set_device(Device::Cpu);
        assert_eq!(linear.try_forward(&x).unwrap(), on_cpu);
        assert_eq!(linear.try_forward(&x.to_device(CUDA)).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
}

#[test]
fn a_payload_damaged_on_the_device_is_an_error() {
    need_gpu!();
    let (vs, linear) = linear(&compress(&random(&[100, 300], 33), Layout::Fast, 0.1), None);
    let x = random(&[1, 300], 34).to_device(CUDA);
    let want = linear.try_forward(&x).unwrap();
    for name in BUFFER_NAMES {
        let buffer = vs.variables().remove(&format!("layer.weight.{name}")).unwrap();
        for at in [0, buffer.numel() as i64 / 2, buffer.numel() as i64 - 1] {
            let mut byte = buffer.narrow(0, at, 1);
            let was = byte.copy();
            let _ = byte.bitwise_xor_(1);
            let error = linear.try_forward(&x).unwrap_err();
            assert!(
                matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Truncated | ErrorKind::Unsupported),
                "{error}"
            );
            byte.copy_(&was);
            assert_same_bits(&linear.try_forward(&x).unwrap(), &want, &format!("{name} at {at}, mended"));
        }
    }
}

/// Damage that comes after the check, behind the module's back: whatever comes out, nothing may be read or written outside the
/// buffers, which `compute-sanitizer` sees, and nothing may hang.
#[test]
fn damage_that_nobody_checks_stays_inside_the_buffers() {
    need_gpu!();
    // Bands of one tile, bands whose tiles meet, and two bands a block whose tiles take turns.
    let shapes = [
        ([100, 300], Layout::Fast),
        ([64, 2080], Layout::Fast),
        ([2400, 1200], Layout::Fast),
        ([100, 300], Layout::Small),
    ];
    for (shape, layout) in shapes {
        let compressed = compress(&heavy_tailed(&shape, 42), layout, 0.2);
        let (vs, linear) = linear(&compressed, None);
        let table = VarStore::new(CUDA);
        let embedding = CompressedEmbedding::new(&(table.root() / "embed"), &compressed, Kind::Half).unwrap();
        let ids = Tensor::arange(shape[0], (Kind::Int64, CUDA));
        let x = random(&[20, shape[1]], 43).to_device(CUDA);
        linear.set_fused_rows(usize::MAX);
        let want = linear.try_forward(&x).unwrap();
        for name in ["tiles", "payload"] {
            let stores = [(&vs, "layer.weight"), (&table, "embed.weight")];
            // A tensor of `data` has the same memory and a version of its own.
            let buffers =
                stores.map(|(vs, path)| vs.variables().remove(&format!("{path}.{name}")).unwrap().data());
            let whole = buffers[0].copy();
            for round in 0..30 {
                tch::manual_seed(round);
                let noise = Tensor::randint(256, [whole.numel() as i64], (Kind::Uint8, Device::Cpu));
                let hit = Tensor::rand([whole.numel() as i64], (Kind::Float, Device::Cpu))
                    .lt(0.5f64.powi(round as i32 % 8));
                let damaged = whole.where_self(&hit.logical_not().to_device(CUDA), &noise.to_device(CUDA));
                buffers.iter().for_each(|buffer| buffer.shallow_clone().copy_(&damaged));
                for fused_rows in [0, usize::MAX] {
                    linear.set_fused_rows(fused_rows);
                    drop(linear.try_forward(&x).unwrap());
                }
                drop(embedding.try_forward(&ids).unwrap());
                tch::Cuda::synchronize(0);
            }
            buffers.iter().for_each(|buffer| buffer.shallow_clone().copy_(&whole));
        }
        assert_same_bits(&linear.try_forward(&x).unwrap(), &want, &format!("{shape:?} {layout:?}"));
    }
}

#[test]
fn two_hundred_forwards_leave_the_memory_as_it_was() {
    need_gpu!();
    let (_vs, linear) =
        linear(&compress(&random(&[512, 1024], 35), Layout::Fast, 0.1), Some(&random(&[512], 36)));
    let inputs: Vec<Tensor> = KINDS
        .iter()
        .flat_map(|&kind| {
            [1, 20, 300].map(|batch| random(&[batch, 1024], batch).to_kind(kind).to_device(CUDA))
        })
        .collect();
    let all = || inputs.iter().for_each(|x| drop(linear.try_forward(x).unwrap()));
    all();
    all();
    tch::Cuda::synchronize(0);
    let peak = PeakMemory::start(0).unwrap();
    (0..200).for_each(|_| all());
    tch::Cuda::synchronize(0);
    assert_eq!(peak.finish(), 0);
}

#[test]
fn threads_that_share_a_stream_agree() {
    need_gpu!();
    let (_vs, linear) = linear(&compress(&random(&[333, 1000], 37), Layout::Fast, 0.1), None);
    let run = |seed: i64| -> Vec<Tensor> {
        [1, 5, 30, 100]
            .map(|batch| {
                let x = Tensor::randn([batch, 1000], (Kind::Float, Device::Cpu)).fill(seed as f64 * 0.01);
                linear.try_forward(&x.to_device(CUDA)).unwrap().to_device(Device::Cpu)
            })
            .into()
    };
    let want: Vec<Vec<Tensor>> = (0..4).map(run).collect();
    std::thread::scope(|scope| {
        for (seed, want) in (0..4).zip(want) {
            let run = &run;
            scope.spawn(move || {
                for _ in 0..20 {
                    assert_eq!(run(seed), want);
                }
            });
        }
    });
}

#[test]
fn every_gpu_computes_on_its_own() {
    need_gpu!();
    if tch::Cuda::device_count() < 2 {
        println!("SKIPPED: one GPU only");
        return;
    }
    let compressed = compress(&random(&[333, 1000], 38), Layout::Fast, 0.1);
    let x = random(&[5, 1000], 39).to_kind(Kind::Half);
    let on = |ordinal| {
        let vs = VarStore::new(Device::Cuda(ordinal));
        let linear = CompressedLinear::new(&(vs.root() / "layer"), &compressed, None).unwrap();
        let y = linear.try_forward(&x.to_device(Device::Cuda(ordinal))).unwrap();
        assert_eq!(y.device(), Device::Cuda(ordinal));
        assert!(linear.try_forward(&x.to_device(Device::Cuda(1 - ordinal))).is_err());
        y
    };
    assert_same_bits(&on(0), &on(1), "two GPUs");
}

#[test]
fn a_layer_loaded_onto_the_gpu_is_checked_first() {
    need_gpu!();
    let compressed = compress(&random(&[100, 300], 40), Layout::Fast, 0.1);
    let damaged: Vec<Tensor> =
        compressed.buffers().iter().map(|(_, bytes)| Tensor::from_slice(bytes)).collect();
    let _ = damaged[4].narrow(0, 100, 1).bitwise_xor_(1);
    let vs = VarStore::new(CUDA);
    let path: nn::Path = vs.root() / "layer";
    let error = CompressedLinear::from_tensors(&path, damaged.try_into().unwrap(), None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(vs.variables().is_empty());
}

/// Weights of 16 x 1024 columns, cut into tiles of these widths.
fn cut(rows: i64, tile_cols: usize, seed: i64) -> CompressedTensor {
    let tile = Some(TileShape { rows: STRIPE_ROWS, cols: tile_cols });
    let options = EncodeOptions { tile, allow_left: false, ..EncodeOptions::default() };
    CompressedTensor::compress("w", &random(&[rows, 1024], seed), StepRule::Step(0.1), options).unwrap()
}

#[test]
fn weights_in_tiles_of_different_widths_share_a_launch() {
    need_gpu!();
    // So many bands that each block has more of either than it has slots for.
    let (wide, narrow) = (cut(30_000, 1024, 51), cut(20_000, 128, 52));
    for parts in [[&wide, &narrow], [&narrow, &wide]] {
        let (_vs, merged) = merged(&parts);
        for batch in [1, 12, 24, 64] {
            let x = random(&[batch, 1024], batch);
            let y = poisoned(&[batch, 50_000], Kind::Float);
            merged.forward_into(&x.to_device(CUDA), &y).unwrap();
            let want = Tensor::cat(&parts.map(|part| product(part, &x, None)), 1);
            let error = row_error(&y, &want);
            assert!(error < 3e-5, "{batch} rows: {error}");
        }
    }
}
