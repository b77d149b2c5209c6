//! Rounding with error feedback: what rounding one column does to the layer's output, the columns still to come undo.
//!
//! The columns of a matrix are rounded one after the other. Where the inputs of two columns go together, a change of
//! the second makes up for the error of the first; by how much, the inverse of the inputs' moments says.

use half::bf16;
use rayon::prelude::*;

use super::{row_scale, MAX_MAGNITUDE};

/// Rows that go through the columns together, so that a row of the spread is read from memory once for all of them.
const ROWS_TOGETHER: usize = 16;

/// In which order columns are rounded, and how an error spreads.
///
/// Learned by an [`Importance`](crate::codec::Importance); see its example.
#[derive(Clone, Debug, PartialEq)]
pub struct Feedback {
    order: Vec<usize>,
    /// Row-major, square: entry `[j, k]`, `k > j`, is what an error of one at the `j`-th column of the order takes off
    /// the `k`-th.
    spread: Vec<f32>,
}

impl Feedback {
    /// `order` names every column once; `spread` is square.
    pub(crate) fn new(order: Vec<usize>, spread: Vec<f32>) -> Self {
        Self { order, spread }
    }

    /// Rounds `weights` to the grid of `scales` (one, or one a row).
    pub(crate) fn round(&self, weights: &[f32], scales: &[bf16]) -> Vec<i16> {
        let cols = self.order.len();
        let mut values = vec![0; weights.len()];
        values
            .par_chunks_mut(ROWS_TOGETHER * cols)
            .zip(weights.par_chunks(ROWS_TOGETHER * cols))
            .enumerate()
            .for_each(|(chunk, (values, weights))| {
                let scale = |row| row_scale(scales, chunk * ROWS_TOGETHER + row);
                self.round_rows(weights, scale, values);
            });
        values
    }

    fn round_rows(&self, weights: &[f32], scale: impl Fn(usize) -> f32, values: &mut [i16]) {
        let cols = self.order.len();
        let mut left: Vec<f32> =
            weights.chunks_exact(cols).flat_map(|row| self.order.iter().map(|&column| row[column])).collect();
        for (place, &column) in self.order.iter().enumerate() {
            let spread = &self.spread[place * cols + place + 1..(place + 1) * cols];
            for (row, left) in left.chunks_exact_mut(cols).enumerate() {
                let scale = scale(row);
                if scale == 0.0 {
                    continue;
                }
                let value = ((left[place] / scale).round_ties_even() as i16).max(-MAX_MAGNITUDE);
                let error = left[place] - f32::from(value) * scale;
                values[row * cols + column] = value;
                for (later, share) in left[place + 1..].iter_mut().zip(spread) {
                    *later -= error * share;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_with_the_same_input_takes_the_error_over() {
        // Both columns have the same input: only their sum matters.
        let feedback = Feedback::new(vec![1, 0], vec![1.0, -1.0, 0.0, 1.0]);
        let scales = [bf16::from_f32(1.0)];
        assert_eq!(feedback.round(&[0.4, 0.4, 2.2, -1.4], &scales), [1, 0, 2, -1]);
    }

    #[test]
    fn rows_of_scale_zero_are_zero() {
        let feedback = Feedback::new(vec![0, 1], vec![1.0, 0.5, 0.0, 1.0]);
        assert_eq!(feedback.round(&[0.0, 0.0], &[bf16::ZERO]), [0, 0]);
    }
}
