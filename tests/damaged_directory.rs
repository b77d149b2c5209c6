//! No byte of a compressed directory changes unnoticed, no file loses its end unnoticed, and whatever the bytes are, reading them
//! neither panics nor hangs nor takes more memory than they could hold.

mod counting_allocator;
#[path = "../fuzz/bodies/forge.rs"]
mod forge;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use codecllm::checkpoint::{compress, verify, CompressOptions, Reader, Writer};
use codecllm::codec::{
    decode_bits, decode_bits_reference, decode_grid, decode_grid_reference, Buffers, Level, BUFFER_NAMES,
};
use codecllm::ErrorKind;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use safetensors::Dtype;
use xxhash_rust::xxh3::xxh3_64;

use counting_allocator::{asked, Asked, Counting};
use forge::forge;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Changes of a byte: every bit alone, and others that JSON and small numbers take for something else.
const CHANGES: [u8; 11] = [0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0x03, 0x29, 0xFF];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// A whole compressed directory: two shards and their index, a config, weights, a bias, and a tensor stored as it was.
fn golden_directory() -> PathBuf {
    golden("v1_directory")
}

/// A copy to damage.
fn copy() -> (tempfile::TempDir, Vec<PathBuf>) {
    let dir = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for entry in fs::read_dir(golden_directory()).unwrap() {
        let path = entry.unwrap().path();
        let to = dir.path().join(path.file_name().unwrap());
        fs::copy(path, &to).unwrap();
        files.push(to);
    }
    files.sort();
    assert_eq!(files.len(), 4);
    (dir, files)
}

/// Writes the golden directory, once, as `tests/container.rs` says of its golden.
#[test]
#[ignore = "writes a golden"]
fn write_golden() {
    assert!(!golden_directory().exists(), "this golden exists and is only read");
    let temporary = tempfile::tempdir().unwrap();
    let (source, whole) = (temporary.path().join("source"), temporary.path().join("whole"));
    let floats = |count: usize| -> Vec<u8> {
        (0..count).flat_map(|n| (((n * 7919 % 1013) as f32 - 500.0) * 1e-3).to_le_bytes()).collect()
    };
    let mut writer = Writer::create(&source).unwrap();
    writer.add("m.norm.weight", Dtype::F32, &[7], &floats(7)).unwrap();
    writer.add("m.a.weight", Dtype::F32, &[17, 40], &floats(17 * 40)).unwrap();
    writer.add("m.a.bias", Dtype::F32, &[17], &floats(17)).unwrap();
    writer.add("m.b.weight", Dtype::F32, &[3, 70], &floats(3 * 70)).unwrap();
    writer.write_file("config.json", b"{ \"architectures\": [\"None\"], \"hidden_size\": 40 }\n").unwrap();
    writer.finish().unwrap();
    compress(&source, &whole, &CompressOptions::default(), &mut |_| {}).unwrap();
    let reader = Reader::open(&whole).unwrap();
    let mut writer = Writer::create(golden_directory()).unwrap().with_max_shard_bytes(1100);
    for (key, value) in reader.metadata() {
        let sealed_later = key == "codecllm.header";
        writer.metadata(key, if sealed_later { "0000000000000000" } else { value });
    }
    writer.copy_file(&whole.join("config.json")).unwrap();
    for name in reader.names() {
        let info = reader.info(name).unwrap();
        writer.add(name, info.dtype, &info.shape, &reader.read_bytes(name).unwrap()).unwrap();
    }
    writer.finish().unwrap();
}

/// The error that opening and checking the directory gives, if any.
fn check(dir: &Path) -> Option<String> {
    match verify(dir, None, &mut |_| {}) {
        Err(error) => Some(error.to_string()),
        Ok(report) => report.error,
    }
}

#[test]
fn every_changed_byte_of_a_directory_is_noticed() {
    std::thread::scope(|scope| {
        // Each thread changes one file of a copy of its own at a time.
        for part in 0..2 {
            scope.spawn(move || {
                let (dir, files) = copy();
                assert_eq!(check(dir.path()), None);
                for path in files {
                    let (bytes, file) =
                        (fs::read(&path).unwrap(), File::options().write(true).open(&path).unwrap());
                    for at in (part..bytes.len()).step_by(2) {
                        for change in CHANGES {
                            file.write_all_at(&[bytes[at] ^ change], at as u64).unwrap();
                            let noticed = check(dir.path()).is_some();
                            assert!(noticed, "byte {at} of {}, changed by {change:#x}", path.display());
                        }
                        file.write_all_at(&bytes[at..=at], at as u64).unwrap();
                    }
                }
                assert_eq!(check(dir.path()), None);
            });
        }
    });
}

#[test]
fn every_truncation_of_a_file_is_called_one() {
    let (dir, files) = copy();
    for path in files {
        let bytes = fs::read(&path).unwrap();
        for length in 0..bytes.len() {
            fs::write(&path, &bytes[..length]).unwrap();
            let error = Reader::open(dir.path()).and_then(|reader| reader.check_files()).unwrap_err();
            let of = format!("{length} of {} bytes of {}: {error}", bytes.len(), path.display());
            assert_eq!(error.kind(), ErrorKind::Truncated, "{of}");
            assert!(check(dir.path()).is_some(), "{of}");
        }
        fs::write(&path, &bytes).unwrap();
    }
}

#[test]
fn every_missing_file_is_missed() {
    let (dir, files) = copy();
    for path in files {
        let away = path.with_extension("away");
        fs::rename(&path, &away).unwrap();
        assert!(check(dir.path()).is_some(), "{}", path.display());
        fs::rename(&away, &path).unwrap();
    }
}

/// Some bytes of `bytes` changed: a few alone, a run, a piece copied over another, or a piece left out or doubled.
fn mutate(bytes: &mut Vec<u8>, rng: &mut StdRng) {
    if bytes.is_empty() {
        bytes.push(rng.random());
    }
    let length = bytes.len();
    let (from, to) = (rng.random_range(0..length), rng.random_range(0..length));
    let run = rng.random_range(1..=32.min(length - from.max(to)));
    match rng.random_range(0..5) {
        0 => (0..rng.random_range(2..=8)).for_each(|_| bytes[rng.random_range(0..length)] = rng.random()),
        1 => bytes[from..from + run].iter_mut().for_each(|byte| *byte = rng.random()),
        2 => bytes.copy_within(from..from + run, to),
        3 => drop(bytes.drain(from..from + run)),
        _ => {
            let piece = bytes[from..from + run].to_vec();
            drop(bytes.splice(to..to, piece));
        }
    }
}

/// Makes the checksum of a file's own header right, as somebody who means harm would.
fn seal(file: &mut [u8]) {
    let Some(length) = file.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes)) else { return };
    let Some(header) = usize::try_from(length).ok().and_then(|n| file.get_mut(8..n.checked_add(8)?)) else {
        return;
    };
    let key = b"\"codecllm.header\":\"";
    let Some(at) = header.windows(key.len()).position(|window| window == key) else { return };
    let at = at + key.len();
    if at + 16 <= header.len() {
        header[at..at + 16].fill(b'0');
        let digits = format!("{:016x}", xxh3_64(header));
        header[at..at + 16].copy_from_slice(digits.as_bytes());
    }
}

/// Reads all there is to read, without decoding: what it is worth is another matter.
fn read_all(dir: &Path) {
    let Ok(reader) = Reader::open(dir) else { return };
    let _ = reader.check_files();
    let names: Vec<&str> = reader.names().collect();
    for name in &names {
        let _ = reader.read_bytes(name);
    }
    for path in names.iter().filter_map(|name| name.strip_suffix(".header")) {
        let read = |buffer| reader.read_bytes(&format!("{path}.{buffer}")).unwrap_or_default();
        let [header, scales, tables, tiles, payload] = BUFFER_NAMES.map(read);
        let buffers = Buffers { header, scales, tables, tiles, payload };
        let Ok(view) = buffers.view(path) else { continue };
        let _ = (view.verify_checksum(), view.scales(), view.frequency_tables());
        for tile in 0..view.header.grid.tile_count() {
            let _ = view.tile_sections(tile);
        }
    }
}

#[test]
fn ten_thousand_damaged_directories_neither_panic_nor_hang_nor_take_memory() {
    let (dir, files) = copy();
    let sizes: u64 = files.iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    let mut rng = StdRng::seed_from_u64(6);
    // What is made once a process is not the reader's.
    read_all(dir.path());
    let mut most = Asked::default();
    let mut slowest = Duration::ZERO;
    for round in 0..10_000 {
        let path = &files[rng.random_range(0..files.len())];
        let bytes = fs::read(path).unwrap();
        let mut damaged = bytes.clone();
        for _ in 0..rng.random_range(1..=3) {
            mutate(&mut damaged, &mut rng);
        }
        if round % 2 == 0 {
            seal(&mut damaged);
        }
        fs::write(path, &damaged).unwrap();
        let start = Instant::now();
        let ((), taken) = asked(|| read_all(dir.path()));
        let noticed = check(dir.path());
        let mut took = start.elapsed();
        if took > Duration::from_secs(1) {
            // The machine may have stood still; what is slow by itself is slow again.
            let start = Instant::now();
            read_all(dir.path());
            let _ = check(dir.path());
            took = took.min(start.elapsed());
        }
        slowest = slowest.max(took);
        assert!(slowest < Duration::from_secs(1), "round {round} took {slowest:?}");
        assert!(
            taken.largest as u64 <= 2 * sizes,
            "round {round} asked for {} bytes of {sizes}",
            taken.largest
        );
        assert!(noticed.is_some() || damaged == bytes || round % 2 == 0, "round {round} was not noticed");
        most = Asked { largest: most.largest.max(taken.largest), peak: most.peak.max(taken.peak) };
        fs::write(path, &bytes).unwrap();
    }
    println!("of {sizes} bytes: {most:?}, slowest {slowest:?}");
}

/// The buffers of every compressed tensor of a golden.
fn golden_buffers(name: &str) -> Vec<(String, Buffers)> {
    let reader = Reader::open(golden(name)).unwrap();
    let paths = reader.names().filter_map(|name| name.strip_suffix(".header")).map(str::to_owned);
    let read = |path: &str, buffer: &str| reader.read_bytes(&format!("{path}.{buffer}")).unwrap();
    paths
        .map(|path| {
            let [header, scales, tables, tiles, payload] = BUFFER_NAMES.map(|buffer| read(&path, buffer));
            (path, Buffers { header, scales, tables, tiles, payload })
        })
        .collect()
}

fn parts(buffers: &mut Buffers) -> [&mut Vec<u8>; 5] {
    let Buffers { header, scales, tables, tiles, payload } = buffers;
    [header, scales, tables, tiles, payload]
}

#[test]
fn every_changed_byte_of_a_tensor_fails_its_checksum() {
    for (path, mut buffers) in ["v1", "v1_exact"].into_iter().flat_map(golden_buffers) {
        for (part, buffer) in BUFFER_NAMES.into_iter().enumerate() {
            for at in 0..parts(&mut buffers)[part].len() {
                for change in CHANGES {
                    parts(&mut buffers)[part][at] ^= change;
                    let checked = buffers.view(&path).and_then(|view| view.verify_checksum());
                    assert!(checked.is_err(), "{path}.{buffer}, byte {at} by {change:#x}");
                    parts(&mut buffers)[part][at] ^= change;
                }
            }
        }
    }
}

#[test]
fn ten_thousand_forged_tensors_decode_alike_or_are_refused() {
    let goldens: Vec<_> = ["v1", "v1_exact"].into_iter().flat_map(golden_buffers).collect();
    let mut rng = StdRng::seed_from_u64(66);
    let mut decoded = 0;
    for round in 0..10_000 {
        let (path, buffers) = &goldens[rng.random_range(0..goldens.len())];
        let mut forged = buffers.clone();
        for _ in 0..rng.random_range(1..=3) {
            // Seldom the header: few of its values get past it.
            let part = if rng.random_ratio(1, 8) { 0 } else { rng.random_range(1..5) };
            mutate(parts(&mut forged)[part], &mut rng);
        }
        forge(&mut forged);
        let start = Instant::now();
        let Ok(view) = forged.view(path) else { continue };
        view.verify_checksum().unwrap();
        let is_grid = view.header.layout.is_grid();
        let bits = |grid: Vec<i16>| grid.into_iter().map(i16::cast_unsigned).collect();
        let reference = match is_grid {
            true => decode_grid_reference(&view).map(bits),
            false => decode_bits_reference(&view),
        };
        for level in Level::available().into_iter().map(Some) {
            let got: codecllm::Result<Vec<u16>> = match is_grid {
                true => decode_grid(&view, level).map(bits),
                false => decode_bits(&view, level),
            };
            assert_eq!(got.is_ok(), reference.is_ok(), "round {round}, {path} {level:?}");
            if let (Ok(got), Ok(reference)) = (&got, &reference) {
                assert!(got == reference, "round {round}, {path} {level:?}");
            }
        }
        decoded += usize::from(reference.is_ok());
        // Microseconds; the rest is for a machine that stands still.
        assert!(start.elapsed() < Duration::from_secs(10), "round {round} took {:?}", start.elapsed());
    }
    println!("{decoded} of 10000 forged tensors decoded");
    assert!(decoded > 100, "forgery is refused for its form, not its content");
}
