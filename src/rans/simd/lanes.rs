//! One rANS step of 32 lanes.

use super::{LaneArray, U32x32};
use crate::rans::{FrequencyTable, LANES, STATE_LOWER_BOUND, WORD_BITS};

/// A frequency table as a decoder wants it: one 32-bit entry a slot.
///
/// ```text
/// [31:20] frequency, below 4096
/// [19:16] upper symbol bits
/// [15: 4] bias: the slot's distance from the symbol's first
/// [ 3: 0] lower symbol bits
/// ```
/// Which bits of a symbol are upper and lower is the caller's choice.
#[derive(Clone, Debug)]
pub(crate) struct EntryTable {
    entries: Vec<u32>,
    scale_bits: u32,
}

impl EntryTable {
    /// Spreads `table`; `spread(symbol)` gives the symbol's bits at `[19:16]` and `[3:0]`. `None` where a frequency
    /// passes what an entry has room for.
    pub fn new(table: &FrequencyTable, spread: impl Fn(u8) -> u32) -> Option<Self> {
        let mut entries = Vec::with_capacity(1 << table.scale_bits());
        for symbol in 0..=255 {
            let frequency = table.frequency(symbol);
            if frequency >= 1 << 12 {
                return None;
            }
            let spread = spread(symbol) & 0x000F_000F;
            entries.extend((0..frequency).map(|bias| frequency << 20 | bias << 4 | spread));
        }
        Some(Self { entries, scale_bits: table.scale_bits() })
    }

    /// The entry of the slot that `state` is in, and the state after its symbol, before renormalization.
    pub fn advance(&self, state: u32) -> (u32, u32) {
        let entry = self.entries[(state & (self.entries.len() as u32 - 1)) as usize];
        (entry, (entry >> 20) * (state >> self.scale_bits) + (entry >> 4 & 0xFFF))
    }
}

/// The states and word positions of 32 lanes, in vectors.
///
/// The words are read through a window of two, fetched by [`Self::open_window`]: it serves two steps, in each of
/// which a lane takes at most one word.
#[derive(Clone, Copy)]
pub(crate) struct LaneVectors<V> {
    states: V,
    offsets: V,
    window: V,
}

/// What stays the same over all steps of a tile.
#[derive(Clone, Copy)]
pub(crate) struct StepConstants<V> {
    entries: *const u32,
    slot_mask: V,
    scale_bits: V,
    bias_mask: V,
    frequency_shift: V,
    bias_shift: V,
    word_bits: V,
    word_mask: V,
    word_bytes: V,
}

impl<V: U32x32> StepConstants<V> {
    /// # Safety
    /// As for all of [`U32x32`]; `table` outlives the value and is not changed meanwhile: the value keeps the address of its entries.
    #[inline(always)]
    pub unsafe fn new(table: &EntryTable) -> Self {
        // SAFETY: the caller runs on a processor that has V's instructions, which is all that `splat` asks.
        unsafe {
            Self {
                entries: table.entries.as_ptr(),
                slot_mask: V::splat(table.entries.len() as u32 - 1),
                scale_bits: V::splat(table.scale_bits),
                bias_mask: V::splat(0xFFF),
                frequency_shift: V::splat(20),
                bias_shift: V::splat(4),
                word_bits: V::splat(WORD_BITS),
                word_mask: V::splat(0xFFFF),
                word_bytes: V::splat(2),
            }
        }
    }
}

impl<V: U32x32> LaneVectors<V> {
    /// # Safety
    /// As for all of [`U32x32`].
    #[inline(always)]
    pub unsafe fn new(states: &LaneArray, offsets: &LaneArray) -> Self {
        // SAFETY: `load` reads 32 integers, as many as either array has; the instructions are the caller's word.
        unsafe {
            Self {
                states: V::load(states.0.as_ptr()),
                offsets: V::load(offsets.0.as_ptr()),
                window: V::splat(0),
            }
        }
    }

    /// # Safety
    /// As for all of [`U32x32`].
    #[inline(always)]
    pub unsafe fn save(&self, states: &mut LaneArray, offsets: &mut LaneArray) {
        // SAFETY: `store` writes 32 integers, as many as either array has, and both are borrowed mutably; the instructions are the
        // caller's word.
        unsafe {
            self.states.store(states.0.as_mut_ptr());
            self.offsets.store(offsets.0.as_mut_ptr());
        }
    }

    /// Fetches every lane's next two words.
    ///
    /// # Safety
    /// `words` has 4 readable bytes at every lane's offset.
    #[inline(always)]
    pub unsafe fn open_window(&mut self, words: *const u8) {
        // SAFETY: the caller gives 4 readable bytes at every lane's offset, which is what `gather_bytes` reads.
        self.window = unsafe { V::gather_bytes(words, self.offsets) };
    }

    /// Pops one symbol of every lane (of those in `active`, if given) and renormalizes. Gives the table entries.
    ///
    /// # Safety
    /// As for all of [`U32x32`]; the table that `constants` was made of is alive.
    #[inline(always)]
    pub unsafe fn step(&mut self, constants: &StepConstants<V>, active: Option<V::Mask>) -> V {
        let c = constants;
        // SAFETY: a table has `1 << scale_bits` entries, as many as its frequencies sum to, so a state masked by that less one is an
        // index inside it, whatever the state is. All else is arithmetic in registers.
        unsafe {
            let entry = V::gather(c.entries, self.states.and(c.slot_mask));
            let bias = entry.shr(c.bias_shift).and(c.bias_mask);
            let mut next = entry.shr(c.frequency_shift).mul(self.states.shr(c.scale_bits)).add(bias);
            if let Some(active) = active {
                next = V::select(active, next, self.states);
            }
            let mut low = next.below_2_16();
            if let Some(active) = active {
                low = V::mask_and(low, active);
            }
            let refilled = next.shl(c.word_bits).or(self.window.and(c.word_mask));
            self.states = V::select(low, refilled, next);
            self.window = V::select(low, self.window.shr(c.word_bits), self.window);
            self.offsets = V::select(low, self.offsets.add(c.word_bytes), self.offsets);
            entry
        }
    }
}

/// Whether every lane ended where its encoder started and read exactly its words.
pub(crate) fn all_ended(states: &LaneArray, offsets: &LaneArray, ends: &[u32; LANES]) -> bool {
    states.0.iter().all(|&state| state == STATE_LOWER_BOUND) && offsets.0 == *ends
}
