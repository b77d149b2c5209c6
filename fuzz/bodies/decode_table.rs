//! Frequency tables: whatever is read is one that decoding can rely on, and is read again from what it is written as.
//!
//! The first byte of the input chooses the scale, the rest is the tables' bytes.

use std::path::Path;

use codecllm::checkpoint::Reader;
use codecllm::rans::{FrequencyTable, SCALE_BITS_RANGE};

pub fn run(data: &[u8]) {
    let Some((&choice, mut rest)) = data.split_first() else { return };
    let scales = SCALE_BITS_RANGE.count() as u32;
    let scale_bits = SCALE_BITS_RANGE.start() + u32::from(choice) % scales;
    while !rest.is_empty() {
        let before = rest.len();
        let Ok(table) = FrequencyTable::read(&mut rest, scale_bits, "w") else { return };
        assert!(rest.len() < before, "a table has bytes");
        check(&table);
    }
}

fn check(table: &FrequencyTable) {
    let slots = 1usize << table.scale_bits();
    let sum: u32 = (0..=255).map(|symbol| table.frequency(symbol)).sum();
    assert_eq!(sum as usize, slots);
    let symbols = table.symbol_of_slot();
    assert_eq!(symbols.len(), slots);
    for (slot, &symbol) in symbols.iter().enumerate() {
        let start = table.start(symbol) as usize;
        assert!((start..start + table.frequency(symbol) as usize).contains(&slot));
    }
    let mut written = Vec::new();
    table.write(&mut written);
    let again = FrequencyTable::read(&mut &written[..], table.scale_bits(), "w").expect("what was written");
    assert!((0..=255).all(|symbol| again.frequency(symbol) == table.frequency(symbol)));
}

#[allow(dead_code, reason = "libFuzzer reads its seeds from a folder")]
pub fn seeds(root: &Path) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (golden, tensor) in [("v1", "a"), ("v1", "b"), ("v1_exact", "e"), ("v1_exact", "f")] {
        let reader = Reader::open(root.join("tests/golden").join(golden)).expect("a golden");
        let tables = reader.read_bytes(&format!("{tensor}.weight.tables")).expect("its tables");
        for scale in 0..SCALE_BITS_RANGE.count() as u8 {
            seeds.push([&[scale], &tables[..]].concat());
        }
        // The exact layouts have an exponent before each table.
        seeds.push([&[4], tables.get(1..).unwrap_or_default()].concat());
    }
    seeds
}
