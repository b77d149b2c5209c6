//! The header of a GGUF file: keys, and where each tensor lies.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::cursor::Cursor;
use super::metadata::Metadata;
use super::tensor_type::TensorType;
use super::value::{Number, Value};
use crate::checkpoint::Snapshot;
use crate::error::{Error, ErrorKind, Result};

const MAGIC: [u8; 4] = *b"GGUF";
const VERSIONS: std::ops::RangeInclusive<u32> = 2..=3;
/// Where no key says otherwise, tensors begin at multiples of this.
const DEFAULT_ALIGNMENT: u64 = 32;
const MOST_ALIGNMENT: u64 = 1 << 20;
/// Hundreds are usual, thousands in the largest models.
const MOST_KEYS: u64 = 1 << 16;
const MOST_TENSORS: u64 = 1 << 20;
/// GGML's own limit.
const MOST_DIMENSIONS: u32 = 4;

/// A tensor of the file.
#[derive(Clone, Debug)]
pub(super) struct TensorInfo {
    pub name: String,
    /// Outermost first, as safetensors has it.
    pub shape: Vec<usize>,
    pub kind: TensorType,
    pub weights: u64,
    pub bytes: u64,
    /// From the start of the tensors' data.
    offset: u64,
}

/// An open GGUF file.
#[derive(Debug)]
pub(super) struct GgufFile {
    file: File,
    path: String,
    bytes: u64,
    pub metadata: Metadata,
    pub tensors: Vec<TensorInfo>,
    data_start: u64,
    snapshot: Snapshot,
}

impl GgufFile {
    /// Reads the header of the file at `path`. Every tensor lies within the file, and no two of them share a byte.
    pub fn open(path: &Path) -> Result<Self> {
        let snapshot = Snapshot::of_file(path).map_err(|e| Error::io(path, e))?;
        // Opening anything else may wait for ever.
        if !std::fs::metadata(path).is_ok_and(|found| found.is_file()) {
            return Err(Error::invalid(path.display().to_string(), "is not a file, wanted a GGUF file"));
        }
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let bytes = file.metadata().map_err(|e| Error::io(path, e))?.len();
        let path = path.display().to_string();
        let mut cursor = Cursor::new(&file, &path, bytes);
        let (tensor_count, key_count) = read_front(&mut cursor, &path)?;
        let metadata = read_keys(&mut cursor, key_count, &path)?;
        let tensors = read_tensors(&mut cursor, tensor_count, &path)?;
        let alignment = read_alignment(&metadata)?;
        let data_start = cursor.position().next_multiple_of(alignment);
        check_places(&tensors, alignment, bytes.saturating_sub(data_start))?;
        Ok(Self { file, path, bytes, metadata, tensors, data_start, snapshot })
    }

    pub fn path(&self) -> &str {
        &self.path
    }

    /// Bytes of the whole file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A tensor's data, as it is stored.
    pub fn read(&self, tensor: &TensorInfo) -> Result<Vec<u8>> {
        let mut bytes = zeros(tensor.bytes as usize, &tensor.name)?;
        let at = self.data_start + tensor.offset;
        self.file
            .read_exact_at(&mut bytes, at)
            .map_err(|e| Error::io(&self.path, e).about(format!("{}: {}", self.path, tensor.name)))?;
        Ok(bytes)
    }

    /// An error if somebody wrote to the file since it was opened.
    pub fn check_unchanged(&self) -> Result<()> {
        self.snapshot.check()
    }
}

/// Memory for tensor `name`, or an error where there is none: a file with holes may say any size and take no room on a disk.
pub(super) fn zeros<T: Clone + Default>(count: usize, name: &str) -> Result<Vec<T>> {
    let mut zeros = Vec::new();
    zeros.try_reserve_exact(count).map_err(|e| {
        let bytes = count.saturating_mul(size_of::<T>());
        let message = format!(
            "needs {bytes} bytes of memory, which are not there ({e}); import it on a larger machine"
        );
        Error::new(ErrorKind::OutOfMemory, name, message).with_source(e)
    })?;
    zeros.resize(count, T::default());
    Ok(zeros)
}

/// Magic and version; then how many tensors and keys there are.
fn read_front(cursor: &mut Cursor<'_>, path: &str) -> Result<(u64, u64)> {
    let magic: [u8; 4] = cursor.array("the magic number")?;
    if magic != MAGIC {
        let message =
            format!("begins with \"{}\", wanted \"GGUF\" (another kind of file?)", magic.escape_ascii());
        return Err(Error::corrupt(path, message));
    }
    let version = cursor.u32("the version")?;
    if VERSIONS.contains(&version.swap_bytes()) {
        return Err(Error::unsupported(
            path,
            "is big-endian, wanted a little-endian GGUF; convert it for this machine",
        ));
    }
    if !VERSIONS.contains(&version) {
        let message = format!("is GGUF version {version}, wanted 2 or 3; get or convert a newer file");
        return Err(Error::unsupported(path, message));
    }
    let counts = (cursor.u64("the number of tensors")?, cursor.u64("the number of keys")?);
    for (what, count, most) in [("tensors", counts.0, MOST_TENSORS), ("keys", counts.1, MOST_KEYS)] {
        if count > most {
            return Err(Error::corrupt(
                path,
                format!("has {count} {what}, wanted at most {most} (file damaged?)"),
            ));
        }
    }
    Ok(counts)
}

fn read_keys(cursor: &mut Cursor<'_>, count: u64, path: &str) -> Result<Metadata> {
    let mut values = BTreeMap::new();
    for _ in 0..count {
        let key = cursor.name("a key")?;
        let value = cursor.value(&key)?;
        if let Some(before) = values.insert(key.clone(), value) {
            let message =
                format!("{key} is there twice (first {before}), wanted each key once (file damaged?)");
            return Err(Error::corrupt(path, message));
        }
    }
    Ok(Metadata::new(path.to_owned(), values))
}

fn read_tensors(cursor: &mut Cursor<'_>, count: u64, path: &str) -> Result<Vec<TensorInfo>> {
    let (mut tensors, mut names) = (Vec::new(), HashSet::new());
    for _ in 0..count {
        let tensor = read_tensor(cursor)?;
        if !names.insert(tensor.name.clone()) {
            let message = format!("tensor {} is there twice (file damaged?)", tensor.name);
            return Err(Error::corrupt(path, message));
        }
        tensors.push(tensor);
    }
    Ok(tensors)
}

fn read_tensor(cursor: &mut Cursor<'_>) -> Result<TensorInfo> {
    let name = cursor.name("a tensor's name")?;
    let dimensions = cursor.u32(&name)?;
    if !(1..=MOST_DIMENSIONS).contains(&dimensions) {
        let message = format!("has {dimensions} dimensions, wanted 1 to {MOST_DIMENSIONS} (file damaged?)");
        return Err(Error::corrupt(name, message));
    }
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        shape.push(cursor.u64(&name)?);
    }
    // GGML has the innermost first.
    shape.reverse();
    let id = cursor.u32(&name)?;
    let Some(kind) = TensorType::from_id(id) else {
        let message = format!(
            "is stored {}, wanted one of {}; get the model in one of those",
            TensorType::describe(id),
            TensorType::names()
        );
        return Err(Error::unsupported(name, message));
    };
    let offset = cursor.u64(&name)?;
    let (weights, bytes) = size(&name, &shape, kind)?;
    Ok(TensorInfo {
        name,
        shape: shape.into_iter().map(|n| n as usize).collect(),
        kind,
        weights,
        bytes,
        offset,
    })
}

/// Weights and bytes of a tensor.
fn size(name: &str, shape: &[u64], kind: TensorType) -> Result<(u64, u64)> {
    let (per_block, block_bytes) = (kind.block_weights() as u64, kind.block_bytes() as u64);
    let weights = shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n));
    let bytes = weights.and_then(|weights| (weights / per_block).checked_mul(block_bytes));
    let (Some(weights), Some(bytes)) = (weights, bytes) else {
        return Err(Error::corrupt(
            name,
            format!("has the shape {shape:?}, more than can be addressed (file damaged?)"),
        ));
    };
    let inner = shape.last().copied().unwrap_or(0);
    if weights == 0 || inner % per_block != 0 {
        let message = format!(
            "has the shape {shape:?}, wanted rows of whole {} blocks of {per_block} weights",
            kind.name()
        );
        return Err(Error::corrupt(name, message));
    }
    Ok((weights, bytes))
}

fn read_alignment(metadata: &Metadata) -> Result<u64> {
    match metadata.get("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::Number(Number::Integer(alignment))) => u64::try_from(*alignment)
            .ok()
            .filter(|alignment| alignment.is_power_of_two() && *alignment <= MOST_ALIGNMENT)
            .ok_or_else(|| metadata.corrupt("general.alignment", alignment, "a power of two up to 1048576")),
        Some(other) => Err(metadata.corrupt("general.alignment", other, "a power of two up to 1048576")),
    }
}

/// Each tensor begins at a multiple of the alignment, lies within the data, and shares no byte with another.
fn check_places(tensors: &[TensorInfo], alignment: u64, data_bytes: u64) -> Result<()> {
    let mut by_offset: Vec<&TensorInfo> = tensors.iter().collect();
    by_offset.sort_by_key(|tensor| tensor.offset);
    let mut free_from = 0;
    for tensor in by_offset {
        let TensorInfo { name, offset, bytes, .. } = tensor;
        if offset % alignment != 0 {
            let message = format!("begins at byte {offset} of the data, wanted a multiple of {alignment}");
            return Err(Error::corrupt(&**name, message));
        }
        if *offset < free_from {
            let message = format!(
                "begins at byte {offset} of the data, within another tensor that ends at {free_from}"
            );
            return Err(Error::corrupt(&**name, message));
        }
        free_from = offset.saturating_add(*bytes);
        if free_from > data_bytes {
            let message = format!(
                "needs {bytes} bytes at byte {offset} of the data, which has {data_bytes} (file truncated? get it anew)"
            );
            return Err(Error::truncated(&**name, message));
        }
    }
    Ok(())
}
