//! What a model directory holds, read from its headers.

use std::path::Path;

use serde::Serialize;

use super::container::{buffer_path, compressed_paths, is_buffer, read_buffers};
use super::Reader;
use crate::codec::{BUFFER_NAMES, FORMAT_VERSION};
use crate::error::Result;

/// A model directory.
///
/// Made by [`inspect`](inspect()) of what [`compress`](super::compress()) wrote; see its example.
#[derive(Clone, Debug, Serialize)]
pub struct InspectReport {
    /// Version of the format of compressed tensors.
    pub format_version: u16,
    /// Parameters.
    pub weights: u64,
    /// Bytes of the tensors' data.
    pub file_bytes: u64,
    /// `8 * file_bytes / weights`.
    pub bits_per_weight: f64,
    /// Compressed tensors first.
    pub tensors: Vec<InspectTensor>,
}

/// One tensor.
///
/// One tensor of what [`compress`](super::compress()) wrote; see its example.
#[derive(Clone, Debug, Serialize)]
pub struct InspectTensor {
    /// Full name.
    pub tensor_path: String,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Dtype, when decompressed.
    pub dtype: String,
    /// `fast`, `small`, `exact_bf16` or `exact_fp16`; none for a tensor stored as it is.
    pub layout: Option<&'static str>,
    /// Bytes of all its buffers.
    pub bytes: u64,
    /// `8 * bytes / weights`.
    pub bits_per_weight: f64,
    /// Rows and columns of a tile.
    pub tile: Option<[usize; 2]>,
    /// Number of tiles.
    pub tiles: Option<usize>,
    /// Number of frequency tables.
    pub tables: Option<usize>,
    /// Tiles with each number of raw magnitude bits.
    pub raw_bits: Vec<usize>,
    /// Weights stored as escapes.
    pub escapes: Option<u64>,
}

/// Looks at the model directory `dir`, compressed or not, without decoding.
///
/// As what [`compress`](super::compress()) wrote; see its example.
///
/// # Errors
/// What [`Reader`] reports; `Corrupt` for a tensor whose headers contradict themselves.
pub fn inspect(dir: impl AsRef<Path>) -> Result<InspectReport> {
    let reader = Reader::open(dir)?;
    let mut tensors = Vec::new();
    for path in compressed_paths(&reader) {
        tensors.push(inspect_compressed(&reader, &path)?);
    }
    let plain = reader.names().filter(|name| !is_buffer(name));
    tensors.extend(plain.filter_map(|name| inspect_plain(&reader, name)));
    let weights = tensors.iter().map(|tensor| tensor.shape.iter().product::<usize>() as u64).sum::<u64>();
    let file_bytes = tensors.iter().map(|tensor| tensor.bytes).sum::<u64>();
    Ok(InspectReport {
        format_version: FORMAT_VERSION,
        weights,
        file_bytes,
        bits_per_weight: 8.0 * file_bytes as f64 / weights.max(1) as f64,
        tensors,
    })
}

fn inspect_compressed(reader: &Reader, path: &str) -> Result<InspectTensor> {
    let buffers = read_buffers(reader, path)?;
    let view = buffers.view(path)?;
    view.verify_checksum()?;
    let grid = view.header.grid;
    let mut raw_bits = Vec::new();
    let mut escapes = 0;
    for index in 0..grid.tile_count() {
        let tile = view.tile_header(index)?;
        let raw = tile.raw_magnitude_bits as usize;
        if raw_bits.len() <= raw {
            raw_bits.resize(raw + 1, 0);
        }
        raw_bits[raw] += 1;
        escapes += u64::from(tile.escapes);
    }
    let bytes = BUFFER_NAMES
        .iter()
        .filter_map(|name| reader.info(&buffer_path(path, name)))
        .map(|info| info.bytes as u64)
        .sum::<u64>();
    let weights = grid.rows() * grid.cols();
    Ok(InspectTensor {
        tensor_path: path.to_owned(),
        shape: vec![grid.rows(), grid.cols()],
        dtype: format!("{:?}", view.header.dtype),
        layout: Some(view.header.layout.name()),
        bytes,
        bits_per_weight: 8.0 * bytes as f64 / weights as f64,
        tile: Some([grid.tile_rows(), grid.tile_cols()]),
        tiles: Some(grid.tile_count()),
        tables: Some(view.header.table_count),
        raw_bits,
        escapes: Some(escapes),
    })
}

fn inspect_plain(reader: &Reader, name: &str) -> Option<InspectTensor> {
    let info = reader.info(name)?;
    let weights = info.shape.iter().product::<usize>().max(1);
    Some(InspectTensor {
        tensor_path: name.to_owned(),
        shape: info.shape.clone(),
        dtype: format!("{:?}", info.dtype),
        layout: None,
        bytes: info.bytes as u64,
        bits_per_weight: 8.0 * info.bytes as f64 / weights as f64,
        tile: None,
        tiles: None,
        tables: None,
        raw_bits: Vec::new(),
        escapes: None,
    })
}
