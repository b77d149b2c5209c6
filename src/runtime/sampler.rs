//! Picks the next token from logits.

use std::cmp::Ordering;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::error::{Error, Result};

/// How tokens are picked. The default is greedy.
///
/// Given to a [`Sampler`]; see its example.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerOptions {
    /// What logits are divided by; 0 picks the likeliest token always.
    pub temperature: f64,
    /// Only the likeliest `top_k` tokens are considered.
    pub top_k: Option<usize>,
    /// Only the likeliest tokens that together reach probability `top_p` are considered.
    pub top_p: Option<f64>,
    /// The same seed gives the same tokens.
    pub seed: u64,
}

impl Default for SamplerOptions {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: None, top_p: None, seed: 0 }
    }
}

impl SamplerOptions {
    /// Whether they always pick the likeliest token.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    fn check(&self) -> Result<()> {
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return Err(Error::invalid("temperature", format!("{}, wanted 0 or more", self.temperature)));
        }
        if self.top_k == Some(0) {
            return Err(Error::invalid("top-k", "0, wanted 1 or more"));
        }
        match self.top_p {
            Some(top_p) if !(top_p > 0.0 && top_p <= 1.0) => {
                Err(Error::invalid("top-p", format!("{top_p}, wanted more than 0 and at most 1")))
            }
            _ => Ok(()),
        }
    }
}

/// Picks tokens with its own random numbers.
///
/// ```
/// use codecllm::runtime::{Sampler, SamplerOptions};
/// let mut greedy = Sampler::new(&SamplerOptions::default())?;
/// assert_eq!(greedy.sample(&[0.5, 2.0, -1.0])?, 1);
/// let warm = SamplerOptions { temperature: 0.8, top_p: Some(0.9), seed: 7, ..SamplerOptions::default() };
/// assert!(SamplerOptions::default().is_greedy() && !warm.is_greedy());
/// let draw = || Sampler::new(&warm)?.sample(&[0.5, 2.0, -1.0]);
/// assert_eq!(draw()?, draw()?); // the same seed
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Debug)]
pub struct Sampler {
    options: SamplerOptions,
    rng: StdRng,
}

impl Sampler {
    /// A sampler at the start of its random numbers.
    ///
    /// # Errors
    /// `InvalidArgument` for a negative temperature, a top-k of 0, or a top-p outside `(0, 1]`.
    pub fn new(options: &SamplerOptions) -> Result<Self> {
        options.check()?;
        Ok(Self { options: options.clone(), rng: StdRng::seed_from_u64(options.seed) })
    }

    /// Picks a token from one logit for each token of the vocabulary.
    ///
    /// # Errors
    /// `Corrupt` if there is no largest logit: none at all, NaN, or positive infinity.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32> {
        let best = likeliest(logits)?;
        if self.options.is_greedy() {
            return Ok(best);
        }
        let candidates = self.candidates(logits, best);
        let total: f64 = candidates.iter().map(|(_, weight)| weight).sum();
        let mut left = self.rng.random::<f64>() * total;
        for (token, weight) in &candidates {
            left -= weight;
            if left < 0.0 {
                return Ok(*token);
            }
        }
        // Rounding may leave a little over; the likeliest token is never wrong.
        Ok(best)
    }

    /// The tokens to choose from with their unnormalized probabilities; the likeliest has 1.
    fn candidates(&self, logits: &[f32], best: u32) -> Vec<(u32, f64)> {
        let highest = logits.get(best as usize).copied().map_or(0.0, f64::from);
        let weight = |&logit: &f32| ((f64::from(logit) - highest) / self.options.temperature).exp();
        let mut candidates: Vec<(u32, f64)> = (0..).zip(logits.iter().map(weight)).collect();
        if let Some(top_k) = self.options.top_k.filter(|&top_k| top_k < candidates.len()) {
            candidates.select_nth_unstable_by(top_k - 1, likelier_first);
            candidates.truncate(top_k);
        }
        match self.options.top_p {
            Some(top_p) if top_p < 1.0 => nucleus(candidates, top_p),
            _ => candidates,
        }
    }
}

/// The fewest, likeliest candidates that reach `top_p` of the total.
fn nucleus(mut candidates: Vec<(u32, f64)>, top_p: f64) -> Vec<(u32, f64)> {
    let total: f64 = candidates.iter().map(|(_, weight)| weight).sum();
    // Together less than `1 - top_p`, so none of these is needed: a few hundred are left to sort.
    let negligible = (1.0 - top_p) * total / candidates.len() as f64;
    candidates.retain(|(_, weight)| *weight >= negligible);
    candidates.sort_unstable_by(likelier_first);
    let mut reached = 0.0;
    let needed = candidates.iter().take_while(|(_, weight)| {
        let wanted = reached < top_p * total;
        reached += weight;
        wanted
    });
    let count = needed.count();
    candidates.truncate(count);
    candidates
}

/// Likelier first, then lower token first, so that the order is the same everywhere.
fn likelier_first(a: &(u32, f64), b: &(u32, f64)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// The first of the largest logits.
fn likeliest(logits: &[f32]) -> Result<u32> {
    let mut best: Option<(u32, f32)> = None;
    for (token, &logit) in (0u32..).zip(logits) {
        if logit.is_nan() {
            return Err(Error::corrupt("logits", format!("NaN for token {token} (weights damaged?)")));
        }
        if best.is_none_or(|(_, highest)| logit > highest) {
            best = Some((token, logit));
        }
    }
    match best {
        Some((token, highest)) if highest.is_finite() => Ok(token),
        other => Err(Error::corrupt("logits", format!("largest is {other:?}, wanted a finite one"))),
    }
}
