//! The codec without libtorch on matrices so small that Miri can watch every access (`make miri`): sound ones and damaged ones, every
//! layout, every instruction set, whole and partial lanes.

#[path = "../fuzz/bodies/decode_table.rs"]
mod decode_table;
#[path = "../fuzz/bodies/decode_tile.rs"]
mod decode_tile;

use std::path::Path;

use codecllm::codec::{
    decode_bits, decode_bits_reference, decode_grid, decode_grid_reference, encode, encode_exact,
    EncodeOptions, Layout, Level, SourceDtype,
};
use half::bf16;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// One weight, ragged edges, whole lanes, absent lanes, whole groups, and several tiles. Under Miri, which takes some thousand times as
/// long to encode them, only one with a whole and a ragged group: of decoding the golden files have the rest.
const SHAPES: &[[usize; 2]] =
    if cfg!(miri) { &[[13, 77]] } else { &[[1, 1], [13, 77], [16, 32], [16, 64], [5, 130], [35, 200]] };
const DAMAGED: usize = if cfg!(miri) { 6 } else { 4000 };
/// Of a seed that is taken.
const MOST_BYTES: usize = if cfg!(miri) { 1400 } else { 4000 };

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Mostly small, now and then anything.
fn weights(rng: &mut StdRng, count: usize) -> Vec<i16> {
    let weight = |rng: &mut StdRng| match rng.random_range(0..40) {
        0 => rng.random_range(-32767..=32767),
        _ => (0..4).map(|_| rng.random_range(-9i16..=9)).sum(),
    };
    (0..count).map(|_| weight(rng)).collect()
}

#[test]
fn grids_come_back_from_every_decoder() {
    let mut rng = StdRng::seed_from_u64(1);
    for layout in [Layout::Fast, Layout::Small] {
        for &shape in SHAPES {
            let values = weights(&mut rng, shape[0] * shape[1]);
            let options = EncodeOptions { layout, ..EncodeOptions::default() };
            let buffers = encode("w", &values, shape, &[bf16::ONE], SourceDtype::F32, options).unwrap();
            let view = buffers.view("w").unwrap();
            view.verify_checksum().unwrap();
            assert_eq!(decode_grid_reference(&view).unwrap(), values);
            for level in Level::available() {
                assert_eq!(
                    decode_grid(&view, Some(level)).unwrap(),
                    values,
                    "{layout:?} {shape:?} {level:?}"
                );
            }
        }
    }
}

#[test]
fn floats_come_back_from_every_decoder() {
    let mut rng = StdRng::seed_from_u64(2);
    for (layout, dtype) in [(Layout::ExactBf16, SourceDtype::BF16), (Layout::ExactFp16, SourceDtype::F16)] {
        for &shape in SHAPES {
            let exponent = |rng: &mut StdRng| if layout == Layout::ExactBf16 { 0x3F80 } else { 0x3C00 } - rng.random_range(0..0x800);
            let halves: Vec<u16> = (0..shape[0] * shape[1])
                .map(|n| {
                    if n % 40 == 39 {
                        rng.random()
                    } else {
                        exponent(&mut rng) | rng.random::<u16>() & 0x8000
                    }
                })
                .collect();
            let options = EncodeOptions { layout, ..EncodeOptions::default() };
            let buffers = encode_exact("w", &halves, shape, dtype, options).unwrap();
            let view = buffers.view("w").unwrap();
            assert_eq!(decode_bits_reference(&view).unwrap(), halves);
            for level in Level::available() {
                assert_eq!(
                    decode_bits(&view, Some(level)).unwrap(),
                    halves,
                    "{layout:?} {shape:?} {level:?}"
                );
            }
        }
    }
}

/// `seed` with a few bytes changed.
fn damaged(seed: &[u8], rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..rng.random_range(1..=4) {
        let at = rng.random_range(0..bytes.len());
        bytes[at] = if rng.random() { rng.random() } else { bytes[at] ^ 1 << rng.random_range(0..8) };
    }
    bytes
}

/// Runs `target` on the small ones among `seeds` and on damage to them; its checks are its own.
fn run_damaged(seeds: Vec<Vec<u8>>, target: fn(&[u8])) {
    let mut rng = StdRng::seed_from_u64(3);
    let small: Vec<_> = seeds.into_iter().filter(|seed| seed.len() < MOST_BYTES).collect();
    assert!(!small.is_empty());
    small.iter().for_each(|seed| target(seed));
    for round in 0..DAMAGED {
        target(&damaged(&small[round % small.len()], &mut rng));
    }
}

#[test]
fn damaged_tiles_with_right_checksums_stay_inside_their_buffers() {
    run_damaged(decode_tile::seeds(root()), decode_tile::run);
}

#[test]
fn damaged_tables_are_refused_or_sound() {
    run_damaged(decode_table::seeds(root()), decode_table::run);
}
