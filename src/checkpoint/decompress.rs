//! A compressed directory back to an ordinary checkpoint that any other program loads.

use std::path::Path;

use safetensors::Dtype;
use tch::{Kind, Tensor};

use super::compress::Progress;
use super::container::{compressed_paths, is_buffer, is_byte_bias, read_buffers, stored_bytes};
use super::files::copy_other_files;
use super::{Reader, Writer};
use crate::codec::{decompress_view, raw_bytes};
use crate::error::{Error, Result};
use crate::nn::Bias;

/// Decompresses the model directory `dir` into the new directory `out`. Returns the bytes of its tensor files.
///
/// ```no_run
/// // Needs a compressed model.
/// use codecllm::checkpoint::{decompress, decompress_from, is_compressed, Reader};
/// use codecllm::codec::Checksums;
/// if is_compressed("out")? {
///     decompress("out", "dense", &mut |_| {})?;
/// }
/// // In a hurry, from a disk that one trusts.
/// decompress_from(&Reader::open("out")?.with_checksums(Checksums::Ignore), "dense-too", &mut |_| {})?;
/// # Ok::<(), codecllm::Error>(())
/// ```
///
/// # Errors
/// What [`Reader`] and [`Writer`] report; `Corrupt` for a damaged tensor, by its path; `InvalidArgument` for a source
/// with nothing compressed in it.
pub fn decompress(
    dir: impl AsRef<Path>,
    out: impl AsRef<Path>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<u64> {
    decompress_from(&Reader::open(dir)?, out, progress)
}

/// As [`decompress`], of a directory that is open already, with its [`Checksums`](crate::codec::Checksums).
///
/// Beside [`decompress`]; see its example.
///
/// # Errors
/// As [`decompress`].
pub fn decompress_from(
    reader: &Reader,
    out: impl AsRef<Path>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<u64> {
    let compressed = compressed_paths(reader);
    if compressed.is_empty() {
        return Err(Error::invalid(
            reader.dir().display().to_string(),
            "holds no compressed tensor; it is an ordinary checkpoint already",
        ));
    }
    let mut writer = Writer::create(out.as_ref())?;
    writer.metadata("format", "pt");
    if reader.checksums().verify() {
        reader.check_files()?;
    }
    copy_other_files(reader.dir(), &mut writer)?;
    let plain = reader.names().filter(|name| !is_buffer(name));
    let names: Vec<&str> = compressed.iter().map(String::as_str).chain(plain).collect();
    let total_bytes = names.iter().map(|name| stored_bytes(reader, name)).sum();
    let mut done_bytes = 0;
    for name in names {
        write_one(reader, name, &mut writer)?;
        done_bytes += stored_bytes(reader, name);
        progress(Progress { stage: "decompress", tensor_path: name, done_bytes, total_bytes });
    }
    reader.check_unchanged()?;
    writer.finish()
}

fn write_one(reader: &Reader, name: &str, writer: &mut Writer) -> Result<()> {
    if reader.info(name).is_none() {
        let buffers = read_buffers(reader, name)?;
        let view = buffers.view(name)?;
        view.check(reader.checksums())?;
        let tensor = decompress_view(&view)?;
        return write_tensor(name, &tensor, writer);
    }
    let bytes = reader.read_bytes(name)?;
    if is_byte_bias(reader, name) {
        return write_tensor(name, &Bias::from_bytes(name, &bytes)?, writer);
    }
    match reader.info(name) {
        Some(info) => writer.add(name, info.dtype, &info.shape, &bytes),
        None => Ok(()),
    }
}

fn write_tensor(name: &str, tensor: &Tensor, writer: &mut Writer) -> Result<()> {
    let dtype = match tensor.kind() {
        Kind::Half => Dtype::F16,
        Kind::BFloat16 => Dtype::BF16,
        _ => Dtype::F32,
    };
    let shape: Vec<usize> = tensor.size().iter().map(|&n| n as usize).collect();
    writer.add(name, dtype, &shape, &raw_bytes(tensor, name)?)
}
