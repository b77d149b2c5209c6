//! Reads a model directory tensor by tensor; every length and offset is checked before it is used.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use tch::{Device, Kind, Tensor};
use xxhash_rust::xxh3::Xxh3;

use super::container::TENSOR_KEY;
use super::hash_beside::read_hashed;
use super::header::read_header;
use super::snapshot::Snapshot;
use super::{INDEX_FILE, SINGLE_FILE};
use crate::codec::Checksums;
use crate::error::{Error, ErrorKind, Result, TorchContext};

/// What a checkpoint says about one tensor.
///
/// What a [`Reader`] knows; see its example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Type of the elements.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Bytes of the data.
    pub bytes: usize,
    /// The file that holds the data.
    pub file: PathBuf,
}

/// Where a tensor's data lies, and what it is.
#[derive(Debug)]
struct Entry {
    info: TensorInfo,
    shard: usize,
    offset: u64,
}

/// An opened model directory: `model.safetensors`, or `model.safetensors.index.json` and its shards.
///
/// Opening reads the headers only. Data is read by [`Reader::read`], straight into the tensor's own memory.
///
/// ```
/// use codecllm::checkpoint::{Reader, Writer};
/// use codecllm::codec::Checksums;
/// # let parent = tempfile::tempdir().unwrap();
/// # let model = parent.path().join("model");
/// # let mut writer = Writer::create(&model)?;
/// # writer.metadata("format", "pt");
/// # writer.add("model.norm.weight", safetensors::Dtype::F32, &[1], &1.5f32.to_le_bytes())?;
/// # writer.write_file("config.json", b"{}")?;
/// # writer.finish()?;
/// let reader = Reader::open(&model)?;
/// for name in reader.names() {
///     let info = reader.info(name).unwrap();
///     println!("{name}: {:?} {:?}, {} bytes", info.dtype, info.shape, info.bytes);
/// }
/// assert_eq!(reader.metadata()["format"], "pt");
/// assert_eq!(reader.read("model.norm.weight")?.double_value(&[0]), 1.5);
/// assert_eq!(reader.read_bytes("model.norm.weight")?, 1.5f32.to_le_bytes());
/// reader.check_files()?; // what a container says of the files beside its tensors
/// reader.check_file("config.json")?; // of one of them
/// reader.check_unchanged()?; // nobody wrote to it meanwhile
/// let hurried = reader.with_checksums(Checksums::Ignore);
/// assert_eq!(hurried.checksums(), Checksums::Ignore);
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Debug)]
pub struct Reader {
    dir: PathBuf,
    files: Vec<File>,
    names: Vec<String>,
    entries: HashMap<String, Entry>,
    metadata: HashMap<String, String>,
    checksums: Checksums,
    /// The directory before anything was read of it; none where it could not be listed.
    snapshot: Option<Snapshot>,
}

impl Reader {
    /// Opens the checkpoint in `dir`.
    ///
    /// # Errors
    /// `Io` for a missing directory, file or shard; `Truncated` where a file ends early; `Corrupt` where a
    /// header or the index contradicts itself or the files.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let mut reader = Self {
            dir: dir.to_path_buf(),
            files: Vec::new(),
            names: Vec::new(),
            entries: HashMap::new(),
            metadata: HashMap::new(),
            checksums: Checksums::default(),
            snapshot: Snapshot::of(dir).ok(),
        };
        if dir.join(SINGLE_FILE).exists() {
            reader.add_shard(SINGLE_FILE)?;
            return Ok(reader);
        }
        if !dir.join(INDEX_FILE).exists() {
            return Err(Error::new(
                ErrorKind::Io,
                dir.display().to_string(),
                format!("holds neither {SINGLE_FILE} nor {INDEX_FILE}; name a directory with a model in safetensors format"),
            ));
        }
        reader.add_indexed_shards()?;
        reader.check_file(INDEX_FILE)?;
        Ok(reader)
    }

    /// The same reader that compares checksums or not. Headers and index are checked when they are opened, in either case.
    #[must_use]
    pub fn with_checksums(mut self, checksums: Checksums) -> Self {
        self.checksums = checksums;
        self
    }

    /// Whether checksums are compared.
    pub fn checksums(&self) -> Checksums {
        self.checksums
    }

    /// Errors where a file of the directory is another one than when it was opened: what was read may be half of each.
    ///
    /// # Errors
    /// `Corrupt` for a file that was written to, replaced or removed, by its path.
    pub fn check_unchanged(&self) -> Result<()> {
        self.snapshot.as_ref().map_or(Ok(()), Snapshot::check)
    }

    fn add_indexed_shards(&mut self) -> Result<()> {
        let index_path = self.dir.join(INDEX_FILE);
        let weight_map = read_weight_map(&index_path)?;
        let shards: BTreeSet<&str> = weight_map.values().map(String::as_str).collect();
        for shard in shards {
            self.add_shard(shard)?;
        }
        for (name, shard) in &weight_map {
            let found = self.entries.get(name).is_some_and(|e| e.info.file == self.dir.join(shard));
            if !found {
                return Err(Error::corrupt(
                    name,
                    format!("{} places it in {shard}, which does not hold it", index_path.display()),
                ));
            }
        }
        Ok(())
    }

    fn add_shard(&mut self, file_name: &str) -> Result<()> {
        let path = self.dir.join(file_name);
        let file = File::open(&path).map_err(|e| Error::io(&path, e))?;
        let (data_start, header) = read_header(&file, &path)?;
        let shard = self.files.len();
        self.files.push(file);
        self.metadata.extend(header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())));
        for name in header.offset_keys() {
            let Some(info) = header.info(&name) else { continue };
            let (start, end) = info.data_offsets;
            let entry = Entry {
                info: TensorInfo {
                    dtype: info.dtype,
                    shape: info.shape.clone(),
                    bytes: end - start,
                    file: path.clone(),
                },
                shard,
                offset: data_start + start as u64,
            };
            if let Some(other) = self.entries.insert(name.clone(), entry) {
                return Err(Error::corrupt(
                    name,
                    format!("is in {} and in {}, wanted once", other.info.file.display(), path.display()),
                ));
            }
            self.names.push(name);
        }
        Ok(())
    }

    /// The model directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// All tensor paths in the order of their data (shard, then offset), so that reading is sequential.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// What the checkpoint says about tensor `name`; `None` if it has no such tensor.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.entries.get(name).map(|entry| &entry.info)
    }

    /// The files' `__metadata__`, merged.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    /// Reads tensor `name` onto the CPU in its own dtype.
    ///
    /// # Errors
    /// `InvalidArgument` for an unknown name, `Unsupported` for a dtype tch has no name for, `Io` or
    /// `Truncated` where the file has changed since it was opened.
    pub fn read(&self, name: &str) -> Result<Tensor> {
        self.read_hashed(name, None)
    }

    /// As [`Reader::read`]; `hasher` sees the bytes as they come.
    pub(super) fn read_hashed(&self, name: &str, hasher: Option<&mut Xxh3>) -> Result<Tensor> {
        let entry = self.entry(name)?;
        let kind = torch_kind(name, entry.info.dtype)?;
        let tensor =
            Tensor::f_empty(torch_shape(name, &entry.info.shape)?, (kind, Device::Cpu)).about(name)?;
        if entry.info.bytes > 0 {
            // SAFETY: `tensor` is a new contiguous CPU tensor of the header's shape and dtype, whose size in bytes
            // `read_header` has checked to be `entry.info.bytes`; no one else holds it while the slice lives. What C++ allocated has some
            // value in each byte as far as Rust knows, any value is a `u8`, and `fill` writes before it reads.
            let data =
                unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<u8>(), entry.info.bytes) };
            self.fill(name, entry, data, hasher)?;
        }
        Ok(tensor)
    }

    /// Reads the bytes of tensor `name` as they are in the file.
    ///
    /// # Errors
    /// As [`Reader::read`], for any dtype.
    pub fn read_bytes(&self, name: &str) -> Result<Vec<u8>> {
        let entry = self.entry(name)?;
        let mut data = vec![0; entry.info.bytes];
        self.fill(name, entry, &mut data, None)?;
        Ok(data)
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        self.entries
            .get(name)
            .ok_or_else(|| Error::invalid(name, format!("no such tensor in {}", self.dir.display())))
    }

    /// Reads a tensor's bytes, and compares their checksum where it has one of its own.
    fn fill(&self, name: &str, entry: &Entry, data: &mut [u8], hasher: Option<&mut Xxh3>) -> Result<()> {
        let path = &entry.info.file;
        let Some(file) = self.files.get(entry.shard) else {
            return Err(Error::corrupt(name, format!("{} is not open", path.display())));
        };
        let wanted = self.metadata.get(&format!("{TENSOR_KEY}{name}")).filter(|_| self.checksums.verify());
        let mut own = wanted.map(|wanted| (wanted, Xxh3::new()));
        let mut hashers: Vec<&mut Xxh3> = own.iter_mut().map(|(_, own)| own).chain(hasher).collect();
        let (mut offset, length) = (entry.offset, data.len());
        read_hashed(data, &mut hashers, |piece| {
            file.read_exact_at(piece, offset).map_err(|e| {
                let error = Error::io(path, e);
                let message = format!("needs {length} bytes: {error}");
                Error::new(error.kind(), name, message).with_source(error)
            })?;
            offset += piece.len() as u64;
            Ok(())
        })?;
        match own.map(|(wanted, own)| (wanted, format!("{:016x}", own.digest()))) {
            Some((wanted, got)) if *wanted != got => {
                Err(Error::corrupt(name, format!("checksum {got}, wanted {wanted} (file damaged?)")))
            }
            _ => Ok(()),
        }
    }
}

/// The `weight_map` of an index: tensor path to file name.
fn read_weight_map(path: &Path) -> Result<HashMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: HashMap<String, String>,
    }
    let subject = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let index: Index = serde_json::from_str(&text).map_err(|e| {
        let kind = if e.is_eof() { ErrorKind::Truncated } else { ErrorKind::Corrupt };
        Error::new(kind, &*subject, format!("is not a safetensors index: {e}")).with_source(e)
    })?;
    for (name, shard) in &index.weight_map {
        if Path::new(shard).file_name().is_none_or(|file| file != shard.as_str()) {
            return Err(Error::corrupt(
                subject,
                format!("places {name} in {shard:?}, wanted the name of a file in the same directory"),
            ));
        }
    }
    Ok(index.weight_map)
}

/// The tch name of a safetensors dtype.
fn torch_kind(name: &str, dtype: Dtype) -> Result<Kind> {
    Ok(match dtype {
        Dtype::F64 => Kind::Double,
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::U8 => Kind::Uint8,
        Dtype::I8 => Kind::Int8,
        Dtype::I16 => Kind::Int16,
        Dtype::I32 => Kind::Int,
        Dtype::I64 => Kind::Int64,
        Dtype::BOOL => Kind::Bool,
        other => {
            return Err(Error::unsupported(
                name,
                format!(
                    "has dtype {other:?}, wanted one of F64, F32, F16, BF16, U8, I8, I16, I32, I64, BOOL"
                ),
            ))
        }
    })
}

fn torch_shape(name: &str, shape: &[usize]) -> Result<Vec<i64>> {
    shape
        .iter()
        .map(|&n| {
            i64::try_from(n).map_err(|_| Error::corrupt(name, format!("has shape {shape:?}, out of range")))
        })
        .collect()
}
