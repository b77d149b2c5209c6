//! The search for the steps at which a whole model, encoded, has the size that was asked for.
//!
//! Samples say where to begin. What they miss, such as a table that pays in the whole matrix and not in its sample, is corrected by
//! what encoding the whole gave, not by asking the samples again.

/// Bits a weight by which an octave of coarser steps lessens a size where nothing better is known: less than one, since many weights
/// may be zero already.
const BITS_AN_OCTAVE: f64 = 0.9;
/// What two attempts may say instead.
const POSSIBLE_BITS_AN_OCTAVE: [f64; 2] = [0.3, 1.5];
/// A guess between two known exponents keeps this share of their distance from both.
const MARGIN: f64 = 0.1;

/// What was tried on either side of a size.
#[derive(Clone, Copy, Debug)]
pub(super) struct BudgetSearch {
    bits: f64,
    /// The coarsest steps known to give too many bits, and how many too many.
    above: Option<(f64, f64)>,
    /// The finest steps known to give too few, and how many too few (negative).
    below: Option<(f64, f64)>,
    /// The attempt before: its exponent, and how many bits too many.
    before: Option<(f64, f64)>,
}

impl BudgetSearch {
    /// Looks for `bits` a weight.
    pub(super) fn new(bits: f64) -> Self {
        Self { bits, above: None, below: None, before: None }
    }

    /// The exponent to try after `exponent` gave `got` bits a weight.
    pub(super) fn next(&mut self, exponent: f64, got: f64) -> f64 {
        let excess = got - self.bits;
        if excess > 0.0 {
            self.above = Some((exponent, excess));
        } else {
            self.below = Some((exponent, excess));
        }
        let slope = self.slope(exponent, excess);
        self.before = Some((exponent, excess));
        match (self.above, self.below) {
            (Some((fine, too_many)), Some((coarse, too_few))) => {
                let share = (too_many / (too_many - too_few)).clamp(MARGIN, 1.0 - MARGIN);
                fine + share * (coarse - fine)
            }
            _ => exponent + excess / slope,
        }
    }

    /// Bits an octave of coarser steps takes off, as this attempt and the one before show.
    fn slope(&self, exponent: f64, excess: f64) -> f64 {
        let [least, most] = POSSIBLE_BITS_AN_OCTAVE;
        match self.before {
            Some((before, excess_before)) if before != exponent => {
                ((excess_before - excess) / (exponent - before)).clamp(least, most)
            }
            _ => BITS_AN_OCTAVE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempts(size: impl Fn(f64) -> f64, mut exponent: f64, bits: f64) -> usize {
        let mut search = BudgetSearch::new(bits);
        for attempt in 1..20 {
            let got = size(exponent);
            if (got - bits).abs() <= 0.01 {
                return attempt;
            }
            exponent = search.next(exponent, got);
        }
        20
    }

    #[test]
    fn a_size_is_met_in_few_attempts() {
        let smooth = |exponent: f64| 2.05 - exponent;
        assert!(attempts(smooth, -1.7, 3.5) <= 3);
        // Steeper beyond a place where the encoder chooses otherwise, and flat where most weights are zero.
        let kinked = |exponent: f64| {
            if exponent < -2.0 {
                4.2 - 1.5 * (exponent + 2.0)
            } else {
                3.9 - (exponent + 2.0)
            }
        };
        assert!(attempts(kinked, -1.0, 4.8) <= 6);
        let flat = |exponent: f64| 2.05 - 0.5 * exponent;
        assert!(attempts(flat, -1.0, 3.5) <= 6);
    }
}
