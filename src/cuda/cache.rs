//! Compiled kernels, kept on disk: the first run compiles, later ones read.

use std::io::Write;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::{xxh3_128, Xxh3};

use super::architecture::Target;
use super::compile::{LIBRARY, OPTIONS};
use super::kernels::{Header, Source};
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

    /// `kernels` in this folder.
    pub(super) fn in_folder(folder: &Path) -> Self {
        Self { folder: Some(folder.join("kernels")) }
    }

    /// What is kept for this source and version of the driver, as it counts, or what `compile` makes of it, which is then kept.
    pub(super) fn compiled(
        &self,
        source: &Source,
        headers: &[Header],
        target: &Target,
        driver: i32,
        compile: impl FnOnce() -> Result<Vec<u8>>,
    ) -> Result<Vec<u8>> {
        let Some(folder) = &self.folder else {
            return compile();
        };
        let path = folder.join(file_name(source, headers, target, driver));
        if let Some(binary) = read(&path) {
            return Ok(binary);
        }
        let binary = compile()?;
        // The next run compiles again: slower, not wrong.
        let _ = write(folder, &path, &binary);
        Ok(binary)
    }
}

/// Names the source and the architecture for people, and all that the binary depends on by its hash.
fn file_name(source: &Source, headers: &[Header], target: &Target, driver: i32) -> String {
    format!("{}-{}-{:032x}", source.name, target.name(), key(source, headers, target, driver))
}

/// Of the compiler only the library's name counts, not its minor version: a hit does not even load it.
fn key(source: &Source, headers: &[Header], target: &Target, driver: i32) -> u128 {
    let mut hash = Xxh3::new();
    let mut add = |part: &str| {
        // The length keeps apart what would read the same when joined.
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    };
    let number = driver.to_string();
    [LIBRARY, &number, target.name()].into_iter().for_each(&mut add);
    OPTIONS.iter().chain(source.defines).copied().for_each(&mut add);
    [source.file, source.text].into_iter().for_each(&mut add);
    for header in headers {
        [header.name, header.text].into_iter().for_each(&mut add);
    }
    hash.digest128()
}

/// Whether the driver finds the end of a binary by itself: that of machine code by its ELF header, that of PTX by a zero.
fn has_end(binary: &[u8]) -> bool {
    binary.starts_with(b"\x7fELF") || binary.ends_with(&[0])
}

/// The binary, if the file is whole.
fn read(path: &Path) -> Option<Vec<u8>> {
    let mut file = std::fs::read(path).ok()?;
    let checksum = file.strip_prefix(MAGIC)?.first_chunk()?;
    let binary = file.get(HEADER_BYTES..)?;
    if u128::from_le_bytes(*checksum) != xxh3_128(binary) || !has_end(binary) {
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

#[cfg(test)]
mod tests {
    use super::*;

    static SOURCE: Source = Source::file("axpy.cu", "text");
    static HEADERS: [Header; 1] = [Header { name: "half.cuh", text: "header" }];
    const BINARY: &[u8] = b"\x7fELF machine code";
    const DRIVER: i32 = 13000;
    const TARGET: Target = Target::Cubin("sm_90a");

    fn cache(folder: &Path) -> DiskCache {
        DiskCache::in_folder(folder)
    }

    /// What the cache gives, and whether it compiled for that.
    fn ask(cache: &DiskCache) -> (Vec<u8>, bool) {
        let mut compiled = false;
        let binary = cache.compiled(&SOURCE, &HEADERS, &TARGET, DRIVER, || {
            compiled = true;
            Ok(BINARY.to_vec())
        });
        (binary.unwrap(), compiled)
    }

    fn only_file(cache: &DiskCache) -> PathBuf {
        let files: Vec<_> = std::fs::read_dir(cache.folder.as_ref().unwrap()).unwrap().collect();
        assert_eq!(files.len(), 1, "one entry, and no temporary file left behind");
        files[0].as_ref().unwrap().path()
    }

    #[test]
    fn the_second_read_hits() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path());
        assert_eq!(ask(&cache), (BINARY.to_vec(), true));
        assert_eq!(ask(&cache), (BINARY.to_vec(), false));
        let name = only_file(&cache).file_name().unwrap().to_str().unwrap().to_owned();
        assert!(name.starts_with("axpy.cu-sm_90a-"), "{name}");
    }

    #[test]
    fn an_entry_that_a_driver_would_read_beyond_is_compiled_anew() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path());
        ask(&cache);
        let path = only_file(&cache);
        for (binary, has_end) in [(&b""[..], false), (b".version 8.0", false), (b".version 8.0\0", true)] {
            write(path.parent().unwrap(), &path, binary).unwrap();
            assert_eq!(read(&path).is_some(), has_end, "{binary:?}");
        }
    }

    #[test]
    fn a_damaged_entry_is_compiled_and_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path());
        ask(&cache);
        let path = only_file(&cache);
        let whole = std::fs::read(&path).unwrap();
        for end in 0..whole.len() {
            std::fs::write(&path, &whole[..end]).unwrap();
            assert_eq!(ask(&cache), (BINARY.to_vec(), true), "truncated to {end} bytes");
            assert_eq!(std::fs::read(&path).unwrap(), whole);
        }
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            std::fs::write(&path, &flipped).unwrap();
            assert_eq!(ask(&cache), (BINARY.to_vec(), true), "flipped at {at}");
            assert_eq!(ask(&cache), (BINARY.to_vec(), false), "written anew at {at}");
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_no_error() {
        // A file in its place: root, too, fails to make a folder below it.
        let file = tempfile::NamedTempFile::new().unwrap();
        let cache = cache(file.path());
        assert_eq!(ask(&cache), (BINARY.to_vec(), true));
        assert_eq!(ask(&cache), (BINARY.to_vec(), true));
        assert_eq!(ask(&DiskCache { folder: None }), (BINARY.to_vec(), true));
    }

    #[test]
    fn an_error_of_the_compiler_is_told_and_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path());
        let fail = || Err(crate::Error::invalid("axpy.cu", "does not compile"));
        assert!(cache.compiled(&SOURCE, &HEADERS, &TARGET, DRIVER, fail).is_err());
        assert_eq!(ask(&cache), (BINARY.to_vec(), true));
    }

    #[test]
    fn every_input_changes_the_key() {
        let source = Source::file;
        let header = |name, text| [Header { name, text }];
        let defines = |defines| Source { defines, ..Source::file("axpy.cu", "text") };
        let keys = [
            key(&SOURCE, &HEADERS, &TARGET, DRIVER),
            key(&source("axpy.cu", "text "), &HEADERS, &TARGET, DRIVER),
            key(&source("axpz.cu", "text"), &HEADERS, &TARGET, DRIVER),
            // The same bytes, cut elsewhere.
            key(&source("axpy.cut", "ext"), &HEADERS, &TARGET, DRIVER),
            key(&SOURCE, &header("half.cuh", "headers"), &TARGET, DRIVER),
            key(&SOURCE, &header("halg.cuh", "header"), &TARGET, DRIVER),
            key(&SOURCE, &[], &TARGET, DRIVER),
            key(&SOURCE, &HEADERS, &Target::Cubin("sm_80"), DRIVER),
            key(&SOURCE, &HEADERS, &Target::Ptx("compute_90".to_owned()), DRIVER),
            key(&SOURCE, &HEADERS, &TARGET, 13010),
            key(&defines(&["-DA"]), &HEADERS, &TARGET, DRIVER),
            key(&defines(&["-DA", "-DB"]), &HEADERS, &TARGET, DRIVER),
            key(&defines(&["-DA-DB"]), &HEADERS, &TARGET, DRIVER),
        ];
        let distinct: std::collections::HashSet<_> = keys.into_iter().collect();
        assert_eq!(distinct.len(), keys.len());
    }
}
