//! The hidden directory in which an output is written until it is complete.
//!
//! It lies beside the output, so that one rename makes the output appear, and it is locked while its writer lives. One
//! that nobody has locked was left by a process that was killed; the next writer of the same output removes it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::TempDir;

use crate::error::{Error, Result};

/// What a partial directory's name ends with; it begins with a dot and the name of the output.
const SUFFIX: &str = ".partial";
/// Characters that tempfile puts between the two.
const RANDOM_CHARACTERS: usize = 6;
/// Directories made before giving up: another process may take one for a left-over before it is locked.
const ATTEMPTS: usize = 8;

/// The partial directories of this process.
static UNFINISHED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// A partial directory; dropped before [`Partial::publish`] it leaves nothing behind.
#[derive(Debug)]
pub(super) struct Partial {
    directory: TempDir,
    /// Open for its lock, which ends with the process however that ends.
    _lock: File,
}

impl Partial {
    /// Makes the directory for the output `out_dir`, and removes those that killed processes left for it.
    pub fn create(out_dir: &Path) -> Result<Self> {
        refuse_existing(out_dir)?;
        let Some(name) = out_dir.file_name() else {
            return Err(Error::invalid(out_dir.display().to_string(), "is not the path of a new directory"));
        };
        let parent = parent_of(out_dir);
        let prefix = format!(".{}.", name.to_string_lossy());
        remove_left_over(&parent, &prefix);
        for _ in 0..ATTEMPTS {
            let directory = new_directory(&parent, &prefix).map_err(|e| Error::io(&parent, e))?;
            if let Some(lock) = lock(directory.path())? {
                unfinished().insert(directory.path().to_path_buf());
                return Ok(Self { directory, _lock: lock });
            }
        }
        Err(Error::invalid(
            parent.display().to_string(),
            "another process removes each directory made in it, wanted room for the output",
        ))
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Lets the directory appear as `out_dir`, in one step.
    pub fn publish(mut self, out_dir: &Path) -> Result<()> {
        refuse_existing(out_dir)?;
        sync_directory(self.path())?;
        {
            // Held over the rename: whoever ends the process removes what is unfinished before it or not at all.
            let mut unfinished = unfinished();
            if let Err(e) = fs::rename(self.path(), out_dir) {
                // Another writer of the same output may have been faster.
                refuse_existing(out_dir)?;
                return Err(Error::io(out_dir, e));
            }
            unfinished.remove(self.path());
        }
        // The temporary name is gone: there is nothing left to remove.
        self.directory.disable_cleanup(true);
        sync_directory(&parent_of(out_dir))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        unfinished().remove(self.directory.path());
    }
}

/// Removes what the [`Writer`](super::Writer)s of this process have not finished. For the thread of a program that answers
/// signals, just before it ends the process: a writer still at work fails.
///
/// ```no_run
/// // Ends the process.
/// std::thread::spawn(|| {
///     let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM]).unwrap();
///     if signals.forever().next().is_some() {
///         codecllm::checkpoint::remove_unfinished();
///         std::process::exit(1);
///     }
/// });
/// ```
pub fn remove_unfinished() {
    // Held over the removal too, or a writer could publish what is half removed.
    let mut unfinished = unfinished();
    for path in std::mem::take(&mut *unfinished) {
        // A writer may add a file meanwhile, so that the directory is not empty when its turn comes.
        let mut attempts = 0..ATTEMPTS;
        while fs::remove_dir_all(&path).is_err() && attempts.next().is_some() {}
    }
}

fn unfinished() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks the new directory at `path`; none if another process took it for a left-over.
fn lock(path: &Path) -> Result<Option<File>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(path, e)),
    };
    // Some network file systems know no such locks. Then nobody gets one, and nothing is taken for a left-over.
    let _no_lock = file.lock();
    let locked = file.metadata().map_err(|e| Error::io(path, e))?;
    let still_there = fs::symlink_metadata(path).is_ok_and(|found| found.ino() == locked.ino());
    Ok(still_there.then_some(file))
}

/// Removes the partial directories of `parent` that begin with `prefix` and that nobody has locked. One that cannot be
/// removed stays: it is in nobody's way but the disk's.
fn remove_left_over(parent: &Path, prefix: &str) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if !is_directory || !is_partial(&entry.file_name().to_string_lossy(), prefix) {
            continue;
        }
        let Ok(directory) = File::open(entry.path()) else { continue };
        // The lock is held until the directory is gone.
        if directory.try_lock().is_ok() {
            let _stays = fs::remove_dir_all(entry.path());
        }
    }
}

fn is_partial(name: &str, prefix: &str) -> bool {
    let random = name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(SUFFIX));
    random.is_some_and(|random| {
        random.len() == RANDOM_CHARACTERS && random.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}

/// An error if there is anything at `out_dir`, a dangling link included.
fn refuse_existing(out_dir: &Path) -> Result<()> {
    match fs::symlink_metadata(out_dir) {
        Ok(_) => Err(Error::invalid(
            out_dir.display().to_string(),
            "output directory exists; choose another directory or remove it",
        )),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io(out_dir, e)),
    }
}

fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// A temporary directory with the permissions of an ordinary one (tempfile's default is the owner's only).
fn new_directory(parent: &Path, prefix: &str) -> io::Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(prefix).rand_bytes(RANDOM_CHARACTERS).suffix(SUFFIX);
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    builder.tempdir_in(parent)
}

fn sync_directory(path: &Path) -> Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(|e| Error::io(path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(parent: &Path) -> Vec<String> {
        let entries = fs::read_dir(parent).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_a_killed_process_left_is_removed_and_what_others_write_is_not() {
        let parent = tempfile::tempdir().unwrap();
        let out = parent.path().join("out");
        let alive = Partial::create(&out).unwrap();
        for name in [".out.abcDE1.partial", ".out.mine.partial", ".out.abcDE1.whole", ".other.abcDE1.partial"]
        {
            fs::create_dir(parent.path().join(name)).unwrap();
            fs::write(parent.path().join(name).join("file"), "bytes").unwrap();
        }
        let second = Partial::create(&out).unwrap();
        assert!(alive.path().exists() && second.path().exists());
        drop((alive, second));
        assert_eq!(names(parent.path()), [".other.abcDE1.partial", ".out.abcDE1.whole", ".out.mine.partial"]);
    }

    #[test]
    fn a_removed_directory_is_not_locked_in_vain() {
        let parent = tempfile::tempdir().unwrap();
        let gone = parent.path().join("gone");
        fs::create_dir(&gone).unwrap();
        assert!(lock(&gone).unwrap().is_some());
        fs::remove_dir(&gone).unwrap();
        assert!(lock(&gone).unwrap().is_none());
    }
}
