//! A `model.safetensors` from a stranger: opened, read, verified and decompressed, as it is and with its header's checksum made right.

use std::path::Path;

use codecllm::checkpoint::{decompress, inspect, verify, Reader};
use xxhash_rust::xxh3::xxh3_64;

pub fn run(data: &[u8]) {
    open(data);
    let mut sealed = data.to_vec();
    if seal(&mut sealed).is_some() && sealed != data {
        open(&sealed);
    }
}

fn open(file: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder for the input");
    let dir = folder.path().join("model");
    std::fs::create_dir(&dir)
        .and_then(|()| std::fs::write(dir.join("model.safetensors"), file))
        .expect("room for it");
    if let Ok(reader) = Reader::open(&dir) {
        reader.names().for_each(|name| drop((reader.read_bytes(name), reader.read(name))));
    }
    let sound = verify(&dir, None, &mut |_| {}).is_ok_and(|report| report.ok);
    let _ = inspect(&dir);
    let back = folder.path().join("back");
    let decompressed = decompress(&dir, &back, &mut |_| {});
    assert_eq!(back.exists(), decompressed.is_ok(), "an output is whole or not there");
    assert!(sound || decompressed.is_err() || !has_compressed(&dir), "decompressed what does not verify");
}

fn has_compressed(dir: &Path) -> bool {
    codecllm::checkpoint::is_compressed(dir).unwrap_or(true)
}

/// Writes the right digits into the header, where it has any.
fn seal(file: &mut [u8]) -> Option<()> {
    let length = u64::from_le_bytes(*file.first_chunk()?);
    let header = file.get_mut(8..usize::try_from(length).ok()?.checked_add(8)?)?;
    let key = b"\"codecllm.header\":\"";
    let at = header.windows(key.len()).position(|window| window == key)? + key.len();
    header.get_mut(at..at + 16)?.fill(b'0');
    let digits = format!("{:016x}", xxh3_64(header));
    header.get_mut(at..at + 16)?.copy_from_slice(digits.as_bytes());
    Some(())
}

#[allow(dead_code, reason = "libFuzzer reads its seeds from a folder")]
pub fn seeds(root: &Path) -> Vec<Vec<u8>> {
    let golden = root.join("tests/golden");
    ["v1/model", "v1_exact/model", "v1_directory/model-00001-of-00002", "v1_directory/model-00002-of-00002"]
        .iter()
        .map(|name| std::fs::read(golden.join(name).with_extension("safetensors")).expect("a golden"))
        .collect()
}
