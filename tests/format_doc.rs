//! The specification says what the code does: its constants and its example by hand.

use codecllm::checkpoint::Reader;
use codecllm::codec::{Layout, FORMAT_VERSION, HEADER_BYTES, MAGIC, TILE_HEADER_BYTES};
use codecllm::tile::{GROUP_COLS, MAX_TILE_CELLS, STRIPE_ROWS};

const SPECIFICATION: &str = include_str!("../docs/format.md");

fn says(text: &str) {
    assert!(SPECIFICATION.contains(text), "docs/format.md does not say {text:?}");
}

#[test]
fn constants_agree() {
    says(&format!("compressed weight, version {FORMAT_VERSION}"));
    says(&format!("## Header, {HEADER_BYTES} bytes"));
    says(&format!("| 0 | 4 | magic | `{}`", String::from_utf8_lossy(&MAGIC)));
    says(&format!("`tiles`: {TILE_HEADER_BYTES} bytes a tile"));
    says(&format!("is at most {MAX_TILE_CELLS} |"));
    says(&format!("stripes of {STRIPE_ROWS} rows, a stripe has groups of {GROUP_COLS} columns"));
    let [fast, small] = [Layout::Fast, Layout::Small].map(|layout| *layout.raw_magnitude_bits(true).end());
    says(&format!("`r` is at most {fast} in `fast`, {small} in `small`"));
    for (code, layout) in Layout::ALL.into_iter().enumerate() {
        says(&format!("{code} `{}`", layout.name()));
    }
    let [bf16, fp16] =
        [Layout::ExactBf16, Layout::ExactFp16].map(|layout| *layout.raw_magnitude_bits(true).start());
    says(&format!("({bf16} in `exact_bf16`, {fp16} in"));
}

#[test]
fn what_is_said_of_files_is_what_is_written() {
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1_directory");
    let reader = Reader::open(&golden).unwrap();
    says("`codecllm.file.F` holds its length in bytes in decimal, a space, and the\nchecksum");
    for file in ["config.json", "model.safetensors.index.json"] {
        let bytes = std::fs::read(golden.join(file)).unwrap();
        let wanted = format!("{} {:016x}", bytes.len(), xxhash_rust::xxh3::xxh3_64(&bytes));
        assert_eq!(reader.metadata()[&format!("codecllm.file.{file}")], wanted);
    }
}

#[test]
fn the_example_by_hand_is_the_golden() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1");
    let reader = Reader::open(dir).unwrap();
    let hex = |name: &str, range: std::ops::Range<usize>| {
        let bytes = reader.read_bytes(&format!("d.weight.{name}")).unwrap();
        bytes[range].iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
    };
    let spaced: String = SPECIFICATION.split_whitespace().collect::<Vec<_>>().join(" ");
    let header = format!("header {}", hex("header", 0..24));
    assert!(spaced.contains(&header), "{header}");
    for (name, range) in [("scales", 0..2), ("tiles", 0..8), ("payload", 0..2)] {
        let line = format!("{name} {}", hex(name, range));
        assert!(spaced.contains(&line), "{line}");
    }
    assert!(spaced.contains(&hex("header", 24..40)));
}
