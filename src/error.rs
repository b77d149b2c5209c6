//! The one error type of the crate: what kind, about what, what was got and wanted, and the cure.
//!
//! [`Error`] shows both; see its example.

use std::fmt;
use std::path::Path;

/// What went wrong, coarse enough to act on.
///
/// What [`Error::kind`] of an [`Error`] says; see its example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The operating system refused to read or write.
    Io,
    /// The data ends before it should.
    Truncated,
    /// The data contradicts itself or its checksum.
    Corrupt,
    /// The data is well-formed but asks for something this version does not do.
    Unsupported,
    /// The caller asked for something impossible.
    InvalidArgument,
    /// Memory of the host or of a GPU is too short: the message says how much was needed and what there is. What was begun is
    /// given back, and the process can go on with less.
    OutOfMemory,
    /// libtorch reported an error.
    Torch,
    /// The CUDA driver or the kernel compiler reported an error.
    Cuda,
}

/// An error with its subject: the full tensor path, file or argument it is about.
///
/// The message is lowercase, says what was got and what was wanted, and ends with the cure where one is
/// known.
///
/// ```
/// use codecllm::{Error, ErrorKind, Result};
/// let error = Error::truncated("model.norm.weight", "needs 576 bytes, 512 remain (file truncated?)");
/// assert_eq!(error.kind(), ErrorKind::Truncated);
/// assert_eq!(error.to_string(), "model.norm.weight: needs 576 bytes, 512 remain (file truncated?)");
/// // Whoever knows the full path says so, and what is below stays the cause.
/// fn three_of_two() -> Result<tch::Tensor> {
///     tch::Tensor::from_slice(&[1.0, 2.0]).f_view([3]).map_err(|error| Error::torch("view", error))
/// }
/// let error = three_of_two().unwrap_err().about("model.norm.weight");
/// assert_eq!((error.kind(), error.subject()), (ErrorKind::Torch, "model.norm.weight"));
/// let cause = std::num::ParseIntError::from("x".parse::<u8>().unwrap_err());
/// let error = Error::corrupt("config.json", "a number is none").with_source(cause);
/// assert!(std::error::Error::source(&error).unwrap().to_string().contains("invalid digit"));
/// assert_eq!(Error::unsupported("config.json", "a BERT, wanted a Llama").kind(), ErrorKind::Unsupported);
/// ```
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    subject: String,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// `Result` with this crate's [`Error`].
///
/// What can fail with an [`Error`] gives it; see its example.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of `kind` about `subject`.
    pub fn new(kind: ErrorKind, subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self { kind, subject: subject.into(), message: message.into(), source: None }
    }

    /// The same error with the lower-level error that caused it.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// An [`ErrorKind::Io`] error about the file at `path`.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        let kind = match source.kind() {
            std::io::ErrorKind::UnexpectedEof => ErrorKind::Truncated,
            _ => ErrorKind::Io,
        };
        let message = match cure(source.kind()) {
            None => source.to_string(),
            Some(cure) => format!("{source}; {cure}"),
        };
        Self::new(kind, path.as_ref().display().to_string(), message).with_source(source)
    }

    /// An [`ErrorKind::Truncated`] error.
    pub fn truncated(subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Truncated, subject, message)
    }

    /// An [`ErrorKind::Corrupt`] error.
    pub fn corrupt(subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, subject, message)
    }

    /// An [`ErrorKind::Unsupported`] error.
    pub fn unsupported(subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, subject, message)
    }

    /// An [`ErrorKind::InvalidArgument`] error.
    pub fn invalid(subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, subject, message)
    }

    /// An [`ErrorKind::Torch`] error: libtorch failed while working on `subject`. [`ErrorKind::OutOfMemory`] where it says that.
    pub fn torch(subject: impl Into<String>, source: tch::TchError) -> Self {
        // libtorch appends a C++ backtrace after its first line; the cause is the first line.
        let text = source.to_string();
        let first = text.lines().next().unwrap_or_default();
        // libtorch says how much it was asked for and, of a GPU, how much is free.
        let (kind, message) = match first.contains("out of memory") || first.contains("can't allocate memory")
        {
            true => (
                ErrorKind::OutOfMemory,
                format!("{first} (take less context, fewer bits a weight, or another device)"),
            ),
            false => (ErrorKind::Torch, first.to_owned()),
        };
        Self::new(kind, subject, message).with_source(source)
    }

    /// An [`ErrorKind::OutOfMemory`] error with `need` in front of its message, any other as it is. `need` says what all of the
    /// work takes and what there is: libtorch knows only of the one tensor that it was asked for.
    #[must_use]
    pub(crate) fn with_need(mut self, need: impl FnOnce() -> String) -> Self {
        if self.kind == ErrorKind::OutOfMemory {
            self.message = format!("{}: {}", need(), self.message);
        }
        self
    }

    /// An [`ErrorKind::OutOfMemory`] error with `cure` behind its message, any other as it is: what to do depends on who asked.
    #[must_use]
    #[cfg(feature = "serve")]
    pub(crate) fn with_cure(mut self, cure: &str) -> Self {
        if self.kind == ErrorKind::OutOfMemory {
            self.message = format!("{}; {cure}", self.message);
        }
        self
    }

    /// The kind of error.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What the error is about: a tensor path, a file or an argument.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// The same error about `subject`, for a caller that knows the full path.
    #[must_use]
    pub fn about(mut self, subject: impl Into<String>) -> Self {
        self.subject = subject.into();
        self
    }
}

/// What a user can do about an error of the operating system.
fn cure(kind: std::io::ErrorKind) -> Option<&'static str> {
    use std::io::ErrorKind as Io;
    match kind {
        Io::StorageFull => Some("free some space or name an output on another disk"),
        Io::QuotaExceeded => Some("free some of your quota or name an output elsewhere"),
        Io::FileTooLarge => {
            Some("raise the limit on the size of files (ulimit -f) or name an output on another disk")
        }
        Io::ReadOnlyFilesystem => Some("name an output on a disk that can be written to"),
        Io::PermissionDenied => Some("change its permissions or run as its owner"),
        _ => None,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// Gives a fallible libtorch call its subject.
pub(crate) trait TorchContext<T> {
    /// Turns a [`tch::TchError`] into an [`Error`] about `subject`.
    fn about(self, subject: &str) -> Result<T>;
}

impl<T> TorchContext<T> for std::result::Result<T, tch::TchError> {
    fn about(self, subject: &str) -> Result<T> {
        self.map_err(|source| Error::torch(subject, source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_user_can_cure_says_how() {
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let error = Error::io("/out/data-00001.spool", full).to_string();
        assert!(
            error.starts_with("/out/data-00001.spool: ") && error.contains("; free some space"),
            "{error}"
        );
        let first = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.50 GiB free.";
        let torch = tch::TchError::Torch(format!("{first}\nException raised from malloc"));
        let error = Error::torch("model.norm.weight", torch);
        assert_eq!(error.kind(), ErrorKind::OutOfMemory);
        let error = error.with_need(|| "the weights need 9 bytes".to_owned()).to_string();
        assert!(error.starts_with("model.norm.weight: the weights need 9 bytes: "), "{error}");
        assert!(error.contains(&format!("{first} (take less context")), "{error}");
        assert!(!error.contains("Exception"), "{error}");
        let other = Error::invalid("x", "is 1").with_need(|| "unasked".to_owned());
        assert_eq!(other.to_string(), "x: is 1");
    }
}
