//! The golden of the exact layouts, read for ever, also by the decoder that was written from docs/format.md alone.

mod stored_buffers;

use std::path::{Path, PathBuf};
use std::process::Command;

use codecllm::checkpoint::{Reader, Writer};
use codecllm::codec::{
    decode_bits, decode_bits_reference, encode_exact, Buffers, EncodeOptions, Layout, Level, SourceDtype,
};
use safetensors::Dtype;

use self::stored_buffers::stored_buffers;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn golden_dir() -> PathBuf {
    root().join("tests/golden/v1_exact")
}

/// A matrix of the golden: path, shape, layout, dtype, and the bits that a formula gives.
type Golden = (&'static str, [usize; 2], Layout, SourceDtype, Vec<u16>);

fn golden_matrices() -> Vec<Golden> {
    // Exponents fall off geometrically from `top`, sign and mantissa are noise; every 50th weight has any bits at all.
    let floats = |count: u32, top: u16, mantissa_bits: u32| -> Vec<u16> {
        let half = |n: u32| {
            let hash = n.wrapping_add(1).wrapping_mul(0x9E37_79B9);
            if n.is_multiple_of(50) {
                return hash as u16;
            }
            let exponent = top - (hash.leading_zeros() as u16).min(9);
            let mantissa = (hash >> 3) as u16 & ((1 << mantissa_bits) - 1);
            (hash as u16 & 1) << 15 | exponent << mantissa_bits | mantissa
        };
        (0..count).map(half).collect()
    };
    let mut sparse = vec![0; 5 * 70];
    (sparse[3], sparse[349]) = (0x8000, 0x7FC1);
    let (bf16, fp16) = (Layout::ExactBf16, Layout::ExactFp16);
    vec![
        ("e.weight", [40, 100], bf16, SourceDtype::BF16, floats(40 * 100, 122, 7)),
        ("f.weight", [33, 130], fp16, SourceDtype::F16, floats(33 * 130, 14, 10)),
        ("g.weight", [64, 64], bf16, SourceDtype::F32, floats(64 * 64, 130, 7)),
        ("h.weight", [5, 70], bf16, SourceDtype::BF16, sparse),
        ("i.weight", [16, 48], fp16, SourceDtype::F32, floats(16 * 48, 9, 10)),
    ]
}

fn encoded((path, shape, layout, dtype, halves): &Golden) -> Buffers {
    let options = EncodeOptions { layout: *layout, ..EncodeOptions::default() };
    encode_exact(path, halves, *shape, *dtype, options).unwrap()
}

/// Writes the golden, once: a change of its bytes is a new version of the format.
#[test]
#[ignore = "writes the golden of the exact layouts"]
fn write_golden() {
    assert!(!golden_dir().exists(), "the golden exists and is only read");
    let mut writer = Writer::create(golden_dir()).unwrap();
    for matrix in golden_matrices() {
        for (name, bytes) in encoded(&matrix).iter() {
            writer.add(&format!("{}.{name}", matrix.0), Dtype::U8, &[bytes.len()], bytes).unwrap();
        }
    }
    writer.finish().unwrap();
}

#[test]
fn the_golden_decodes_to_its_bits_on_every_level() {
    let reader = Reader::open(golden_dir()).unwrap();
    let mut coded = 0;
    for (path, shape, layout, dtype, halves) in golden_matrices() {
        let buffers = stored_buffers(&reader, path);
        let view = buffers.view(path).unwrap();
        assert_eq!([view.header.grid.rows(), view.header.grid.cols()], shape);
        assert_eq!((view.header.layout, view.header.dtype), (layout, dtype));
        view.verify_checksum().unwrap();
        assert!(decode_bits_reference(&view).unwrap() == halves, "{path}");
        for level in Level::available() {
            assert!(decode_bits(&view, Some(level)).unwrap() == halves, "{path} {level:?}");
        }
        coded += view.header.table_count;
    }
    assert!(coded >= 3, "{coded} tables");
}

#[test]
fn the_encoder_still_writes_the_golden() {
    let reader = Reader::open(golden_dir()).unwrap();
    for matrix in golden_matrices() {
        for (name, bytes) in encoded(&matrix).iter() {
            let path = format!("{}.{name}", matrix.0);
            assert_eq!(reader.read_bytes(&path).unwrap(), bytes, "{path}");
        }
    }
}

/// What `python/reference_decoder.py` prints of a file, or `None` with the reason on stderr where Python cannot run it.
fn decoded_by_python(file: &Path) -> Option<String> {
    let numpy = Command::new("python3").args(["-c", "import numpy"]).output();
    if !numpy.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: there is no python3 with numpy");
        return None;
    }
    let decoder = root().join("python/reference_decoder.py");
    let output = Command::new("python3").arg(decoder).arg(file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn the_decoder_written_from_the_specification_agrees() {
    let Some(printed) = decoded_by_python(&golden_dir().join("model.safetensors")) else { return };
    for (path, [rows, cols], layout, _, halves) in golden_matrices() {
        let values: Vec<i64> = halves.iter().map(|half| i64::from(half.cast_signed())).collect();
        let wanted = format!(
            "{path} [{rows}, {cols}] {} sum {} min {} max {} first {:?} scale 1.0",
            layout.name(),
            values.iter().sum::<i64>(),
            values.iter().min().unwrap(),
            values.iter().max().unwrap(),
            &values[..8],
        );
        assert!(printed.lines().any(|line| line.starts_with(&wanted)), "{wanted}\n{printed}");
    }
}
