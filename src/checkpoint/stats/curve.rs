//! Places on the curve of bits against signal-to-noise ratio, between the steps that were tried.

use std::fmt;

use super::tally::Tally;
use super::CurvePoint;

/// A place between two neighbouring points of every curve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Position {
    /// The finer one.
    index: usize,
    /// How far it is to the coarser one, 0 to 1.
    share: f64,
}

/// A budget that lies beyond the curve's ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Missed {
    bits: f64,
    ends: [f64; 2],
}

impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bits, ends: [coarse, fine] } = self;
        write!(f, "leaves the matrices {bits:.3} bits a weight; their steps give {coarse:.3} to {fine:.3}")
    }
}

/// Where the `curve`, from fine to coarse, has `bits` a weight.
pub(super) fn at_budget(curve: &[Tally], bits: f64) -> Result<Position, Missed> {
    for (index, pair) in curve.windows(2).enumerate() {
        let [fine, coarse] = [&pair[0], &pair[1]].map(|tally: &Tally| tally.bits_per_weight());
        if (coarse..=fine).contains(&bits) {
            let share = if fine > coarse { (fine - bits) / (fine - coarse) } else { 0.0 };
            return Ok(Position { index, share });
        }
    }
    let end = |tally: Option<&Tally>| tally.map_or(0.0, Tally::bits_per_weight);
    Err(Missed { bits, ends: [end(curve.last()), end(curve.first())] })
}

impl Position {
    /// What the curve of one tensor, or of all, has here.
    pub(super) fn on(&self, curve: &[Tally]) -> Tally {
        match (curve.get(self.index), curve.get(self.index + 1)) {
            (Some(fine), Some(coarse)) => fine.towards(coarse, self.share),
            _ => Tally::default(),
        }
    }
}

/// The bits a weight at which `curve`, from fine to coarse, reaches a signal-to-noise ratio; `None` beyond its ends.
///
/// ```
/// use codecllm::checkpoint::{bits_at_snr, CurvePoint};
/// let point = |bits_per_weight, snr_db| CurvePoint {
///     choice: String::new(),
///     bits_per_weight,
///     grid_entropy_bits: None,
///     exponent_entropy_and_raw_bits: None,
///     snr_db,
/// };
/// let curve = [point(6.0, 34.0), point(5.0, 28.0), point(4.0, 22.0)];
/// assert_eq!(bits_at_snr(&curve, 31.0), Some(5.5));
/// assert_eq!(bits_at_snr(&curve, 40.0), None);
/// ```
pub fn bits_at_snr(curve: &[CurvePoint], snr_db: f64) -> Option<f64> {
    let between = |pair: &[CurvePoint]| {
        let [fine, coarse] = pair else { return None };
        let span = fine.snr_db - coarse.snr_db;
        let above = snr_db - coarse.snr_db;
        let inside = span.is_finite() && span > 0.0 && (0.0..=span).contains(&above);
        inside
            .then(|| coarse.bits_per_weight + (fine.bits_per_weight - coarse.bits_per_weight) * above / span)
    };
    curve.windows(2).find_map(between)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::Distortion;

    fn tally(bits: f64, noise: f64) -> Tally {
        let mut tally = Tally::as_it_is(100, bits);
        tally.distortion = Distortion { signal: 100.0, noise, max_error: 0.0 };
        tally
    }

    #[test]
    fn a_budget_lies_between_its_neighbours() {
        let curve = [tally(8.0, 0.01), tally(7.0, 0.04), tally(5.0, 0.64)];
        let position = at_budget(&curve, 6.0).unwrap();
        assert_eq!(position, Position { index: 1, share: 0.5 });
        let here = position.on(&curve);
        assert!((here.bits_per_weight() - 6.0).abs() < 1e-12);
        assert!((here.distortion.noise - 0.16).abs() < 1e-12, "half way in decibels");
        for end in [8.0, 5.0] {
            assert!((at_budget(&curve, end).unwrap().on(&curve).bits_per_weight() - end).abs() < 1e-12);
        }
    }

    #[test]
    fn a_budget_beyond_the_ends_is_missed() {
        let curve = [tally(8.0, 0.01), tally(5.0, 0.64)];
        for bits in [8.5, 4.9, f64::NAN] {
            let missed = at_budget(&curve, bits).unwrap_err();
            assert!(missed.to_string().ends_with("their steps give 5.000 to 8.000"), "{missed}");
        }
        assert!(at_budget(&[], 5.0).is_err());
    }
}
