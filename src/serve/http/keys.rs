//! Keys that let clients in.

use std::path::Path;

use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::error::{Error, Result};

/// Keys of which a client has to send one. Only their SHA-256 is kept.
///
/// ```
/// use codecllm::serve::ApiKeys;
/// let keys = ApiKeys::parse("first-key\nsecond-key\n", "keys")?;
/// assert!(keys.contains("second-key") && !keys.contains("second"));
/// let file = tempfile::NamedTempFile::new().unwrap();
/// std::fs::write(&file, "third-key\n").unwrap();
/// assert!(!ApiKeys::from_file(file.path())?.is_empty());
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct ApiKeys {
    digests: Vec<[u8; 32]>,
}

impl ApiKeys {
    /// Reads the file at `path`: one key a line.
    ///
    /// # Errors
    /// `Io` if it cannot be read, and as [`ApiKeys::parse`].
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        Self::parse(&text, &path.display().to_string())
    }

    /// The keys in `text`, one a line; blank lines count for nothing. `subject` is the text's name for messages.
    ///
    /// # Errors
    /// `InvalidArgument` if there is none, or one that no `Authorization` header can carry.
    pub fn parse(text: &str, subject: &str) -> Result<Self> {
        let mut digests = Vec::new();
        for (i, line) in text.lines().enumerate() {
            let key = line.trim();
            if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
                let message = format!("line {}: wanted printable ASCII without spaces", i + 1);
                return Err(Error::invalid(subject, message));
            }
            if !key.is_empty() {
                digests.push(digest(key));
            }
        }
        if digests.is_empty() {
            return Err(Error::invalid(
                subject,
                "has no key, wanted one a line (openssl rand -hex 32 makes one)",
            ));
        }
        Ok(Self { digests })
    }

    /// Whether there is no key: everybody may come.
    pub fn is_empty(&self) -> bool {
        self.digests.is_empty()
    }

    /// Whether `key` is one of them, in a time that does not tell which or how nearly.
    pub fn contains(&self, key: &str) -> bool {
        let sent = digest(key);
        let found = self.digests.iter().fold(Choice::from(0), |found, kept| found | kept.ct_eq(&sent));
        found.into()
    }
}

fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}
