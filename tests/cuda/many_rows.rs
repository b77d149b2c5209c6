//! More rows of x than 8: bands side by side on the same columns, x packed, tiles that meet or take turns.

use codecllm::codec::{CompressedTensor, EncodeOptions, Layout, StepRule, TileShape};
use codecllm::nn::CompressedLinear;
use codecllm::tile::STRIPE_ROWS;
use tch::{Kind, Tensor};

use super::ops::{
    assert_same_bits, heavy_tailed, linear, merged, need_gpu, poisoned, product, random, row_error, CUDA,
    KINDS,
};

/// Where a multiprocessor has so few bands that their tiles meet; ragged in both directions.
const FEW_BANDS: [i64; 2] = [333, 1355];

/// So many rows that tiles take turns on any GPU; ragged, in bands of three tiles.
const MANY_BANDS: [i64; 2] = [30_005, 1355];

/// Cut into tiles of so many columns. No tile codes differences.
fn options(layout: Layout, tile_cols: usize) -> EncodeOptions {
    let tile = Some(TileShape { rows: STRIPE_ROWS, cols: tile_cols });
    EncodeOptions { layout, tile, allow_left: false, ..EncodeOptions::default() }
}

/// With escapes.
fn grid(shape: [i64; 2], layout: Layout, tile_cols: usize) -> CompressedTensor {
    let (weight, step) = (heavy_tailed(&shape, 71), StepRule::Step(0.2));
    CompressedTensor::compress("w", &weight, step, options(layout, tile_cols)).unwrap()
}

fn exact(shape: [i64; 2], kind: Kind) -> CompressedTensor {
    let layout = if kind == Kind::BFloat16 { Layout::ExactBf16 } else { Layout::ExactFp16 };
    let weight = (random(&shape, 72) * 0.02).to_kind(kind);
    CompressedTensor::compress_exact("w", &weight, options(layout, 512)).unwrap()
}

/// Row by row.
fn alone(linear: &CompressedLinear, x: &Tensor) -> Tensor {
    let rows: Vec<Tensor> =
        (0..x.size()[0]).map(|row| linear.try_forward(&x.narrow(0, row, 1)).unwrap()).collect();
    Tensor::cat(&rows, 0)
}

/// Every row's bits are those that it has alone, in every number of rows, and are the product.
fn check(compressed: &CompressedTensor, cols: i64, kind: Kind, what: &str) {
    let (_vs, linear) = linear(compressed, None);
    linear.set_fused_rows(usize::MAX);
    let x = random(&[64, cols], 73).to_kind(kind).to_device(CUDA);
    assert!(linear.is_fused(&x).unwrap(), "{what}");
    let want = alone(&linear, &x);
    for rows in 1..=64 {
        let got = linear.try_forward(&x.narrow(0, 64 - rows, rows)).unwrap();
        assert_same_bits(&got, &want.narrow(0, 64 - rows, rows), &format!("{what} {kind:?} {rows} rows"));
    }
    let error = row_error(&want, &product(compressed, &x.to_device(tch::Device::Cpu), None));
    assert!(error < super::ops::tolerance(kind), "{what} {kind:?}: {error}");
}

#[test]
fn few_bands_give_each_row_what_it_has_alone() {
    need_gpu!();
    for layout in [Layout::Fast, Layout::Small] {
        // From one tile across to eleven, which no number of blocks divides evenly.
        for tile_cols in [2048, 512, 128] {
            let compressed = grid(FEW_BANDS, layout, tile_cols);
            for kind in KINDS {
                check(&compressed, FEW_BANDS[1], kind, &format!("{layout:?}, tiles of {tile_cols}"));
            }
        }
    }
}

#[test]
fn many_bands_give_each_row_what_it_has_alone() {
    need_gpu!();
    for layout in [Layout::Fast, Layout::Small] {
        check(&grid(MANY_BANDS, layout, 512), MANY_BANDS[1], Kind::Half, &format!("{layout:?}"));
    }
}

#[test]
fn exact_weights_give_each_row_what_it_has_alone() {
    need_gpu!();
    for layout in [Kind::BFloat16, Kind::Half] {
        for kind in KINDS {
            check(&exact(FEW_BANDS, layout), FEW_BANDS[1], kind, &format!("exact {layout:?}"));
        }
        check(&exact(MANY_BANDS, layout), MANY_BANDS[1], layout, &format!("exact {layout:?}"));
    }
}

/// Three parts in tiles of different widths, one of them of a single tile across.
#[test]
fn parts_of_different_tiles_give_each_row_what_it_has_alone() {
    need_gpu!();
    for rows in [[333, 100, 70], [30_005, 9000, 5000]] {
        let parts = [(rows[0], 512), (rows[1], 2048), (rows[2], 128)]
            .map(|(rows, tile_cols)| grid([rows, 1355], Layout::Fast, tile_cols));
        let (_vs, merged) = merged(&parts.iter().collect::<Vec<_>>());
        let x = random(&[64, 1355], 74).to_kind(Kind::Half).to_device(CUDA);
        let forward = |first: i64, count: i64| {
            let y = poisoned(&[count, rows.iter().sum()], Kind::Half);
            merged.forward_into(&x.narrow(0, first, count), &y).unwrap();
            y
        };
        let want = Tensor::cat(&(0..64).map(|row| forward(row, 1)).collect::<Vec<_>>(), 0);
        for count in [9, 16, 17, 31, 32, 33, 50, 64] {
            assert_same_bits(&forward(0, count), &want.narrow(0, 0, count), &format!("{rows:?} {count}"));
        }
    }
}

/// A launch leaves what the next one begins with, whichever weight it is of and however many rows it has.
#[test]
fn launches_of_different_sizes_follow_each_other() {
    need_gpu!();
    let shapes = [[333, 1355], [64, 4096], [1000, 700]];
    let weights: Vec<_> = shapes.map(|shape| grid(shape, Layout::Fast, 256)).into();
    let linears: Vec<_> = weights.iter().map(|weight| linear(weight, None)).collect();
    let inputs: Vec<Tensor> =
        shapes.iter().map(|shape| random(&[64, shape[1]], 75).to_kind(Kind::Half).to_device(CUDA)).collect();
    linears.iter().for_each(|(_, linear)| linear.set_fused_rows(usize::MAX));
    let want: Vec<Tensor> = linears.iter().zip(&inputs).map(|((_, linear), x)| alone(linear, x)).collect();
    for round in 0..300 {
        let (which, rows) = (round * 7 % 3, 9 + (round * 29 % 56) as i64);
        let got = linears[which].1.try_forward(&inputs[which].narrow(0, 0, rows)).unwrap();
        assert_same_bits(&got, &want[which].narrow(0, 0, rows), &format!("round {round}"));
    }
}
