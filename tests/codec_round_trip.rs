//! Encode and decode are inverse, and every decoder agrees with the reference bit for bit.

use codecllm::codec::{
    decode_grid, decode_grid_reference, encode, EncodeOptions, Layout, Level, SourceDtype, TileDecoder,
};
use half::bf16;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

fn gaussian(rng: &mut StdRng) -> f64 {
    let (u, v): (f64, f64) = (rng.random_range(1e-12..1.0), rng.random());
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// Grid values of the kinds that weights and adversaries have.
fn grid(kind: u8, weights: usize, cols: usize, sigma: f64, seed: u64) -> Vec<i16> {
    let mut rng = StdRng::seed_from_u64(seed);
    let clamp = |value: f64| value.round().clamp(-32767.0, 32767.0) as i16;
    (0..weights)
        .map(|index| match kind {
            0 => clamp(gaussian(&mut rng) * sigma),
            1 => clamp(gaussian(&mut rng) * sigma / (gaussian(&mut rng).abs() + 1e-3)),
            2 => clamp(sigma),
            3 => 0,
            4 => rng.random_range(-32767..=32767),
            5 => clamp((index % cols) as f64 * sigma / 8.0),
            6 => clamp(gaussian(&mut rng) * sigma * if (index / cols).is_multiple_of(3) { 4.0 } else { 0.2 }),
            _ => {
                if rng.random_bool(0.001) {
                    rng.random_range(-32767..=32767)
                } else {
                    clamp(gaussian(&mut rng) * sigma)
                }
            }
        })
        .collect()
}

fn check(values: &[i16], shape: [usize; 2], options: EncodeOptions) -> usize {
    let buffers = encode("w", values, shape, &[bf16::ONE], SourceDtype::F32, options).unwrap();
    let view = buffers.view("w").unwrap();
    view.verify_checksum().unwrap();
    assert!(decode_grid_reference(&view).unwrap() == values, "reference differs from the input");
    for level in Level::available() {
        assert!(decode_grid(&view, Some(level)).unwrap() == values, "{level:?} differs from the reference");
    }
    buffers.total_bytes()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]
    #[test]
    fn any_grid_round_trips_on_every_level(
        kind in 0u8..8,
        rows in 1usize..100,
        cols in 1usize..400,
        sigma in prop_oneof![0.3f64..3.0, 3.0..40.0, 40.0..3000.0],
        seed in any::<u64>(),
        small in any::<bool>(),
        row_access in any::<bool>(),
        allow_left in any::<bool>(),
    ) {
        let layout = if small { Layout::Small } else { Layout::Fast };
        let values = grid(kind, rows * cols, cols, sigma, seed);
        check(&values, [rows, cols], EncodeOptions { layout, row_access, allow_left, tile: None });
    }
}

#[test]
fn extreme_shapes_round_trip() {
    for layout in [Layout::Fast, Layout::Small] {
        let options = EncodeOptions { layout, ..EncodeOptions::default() };
        for shape in
            [[1, 1], [1, 5000], [5000, 1], [1_000_000, 1], [16, 64], [300, 300], [77, 288], [1408, 512]]
        {
            let values = grid(0, shape[0] * shape[1], shape[1], 9.0, 5);
            check(&values, shape, options);
        }
    }
}

#[test]
fn a_small_or_constant_matrix_is_never_larger_than_its_plain_grid() {
    // Beside the fixed header of 56 bytes, the one scale and 8 bytes a tile.
    for layout in [Layout::Fast, Layout::Small] {
        for (kind, sigma) in [(0, 30.0), (2, 127.0), (3, 0.0), (0, 1.0)] {
            for shape in [[1, 1], [3, 5], [16, 64], [20, 70], [64, 64]] {
                let values = grid(kind, shape[0] * shape[1], shape[1], sigma, 1);
                let options = EncodeOptions { layout, ..EncodeOptions::default() };
                let bytes = check(&values, shape, options);
                let plain = shape[0] * shape[1] + 56 + 2 + 8 + 15;
                assert!(bytes <= plain, "{layout:?} {kind} {shape:?}: {bytes} > {plain}");
            }
        }
    }
}

#[test]
fn left_is_taken_only_where_it_wins() {
    let smooth = grid(5, 256 * 512, 512, 3.0, 0);
    let noisy = grid(0, 256 * 512, 512, 9.0, 0);
    let size = |values: &[i16], allow_left| {
        check(values, [256, 512], EncodeOptions { allow_left, ..EncodeOptions::default() })
    };
    assert!(size(&smooth, true) * 2 < size(&smooth, false));
    assert_eq!(size(&noisy, true), size(&noisy, false));
}

#[test]
fn a_mean_that_is_not_zero_costs_the_small_layout_nothing() {
    // A trained embedding's values lie around 18, not 0: sign and magnitude together say so, sign alone does not.
    let values: Vec<i16> = grid(0, 512 * 512, 512, 17.0, 4).iter().map(|value| value + 18).collect();
    let options = EncodeOptions { layout: Layout::Small, ..EncodeOptions::default() };
    let bits = 8.0 * check(&values, [512, 512], options) as f64 / values.len() as f64;
    let entropy = codecllm::codec::grid_entropy(&values);
    assert!(bits < entropy + 0.1, "{bits} bits, entropy {entropy}");
}

#[test]
fn any_thread_count_gives_the_same_bytes() {
    let values = grid(6, 700 * 600, 600, 9.0, 3);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            encode("w", &values, [700, 600], &[bf16::ONE], SourceDtype::F16, EncodeOptions::default())
                .unwrap()
        })
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn a_decoder_for_a_missing_level_is_none() {
    for level in [Level::Portable, Level::Avx2, Level::Avx512] {
        assert_eq!(TileDecoder::with_level(level).is_some(), Level::available().contains(&level));
    }
}

#[test]
fn a_tensor_of_many_kinds_of_rows_has_at_most_eight_tables() {
    // Every band of rows has a spread of its own, from a few grid values to hundreds.
    let spread = |row: usize| 1.0 + f64::from(1u32 << (row / 16 % 10)) * (1.0 + row as f64 / 2048.0);
    let values: Vec<i16> = (0..2048 * 1024)
        .map(|n| {
            let hash = (n as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let bell = (0..4).map(|k| f64::from((hash >> (16 * k)) as u16) / 65536.0 - 0.5).sum::<f64>();
            (bell * spread(n / 1024)) as i16
        })
        .collect();
    for layout in [Layout::Fast, Layout::Small] {
        let options = EncodeOptions { layout, ..EncodeOptions::default() };
        let buffers = encode("w", &values, [2048, 1024], &[bf16::ONE], SourceDtype::F16, options).unwrap();
        let view = buffers.view("w").unwrap();
        assert!((2..=8).contains(&view.header.table_count), "{layout:?}: {}", view.header.table_count);
        assert_eq!(decode_grid(&view, None).unwrap(), values);
    }
}
