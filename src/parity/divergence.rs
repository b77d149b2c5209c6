//! How far one model's next-token distribution is from another's.

use serde::Serialize;
use tch::{Kind, TchError, Tensor};

use crate::error::{Result, TorchContext};

/// Likeliest tokens that [`Divergence::top5_agreement`] compares.
const TOP: i64 = 5;

/// The divergence at each of some positions.
///
/// Made by [`divergence`](divergence()); see its example.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PositionDivergence {
    /// `KL(reference || compressed)`, nats, never negative.
    pub kl: Vec<f64>,
    /// Whether both models put the same token first.
    pub same_top1: Vec<bool>,
    /// Share, 0 to 1, of the reference's five likeliest tokens that are among the other's five, in whatever order.
    pub shared_top5: Vec<f64>,
}

/// The divergence over a text.
///
/// The summary of what [`divergence`](divergence()) gives; see its example.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Divergence {
    /// Mean of `KL(reference || compressed)` over the positions, nats.
    pub kl_mean: f64,
    /// The divergence that 99 % of the positions stay within, nats.
    pub kl_p99: f64,
    /// The largest divergence of a position, nats.
    pub kl_max: f64,
    /// Share of the positions, 0 to 1, where both models put the same token first.
    pub top1_agreement: f64,
    /// Share, 0 to 1, of the reference's five likeliest tokens that are among the other's five, mean over the positions.
    pub top5_agreement: f64,
}

/// Compares log-probabilities `[positions, vocab]` of the reference with those of the other model.
///
/// ```
/// use codecllm::parity::{divergence, Divergence};
/// use tch::Tensor;
/// let fair = Tensor::from_slice(&[0.5f32, 0.5]).log().view([1, 2]);
/// let biased = Tensor::from_slice(&[0.25f32, 0.75]).log().view([1, 2]);
/// let mut at = divergence(&fair, &biased)?;
/// assert!((at.kl[0] - (0.5 * 2f64.ln() + 0.5 * (2.0 / 3.0f64).ln())).abs() < 1e-6);
/// at.append(divergence(&fair, &fair)?); // another position
/// let all: Divergence = at.summary();
/// assert_eq!((at.kl[1], all.kl_max, all.kl_mean), (0.0, at.kl[0], at.kl[0] / 2.0));
/// assert_eq!((at.percentiles().len(), at.percentiles()[100]), (101, all.kl_max));
/// # Ok::<(), codecllm::Error>(())
/// ```
pub fn divergence(reference: &Tensor, compressed: &Tensor) -> Result<PositionDivergence> {
    let kl = kl_of_rows(reference, compressed).about("log-probabilities")?;
    let same_top1 = same_first(reference, compressed).about("log-probabilities")?;
    let shared_top5 = shared_top(reference, compressed).about("log-probabilities")?;
    Ok(PositionDivergence { kl, same_top1, shared_top5 })
}

fn kl_of_rows(reference: &Tensor, compressed: &Tensor) -> std::result::Result<Vec<f64>, TchError> {
    let difference = reference.f_sub(compressed)?;
    // A token that the reference excludes adds nothing, whatever the other says: 0 log 0 = 0, not NaN.
    let terms = reference.f_exp()?.f_mul(&difference)?.f_masked_fill(&reference.f_isneginf()?, 0.0)?;
    let sums = terms.f_sum_dim_intlist([-1i64].as_slice(), false, Kind::Double)?;
    // Rounding may leave a tiny negative sum; NaN must stay NaN, which `clamp` does.
    Vec::<f64>::try_from(sums.f_clamp_min(0.0)?)
}

fn same_first(reference: &Tensor, compressed: &Tensor) -> std::result::Result<Vec<bool>, TchError> {
    let same = reference.f_argmax(-1, false)?.f_eq_tensor(&compressed.f_argmax(-1, false)?)?;
    Vec::<bool>::try_from(same)
}

fn shared_top(reference: &Tensor, compressed: &Tensor) -> std::result::Result<Vec<f64>, TchError> {
    let count = TOP.min(reference.size().last().copied().unwrap_or(TOP));
    let top = |of: &Tensor| of.f_topk(count, -1, true, false).map(|(_, ids)| ids);
    let same = top(reference)?.f_unsqueeze(-1)?.f_eq_tensor(&top(compressed)?.f_unsqueeze(-2)?)?;
    let shared = same.f_sum_dim_intlist([-2i64, -1].as_slice(), false, Kind::Double)?;
    Vec::<f64>::try_from(shared.f_div_scalar(count as f64)?)
}

impl PositionDivergence {
    /// Adds more positions.
    pub fn append(&mut self, mut other: Self) {
        self.kl.append(&mut other.kl);
        self.same_top1.append(&mut other.same_top1);
        self.shared_top5.append(&mut other.shared_top5);
    }

    /// The figures over all positions; all NaN without positions.
    pub fn summary(&self) -> Divergence {
        let count = self.kl.len() as f64;
        let sorted = self.sorted();
        Divergence {
            kl_mean: self.kl.iter().sum::<f64>() / count,
            kl_p99: percentile(&sorted, 99.0),
            kl_max: percentile(&sorted, 100.0),
            top1_agreement: self.same_top1.iter().filter(|same| **same).count() as f64 / count,
            top5_agreement: self.shared_top5.iter().sum::<f64>() / count,
        }
    }

    /// The divergence that 0 %, 1 %, ... 100 % of the positions stay within, nats.
    pub fn percentiles(&self) -> Vec<f64> {
        let sorted = self.sorted();
        (0..=100).map(|percent| percentile(&sorted, f64::from(percent))).collect()
    }

    /// The divergences, least first. NaN comes last, so that it shows in the largest.
    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.kl.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }
}

/// The value that `percent` of the `sorted` ones stay within; NaN of none.
fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}
