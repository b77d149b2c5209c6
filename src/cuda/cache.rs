//! Compiled kernels, kept on disk: the first run compiles, later ones read.

use std::io::Write;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::{xxh3_128, Xxh3};

use super::architecture::Target;
use super::compile::{compiler_version, OPTIONS};
use super::kernels::Source;
use crate::error::Result;

/// Before the checksum (XXH3-128, little-endian) and the binary itself.
const MAGIC: &[u8; 16] = b"codecllm kernel\n";
const HEADER_BYTES: usize = MAGIC.len() + 16;

/// A folder of compiled kernels, or none. A file that can't be written is no error, a damaged one is written anew.
#[derive(Clone, Debug)]
pub(super) struct DiskCache {
    folder: Option<PathBuf>,
}

impl DiskCache {
    /// `kernels` in `$CODECLLM_CACHE`, or else in `codecllm` of the user's cache folder.
    pub(super) fn of_user() -> Self {
        let named = std::env::var_os("CODECLLM_CACHE").filter(|name| !name.is_empty()).map(PathBuf::from);
        let base = named.or_else(|| dirs::cache_dir().map(|cache| cache.join("codecllm")));
        Self { folder: base.map(|base| base.join("kernels")) }
    }

    /// What is kept for this source, or what `compile` makes of it, which is then kept.
    pub(super) fn compiled(
        &self,
        source: &Source,
        headers: &[Source],
        target: &Target,
        driver_version: i32,
        compile: impl FnOnce() -> Result<Vec<u8>>,
    ) -> Result<Vec<u8>> {
        let Some(folder) = &self.folder else {
            return compile();
        };
        let key = key(source, headers, target, compiler_version()?, driver_version);
        let path = folder.join(format!("{}-{}-{key:032x}", source.name, target.name()));
        if let Some(binary) = read(&path) {
            return Ok(binary);
        }
        let binary = compile()?;
        // The next run compiles again: slower, not wrong.
        let _ = write(folder, &path, &binary);
        Ok(binary)
    }
}

/// A hash of all that the binary depends on.
fn key(
    source: &Source,
    headers: &[Source],
    target: &Target,
    compiler_version: (i32, i32),
    driver_version: i32,
) -> u128 {
    let versions =
        [compiler_version.0, compiler_version.1, driver_version].map(|version| version.to_string());
    let mut hash = Xxh3::new();
    let mut add = |part: &str| {
        // The length keeps apart what would read the same when joined.
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    };
    versions.iter().for_each(|version| add(version));
    add(target.name());
    OPTIONS.iter().for_each(|option| add(option));
    for file in std::iter::once(source).chain(headers) {
        add(file.name);
        add(file.text);
    }
    hash.digest128()
}

/// The binary, if the file is whole.
fn read(path: &Path) -> Option<Vec<u8>> {
    let mut file = std::fs::read(path).ok()?;
    let checksum = file.strip_prefix(MAGIC)?.first_chunk()?;
    let binary = file.get(HEADER_BYTES..)?;
    if u128::from_le_bytes(*checksum) != xxh3_128(binary) {
        return None;
    }
    file.drain(..HEADER_BYTES);
    Some(file)
}

/// Under another name first, so that no reader ever sees half a file.
fn write(folder: &Path, path: &Path, binary: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(MAGIC)?;
    file.write_all(&xxh3_128(binary).to_le_bytes())?;
    file.write_all(binary)?;
    file.persist(path)?;
    Ok(())
}
