//! Text and errors across the C boundary.

use std::ffi::{c_char, CStr, CString};
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};

extern "C" {
    fn codecllm_free_text(text: *mut c_char);
}

/// The text that C++ gave away; none for null.
pub(super) fn take(text: *mut c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: every function of csrc/torchscript returns null or a terminated text of its own, given away.
    let owned = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    // SAFETY: as above, and it is not used after this.
    unsafe { codecllm_free_text(text) };
    Some(owned)
}

/// The error that a call of C++ reported about `subject`, if it did.
pub(super) fn check(message: *mut c_char, subject: &str) -> Result<()> {
    match take(message) {
        None => Ok(()),
        Some(message) => Err(Error::new(ErrorKind::Torch, subject, message.trim_end())),
    }
}

/// `text` for C.
pub(super) fn to_c(text: &str, subject: &str) -> Result<CString> {
    CString::new(text)
        .map_err(|e| Error::invalid(subject, format!("{text:?} has a zero byte in it")).with_source(e))
}

/// `path` for C.
pub(super) fn path_to_c(path: &Path) -> Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    CString::new(path.as_os_str().as_bytes()).map_err(|e| {
        Error::invalid(path.display().to_string(), "the path has a zero byte in it").with_source(e)
    })
}

/// A borrowed text of C++ that lives as long as its owner.
///
/// # Safety
/// `text` is a terminated text that lives at least as long as the call.
pub(super) unsafe fn copy(text: *const c_char) -> String {
    // SAFETY: the caller gives a terminated text that lives until it is copied here.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
