//! The encoder of one lane.
//!
//! [`LaneEncoder`] is all of it; see its example.

use super::{FrequencyTable, STATE_LOWER_BOUND, WORD_BITS};

/// Encodes one lane's symbols, given from **last to first**.
///
/// ```
/// use codecllm::rans::{encoder::LaneEncoder, FrequencyTable, STATE_LOWER_BOUND, WORD_BITS};
/// let mut counts = [0u64; 256];
/// counts[0] = 15;
/// counts[1] = 1;
/// let table = FrequencyTable::from_counts(&counts, 8, 255);
/// let mut lane = LaneEncoder::new();
/// for symbol in [1, 0, 1, 1, 0, 1] {
///     lane.push(symbol, &table);
/// }
/// assert_eq!(lane.finish(), (0x0001_23F5, vec![0x7760]));
/// assert_eq!(LaneEncoder::new().finish(), (STATE_LOWER_BOUND, vec![]));
/// assert_eq!(STATE_LOWER_BOUND, 1 << WORD_BITS); // so at most one word a symbol
/// ```
#[derive(Debug)]
pub struct LaneEncoder {
    state: u32,
    words: Vec<u16>,
}

impl LaneEncoder {
    /// A lane with no symbols.
    pub fn new() -> Self {
        Self { state: STATE_LOWER_BOUND, words: Vec::new() }
    }

    /// Encodes `symbol`, which must have a frequency of at least 1 in `table`.
    #[inline]
    pub fn push(&mut self, symbol: u8, table: &FrequencyTable) {
        let frequency = table.frequency(symbol);
        debug_assert!(frequency > 0, "symbol {symbol} has frequency 0");
        // Above `x_max` the new state would not fit 32 bits; one word brings it below (x_max >= 2^20 > 2^16).
        let x_max = u64::from(frequency) << (32 - table.scale_bits());
        if u64::from(self.state) >= x_max {
            self.words.push(self.state as u16);
            self.state >>= WORD_BITS;
        }
        self.state =
            ((self.state / frequency) << table.scale_bits()) + self.state % frequency + table.start(symbol);
    }

    /// The state to start decoding from and the words in the order that the decoder reads them.
    pub fn finish(mut self) -> (u32, Vec<u16>) {
        self.words.reverse();
        (self.state, self.words)
    }
}

impl Default for LaneEncoder {
    fn default() -> Self {
        Self::new()
    }
}
