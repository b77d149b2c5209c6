//! How often each symbol is expected: integer frequencies that sum to a power of two.
//!
//! [`FrequencyTable`] is all of it; see its example.

use super::{SCALE_BITS_RANGE, SYMBOLS};
use crate::error::{Error, Result};

/// The largest stored frequency: a decoder's packed entry has 12 bits for it.
const MAX_FREQUENCY: u16 = 4095;

/// Frequencies of the 256 symbols, summing to `1 << scale_bits`.
///
/// ```
/// use codecllm::rans::{FrequencyTable, SCALE_BITS_RANGE, SYMBOLS};
/// let mut counts = [0u64; SYMBOLS];
/// counts[7] = 3;
/// counts[9] = 1;
/// let table = FrequencyTable::from_counts(&counts, *SCALE_BITS_RANGE.start(), 255);
/// assert_eq!((table.scale_bits(), table.frequency(7), table.frequency(9)), (8, 192, 64));
/// assert_eq!((table.start(7), table.start(9)), (0, 192));
/// assert_eq!((table.cost_bits(9), table.symbol_of_slot()[192]), (2.0, 9));
/// let mut bytes = Vec::new();
/// table.write(&mut bytes); // seven zeros, 192, one zero, 64, 246 zeros
/// assert_eq!(bytes, [0, 6, 0xC0, 1, 0, 0, 64, 0, 245]);
/// let read = FrequencyTable::read(&mut &bytes[..], 8, "w")?;
/// assert_eq!(read.symbol_of_slot(), table.symbol_of_slot());
/// assert!(FrequencyTable::from_frequencies(8, [2; SYMBOLS], "w").is_err(), "they sum to 512");
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrequencyTable {
    scale_bits: u32,
    frequencies: [u16; SYMBOLS],
    starts: [u16; SYMBOLS],
}

impl FrequencyTable {
    /// The table that codes symbols with these `counts` in the fewest bits, under the constraints that
    /// frequencies are whole, sum to `1 << scale_bits`, are at least 1 for every counted symbol and at most
    /// `cap`.
    ///
    /// Counts may be any size (they are scaled in floating point); no counts at all give a flat table. `cap`
    /// must allow the sum: `cap * 256 >= 1 << scale_bits`.
    pub fn from_counts(counts: &[u64; SYMBOLS], scale_bits: u32, cap: u16) -> Self {
        debug_assert!(SCALE_BITS_RANGE.contains(&scale_bits));
        debug_assert!(usize::from(cap) * SYMBOLS >= 1 << scale_bits);
        let total: u64 = counts.iter().sum();
        let scale = f64::from(1u32 << scale_bits) / (total.max(1)) as f64;
        let mut frequencies = [0u16; SYMBOLS];
        for (frequency, &count) in frequencies.iter_mut().zip(counts) {
            if count > 0 {
                *frequency = (count as f64 * scale).round().clamp(1.0, f64::from(cap)) as u16;
            }
        }
        settle_sum(&mut frequencies, counts, scale_bits, cap);
        Self::with_starts(scale_bits, frequencies)
    }

    /// A table of these frequencies. Errors if they do not sum to `1 << scale_bits`.
    pub fn from_frequencies(scale_bits: u32, frequencies: [u16; SYMBOLS], subject: &str) -> Result<Self> {
        let sum: u32 = frequencies.iter().map(|&f| u32::from(f)).sum();
        if !SCALE_BITS_RANGE.contains(&scale_bits) || sum != 1 << scale_bits {
            return Err(Error::corrupt(
                subject,
                format!("frequencies of a table sum to {sum}, wanted 2^{scale_bits}"),
            ));
        }
        Ok(Self::with_starts(scale_bits, frequencies))
    }

    fn with_starts(scale_bits: u32, frequencies: [u16; SYMBOLS]) -> Self {
        let mut starts = [0u16; SYMBOLS];
        let mut next = 0u16;
        for (start, &frequency) in starts.iter_mut().zip(&frequencies) {
            *start = next;
            next += frequency;
        }
        Self { scale_bits, frequencies, starts }
    }

    /// Base-two logarithm of the sum of frequencies.
    pub fn scale_bits(&self) -> u32 {
        self.scale_bits
    }

    /// Frequency of `symbol`, out of `1 << scale_bits`.
    pub fn frequency(&self, symbol: u8) -> u32 {
        u32::from(self.frequencies[usize::from(symbol)])
    }

    /// The first slot of `symbol`: the sum of the frequencies before it.
    pub fn start(&self, symbol: u8) -> u32 {
        u32::from(self.starts[usize::from(symbol)])
    }

    /// Bits that one `symbol` costs, infinite for one of frequency 0.
    pub fn cost_bits(&self, symbol: u8) -> f64 {
        f64::from(self.scale_bits) - f64::from(self.frequency(symbol)).log2()
    }

    /// The symbol that owns each slot.
    pub fn symbol_of_slot(&self) -> Vec<u8> {
        (0..=255u8).flat_map(|symbol| std::iter::repeat_n(symbol, self.frequency(symbol) as usize)).collect()
    }

    /// Appends the table's bytes: a frequency as LEB128, a run of `n` zeros as `0` and `n - 1`.
    pub fn write(&self, bytes: &mut Vec<u8>) {
        let mut symbol = 0;
        while symbol < SYMBOLS {
            let frequency = self.frequencies[symbol];
            if frequency == 0 {
                let run = self.frequencies[symbol..].iter().take_while(|&&f| f == 0).count();
                bytes.extend([0, (run - 1) as u8]);
                symbol += run;
                continue;
            }
            if frequency < 128 {
                bytes.push(frequency as u8);
            } else {
                bytes.extend([(frequency & 127) as u8 | 128, (frequency >> 7) as u8]);
            }
            symbol += 1;
        }
    }

    /// Reads one table from the front of `bytes` and moves past it.
    pub fn read(bytes: &mut &[u8], scale_bits: u32, subject: &str) -> Result<Self> {
        let mut frequencies = [0u16; SYMBOLS];
        let mut symbol = 0;
        while symbol < SYMBOLS {
            let first = next_byte(bytes, subject)?;
            if first == 0 {
                symbol += usize::from(next_byte(bytes, subject)?) + 1;
                continue;
            }
            let mut frequency = u16::from(first);
            if first >= 128 {
                frequency = (frequency & 127) | u16::from(next_byte(bytes, subject)?) << 7;
            }
            frequencies[symbol] = frequency;
            symbol += 1;
        }
        if symbol > SYMBOLS {
            return Err(Error::corrupt(subject, "a run of zero frequencies passes symbol 255"));
        }
        if frequencies.iter().map(|&f| u32::from(f)).sum::<u32>() > u32::from(u16::MAX) {
            return Err(Error::corrupt(subject, "frequencies of a table sum to more than 65535"));
        }
        if let Some(most) = frequencies.iter().find(|&&f| f > MAX_FREQUENCY) {
            return Err(Error::corrupt(
                subject,
                format!("a table has a frequency of {most}, wanted at most {MAX_FREQUENCY}"),
            ));
        }
        Self::from_frequencies(scale_bits, frequencies, subject)
    }
}

fn next_byte(bytes: &mut &[u8], subject: &str) -> Result<u8> {
    let Some((&first, rest)) = bytes.split_first() else {
        return Err(Error::truncated(subject, "the frequency tables end inside a table (file truncated?)"));
    };
    *bytes = rest;
    Ok(first)
}

/// Moves frequencies by one where it costs the fewest bits, until they sum to `1 << scale_bits`.
fn settle_sum(frequencies: &mut [u16; SYMBOLS], counts: &[u64; SYMBOLS], scale_bits: u32, cap: u16) {
    let target = 1i64 << scale_bits;
    let mut sum: i64 = frequencies.iter().map(|&f| i64::from(f)).sum();
    while sum != target {
        let up = sum < target;
        // A symbol that is counted must stay at 1 or more; one that is not may take what nobody else can.
        let movable = |symbol: usize| if up { frequencies[symbol] < cap } else { frequencies[symbol] > 1 };
        let cost = |symbol: usize| {
            let from = f64::from(frequencies[symbol]);
            let to = if up { from + 1.0 } else { from - 1.0 };
            match (counts[symbol], frequencies[symbol]) {
                (0, 0) => f64::MIN_POSITIVE,
                (count, _) => count as f64 * (from.log2() - to.log2()),
            }
        };
        let Some(best) = (0..SYMBOLS).filter(|&s| movable(s)).min_by(|&a, &b| cost(a).total_cmp(&cost(b)))
        else {
            // Unreachable while `cap * 256 >= 1 << scale_bits` and at most `1 << scale_bits` symbols count.
            return;
        };
        frequencies[best] = if up { frequencies[best] + 1 } else { frequencies[best] - 1 };
        sum += if up { 1 } else { -1 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frequencies_sum_and_keep_every_present_symbol(
            counts in proptest::collection::vec(prop_oneof![Just(0u64), 1u64..5, 1u64..(1 << 40)], 256),
            scale_bits in 8u32..=12,
        ) {
            let counts: [u64; 256] = counts.try_into().unwrap();
            let cap = ((1u32 << scale_bits) - 1).min(511) as u16;
            let table = FrequencyTable::from_counts(&counts, scale_bits, cap);
            let sum: u32 = (0..=255).map(|s| table.frequency(s)).sum();
            prop_assert_eq!(sum, 1 << scale_bits);
            for symbol in 0..=255u8 {
                prop_assert!(table.frequency(symbol) <= u32::from(cap));
                prop_assert!(counts[usize::from(symbol)] == 0 || table.frequency(symbol) > 0);
            }
            let mut bytes = Vec::new();
            table.write(&mut bytes);
            for length in 0..bytes.len() {
                prop_assert!(FrequencyTable::read(&mut &bytes[..length], scale_bits, "t").is_err());
            }
            let mut rest = &bytes[..];
            prop_assert_eq!(FrequencyTable::read(&mut rest, scale_bits, "t").unwrap(), table);
            prop_assert!(rest.is_empty());
        }
    }

    #[test]
    fn wrong_sums_and_overlong_runs_are_corrupt() {
        for bytes in [&[0u8, 255][..], &[1, 0, 255], &[200, 200, 0, 254]] {
            assert!(FrequencyTable::read(&mut &bytes[..], 8, "t").is_err(), "{bytes:?}");
        }
    }
}
