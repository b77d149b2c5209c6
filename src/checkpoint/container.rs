//! How a compressed tensor lies in a safetensors file: which names, which metadata, which checksums.
//!
//! A compressed tensor at tensor path `P` is the five byte tensors `P.header` to `P.payload`. What is stored as it is
//! has its checksum in the file's metadata, and the file's own header has one over itself, so no byte of a container
//! is unguarded. A file that a VarStore saved has no metadata: its compressed tensors guard themselves.

use std::collections::{HashMap, HashSet};

use tch::Tensor;
use xxhash_rust::xxh3::{xxh3_64, Xxh3};

use super::Reader;
use crate::codec::{Buffers, BUFFER_NAMES, FORMAT_VERSION};
use crate::error::{Error, Result};
use crate::nn::view_of;

/// Metadata key of the format's version.
pub(super) const VERSION_KEY: &str = "codecllm.version";
/// Metadata key of what was asked of `compress`.
pub(super) const CHOICE_KEY: &str = "codecllm.choice";
/// Metadata key of the checksum over the file's own header.
pub(super) const HEADER_KEY: &str = "codecllm.header";
/// Metadata key prefix of the checksum of a tensor stored as it is.
pub(super) const TENSOR_KEY: &str = "codecllm.xxh3.";
/// The header's checksum while it is computed.
pub(super) const NO_CHECKSUM: &str = "0000000000000000";

/// XXH3-64 as 16 hexadecimal digits.
pub(super) fn checksum(bytes: &[u8]) -> String {
    format!("{:016x}", xxh3_64(bytes))
}

/// The full name of a compressed tensor's buffer.
pub(super) fn buffer_path(tensor_path: &str, buffer: &str) -> String {
    format!("{tensor_path}.{buffer}")
}

/// The tensor path of a compressed tensor, given the name of one of its buffers. Any one will do, so that a tensor that
/// has lost some is noticed.
pub(super) fn path_of_buffer(name: &str) -> Option<&str> {
    BUFFER_NAMES.iter().find_map(|buffer| {
        let path = name.strip_suffix(buffer)?.strip_suffix('.')?;
        path.ends_with(".weight").then_some(path)
    })
}

/// Whether `reader` holds any buffer of `tensor_path` compressed.
pub(super) fn holds_compressed(reader: &Reader, tensor_path: &str) -> bool {
    BUFFER_NAMES.iter().any(|buffer| reader.info(&buffer_path(tensor_path, buffer)).is_some())
}

/// The tensor paths of all compressed tensors, in file order.
pub(super) fn compressed_paths(reader: &Reader) -> Vec<String> {
    let mut seen = HashSet::new();
    let paths = reader.names().filter_map(path_of_buffer);
    paths.filter(|path| seen.insert(*path)).map(str::to_owned).collect()
}

/// Whether `name` is a buffer of a compressed tensor.
pub(super) fn is_buffer(name: &str) -> bool {
    path_of_buffer(name).is_some()
}

/// If `name` is the bias of a compressed linear, stored as bytes.
pub(super) fn is_byte_bias(reader: &Reader, name: &str) -> bool {
    name.strip_suffix(".bias").is_some_and(|path| holds_compressed(reader, &format!("{path}.weight")))
}

/// Refuses a container of another version.
pub(super) fn check_version(metadata: &HashMap<String, String>, subject: &str) -> Result<()> {
    match metadata.get(VERSION_KEY) {
        None => Ok(()),
        Some(version) if *version == FORMAT_VERSION.to_string() => Ok(()),
        Some(version) => Err(Error::unsupported(
            subject,
            format!(
                "format version {version}, this build reads {FORMAT_VERSION}; use the codecllm that wrote it"
            ),
        )),
    }
}

/// Reads a compressed tensor's buffers as bytes.
pub(super) fn read_buffers(reader: &Reader, tensor_path: &str) -> Result<Buffers> {
    let read = |buffer| {
        check_bytes(reader, tensor_path, buffer)?;
        reader.read_bytes(&buffer_path(tensor_path, buffer))
    };
    Ok(Buffers {
        header: read("header")?,
        scales: read("scales")?,
        tables: read("tables")?,
        tiles: read("tiles")?,
        payload: read("payload")?,
    })
}

/// Reads a compressed tensor's buffers as byte tensors, in the order of [`BUFFER_NAMES`], and compares their checksum unless the reader
/// ignores it.
pub(super) fn read_buffer_tensors(reader: &Reader, tensor_path: &str) -> Result<[Tensor; 5]> {
    let mut hasher = reader.checksums().verify().then(Xxh3::new);
    let mut tensors = Vec::with_capacity(BUFFER_NAMES.len());
    for buffer in BUFFER_NAMES {
        check_bytes(reader, tensor_path, buffer)?;
        // The header vouches for the others, and for itself.
        let hasher = hasher.as_mut().filter(|_| buffer != "header");
        tensors.push(reader.read_hashed(&buffer_path(tensor_path, buffer), hasher)?);
    }
    let tensors =
        <[Tensor; 5]>::try_from(tensors).map_err(|_| Error::corrupt(tensor_path, "has not five buffers"))?;
    if let Some(hasher) = hasher {
        view_of(tensor_path, &tensors)?.compare_checksum(hasher.digest())?;
    }
    Ok(tensors)
}

fn check_bytes(reader: &Reader, tensor_path: &str, buffer: &str) -> Result<()> {
    let name = buffer_path(tensor_path, buffer);
    let Some(info) = reader.info(&name) else {
        return Err(Error::corrupt(
            name,
            format!("missing from {}; the compressed tensor is incomplete", reader.dir().display()),
        ));
    };
    if info.dtype != safetensors::Dtype::U8 || info.shape.len() != 1 {
        return Err(Error::corrupt(
            name,
            format!("is {:?} {:?}, wanted bytes (U8) in one dimension", info.dtype, info.shape),
        ));
    }
    Ok(())
}

/// Bytes of a tensor in the directory, compressed or not.
pub(super) fn stored_bytes(reader: &Reader, name: &str) -> u64 {
    let bytes_of = |name: &str| reader.info(name).map_or(0, |info| info.bytes as u64);
    bytes_of(name) + BUFFER_NAMES.iter().map(|buffer| bytes_of(&buffer_path(name, buffer))).sum::<u64>()
}
