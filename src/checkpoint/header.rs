//! The header of one safetensors file, checked against the file's length before anything is allocated.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use safetensors::tensor::{Metadata, SafeTensorError};

use super::container::{check_version, checksum, is_buffer, HEADER_KEY, NO_CHECKSUM};
use crate::error::{Error, Result};

/// Bytes of the little-endian header length that a file starts with.
const LENGTH_BYTES: u64 = 8;
/// The limit of the safetensors format on its own header.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Reads the header of `file` (`path` for messages): where its data starts, and what it holds.
///
/// Tensors are contiguous, in bounds, and cover the file to its end, or this is an error.
pub(super) fn read_header(file: &File, path: &Path) -> Result<(u64, Metadata)> {
    let subject = path.display().to_string();
    let file_bytes = file.metadata().map_err(|e| Error::io(path, e))?.len();
    let header_bytes = read_header_length(file, path, file_bytes)?;
    let mut header = vec![0u8; usize::try_from(header_bytes).unwrap_or_default()];
    file.read_exact_at(&mut header, LENGTH_BYTES).map_err(|e| Error::io(path, e))?;
    let text = std::str::from_utf8(&header)
        .map_err(|e| Error::corrupt(&*subject, "header is not UTF-8").with_source(e))?;
    let metadata: Metadata = serde_json::from_str(text).map_err(|e| header_error(&subject, e))?;
    check_seal(&header, &metadata, &subject)?;
    let data_start = LENGTH_BYTES + header_bytes;
    check_coverage(&metadata, path, file_bytes - data_start)?;
    Ok((data_start, metadata))
}

fn read_header_length(file: &File, path: &Path, file_bytes: u64) -> Result<u64> {
    let subject = path.display().to_string();
    if file_bytes < LENGTH_BYTES {
        return Err(Error::truncated(
            subject,
            format!("header length needs {LENGTH_BYTES} bytes, {file_bytes} remain (file truncated?)"),
        ));
    }
    let mut length = [0u8; LENGTH_BYTES as usize];
    file.read_exact_at(&mut length, 0).map_err(|e| Error::io(path, e))?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > MAX_HEADER_BYTES {
        return Err(Error::corrupt(
            subject,
            format!(
                "header of {header_bytes} bytes, at most {MAX_HEADER_BYTES} wanted (not a safetensors file?)"
            ),
        ));
    }
    let remaining = file_bytes - LENGTH_BYTES;
    if header_bytes > remaining {
        return Err(Error::truncated(
            subject,
            format!("header needs {header_bytes} bytes, {remaining} remain (file truncated?)"),
        ));
    }
    Ok(header_bytes)
}

/// The data section must be as long as the header says: no less (truncated) and no more (hidden bytes).
fn check_coverage(metadata: &Metadata, path: &Path, data_bytes: u64) -> Result<()> {
    let wanted = metadata.data_len() as u64;
    if data_bytes > wanted {
        return Err(Error::corrupt(
            path.display().to_string(),
            format!("{data_bytes} bytes of tensor data, {wanted} wanted by the header"),
        ));
    }
    if data_bytes == wanted {
        return Ok(());
    }
    let cut = metadata
        .offset_keys()
        .into_iter()
        .find(|name| metadata.info(name).is_some_and(|info| info.data_offsets.1 as u64 > data_bytes));
    let name = cut.unwrap_or_default();
    let needed = metadata.info(&name).map_or(0, |info| info.data_offsets.1 - info.data_offsets.0);
    let start = metadata.info(&name).map_or(0, |info| info.data_offsets.0 as u64);
    Err(Error::truncated(
        name,
        format!(
            "needs {needed} bytes, {} remain in {} (file truncated?)",
            data_bytes.saturating_sub(start),
            path.display()
        ),
    ))
}

fn header_error(subject: &str, error: serde_json::Error) -> Error {
    Error::corrupt(subject, format!("header is not valid: {error}")).with_source(error)
}

/// Serializes a header: the file's metadata first, then `entries` `(name, dtype, shape, bytes)` in the order
/// of their data. Padded with spaces so that the data starts at a multiple of 8 bytes.
pub(super) fn header_bytes(
    metadata: &std::collections::BTreeMap<String, String>,
    entries: &[(&str, safetensors::Dtype, &[usize], usize)],
) -> std::result::Result<Vec<u8>, SafeTensorError> {
    let mut parts = Vec::with_capacity(entries.len() + 1);
    if !metadata.is_empty() {
        parts.push(format!("\"__metadata__\":{}", serde_json::to_string(metadata)?));
    }
    let mut offset = 0usize;
    for (name, dtype, shape, bytes) in entries {
        let end = offset.checked_add(*bytes).ok_or(SafeTensorError::ValidationOverflow)?;
        let info = safetensors::tensor::TensorInfo {
            dtype: *dtype,
            shape: shape.to_vec(),
            data_offsets: (offset, end),
        };
        parts.push(format!("{}:{}", serde_json::to_string(name)?, serde_json::to_string(&info)?));
        offset = end;
    }
    let mut json = format!("{{{}}}", parts.join(",")).into_bytes();
    json.resize(json.len().next_multiple_of(LENGTH_BYTES as usize), b' ');
    if json.len() as u64 > MAX_HEADER_BYTES {
        return Err(SafeTensorError::HeaderTooLarge);
    }
    seal(&mut json);
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut json);
    Ok(bytes)
}

/// Where the digits of the header's own checksum are, if it has one.
fn seal_position(json: &[u8]) -> Option<usize> {
    let key = format!("\"{HEADER_KEY}\":\"");
    let at = json.windows(key.len()).position(|window| window == key.as_bytes())? + key.len();
    (at + NO_CHECKSUM.len() <= json.len()).then_some(at)
}

/// Fills in the checksum of a header that was written with zeros in its place.
fn seal(json: &mut [u8]) {
    if let Some(at) = seal_position(json) {
        let digits = checksum(json);
        json[at..at + digits.len()].copy_from_slice(digits.as_bytes());
    }
}

/// Compares a header's checksum with the header. A file with metadata and compressed tensors must have one.
fn check_seal(json: &[u8], metadata: &Metadata, subject: &str) -> Result<()> {
    let Some(keys) = metadata.metadata() else { return Ok(()) };
    check_version(keys, subject)?;
    let Some(at) = seal_position(json) else {
        let ours = keys.keys().any(|key| key.starts_with("codecllm."))
            || metadata.offset_keys().iter().any(|name| is_buffer(name));
        return match ours {
            true => Err(Error::corrupt(subject, "header has lost its checksum (file damaged?)")),
            false => Ok(()),
        };
    };
    let mut unsealed = json.to_vec();
    let got = unsealed[at..at + NO_CHECKSUM.len()].to_vec();
    unsealed[at..at + NO_CHECKSUM.len()].copy_from_slice(NO_CHECKSUM.as_bytes());
    if got == checksum(&unsealed).as_bytes() {
        Ok(())
    } else {
        Err(Error::corrupt(subject, "header fails its checksum (file damaged?)"))
    }
}
