//! Decode tables as the kernels read them: one entry of 32 bits a slot. The layout is that of `csrc/kernels/rans.cuh`.

use crate::codec::{CodedTable, Layout};
use crate::error::{Error, Result};
use crate::rans::FrequencyTable;

/// Bytes of one table.
pub(super) fn table_bytes(layout: Layout) -> usize {
    4 << layout.scale_bits()
}

/// What the kernels are given of `tables`: the entries, one table after the other, and behind them a number a table, which says where
/// its classes begin if they are exponents. A weight without tables gets one of zeros. `subject` is the tensor path.
///
/// # Errors
/// `Unsupported` for a table whose frequencies the entries have no room for, or sum to something else than the kernels'
/// shifts expect. The encoder writes none.
pub(super) fn entries(tables: &[CodedTable], layout: Layout, subject: &str) -> Result<Vec<u32>> {
    let count = tables.len().max(1);
    let mut entries = Vec::with_capacity((count << layout.scale_bits()) + count);
    for CodedTable { frequencies: table, .. } in tables {
        check(table, layout, subject)?;
        let symbols = table.symbol_of_slot();
        entries.extend((0..).zip(symbols).map(|(slot, symbol)| {
            let (frequency, bias) = (table.frequency(symbol), slot - table.start(symbol));
            match layout {
                Layout::Fast => frequency << 23 | bias << 7 | spread_classes(symbol),
                Layout::Small => frequency << 20 | bias << 8 | u32::from(symbol),
                Layout::ExactBf16 | Layout::ExactFp16 => {
                    frequency << 20 | bias << 4 | spread_exponents(symbol)
                }
            }
        }));
    }
    entries.resize(count << layout.scale_bits(), 0);
    entries.extend(tables.iter().map(|table| exponent_offset(table, layout)));
    entries.resize(entries.len() + count - tables.len(), 0);
    Ok(entries)
}

/// The two classes of a symbol, 16 bits apart.
fn spread_exponents(symbol: u8) -> u32 {
    u32::from(symbol & 15) | u32::from(symbol >> 4) << 16
}

/// What a class above 0 adds to itself to be an exponent, at an exponent's place in a half; over 16, since a kernel has a bit 4 where a
/// class is above 0.
fn exponent_offset(table: &CodedTable, layout: Layout) -> u32 {
    match layout.first_exponents() {
        None => 0,
        Some(_) => (table.first_exponent - 1) << layout.raw_magnitude_bits(true).start() >> 4,
    }
}

/// The four classes of a symbol, two of each register 16 bits apart, the first register's two bits higher: one shift and one
/// mask put them at their places in a register.
fn spread_classes(symbol: u8) -> u32 {
    let class = |index: u32| u32::from(symbol) >> (2 * index) & 3;
    class(0) << 3 | class(1) << 19 | class(2) << 1 | class(3) << 17
}

fn check(table: &FrequencyTable, layout: Layout, subject: &str) -> Result<()> {
    let (bits, cap) = (layout.scale_bits(), u32::from(layout.frequency_cap()));
    if table.scale_bits() != bits {
        return Err(Error::unsupported(
            subject,
            format!(
                "tables of {} scale bits, {bits} are decoded on a GPU (use the CPU, or compress it again)",
                table.scale_bits()
            ),
        ));
    }
    match (0..=255).map(|symbol| table.frequency(symbol)).find(|&frequency| frequency > cap) {
        None => Ok(()),
        Some(frequency) => Err(Error::unsupported(
            subject,
            format!(
                "a table has a frequency of {frequency}, at most {cap} is decoded on a GPU (use the CPU, or compress it \
                 again)"
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Classes;
    use crate::rans::decoder::LaneDecoder;
    use crate::rans::encoder::LaneEncoder;
    use crate::rans::{STATE_LOWER_BOUND, WORD_BITS};
    use proptest::prelude::*;

    /// What `Lane::pop` of `rans.cuh` does, instruction by instruction.
    fn pop(state: &mut u32, words: &mut &[u16], entries: &[u32], layout: Layout) -> u32 {
        let bits = layout.scale_bits();
        let entry = entries[(*state & ((1 << bits) - 1)) as usize];
        let (frequency, bias) = match layout {
            Layout::Fast => (entry >> 23, entry.wrapping_mul(65536) >> 23),
            Layout::Small => (entry >> 20, entry >> 8 & 0xFFF),
            Layout::ExactBf16 | Layout::ExactFp16 => (entry >> 20, entry.wrapping_mul(65536) >> 20),
        };
        *state = frequency * (*state >> bits) + bias;
        if *state < STATE_LOWER_BOUND {
            *state = *state << WORD_BITS | u32::from(words[0]);
            *words = &words[1..];
        }
        entry
    }

    /// The class bits of the two registers that an entry's symbol covers, as `GroupDecoder` takes them for `R` raw bits.
    fn registers(entry: u32, raw_bits: u32) -> [u32; 2] {
        let shift = |by: i32| if by >= 0 { entry << by } else { entry >> -by };
        let classes = 3 << raw_bits | 3 << (16 + raw_bits);
        let raw_bits = raw_bits as i32;
        [shift(raw_bits - 3) & classes, shift(raw_bits - 1) & classes]
    }

    /// The exponents of the register that an entry's symbol covers, as `exponents_of` of `group.cuh` takes them.
    fn exponents(entry: u32, mantissa_bits: u32, offset: u32) -> u32 {
        let classes = entry & 0x000F_000F;
        let some = (classes + 0x000F_000F) & 0x0010_0010;
        (classes << mantissa_bits) + some * offset
    }

    fn check_against_the_reference(symbols: &[u8], layout: Layout) {
        let mut counts = [0u64; 256];
        symbols.iter().for_each(|&symbol| counts[usize::from(symbol)] += 1);
        let table = FrequencyTable::from_counts(&counts, layout.scale_bits(), layout.frequency_cap());
        let mut encoder = LaneEncoder::new();
        symbols.iter().rev().for_each(|&symbol| encoder.push(symbol, &table));
        let (first, words) = encoder.finish();
        let mut reference = LaneDecoder::new(first, &words);
        let slots = table.symbol_of_slot();
        let first_exponent = layout.first_exponents().map_or(0, |range| *range.end());
        let coded = CodedTable { frequencies: table.clone(), first_exponent };
        let own = entries(&[coded], layout, "t").unwrap();
        assert_eq!(4 * own.len(), table_bytes(layout) + 4);
        let (mut state, mut rest) = (first, &words[..]);
        for _ in symbols {
            let symbol = reference.next_symbol(&table, &slots).unwrap();
            let entry = pop(&mut state, &mut rest, &own, layout);
            match layout {
                Layout::Small => assert_eq!(entry & 0xFF, u32::from(symbol)),
                Layout::ExactBf16 | Layout::ExactFp16 => {
                    let mantissa_bits = *layout.raw_magnitude_bits(true).start();
                    let classes = Classes::new(layout, mantissa_bits, first_exponent);
                    let wanted = classes.symbol_half(symbol, 0) | classes.symbol_half(symbol, 1) << 16;
                    assert_eq!(
                        exponents(entry, mantissa_bits, own[own.len() - 1]),
                        wanted,
                        "symbol {symbol}"
                    );
                }
                Layout::Fast => {
                    for raw_bits in 0..=8 {
                        let half = |index| Classes::new(layout, raw_bits, 0).symbol_half(symbol, index);
                        let wanted = [half(0) | half(1) << 16, half(2) | half(3) << 16];
                        assert_eq!(
                            registers(entry, raw_bits),
                            wanted,
                            "symbol {symbol}, {raw_bits} raw bits"
                        );
                    }
                }
            }
        }
        assert_eq!((state, rest), (STATE_LOWER_BOUND, &[][..]));
    }

    proptest! {
        #[test]
        fn popping_by_the_entries_is_the_reference(
            symbols in proptest::collection::vec(any::<u8>(), 1..600),
            skewed in proptest::collection::vec(0u8..5, 1..600),
        ) {
            for layout in Layout::ALL {
                check_against_the_reference(&symbols, layout);
                check_against_the_reference(&skewed, layout);
            }
        }
    }

    #[test]
    fn what_an_entry_has_no_room_for_is_unsupported() {
        let mut frequencies = [0u16; 256];
        (frequencies[0], frequencies[1]) = (512, 1536);
        let table = FrequencyTable::from_frequencies(11, frequencies, "t").unwrap();
        let coded = |frequencies| CodedTable { frequencies, first_exponent: 0 };
        let error = entries(&[coded(table)], Layout::Fast, "w").unwrap_err();
        assert_eq!((error.kind(), error.subject()), (crate::ErrorKind::Unsupported, "w"));
        let table = FrequencyTable::from_counts(&[1; 256], 8, 255);
        assert!(entries(&[coded(table)], Layout::Small, "w").is_err());
    }
}
