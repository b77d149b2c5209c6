//! Several threads decode and multiply one small weight, without libtorch, so that Miri can watch what they share.

use half::bf16;

use super::fused_linear::multiply;
use super::{decode_to_scratch, gather_rows, WeightRef};
use crate::codec::{encode, DecodeTables, EncodeOptions, Layout, SourceDtype, TileShape};

/// Miri takes some thousand times as long.
const SHAPE: [usize; 2] = if cfg!(miri) { [33, 70] } else { [70, 130] };

/// Mostly small, one in 50 an escape.
fn value(n: usize) -> i16 {
    let hash = (n as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
    let small = (hash % 31) as i16 - 15;
    if n % 50 == 49 {
        small * 900
    } else {
        small
    }
}

/// Calls `work` with a weight of several bands, and with its values times their scales.
fn with_weight(layout: Layout, work: impl Fn(&WeightRef, &[f32])) {
    let [rows, cols] = SHAPE;
    let values: Vec<i16> = (0..rows * cols).map(value).collect();
    let scales: Vec<bf16> = (0..rows).map(|row| bf16::from_f32(1.0 + row as f32 / 64.0)).collect();
    let options =
        EncodeOptions { layout, tile: Some(TileShape { rows: 16, cols: 64 }), ..EncodeOptions::default() };
    let buffers = encode("w", &values, SHAPE, &scales, SourceDtype::F32, options).unwrap();
    let view = buffers.view("w").unwrap();
    let (tables, scales) = (DecodeTables::new(&view).unwrap(), view.scales().unwrap());
    let wanted: Vec<f32> =
        values.iter().enumerate().map(|(at, &value)| f32::from(value) * scales[at / cols]).collect();
    work(&WeightRef { view, tables: &tables, scales: &scales }, &wanted);
}

#[test]
fn threads_decode_bands_of_one_scratch() {
    for layout in [Layout::Fast, Layout::Small] {
        with_weight(layout, |weight, wanted| {
            let bands = weight.view.header.grid.tiles_down();
            assert!(bands > 2);
            let mut scratch = vec![f32::NAN; wanted.len()];
            decode_to_scratch(weight, 0..bands, &mut scratch).unwrap();
            assert_eq!(scratch, wanted);
            // The last bands alone, of which the last has fewer rows.
            let first = 16 * (bands - 2) * SHAPE[1];
            let mut scratch = vec![f32::NAN; wanted.len() - first];
            decode_to_scratch(weight, bands - 2..bands, &mut scratch).unwrap();
            assert_eq!(scratch, wanted[first..]);
        });
    }
}

#[test]
fn threads_multiply_bands_of_one_result() {
    for (layout, batch) in [(Layout::Fast, 1), (Layout::Small, 3)] {
        with_weight(layout, |weight, wanted| {
            let [rows, cols] = SHAPE;
            let x: Vec<f32> = (0..batch * cols).map(|n| (n % 7) as f32 - 3.0).collect();
            let y = multiply(weight, &x, batch).unwrap();
            for (b, row) in (0..batch).flat_map(|b| (0..rows).map(move |row| (b, row))) {
                let products = wanted[row * cols..][..cols].iter().zip(&x[b * cols..]).map(|(w, x)| w * x);
                let (sum, size) = products.fold((0.0, 0.0), |(sum, size), p: f32| (sum + p, size + p.abs()));
                assert!((y[b * rows + row] - sum).abs() <= 1e-4 * size, "{layout:?} {b} {row}");
            }
        });
    }
}

#[test]
fn threads_gather_rows_of_one_result() {
    with_weight(Layout::Fast, |weight, wanted| {
        let [rows, cols] = SHAPE;
        let last = rows as i64 - 1;
        let ids = [last, 0, 17, 17, last - 1];
        let mut out = vec![f32::NAN; ids.len() * cols];
        gather_rows(weight, &ids, &mut out).unwrap();
        for (row, id) in out.chunks_exact(cols).zip(ids) {
            assert_eq!(row, &wanted[id as usize * cols..][..cols]);
        }
    });
}
