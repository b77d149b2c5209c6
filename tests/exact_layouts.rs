//! The exact layouts keep every bit of every weight, on every level and path, and refuse what breaks their rules.

mod damage;

use codecllm::codec::{
    decode_bits, decode_bits_reference, decode_grid, encode, encode_exact, Buffers, CompressedTensor,
    EncodeOptions, Layout, Level, SourceDtype,
};
use codecllm::nn::{CompressedEmbedding, CompressedLinear};
use codecllm::{ErrorKind, Result};
use half::{bf16, f16};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tch::{nn::VarStore, Device, Kind, Tensor};
use xxhash_rust::xxh3::xxh3_64;

use self::damage::damaged;

const EXACT: [(Layout, SourceDtype); 2] =
    [(Layout::ExactBf16, SourceDtype::BF16), (Layout::ExactFp16, SourceDtype::F16)];

fn options(layout: Layout) -> EncodeOptions {
    EncodeOptions { layout, ..EncodeOptions::default() }
}

fn bell(rng: &mut StdRng) -> f32 {
    (0..4).map(|_| rng.random_range(-1.0f32..1.0)).sum()
}

fn bits_of(layout: Layout, weight: f32) -> u16 {
    match layout {
        Layout::ExactBf16 => bf16::from_f32(weight).to_bits(),
        _ => f16::from_f32(weight).to_bits(),
    }
}

/// Weights of a bell, every 13th of which is the next of all 65,536 patterns, in an order that mixes them.
fn weights_with_every_pattern(layout: Layout, count: usize) -> Vec<u16> {
    let mut rng = StdRng::seed_from_u64(1);
    (0..count)
        .map(|n| match n % 13 {
            0 => (n as u32 / 13).wrapping_mul(0x9E3B) as u16,
            _ => bits_of(layout, bell(&mut rng) * 0.02),
        })
        .collect()
}

fn check(halves: &[u16], shape: [usize; 2], dtype: SourceDtype, options: EncodeOptions) -> Buffers {
    let buffers = encode_exact("w", halves, shape, dtype, options).unwrap();
    let view = buffers.view("w").unwrap();
    view.verify_checksum().unwrap();
    assert!(decode_bits_reference(&view).unwrap() == halves, "the reference differs from the input");
    for level in Level::available() {
        assert!(decode_bits(&view, Some(level)).unwrap() == halves, "{level:?} differs from the reference");
    }
    buffers
}

#[test]
fn every_pattern_survives_in_every_shape() {
    for (layout, dtype) in EXACT {
        let only_patterns: Vec<u16> = (0..=u16::MAX).map(|n| n.wrapping_mul(0x9E3B)).collect();
        for shape in [[256, 256], [1, 65536], [65536, 1], [2048, 32], [4096, 16]] {
            check(&only_patterns, shape, dtype, options(layout));
        }
        for shape in [[1000, 852], [333, 2561], [2570, 333], [852, 1000]] {
            let halves = weights_with_every_pattern(layout, shape[0] * shape[1]);
            let buffers = check(&halves, shape, dtype, options(layout));
            // The bell among the patterns is what the tables are for.
            let view = buffers.view("w").unwrap();
            assert!(view.header.table_count > 0 && view.tile_header(0).unwrap().has_symbols());
            assert!(view.tile_header(0).unwrap().escapes > 0);
        }
    }
}

#[test]
fn zeros_of_both_signs_subnormals_and_single_weights_survive() {
    for (layout, dtype) in EXACT {
        for half in [0, 0x8000, 1, 0x8001, 0x7F80, 0x7C00, 0xFFFF, 0x7F81, 0x7C01, 0x3C00] {
            for shape in [[1, 1], [20, 70], [64, 64], [17, 1000]] {
                check(&vec![half; shape[0] * shape[1]], shape, dtype, options(layout));
            }
        }
        // One weight that is not zero among zeros: a tile without symbols.
        let mut halves = vec![0; 40 * 100];
        halves[1234] = 0x8000;
        let buffers = check(&halves, [40, 100], dtype, options(layout));
        assert_eq!(buffers.view("w").unwrap().header.table_count, 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn any_weights_round_trip_on_every_level(
        kind in 0u8..6,
        rows in 1usize..120,
        cols in 1usize..500,
        seed in any::<u64>(),
        is_bf16 in any::<bool>(),
        in_fp32 in any::<bool>(),
        row_access in any::<bool>(),
    ) {
        let (layout, own) = EXACT[usize::from(!is_bf16)];
        let dtype = if in_fp32 { SourceDtype::F32 } else { own };
        let mut rng = StdRng::seed_from_u64(seed);
        let halves: Vec<u16> = (0..rows * cols).map(|index| match kind {
            0 => bits_of(layout, bell(&mut rng) * 0.05),
            1 => rng.random(),
            2 => bits_of(layout, bell(&mut rng) * if (index / cols / 16).is_multiple_of(2) { 1e-3 } else { 8.0 }),
            3 => if rng.random_bool(0.01) { rng.random() } else { bits_of(layout, bell(&mut rng)) },
            4 => if rng.random_bool(0.2) { 0 } else { bits_of(layout, bell(&mut rng).powi(5)) },
            _ => bits_of(layout, bell(&mut rng) * f32::powi(2.0, rng.random_range(-30..30))),
        }).collect();
        let options = EncodeOptions { row_access, ..options(layout) };
        check(&halves, [rows, cols], dtype, options);
    }
}

/// The 16 or 32 bits of every element.
fn bits(tensor: &Tensor) -> Tensor {
    let kind = if tensor.kind() == Kind::Float { Kind::Int } else { Kind::Int16 };
    tensor.contiguous().view_dtype(kind)
}

fn tensor_of(halves: &[u16], shape: [usize; 2], dtype: SourceDtype) -> Tensor {
    let flat = Tensor::from_slice(&halves.iter().map(|half| half.cast_signed()).collect::<Vec<i16>>());
    flat.reshape([shape[0] as i64, shape[1] as i64]).view_dtype(dtype.kind())
}

/// The same weights in FP32, widened by hand.
fn widened(halves: &[u16], shape: [usize; 2], dtype: SourceDtype) -> Tensor {
    let widen = |&half: &u16| {
        let half32 = u32::from(half);
        match dtype {
            SourceDtype::BF16 => half32 << 16,
            _ if half & 0x7C00 == 0x7C00 => (half32 & 0x8000) << 16 | 0x7F80_0000 | (half32 & 0x3FF) << 13,
            _ => f16::from_bits(half).to_f32().to_bits(),
        }
    };
    let bits: Vec<i32> = halves.iter().map(|half| widen(half).cast_signed()).collect();
    Tensor::from_slice(&bits).reshape([shape[0] as i64, shape[1] as i64]).view_dtype(Kind::Float)
}

#[test]
fn tensors_come_back_bit_for_bit_in_their_own_dtype_and_in_fp32() {
    let shape = [333, 2561];
    for (layout, dtype) in EXACT {
        let halves = weights_with_every_pattern(layout, shape[0] * shape[1]);
        let (own, wide) = (tensor_of(&halves, shape, dtype), widened(&halves, shape, dtype));
        for (original, others) in [(&own, SourceDtype::F32), (&wide, dtype)] {
            let compressed =
                CompressedTensor::compress_exact("w", original, EncodeOptions::default()).unwrap();
            let view = compressed.buffers().view("w").unwrap();
            assert_eq!((view.header.layout, view.header.dtype.kind()), (layout, original.kind()));
            let back = compressed.decompress().unwrap();
            assert_eq!(back.kind(), original.kind());
            assert_eq!(bits(&back), bits(original));
            // As a layer: into scratch of either dtype, and row by row.
            let vs = VarStore::new(Device::Cpu);
            let linear = CompressedLinear::new(&(vs.root() / "l"), &compressed, None).unwrap();
            for (wanted, kind) in [(&own, dtype.kind()), (&wide, Kind::Float)] {
                let out = Tensor::zeros([shape[0] as i64, shape[1] as i64], (kind, Device::Cpu));
                linear.decode_into(&out).unwrap();
                assert_eq!(bits(&out), bits(wanted), "{others:?} {kind:?}");
                let path = vs.root() / format!("{kind:?}");
                let table = CompressedEmbedding::new(&path, &compressed, kind).unwrap();
                let ids = [332i64, 0, 17, 17, 200];
                let rows = table.try_forward(&Tensor::from_slice(&ids)).unwrap();
                assert_eq!(bits(&rows), bits(&wanted.index_select(0, &Tensor::from_slice(&ids))));
            }
        }
    }
}

#[test]
fn another_dtype_is_rounded_to_nearest_even() {
    let shape = [64, 1040];
    let finite = |half: &u16, dtype| match dtype {
        SourceDtype::BF16 => bf16::from_bits(*half).is_finite(),
        _ => f16::from_bits(*half).is_finite(),
    };
    for (layout, dtype) in EXACT {
        let mut halves: Vec<u16> = (0..=u16::MAX).filter(|half| finite(half, dtype)).collect();
        halves.resize(shape[0] * shape[1], 0x3C01);
        let wide = widened(&halves, shape, dtype);
        let other = if dtype == SourceDtype::BF16 { Kind::Half } else { Kind::BFloat16 };
        let compressed = CompressedTensor::compress_exact(
            "w",
            &tensor_of(&halves, shape, dtype),
            EncodeOptions::default(),
        )
        .unwrap();
        assert_eq!(compressed.buffers().view("w").unwrap().header.layout, layout);
        let vs = VarStore::new(Device::Cpu);
        let linear = CompressedLinear::new(&(vs.root() / "l"), &compressed, None).unwrap();
        let out = Tensor::zeros([shape[0] as i64, shape[1] as i64], (other, Device::Cpu));
        linear.decode_into(&out).unwrap();
        assert_eq!(bits(&out), bits(&wide.to_kind(other)));
    }
}

#[test]
fn both_paths_of_a_linear_agree_with_the_dense_weight() {
    for (layout, dtype) in EXACT {
        for shape in [[1, 1], [5, 3], [77, 288], [300, 2100], [48, 130]] {
            let mut rng = StdRng::seed_from_u64(7);
            let mut halves: Vec<u16> =
                (0..shape[0] * shape[1]).map(|_| bits_of(layout, bell(&mut rng) * 0.1)).collect();
            // Escapes: far above and far below the window.
            halves.iter_mut().step_by(97).for_each(|half| *half = bits_of(layout, 40.0));
            halves.iter_mut().skip(1).step_by(89).for_each(|half| *half = bits_of(layout, 1e-7));
            let weight = tensor_of(&halves, shape, dtype);
            let compressed =
                CompressedTensor::compress_exact("w", &weight, EncodeOptions::default()).unwrap();
            let vs = VarStore::new(Device::Cpu);
            let linear = CompressedLinear::new(&(vs.root() / "l"), &compressed, None).unwrap();
            for batch in [1, 2, 7, 40] {
                tch::manual_seed(batch);
                let x = Tensor::randn([batch, shape[1] as i64], (Kind::Float, Device::Cpu));
                let wanted = x.to_kind(Kind::Double).linear(&weight.to_kind(Kind::Double), None::<&Tensor>);
                for fused_rows in [0, usize::MAX] {
                    linear.set_fused_rows(fused_rows);
                    let got = linear.try_forward(&x).unwrap().to_kind(Kind::Double);
                    let error = ((got - &wanted).abs().max() / wanted.abs().max()).double_value(&[]);
                    assert!(error < 1e-5, "{layout:?} {shape:?} {batch} {fused_rows}: {error}");
                }
                let own = x.to_kind(dtype.kind());
                linear.set_fused_rows(0);
                assert_eq!(linear.try_forward(&own).unwrap(), own.linear(&weight, None::<&Tensor>));
            }
        }
    }
}

/// Writes `bytes` into the header at `at` and makes its checksum right again.
fn set_header(buffers: &mut Buffers, at: usize, bytes: &[u8]) {
    buffers.header[at..at + bytes.len()].copy_from_slice(bytes);
    let checksum = xxh3_64(&buffers.header[..48]);
    buffers.header[48..56].copy_from_slice(&checksum.to_le_bytes());
}

/// What every decoder says of `buffers`: all the same.
fn verdict(buffers: &Buffers) -> Result<Vec<u16>> {
    let view = buffers.view("w")?;
    let reference = decode_bits_reference(&view);
    for level in Level::available() {
        match (&reference, decode_bits(&view, Some(level))) {
            (Ok(wanted), Ok(got)) => assert!(*wanted == got, "{level:?}"),
            (Err(_), Err(_)) => {}
            (wanted, got) => panic!("{level:?}: {:?} and {:?}", wanted.is_ok(), got.is_ok()),
        }
    }
    reference
}

fn assert_corrupt(buffers: &Buffers, wanted: &str) {
    let error = verdict(buffers).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.to_string().contains(wanted), "{error}, wanted {wanted}");
}

#[test]
fn what_breaks_a_rule_is_corrupt() {
    for (layout, dtype) in EXACT {
        let (most_first, raw_bits, other) = match layout {
            Layout::ExactBf16 => (241, 7, 1),
            _ => (17, 10, 2),
        };
        let halves = weights_with_every_pattern(layout, 300 * 300);
        let buffers = check(&halves, [300, 300], dtype, options(layout));
        let damaged = |damage: &dyn Fn(&mut Buffers)| {
            let mut copy = buffers.clone();
            damage(&mut copy);
            copy
        };
        for first in [0, most_first + 1, 255] {
            let bad = damaged(&|b| b.tables[0] = first);
            assert_corrupt(&bad, &format!("first exponent is {first}, wanted 1 to {most_first}"));
        }
        assert_corrupt(&damaged(&|b| b.tiles[5] |= 1 << 4), "a tile codes differences in layout exact_");
        assert_corrupt(&damaged(&|b| b.tiles[5] &= !(1 << 6)), "a tile has escapes of 8 bits");
        let bad = damaged(&|b| b.tiles[5] -= 1);
        assert_corrupt(
            &bad,
            &format!("a tile has {} raw bits, wanted {raw_bits} to {raw_bits}", raw_bits - 1),
        );
        assert_corrupt(&damaged(&|b| b.tiles[5] |= 1 << 7), "raw bits, wanted");
        assert_corrupt(
            &damaged(&|b| b.tiles[4] = 255),
            &format!("a tile has {raw_bits} raw bits, wanted 0 to 0"),
        );
        assert_corrupt(&damaged(&|b| b.scales[0] = 0x81), "scale [1.0078125] of floats, wanted exactly 1");
        assert_corrupt(&damaged(&|b| set_header(b, 7, &[other])), "in layout exact_");
        assert_corrupt(&damaged(&|b| set_header(b, 20, &[11])), "scale bits 11, wanted 12");
        assert_corrupt(&damaged(&|b| set_header(b, 6, &[4])), "layout code 4, wanted 0 to 3");
        let bad = damaged(&|b| {
            b.scales = [0x80, 0x3F].repeat(300);
            set_header(b, 21, &[1]);
        });
        assert_corrupt(&bad, "scale granularity 1, wanted 0");
    }
}

#[test]
fn damage_gives_every_decoder_the_same_answer() {
    for (layout, dtype) in EXACT {
        let halves = weights_with_every_pattern(layout, 20 * 90);
        let buffers = check(&halves, [20, 90], dtype, options(layout));
        for (_, damaged) in damaged(&buffers) {
            let Ok(view) = damaged.view("w") else { continue };
            assert!(view.verify_checksum().is_err());
            let _any_answer_is_right = verdict(&damaged);
        }
    }
}

#[test]
fn grids_and_floats_are_not_mistaken_for_each_other() {
    let grid = encode("w", &[1; 100], [10, 10], &[bf16::ONE], SourceDtype::F16, EncodeOptions::default());
    let grid = grid.unwrap();
    let floats =
        encode_exact("w", &[1; 100], [10, 10], SourceDtype::BF16, options(Layout::ExactBf16)).unwrap();
    for error in [
        decode_bits(&grid.view("w").unwrap(), None).unwrap_err(),
        decode_grid(&floats.view("w").unwrap(), None).unwrap_err(),
        encode("w", &[1; 4], [2, 2], &[bf16::ONE], SourceDtype::F16, options(Layout::ExactFp16)).unwrap_err(),
        encode_exact("w", &[1; 4], [2, 2], SourceDtype::BF16, options(Layout::Fast)).unwrap_err(),
        encode_exact("w", &[1; 4], [2, 2], SourceDtype::BF16, options(Layout::ExactFp16)).unwrap_err(),
        encode_exact("w", &[1; 5], [2, 2], SourceDtype::F16, options(Layout::ExactFp16)).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
    let error = CompressedTensor::compress_exact(
        "w",
        &Tensor::from_slice(&[0.1f32]).reshape([1, 1]),
        options(Layout::Fast),
    );
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("neither BF16 nor FP16 holds"), "{error}");
}

#[test]
fn tables_are_few_and_any_thread_count_gives_the_same_bytes() {
    // Every band of rows has an exponent of its own.
    let mut rng = StdRng::seed_from_u64(3);
    let halves: Vec<u16> = (0..1024 * 1024)
        .map(|n| bits_of(Layout::ExactBf16, bell(&mut rng) * f32::powi(2.0, -(n / 16384 % 50))))
        .collect();
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let encode =
            || encode_exact("w", &halves, [1024, 1024], SourceDtype::BF16, options(Layout::ExactBf16));
        pool.install(encode).unwrap()
    };
    let buffers = run(1);
    let tables = buffers.view("w").unwrap().header.table_count;
    assert!((2..=4).contains(&tables), "{tables}");
    assert_eq!(run(3), buffers);
    assert_eq!(decode_bits(&buffers.view("w").unwrap(), None).unwrap(), halves);
}
