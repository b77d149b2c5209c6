//! The container: one golden that is read for ever, and no byte of it that may change unnoticed.

mod damage;
mod stored_buffers;

use std::path::{Path, PathBuf};

use codecllm::checkpoint::{compress, decompress, verify, CompressOptions, Reader, Target, Writer};
use codecllm::codec::{
    decode_grid, decode_grid_reference, encode, Buffers, EncodeOptions, Layout, Level, SourceDtype,
    FORMAT_VERSION,
};
use codecllm::ErrorKind;
use half::bf16;
use safetensors::Dtype;

use self::damage::damaged;
use self::stored_buffers::stored_buffers;

fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/v{FORMAT_VERSION}"))
}

/// The golden's matrices: path, shape, options and a grid that a formula gives.
fn golden_matrices() -> Vec<(&'static str, [usize; 2], EncodeOptions, Vec<i16>)> {
    let fast = EncodeOptions::default();
    let small = EncodeOptions { layout: Layout::Small, ..fast };
    let noise = |index: usize| {
        let hash = (index as u32).wrapping_add(1).wrapping_mul(0x9E37_79B9);
        // Four summed nibbles: about a bell.
        let sum: u32 = (0..4).map(|nibble| hash >> (8 + 6 * nibble) & 15).sum();
        sum as i16 - 30
    };
    let bell = |count: usize| (0..count).map(noise).collect::<Vec<_>>();
    let mut escapes = bell(40 * 100);
    escapes[5] = 32_767;
    escapes[3_999] = -300;
    let ramp = (0..20 * 70).map(|index| (index % 70) as i16 * 9 - 300).collect();
    vec![
        ("a.weight", [40, 100], fast, escapes),
        ("b.weight", [33, 64], small, bell(33 * 64)),
        ("c.weight", [20, 70], fast, ramp),
        ("d.weight", [1, 1], fast, vec![-5]),
    ]
}

fn encoded(path: &str, shape: [usize; 2], options: EncodeOptions, grid: &[i16]) -> Buffers {
    encode(path, grid, shape, &[bf16::from_f32(0.125)], SourceDtype::F16, options).unwrap()
}

/// Writes the golden of this format version, once. Never run again for a version that has one: a change of the
/// bytes is a new version.
#[test]
#[ignore = "writes tests/golden of a new format version"]
fn write_golden() {
    assert!(!golden_dir().exists(), "the golden of this version exists and is only read");
    let mut writer = Writer::create(golden_dir()).unwrap();
    for (path, shape, options, grid) in golden_matrices() {
        for (name, bytes) in encoded(path, shape, options, &grid).iter() {
            writer.add(&format!("{path}.{name}"), Dtype::U8, &[bytes.len()], bytes).unwrap();
        }
    }
    writer.finish().unwrap();
}

#[test]
fn the_golden_decodes_to_its_grid_on_every_level() {
    let reader = Reader::open(golden_dir()).unwrap();
    for (path, shape, _, grid) in golden_matrices() {
        let buffers = stored_buffers(&reader, path);
        let view = buffers.view(path).unwrap();
        assert_eq!([view.header.grid.rows(), view.header.grid.cols()], shape);
        view.verify_checksum().unwrap();
        assert!(decode_grid_reference(&view).unwrap() == grid, "{path}");
        for level in Level::available() {
            assert!(decode_grid(&view, Some(level)).unwrap() == grid, "{path} {level:?}");
        }
    }
}

#[test]
fn the_encoder_still_writes_the_golden() {
    let reader = Reader::open(golden_dir()).unwrap();
    for (path, shape, options, grid) in golden_matrices() {
        for (name, bytes) in encoded(path, shape, options, &grid).iter() {
            assert_eq!(reader.read_bytes(&format!("{path}.{name}")).unwrap(), bytes, "{path}.{name}");
        }
    }
}

/// A small compressed model directory as `compress` writes it: metadata, a kept norm and a bias included.
fn small_container(dir: &Path) -> PathBuf {
    let source = dir.join("source");
    let mut writer = Writer::create(&source).unwrap();
    let floats = |count: usize| -> Vec<u8> {
        (0..count).flat_map(|n| (((n * 7919 % 1013) as f32 - 500.0) * 1e-3).to_le_bytes()).collect()
    };
    writer.add("m.norm.weight", Dtype::F32, &[7], &floats(7)).unwrap();
    writer.add("m.fc.weight", Dtype::F32, &[24, 70], &floats(24 * 70)).unwrap();
    writer.add("m.fc.bias", Dtype::F32, &[24], &floats(24)).unwrap();
    writer.finish().unwrap();
    let out = dir.join("compressed");
    compress(&source, &out, &CompressOptions::default(), &mut |_| {}).unwrap();
    out
}

/// The error that checking the directory gives, if any.
fn check(dir: &Path) -> Option<String> {
    match verify(dir, None, &mut |_| {}) {
        Err(error) => Some(error.to_string()),
        Ok(report) => report.error,
    }
}

#[test]
fn every_flipped_byte_is_noticed() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = small_container(temporary.path());
    let file = dir.join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    assert_eq!(check(&dir), None);
    for at in 0..bytes.len() {
        for flip in [0x01, 0x20, 0x80, 0xFF] {
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            std::fs::write(&file, &damaged).unwrap();
            assert!(check(&dir).is_some(), "byte {at} of {} flipped by {flip:#x}", bytes.len());
        }
    }
}

#[test]
fn every_truncation_is_noticed() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = small_container(temporary.path());
    let file = dir.join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    for length in 0..bytes.len() {
        std::fs::write(&file, &bytes[..length]).unwrap();
        let error = Reader::open(&dir).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Truncated, "{length} of {}: {error}", bytes.len());
    }
}

#[test]
fn damaged_buffers_never_panic_and_never_pass_the_checksum() {
    // The golden's buffers with the checksums made to fit: what a hostile writer would send. Any answer or error is
    // right, as long as it is one.
    for (path, shape, options, grid) in golden_matrices() {
        let buffers = encoded(path, shape, options, &grid);
        for (at, damaged) in damaged(&buffers) {
            let Ok(view) = damaged.view(path) else { continue };
            assert!(view.verify_checksum().is_err());
            let reference = decode_grid_reference(&view);
            for level in Level::available() {
                let decoded = decode_grid(&view, Some(level));
                assert_eq!(decoded.is_ok(), reference.is_ok(), "{path} byte {at} {level:?}");
                if let (Ok(a), Ok(b)) = (&decoded, &reference) {
                    assert!(a == b, "{path} byte {at} {level:?}");
                }
            }
        }
    }
}

#[test]
fn compress_and_decompress_keep_names_shapes_dtypes_and_what_is_not_compressed() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = small_container(temporary.path());
    let (source, back) = (temporary.path().join("source"), temporary.path().join("back"));
    decompress(&dir, &back, &mut |_| {}).unwrap();
    let (source, back) = (Reader::open(source).unwrap(), Reader::open(back).unwrap());
    let mut names: Vec<&str> = source.names().collect();
    let mut got: Vec<&str> = back.names().collect();
    names.sort_unstable();
    got.sort_unstable();
    assert_eq!(got, names);
    for name in names {
        let (a, b) = (source.info(name).unwrap(), back.info(name).unwrap());
        assert_eq!((a.dtype, &a.shape), (b.dtype, &b.shape));
        if name != "m.fc.weight" {
            assert_eq!(source.read_bytes(name).unwrap(), back.read_bytes(name).unwrap());
        }
    }
}

#[test]
fn a_tensor_that_lost_a_buffer_is_missed() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = small_container(temporary.path());
    let reader = Reader::open(&dir).unwrap();
    for lost in ["header", "scales", "tables", "tiles", "payload"] {
        let copy = temporary.path().join(lost);
        let mut writer = Writer::create(&copy).unwrap();
        for name in reader.names().filter(|name| !name.ends_with(&format!(".weight.{lost}"))) {
            let info = reader.info(name).unwrap();
            writer.add(name, info.dtype, &info.shape, &reader.read_bytes(name).unwrap()).unwrap();
        }
        writer.finish().unwrap();
        let error = check(&copy).unwrap_or_default();
        assert!(error.starts_with(&format!("m.fc.weight.{lost}: missing")), "{error}");
        let out = temporary.path().join("out");
        assert!(decompress(&copy, &out, &mut |_| {}).is_err() && !out.exists());
    }
}

#[test]
fn a_scale_that_is_no_number_and_a_coded_escape_are_corrupt() {
    let (path, shape, options, grid) = golden_matrices().swap_remove(0);
    for scale in [bf16::NAN, bf16::INFINITY] {
        let buffers = encode(path, &grid, shape, &[scale], SourceDtype::F16, options).unwrap();
        let error = buffers.view(path).unwrap().scales().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
    // The escape of element 5 moved to element 4, which is coded.
    let mut buffers = encoded(path, shape, options, &grid);
    let at = buffers.payload.windows(2).rposition(|window| window == [5, 0]).unwrap();
    buffers.payload[at] = 4;
    let view = buffers.view(path).unwrap();
    let error = decode_grid_reference(&view).unwrap_err();
    assert!(error.to_string().contains("is coded too"), "{error}");
    assert!(Level::available().into_iter().all(|level| decode_grid(&view, Some(level)).is_err()));
}

#[test]
fn a_budget_counts_what_is_excluded_too() {
    let temporary = tempfile::tempdir().unwrap();
    let source = temporary.path().join("source");
    tch::manual_seed(2);
    let mut writer = Writer::create(&source).unwrap();
    for index in 0..3 {
        let weights = tch::Tensor::randn([512 * 640], (tch::Kind::Float, tch::Device::Cpu));
        let bytes: Vec<u8> = Vec::<f32>::try_from(weights)
            .unwrap()
            .iter()
            .flat_map(|w| half::f16::from_f32(*w).to_le_bytes())
            .collect();
        writer.add(&format!("m.{index}.weight"), Dtype::F16, &[512, 640], &bytes).unwrap();
    }
    writer.finish().unwrap();
    let compress_to = |bits: f64| {
        let options = CompressOptions {
            target: Target::Bits(bits),
            exclude: vec!["m.0.*".to_owned()],
            ..CompressOptions::default()
        };
        compress(&source, temporary.path().join(format!("{bits}")), &options, &mut |_| {})
    };
    // A third at 16 bits leaves (3 * 8 - 16) / 2 = 4 bits for the others.
    assert!((compress_to(8.0).unwrap().bits_per_weight - 8.0).abs() < 0.05);
    // And nothing is left of 5.5.
    let error = compress_to(5.5).unwrap_err().to_string();
    assert!(error.contains("cannot be met"), "{error}");
}

#[test]
fn a_budget_is_met_within_its_tolerance() {
    let temporary = tempfile::tempdir().unwrap();
    let source = temporary.path().join("source");
    tch::manual_seed(1);
    let mut writer = Writer::create(&source).unwrap();
    for (index, spread) in [0.01f64, 0.05, 0.2].into_iter().enumerate() {
        let weights = tch::Tensor::randn([600, 640], (tch::Kind::Float, tch::Device::Cpu)) * spread;
        let heavy = weights.pow_tensor_scalar(1 + 2 * (index as i64 % 2));
        let values: Vec<f32> = Vec::try_from(heavy.reshape([-1])).unwrap();
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        writer.add(&format!("m.{index}.weight"), Dtype::F32, &[600, 640], &bytes).unwrap();
    }
    writer.finish().unwrap();
    let mut last_snr = f64::NEG_INFINITY;
    for bits in [2.5, 3.7, 5.3, 7.0, 8.5] {
        let out = temporary.path().join(format!("bits-{bits}"));
        let options = CompressOptions { target: Target::Bits(bits), ..CompressOptions::default() };
        let report = compress(&source, &out, &options, &mut |_| {}).unwrap();
        assert!((report.bits_per_weight - bits).abs() <= 0.05, "{bits}: {}", report.bits_per_weight);
        assert!(report.snr_db > last_snr);
        last_snr = report.snr_db;
    }
    for bits in [2.4, 8.6, f64::NAN] {
        let options = CompressOptions { target: Target::Bits(bits), ..CompressOptions::default() };
        let out = temporary.path().join("never");
        assert!(compress(&source, &out, &options, &mut |_| {}).is_err());
        assert!(!out.exists());
    }
}
