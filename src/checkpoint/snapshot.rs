//! Notices that somebody wrote to a model directory, or one file, while it was read.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// What a file looked like: another file at its path or a write to it changes that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// Files at one time.
#[derive(Debug)]
pub(crate) struct Snapshot {
    files: BTreeMap<PathBuf, Stamp>,
}

impl Snapshot {
    /// The files in `dir` as they are. A link is what it points to; folders and broken links are left out.
    pub fn of(dir: &Path) -> io::Result<Self> {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            match fs::metadata(&path) {
                Ok(metadata) if metadata.is_file() => {
                    files.insert(path, Stamp::of(&metadata));
                }
                _ => {}
            }
        }
        Ok(Self { files })
    }

    /// One file as it is.
    pub fn of_file(path: &Path) -> io::Result<Self> {
        Ok(Self { files: BTreeMap::from([(path.to_path_buf(), Stamp::of(&fs::metadata(path)?))]) })
    }

    /// Errors, by its path, where a file is another one or gone.
    pub fn check(&self) -> Result<()> {
        for (path, then) in &self.files {
            let subject = path.display().to_string();
            let now = fs::metadata(path).map_err(|e| changed(&subject, "is gone").with_source(e))?;
            let now = Stamp::of(&now);
            if now.bytes != then.bytes {
                return Err(changed(&subject, &format!("has {} bytes, had {}", now.bytes, then.bytes)));
            }
            if now != *then {
                return Err(changed(&subject, "was written to"));
            }
        }
        Ok(())
    }
}

fn changed(subject: &str, how: &str) -> Error {
    Error::corrupt(subject, format!("{how} while the directory was read; run again when nobody writes there"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_of_a_file_is_noticed_and_a_new_file_is_not() {
        type Change = fn(&Path);
        let changes: [(&str, Change); 4] = [
            ("has 3 bytes, had 2", |path| fs::write(path, "abc").unwrap()),
            ("was written to", |path| {
                // The clock of a file system ticks every few milliseconds.
                std::thread::sleep(std::time::Duration::from_millis(30));
                fs::write(path, "xy").unwrap();
            }),
            ("was written to", |path| {
                let other = path.with_extension("other");
                fs::write(&other, "ab").unwrap();
                fs::rename(other, path).unwrap();
            }),
            ("is gone", |path| fs::remove_file(path).unwrap()),
        ];
        for (message, change) in changes {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("config.json");
            fs::write(&path, "ab").unwrap();
            let snapshot = Snapshot::of(dir.path()).unwrap();
            fs::write(dir.path().join("new"), "").unwrap();
            snapshot.check().unwrap();
            change(&path);
            let error = snapshot.check().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{}: {message} while", path.display())), "{error}");
        }
    }
}
