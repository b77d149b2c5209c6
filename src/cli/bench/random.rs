//! Gaussian matrices made on all cores: libtorch's generator uses one, and a head has half a billion weights.

use codecllm::codec::{Matrix, SourceDtype};
use half::f16;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rayon::prelude::*;

/// Standard deviation of the weights: that of a large model's, about.
pub(super) const SIGMA: f64 = 0.02;

/// Weights that one generator makes.
const PIECE: usize = 1 << 16;

/// A Gaussian matrix in FP16, the same every time for one `seed`.
pub(super) fn gaussian_matrix(shape: [usize; 2], seed: u64) -> Matrix {
    let mut weights = vec![0f32; shape[0] * shape[1]];
    weights.par_chunks_mut(PIECE).enumerate().for_each(|(index, piece)| {
        let mut generator = StdRng::seed_from_u64((seed << 32) + index as u64);
        for pair in piece.chunks_mut(2) {
            let both = normal_pair(&mut generator);
            for (weight, value) in pair.iter_mut().zip(both) {
                *weight = f16::from_f32(SIGMA as f32 * value).to_f32();
            }
        }
    });
    Matrix { weights, shape, dtype: SourceDtype::F16 }
}

/// Two independent standard normal values, by Box and Muller.
fn normal_pair(generator: &mut StdRng) -> [f32; 2] {
    // 1 - [0, 1) is never zero.
    let radius = (-2.0 * (1.0 - generator.random::<f32>()).ln()).sqrt();
    let (sin, cos) = (std::f32::consts::TAU * generator.random::<f32>()).sin_cos();
    [radius * cos, radius * sin]
}

#[cfg(test)]
mod tests {
    use super::{gaussian_matrix, SIGMA};

    #[test]
    fn the_weights_are_gaussian_and_the_same_every_time() {
        let matrix = gaussian_matrix([301, 999], 1);
        assert_eq!(matrix.weights, gaussian_matrix([301, 999], 1).weights);
        assert_ne!(matrix.weights, gaussian_matrix([301, 999], 2).weights);
        let count = matrix.weights.len() as f64;
        let mean = |power| matrix.weights.iter().map(|&w| f64::from(w).powi(power)).sum::<f64>() / count;
        assert!(mean(1).abs() < 0.01 * SIGMA, "{}", mean(1));
        assert!((mean(2).sqrt() / SIGMA - 1.0).abs() < 0.01, "{}", mean(2));
        assert!((mean(4) / mean(2).powi(2) - 3.0).abs() < 0.1, "{}", mean(4));
    }
}
