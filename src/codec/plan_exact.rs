//! What the encoder of floats chooses: for every table its window of exponents, and for every tile its table.

use rayon::prelude::*;

use super::classes::{Classes, WINDOW};
use super::encode_tile::TileValues;
use super::header::Layout;
use super::plan::{coded_table, ideal_bits, merge_neighbours, symbol_counts, Plan, TileChoice, TABLE_BITS};
use super::tile_payload::Predictor;
use crate::rans::SYMBOLS;
use crate::tile::TileGrid;

/// Bits of an escape: position and value.
const ESCAPE_BITS: f64 = 32.0;
/// Most tables of a tensor: a GPU keeps 16 KB of each in the memory of each multiprocessor.
const MOST_TABLES: usize = 4;
/// Bits a weight of the whole tensor that a further table must save, whatever it takes itself: it costs a GPU room for warps.
const TABLE_MUST_SAVE: f64 = 0.005;
/// How finely tiles are sorted by their mean exponent before neighbours are merged into tables.
const BINS: usize = 16;

/// How often each exponent occurs. An FP16 has 32, a BF16 256.
type ExponentCounts = [u64; SYMBOLS];

/// Chooses for every tile of `values`, the bits of floats, row-major over `grid`.
pub(super) fn plan_exact(values: &[i16], grid: &TileGrid, layout: Layout) -> Plan {
    let mantissa_bits = *layout.raw_magnitude_bits(true).end();
    let counts: Vec<ExponentCounts> = (0..grid.tile_count())
        .into_par_iter()
        .map(|index| exponent_counts(&TileValues::cut(values, grid, &grid.tile(index)).values, mantissa_bits))
        .collect();
    let mut order: Vec<usize> = (0..counts.len()).collect();
    order.sort_by(|&a, &b| mean_exponent(&counts[a]).total_cmp(&mean_exponent(&counts[b])));
    let bins: Vec<&[usize]> = order.chunks(order.len().div_ceil(BINS).max(1)).collect();
    let of_bin = |bin: &&[usize]| bin.iter().fold([0; SYMBOLS], |sum, &tile| add(sum, &counts[tile]));
    let cost = |counts: &ExponentCounts| expected_bits(counts, layout);
    let least_saving = TABLE_BITS.max(TABLE_MUST_SAVE * values.len() as f64);
    let groups = merge_neighbours(bins.iter().map(of_bin).collect(), cost, MOST_TABLES, least_saving);
    let choice = TileChoice { predictor: Predictor::None, raw_magnitude_bits: mantissa_bits, table: 0 };
    let mut plan = Plan { tables: Vec::new(), choices: vec![choice; counts.len()] };
    let mut bins = bins.into_iter();
    for (width, counts) in groups {
        let members: Vec<usize> = bins.by_ref().take(width).flatten().copied().collect();
        let first = best_window(&counts, layout);
        let classes = Classes::new(layout, mantissa_bits, first);
        let symbols = symbol_counts(values, grid, &members, &plan.choices, layout, classes);
        members.iter().for_each(|&member| plan.choices[member].table = plan.tables.len());
        plan.tables.push(coded_table(&symbols, layout, first));
    }
    plan
}

/// Order-0 entropy of the exponents of `halves`, floats of the element type of `layout`, bits each.
pub(super) fn exponent_entropy(halves: &[u16], layout: Layout) -> f64 {
    let mantissa_bits = *layout.raw_magnitude_bits(true).end();
    let mut counts = [0; SYMBOLS];
    halves.iter().for_each(|&half| counts[exponent(half, mantissa_bits)] += 1);
    ideal_bits(&counts) / halves.len().max(1) as f64
}

fn exponent(half: u16, mantissa_bits: u32) -> usize {
    usize::from((half & 0x7FFF) >> mantissa_bits)
}

fn exponent_counts(values: &[i16], mantissa_bits: u32) -> ExponentCounts {
    let mut counts = [0; SYMBOLS];
    values.iter().for_each(|value| counts[exponent(value.cast_unsigned(), mantissa_bits)] += 1);
    counts
}

fn add(mut sum: ExponentCounts, counts: &ExponentCounts) -> ExponentCounts {
    sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    sum
}

/// Over the weights that are neither zero nor subnormal: those have a class in every window.
fn mean_exponent(counts: &ExponentCounts) -> f64 {
    let normal = || counts.iter().enumerate().skip(1);
    let sum: f64 = normal().map(|(exponent, &count)| exponent as f64 * count as f64).sum();
    sum / normal().map(|(_, &count)| count).sum::<u64>().max(1) as f64
}

/// The first exponent of the window that holds the most weights; of several, the lowest.
fn best_window(counts: &ExponentCounts, layout: Layout) -> u32 {
    let held = |first: u32| counts[first as usize..(first + WINDOW) as usize].iter().sum::<u64>();
    let firsts = layout.first_exponents().unwrap_or(1..=1);
    firsts.rev().max_by_key(|&first| held(first)).unwrap_or(1)
}

/// Bits of the exponents and escapes of weights that share the best window, ideally coded.
fn expected_bits(counts: &ExponentCounts, layout: Layout) -> f64 {
    let first = best_window(counts, layout) as usize;
    let window = &counts[first..first + WINDOW as usize];
    let escapes = counts.iter().sum::<u64>() - counts[0] - window.iter().sum::<u64>();
    let mut classes = [0; SYMBOLS];
    // An escape is coded as zero.
    classes[0] = counts[0] + escapes;
    classes[1..=window.len()].copy_from_slice(window);
    ideal_bits(&classes) + escapes as f64 * ESCAPE_BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_holds_the_most_weights_and_ends_with_the_dtype() {
        for (layout, last) in [(Layout::ExactBf16, 241), (Layout::ExactFp16, 17)] {
            assert_eq!(best_window(&[0; SYMBOLS], layout), 1);
            let mut counts = [0; SYMBOLS];
            counts[last as usize + 14] = 1;
            assert_eq!(best_window(&counts, layout), last);
            counts[1..4].fill(1);
            assert_eq!(best_window(&counts, layout), 1);
        }
    }

    #[test]
    fn what_the_window_leaves_out_costs_an_escape_and_a_zero() {
        let mut counts = [0; SYMBOLS];
        counts[1..4].fill(1);
        (counts[200], counts[209]) = (5, 5);
        assert_eq!(best_window(&counts, Layout::ExactBf16), 195);
        let bits = 3.0 * (13.0f64 / 3.0).log2() + 10.0 * (13.0f64 / 5.0).log2() + 3.0 * ESCAPE_BITS;
        assert!((expected_bits(&counts, Layout::ExactBf16) - bits).abs() < 1e-9);
    }

    #[test]
    fn entropy_is_that_of_the_exponents_alone() {
        let halves = [0x3F80, 0xBFFF, 0x4000, 0x4001];
        assert_eq!(exponent_entropy(&halves, Layout::ExactBf16), 1.0);
        assert_eq!(exponent_entropy(&[0; 9], Layout::ExactFp16), 0.0);
    }
}
