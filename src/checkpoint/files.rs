//! The files beside the tensors, and how a container vouches for them: length and checksum in the tensor files' metadata.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use xxhash_rust::xxh3::{xxh3_64, Xxh3};

use super::{Reader, Writer, INDEX_FILE};
use crate::error::{Error, Result};

/// Metadata key prefix of what is known of a file; its name follows.
pub(super) const FILE_KEY: &str = "codecllm.file.";
/// What is read at a time: no more than the file has, but not byte by byte.
const BUFFER_BYTES: std::ops::RangeInclusive<u64> = 1 << 12..=1 << 20;

/// Length and XXH3-64 of a file; as text `1234 0123456789abcdef`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileSum {
    bytes: u64,
    xxh3: u64,
}

impl FileSum {
    /// Of a file with these bytes.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len() as u64, xxh3: xxh3_64(bytes) }
    }

    /// Of what is left in `from` (`path` for messages), handed to `each` as it is read.
    pub fn of_file(from: &mut File, path: &Path, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<Self> {
        let length = from.metadata().map_err(|e| Error::io(path, e))?.len();
        let mut buffer = vec![0; length.clamp(*BUFFER_BYTES.start(), *BUFFER_BYTES.end()) as usize];
        let (mut hasher, mut bytes) = (Xxh3::new(), 0);
        loop {
            let read = match from.read(&mut buffer) {
                Ok(0) => return Ok(Self { bytes, xxh3: hasher.digest() }),
                Ok(count) => buffer.get(..count).unwrap_or_default(),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Error::io(path, e)),
            };
            hasher.update(read);
            bytes += read.len() as u64;
            each(read)?;
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let (bytes, xxh3) = text.split_once(' ')?;
        let sum = Self { bytes: bytes.parse().ok()?, xxh3: u64::from_str_radix(xxh3, 16).ok()? };
        // One spelling only.
        (sum.to_string() == text).then_some(sum)
    }

    /// Compares the file at `path` with what it was.
    fn check(self, path: &Path) -> Result<()> {
        let subject = path.display().to_string();
        let mut file = File::open(path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                Error::corrupt(&*subject, "is missing, the container was written with it")
            }
            _ => Error::io(path, e),
        })?;
        let length = file.metadata().map_err(|e| Error::io(path, e))?.len();
        if length < self.bytes {
            let message = format!("has {length} bytes, {} were written (file truncated?)", self.bytes);
            return Err(Error::truncated(subject, message));
        }
        let got = Self::of_file(&mut file, path, |_| Ok(()))?;
        if got == self {
            return Ok(());
        }
        let message = format!(
            "length and checksum {got}, wanted {self} (file damaged? if edited on purpose: --no-verify)"
        );
        Err(Error::corrupt(subject, message))
    }
}

impl fmt::Display for FileSum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:016x}", self.bytes, self.xxh3)
    }
}

impl Reader {
    /// Compares the file `name` of the directory with what the container says of it, if it says anything. Containers written before
    /// files had checksums say nothing.
    ///
    /// # Errors
    /// `Truncated` for a file that is shorter, `Corrupt` for one that is missing or different, by path.
    pub fn check_file(&self, name: &str) -> Result<()> {
        let key = format!("{FILE_KEY}{name}");
        let Some(text) = self.metadata().get(&key) else { return Ok(()) };
        let subject = || self.dir().display().to_string();
        if Path::new(name).file_name().is_none_or(|file| file != name) {
            return Err(Error::corrupt(subject(), format!("{key}: wanted the name of a file in it")));
        }
        let sum = FileSum::parse(text).ok_or_else(|| {
            Error::corrupt(subject(), format!("{key} is {text:?}, wanted length and checksum"))
        })?;
        sum.check(&self.dir().join(name))
    }

    /// Compares every file of which the container says what it was.
    ///
    /// # Errors
    /// As [`Reader::check_file`].
    pub fn check_files(&self) -> Result<()> {
        let mut names: Vec<&str> =
            self.metadata().keys().filter_map(|key| key.strip_prefix(FILE_KEY)).collect();
        names.sort_unstable();
        names.into_iter().try_for_each(|name| self.check_file(name))
    }
}

/// Copies everything in the directory that is not a tensor file: config, tokenizer, templates, licenses. Returns name and sum of each.
pub(super) fn copy_other_files(dir: &Path, writer: &mut Writer) -> Result<Vec<(String, FileSum)>> {
    let entries = std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))?;
    let mut files: Vec<_> = entries
        .map(|entry| entry.map(|entry| entry.path()).map_err(|e| Error::io(dir, e)))
        .collect::<Result<_>>()?;
    files.sort();
    let mut copied = Vec::new();
    for file in files.iter().filter(|file| file.is_file()) {
        let is_tensors = file.extension().is_some_and(|e| e == "safetensors" || e == "bin" || e == "pt");
        let is_index = file.file_name().is_some_and(|name| name == INDEX_FILE);
        if !is_tensors && !is_index {
            copied.push(writer.copy_with_sum(file)?);
        }
    }
    Ok(copied)
}

/// Writes all of `bytes` to `to` (`path` for messages).
pub(super) fn write_all(to: &mut File, path: &Path, bytes: &[u8]) -> Result<()> {
    to.write_all(bytes).map_err(|e| Error::io(path, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn a_file_is_as_long_and_as_written_or_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let bytes = vec![7u8; *BUFFER_BYTES.end() as usize + 3];
        let sum = FileSum::of_bytes(&bytes);
        assert_eq!(FileSum::parse(&sum.to_string()), Some(sum));
        assert_eq!(sum.check(&path).unwrap_err().kind(), ErrorKind::Corrupt, "missing");
        std::fs::write(&path, &bytes).unwrap();
        sum.check(&path).unwrap();
        std::fs::write(&path, &bytes[1..]).unwrap();
        let error = sum.check(&path).unwrap_err();
        assert_eq!((error.kind(), error.subject()), (ErrorKind::Truncated, path.to_str().unwrap()));
        let mut changed = bytes;
        changed[*BUFFER_BYTES.end() as usize] ^= 1;
        std::fs::write(&path, &changed).unwrap();
        assert_eq!(sum.check(&path).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn a_sum_has_one_spelling() {
        for text in ["", "1", "1 2", "01 0000000000000002", "1 000000000000000A", "-1 0000000000000002"] {
            assert_eq!(FileSum::parse(text), None, "{text}");
        }
    }
}
