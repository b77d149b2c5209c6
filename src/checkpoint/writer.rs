//! Writes a model directory: tensors are streamed to disk one by one, and the directory appears under its
//! name only when it is complete.
//!
//! The header of a safetensors file comes before the data but is known only after it. So data is spooled to a
//! file of its own, and [`Writer::finish`] copies each spool behind its header: one more write of the output,
//! at most one shard of extra disk space, and no guess at the header's size. The copy also orders tensors by
//! the width of their elements, widest first, so that each starts at a multiple of its element's size.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::container::HEADER_KEY;
use super::files::{write_all, FileSum, FILE_KEY};
use super::header::header_bytes;
use super::partial::Partial;
use super::{INDEX_FILE, SINGLE_FILE};
use crate::error::{Error, ErrorKind, Result};
use safetensors::Dtype;

/// A shard holds at most this many bytes of data, unless one tensor alone is larger.
const DEFAULT_MAX_SHARD_BYTES: u64 = 4 << 30;

/// One tensor of a shard.
#[derive(Debug)]
struct Spooled {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    offset: u64,
    bytes: usize,
}

/// The data of a shard, in the order it was added.
#[derive(Debug)]
struct Shard {
    spool: PathBuf,
    file: File,
    bytes: u64,
    tensors: Vec<Spooled>,
}

/// A model directory being written; dropped before [`Writer::finish`] it leaves nothing behind.
///
/// ```
/// use codecllm::checkpoint::{Reader, Writer};
/// # let parent = tempfile::tempdir().unwrap();
/// # let (model, config) = (parent.path().join("model"), parent.path().join("config.json"));
/// # std::fs::write(&config, "{}").unwrap();
/// let mut writer = Writer::create(&model)?.with_max_shard_bytes(6);
/// writer.metadata("format", "pt");
/// writer.add("model.norm.weight", safetensors::Dtype::F32, &[1], &1.5f32.to_le_bytes())?;
/// writer.add("model.scale", safetensors::Dtype::F32, &[1], &0.5f32.to_le_bytes())?;
/// writer.copy_file(&config)?;
/// writer.write_file("README.md", b"Two numbers.")?;
/// assert!(!model.exists());
/// let bytes = writer.finish()?; // two shards and their index
/// assert!(bytes > 8 && model.join("config.json").exists());
/// assert_eq!(Reader::open(&model)?.read("model.scale")?.double_value(&[0]), 0.5);
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Debug)]
pub struct Writer {
    out_dir: PathBuf,
    partial: Partial,
    max_shard_bytes: u64,
    shards: Vec<Shard>,
    names: HashSet<String>,
    metadata: BTreeMap<String, String>,
}

impl Writer {
    /// Starts the model directory `out_dir`, in a temporary directory beside it.
    ///
    /// # Errors
    /// `InvalidArgument` if `out_dir` exists or has no name; `Io` if its parent cannot be written to.
    pub fn create(out_dir: impl Into<PathBuf>) -> Result<Self> {
        let out_dir = out_dir.into();
        let partial = Partial::create(&out_dir)?;
        Ok(Self {
            out_dir,
            partial,
            max_shard_bytes: DEFAULT_MAX_SHARD_BYTES,
            shards: Vec::new(),
            names: HashSet::new(),
            metadata: BTreeMap::new(),
        })
    }

    /// The same writer with shards of at most `bytes` bytes of data (default 4 GiB).
    #[must_use]
    pub fn with_max_shard_bytes(mut self, bytes: u64) -> Self {
        self.max_shard_bytes = bytes;
        self
    }

    /// Sets `key` of the files' `__metadata__`.
    pub fn metadata(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.metadata.insert(key.into(), value.into());
    }

    /// Adds tensor `name`; `data` is its elements in row-major order, little-endian. Nothing is kept in memory.
    ///
    /// # Errors
    /// `InvalidArgument` if the name is taken or `data` is not as long as dtype and shape say; `Io`.
    pub fn add(&mut self, name: &str, dtype: Dtype, shape: &[usize], data: &[u8]) -> Result<()> {
        check_size(name, dtype, shape, data.len())?;
        if name == "__metadata__" || !self.names.insert(name.to_owned()) {
            return Err(Error::invalid(name, "is already in the checkpoint, wanted a new tensor path"));
        }
        let shard = self.shard_for(data.len() as u64)?;
        shard.file.write_all(data).map_err(|e| Error::io(&shard.spool, e))?;
        shard.tensors.push(Spooled {
            name: name.to_owned(),
            dtype,
            shape: shape.to_vec(),
            offset: shard.bytes,
            bytes: data.len(),
        });
        shard.bytes += data.len() as u64;
        Ok(())
    }

    /// The shard that takes `bytes` more bytes: the current one, or a new one if that would grow too large.
    fn shard_for(&mut self, bytes: u64) -> Result<&mut Shard> {
        let limit = self.max_shard_bytes;
        let fits = |shard: &Shard| shard.bytes == 0 || shard.bytes.saturating_add(bytes) <= limit;
        if !self.shards.last().is_some_and(fits) {
            let shard = self.new_shard()?;
            self.shards.push(shard);
        }
        self.shards.last_mut().ok_or_else(|| Error::invalid("shard", "none was made"))
    }

    fn new_shard(&self) -> Result<Shard> {
        let spool = self.partial.path().join(format!("data-{:05}.spool", self.shards.len() + 1));
        let file = File::options().read(true).write(true).create_new(true).open(&spool);
        let file = file.map_err(|e| Error::io(&spool, e))?;
        Ok(Shard { spool, file, bytes: 0, tensors: Vec::new() })
    }

    /// Copies the file at `from` into the directory under its own name, verbatim.
    ///
    /// # Errors
    /// `InvalidArgument` if the directory holds a file of that name, `Io` if reading or writing fails.
    pub fn copy_file(&mut self, from: &Path) -> Result<()> {
        self.copy_with_sum(from).map(|_| ())
    }

    /// As [`Writer::copy_file`]. Returns the file's name and what was read of it.
    pub(super) fn copy_with_sum(&mut self, from: &Path) -> Result<(String, FileSum)> {
        let Some(name) = from.file_name().and_then(|name| name.to_str()) else {
            return Err(Error::invalid(from.display().to_string(), "is not the path of a file"));
        };
        let mut source = File::open(from).map_err(|e| Error::io(from, e))?;
        let (path, mut target) = self.new_file(name)?;
        let sum = FileSum::of_file(&mut source, from, |bytes| write_all(&mut target, &path, bytes))?;
        target.sync_all().map_err(|e| Error::io(&path, e))?;
        Ok((name.to_owned(), sum))
    }

    /// Writes the file `name` with `bytes`.
    ///
    /// # Errors
    /// As [`Writer::copy_file`]; `InvalidArgument` if `name` is not a plain file name.
    pub fn write_file(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let (path, mut file) = self.new_file(name)?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|e| Error::io(&path, e))
    }

    fn new_file(&self, name: &str) -> Result<(PathBuf, File)> {
        if Path::new(name).file_name().is_none_or(|file| file != name) {
            return Err(Error::invalid(name, "is not a plain file name"));
        }
        let path = self.partial.path().join(name);
        match File::create_new(&path) {
            Ok(file) => Ok((path, file)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                Err(Error::invalid(name, "is already in the output directory, wanted a new file name"))
            }
            Err(e) => Err(Error::io(&path, e)),
        }
    }

    /// Writes headers and index, and lets the directory appear under its name. Returns the bytes of its
    /// safetensors files, headers included.
    ///
    /// # Errors
    /// `Io`; `InvalidArgument` if the output directory has come to exist meanwhile. Nothing is left behind.
    pub fn finish(mut self) -> Result<u64> {
        if self.shards.is_empty() {
            let shard = self.new_shard()?;
            self.shards.push(shard);
        }
        let shards = std::mem::take(&mut self.shards);
        let count = shards.len();
        if count > 1 {
            self.write_index(&shards)?;
        }
        let mut total_bytes = 0;
        for (i, shard) in shards.into_iter().enumerate() {
            total_bytes += self.finish_shard(shard, &shard_name(i + 1, count))?;
        }
        self.partial.publish(&self.out_dir)?;
        Ok(total_bytes)
    }

    /// Writes the index of `shards`. Where headers have checksums, they vouch for the index too.
    fn write_index(&mut self, shards: &[Shard]) -> Result<()> {
        let mut weight_map = BTreeMap::new();
        for (i, shard) in shards.iter().enumerate() {
            let file = shard_name(i + 1, shards.len());
            weight_map.extend(shard.tensors.iter().map(|tensor| (tensor.name.as_str(), file.clone())));
        }
        let data_bytes: u64 = shards.iter().map(|shard| shard.bytes).sum();
        let index = serde_json::json!({ "metadata": { "total_size": data_bytes }, "weight_map": weight_map });
        let text = format!("{index:#}\n");
        if self.metadata.contains_key(HEADER_KEY) {
            self.metadata(format!("{FILE_KEY}{INDEX_FILE}"), FileSum::of_bytes(text.as_bytes()).to_string());
        }
        self.write_file(INDEX_FILE, text.as_bytes())
    }

    /// Writes one safetensors file from its spool and removes the spool. Returns the file's size in bytes.
    fn finish_shard(&self, mut shard: Shard, name: &str) -> Result<u64> {
        // A stable sort: tensors of one width keep the order they were added in.
        shard.tensors.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.bitsize()));
        let entries: Vec<_> =
            shard.tensors.iter().map(|t| (t.name.as_str(), t.dtype, t.shape.as_slice(), t.bytes)).collect();
        let header = header_bytes(&self.metadata, &entries)
            .map_err(|e| Error::invalid(name, format!("header cannot be written: {e}")))?;
        let (path, mut file) = self.new_file(name)?;
        let mut copy = || -> io::Result<()> {
            file.write_all(&header)?;
            for tensor in &shard.tensors {
                shard.file.seek(SeekFrom::Start(tensor.offset))?;
                io::copy(&mut io::Read::take(&shard.file, tensor.bytes as u64), &mut file)?;
            }
            file.sync_all()?;
            fs::remove_file(&shard.spool)
        };
        copy().map_err(|e| Error::io(&path, e))?;
        Ok(header.len() as u64 + shard.bytes)
    }
}

/// Hugging Face's name of shard `number` (from 1) of `count`.
fn shard_name(number: usize, count: usize) -> String {
    match count {
        1 => SINGLE_FILE.to_owned(),
        _ => format!("model-{number:05}-of-{count:05}.safetensors"),
    }
}

fn check_size(name: &str, dtype: Dtype, shape: &[usize], got: usize) -> Result<()> {
    let bits = shape.iter().try_fold(dtype.bitsize(), |bits, &n| bits.checked_mul(n));
    if bits.is_some_and(|bits| bits % 8 == 0 && bits / 8 == got) {
        return Ok(());
    }
    let wanted = bits.map_or("more than can be addressed".to_owned(), |bits| bits.div_ceil(8).to_string());
    Err(Error::new(
        ErrorKind::InvalidArgument,
        name,
        format!("got {got} bytes, wanted {wanted} for shape {shape:?} of {dtype:?}"),
    ))
}
