//! Next tokens that a model draws for itself: derivatives by them measure the divergence, not the text's surprise.

use rand::rngs::StdRng;
use rand::Rng;
use tch::{Kind, TchError, Tensor};

/// One token for each row of `probabilities` `[positions, vocab]`: `[positions, 1]`, `Int64`.
pub(super) fn draw(probabilities: &Tensor, random: &mut StdRng) -> Result<Tensor, TchError> {
    let (positions, vocab) = probabilities.size2()?;
    let shares: Vec<f32> = (0..positions).map(|_| random.random()).collect();
    let sums = probabilities.f_cumsum(-1, Kind::Float)?;
    let total = sums.f_narrow(-1, vocab - 1, 1)?;
    let drawn = total.f_mul(&Tensor::f_from_slice(&shares)?.f_view([-1, 1])?)?;
    let below = sums.f_le_tensor(&drawn)?.f_sum_dim_intlist([-1i64].as_slice(), true, Kind::Int64)?;
    below.f_clamp_max(vocab - 1)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn tokens_come_as_often_as_they_are_likely() {
        let probabilities = Tensor::from_slice(&[0.5f32, 0.0, 0.25, 0.25]).expand([4000, 4], false);
        let drawn = draw(&probabilities, &mut StdRng::seed_from_u64(3)).unwrap();
        assert_eq!((drawn.size(), drawn.kind()), (vec![4000, 1], Kind::Int64));
        let count = |token: i64| drawn.eq(token).sum(Kind::Int64).int64_value(&[]);
        assert_eq!(count(1), 0);
        assert!((count(0) - 2000).abs() < 130 && (count(3) - 1000).abs() < 110, "{} {}", count(0), count(3));
    }
}
