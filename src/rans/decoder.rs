//! The reference decoder of one lane: the definition of the format, never optimized.
//!
//! [`LaneDecoder`] is all of it; see its example.

use super::{FrequencyTable, STATE_LOWER_BOUND, WORD_BITS};

/// Decodes one lane, symbol by symbol.
///
/// ```
/// use codecllm::rans::{decoder::{LaneDecoder, LaneError}, encoder::LaneEncoder, FrequencyTable};
/// let mut counts = [0; 256];
/// (counts[0], counts[1]) = (15, 1);
/// let table = FrequencyTable::from_counts(&counts, 8, 255);
/// let symbols = [1, 0, 1, 1, 0, 1];
/// let mut encoder = LaneEncoder::new();
/// symbols.iter().rev().for_each(|&symbol| encoder.push(symbol, &table));
/// let (state, words) = encoder.finish();
/// let mut decoder = LaneDecoder::new(state, &words);
/// for symbol in symbols {
///     assert_eq!(decoder.next_symbol(&table, &table.symbol_of_slot()), Ok(symbol));
/// }
/// assert_eq!(decoder.finish(), Ok(()));
/// assert_eq!(LaneDecoder::new(state, &words).finish(), Err(LaneError::WrongEnd)); // nothing was read
/// ```
#[derive(Debug)]
pub struct LaneDecoder<'a> {
    state: u32,
    words: &'a [u16],
}

/// Why a lane cannot be decoded.
///
/// Given by a [`LaneDecoder`]; see its example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneError {
    /// The state fell below its lower bound and no word is left.
    OutOfWords,
    /// All symbols were read, but the state is not the encoder's first or words are left over.
    WrongEnd,
}

impl<'a> LaneDecoder<'a> {
    /// A lane that starts from `state` and owns `words`.
    pub fn new(state: u32, words: &'a [u16]) -> Self {
        Self { state, words }
    }

    /// Pops one symbol and renormalizes. `symbol_of_slot` is [`FrequencyTable::symbol_of_slot`] of `table`.
    pub fn next_symbol(&mut self, table: &FrequencyTable, symbol_of_slot: &[u8]) -> Result<u8, LaneError> {
        let slot = self.state & ((1 << table.scale_bits()) - 1);
        let symbol = symbol_of_slot[slot as usize];
        // frequency <= 2^scale_bits and state >> scale_bits < 2^(32 - scale_bits): no overflow.
        self.state =
            table.frequency(symbol) * (self.state >> table.scale_bits()) + slot - table.start(symbol);
        if self.state < STATE_LOWER_BOUND {
            let (&word, rest) = self.words.split_first().ok_or(LaneError::OutOfWords)?;
            self.state = (self.state << WORD_BITS) | u32::from(word);
            self.words = rest;
        }
        Ok(symbol)
    }

    /// Checks that the lane ends where the encoder started.
    pub fn finish(self) -> Result<(), LaneError> {
        if self.state == STATE_LOWER_BOUND && self.words.is_empty() {
            Ok(())
        } else {
            Err(LaneError::WrongEnd)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::encoder::LaneEncoder;
    use super::*;
    use proptest::prelude::*;

    fn round_trip(symbols: &[u8], scale_bits: u32, cap: u16) -> usize {
        let mut counts = [0u64; 256];
        symbols.iter().for_each(|&s| counts[usize::from(s)] += 1);
        let table = FrequencyTable::from_counts(&counts, scale_bits, cap);
        let mut encoder = LaneEncoder::new();
        symbols.iter().rev().for_each(|&s| encoder.push(s, &table));
        let (state, words) = encoder.finish();
        let mut decoder = LaneDecoder::new(state, &words);
        let slots = table.symbol_of_slot();
        for &symbol in symbols {
            assert_eq!(decoder.next_symbol(&table, &slots), Ok(symbol));
        }
        decoder.finish().unwrap();
        let bound: f64 = symbols.iter().map(|&s| table.cost_bits(s)).sum();
        // The state holds the last 16 to 32 bits; rounding in the states costs next to nothing.
        assert!((words.len() * 16) as f64 <= bound * 1.001 + 16.0, "{} words, {bound} bits", words.len());
        words.len()
    }

    proptest! {
        #[test]
        fn decode_inverts_encode(
            symbols in proptest::collection::vec(any::<u8>(), 0..2000),
            scale_bits in 8u32..=12,
        ) {
            round_trip(&symbols, scale_bits, (1 << scale_bits) - 1);
        }

        #[test]
        fn skewed_symbols_round_trip(symbols in proptest::collection::vec(0u8..3, 0..3000)) {
            round_trip(&symbols, 11, 1024);
        }
    }

    #[test]
    fn a_missing_word_and_a_wrong_end_are_noticed() {
        let table = FrequencyTable::from_counts(&[1; 256], 8, 255);
        let slots = table.symbol_of_slot();
        let mut encoder = LaneEncoder::new();
        (0..=255).for_each(|s| encoder.push(s, &table));
        let (state, words) = encoder.finish();
        let mut short = LaneDecoder::new(state, &words[..words.len() - 1]);
        assert!((0..256).any(|_| short.next_symbol(&table, &slots) == Err(LaneError::OutOfWords)));
        assert_eq!(LaneDecoder::new(state, &words).finish(), Err(LaneError::WrongEnd));
    }
}
