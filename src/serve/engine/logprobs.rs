//! Log-probabilities of tokens, from logits.

use std::cmp::Ordering;

use super::answer::{TokenLogprob, TokenLogprobs};
use crate::error::Result;
use crate::runtime::Tokenizer;

/// How likely `chosen` was, and the `top` likeliest tokens, by `logits` (one for each token of the vocabulary).
pub(super) fn token_logprobs(
    logits: &[f32],
    chosen: u32,
    top: usize,
    tokenizer: &Tokenizer,
) -> Result<TokenLogprobs> {
    let total = log_sum_exp(logits);
    let entry = |id: u32| -> Result<TokenLogprob> {
        let logit = logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
        let bytes = tokenizer.token_bytes(id)?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Ok(TokenLogprob { id, text, bytes, logprob: (f64::from(logit) - total) as f32 })
    };
    let top = likeliest(logits, top).into_iter().map(entry).collect::<Result<_>>()?;
    Ok(TokenLogprobs { chosen: entry(chosen)?, top })
}

/// The logarithm of the sum of all exponentials, which probabilities are divided by.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let highest = f64::from(highest);
    highest + logits.iter().map(|&logit| (f64::from(logit) - highest).exp()).sum::<f64>().ln()
}

/// The `count` tokens of the largest logits, largest first and lowest token first of equals.
fn likeliest(logits: &[f32], count: usize) -> Vec<u32> {
    let order = |a: &(u32, f32), b: &(u32, f32)| -> Ordering { b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)) };
    let mut tokens: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
    if count > 0 && count < tokens.len() {
        tokens.select_nth_unstable_by(count - 1, order);
    }
    tokens.truncate(count);
    tokens.sort_unstable_by(order);
    tokens.into_iter().map(|(token, _)| token).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_sum_to_one_however_large_the_logits() {
        let logits = [1000.0, 998.5, -1e30, 1000.0, f32::NEG_INFINITY];
        let total = log_sum_exp(&logits);
        let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - total).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-12, "{sum}");
        assert!((f64::from(logits[0]) - total + (2.0 + (-1.5f64).exp()).ln()).abs() < 1e-12);
    }

    #[test]
    fn the_likeliest_come_in_order() {
        let logits = [0.5, 2.0, -1.0, 2.0, 7.0];
        assert_eq!(likeliest(&logits, 0), [0u32; 0]);
        assert_eq!(likeliest(&logits, 3), [4, 1, 3]);
        assert_eq!(likeliest(&logits, 5), [4, 1, 3, 0, 2]);
        assert_eq!(likeliest(&logits, 9).len(), 5);
    }
}
