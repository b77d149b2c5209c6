//! A compressed directory back to an ordinary checkpoint that any other program loads.

use std::path::Path;

use safetensors::Dtype;
use tch::{Kind, Tensor};

use super::compress::{copy_other_files, Progress};
use super::container::{is_buffer, is_byte_bias, read_buffers, tensor_path_of_header};
use super::{Reader, Writer};
use crate::codec::decompress as decompress_tensor;
use crate::error::{Error, Result, TorchContext};
use crate::nn::Bias;

/// Decompresses the model directory `dir` into the new directory `out`. Returns the bytes of its tensor files.
///
/// # Errors
/// What [`Reader`] and [`Writer`] report; `Corrupt` for a damaged tensor, by its path; `InvalidArgument` for a source
/// with nothing compressed in it.
pub fn decompress(
    dir: impl AsRef<Path>,
    out: impl AsRef<Path>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<u64> {
    let reader = Reader::open(dir)?;
    if !reader.names().any(|name| is_buffer(&reader, name)) {
        return Err(Error::invalid(
            reader.dir().display().to_string(),
            "holds no compressed tensor; it is an ordinary checkpoint already",
        ));
    }
    let mut writer = Writer::create(out.as_ref())?;
    writer.metadata("format", "pt");
    copy_other_files(reader.dir(), &mut writer)?;
    let bytes_of = |name: &str| reader.info(name).map_or(0, |info| info.bytes as u64);
    let total_bytes = reader.names().map(bytes_of).sum();
    let mut done_bytes = 0;
    for name in reader.names() {
        write_one(&reader, name, &mut writer)?;
        done_bytes += bytes_of(name);
        progress(Progress { stage: "decompress", tensor_path: name, done_bytes, total_bytes });
    }
    writer.finish()
}

fn write_one(reader: &Reader, name: &str, writer: &mut Writer) -> Result<()> {
    if let Some(path) = tensor_path_of_header(reader, name) {
        let tensor = decompress_tensor(&read_buffers(reader, path)?, path)?;
        return write_tensor(path, &tensor, writer);
    }
    if is_buffer(reader, name) {
        return Ok(());
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
    let flat = tensor.f_contiguous().and_then(|t| t.f_reshape([-1])).about(name)?;
    let bytes = flat.f_view_dtype(Kind::Uint8).about(name)?;
    let mut data = vec![0u8; bytes.numel()];
    let len = data.len();
    bytes.f_copy_data(&mut data, len).about(name)?;
    writer.add(name, dtype, &shape, &data)
}
