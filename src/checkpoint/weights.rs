//! Turns the tensors of a checkpoint into layers registered in a VarStore.

use tch::{nn, Kind, Tensor};

use super::container::{holds_compressed, read_buffer_tensors};
use super::Reader;
use crate::codec::Checksums;
use crate::error::{Error, Result, TorchContext};
use crate::nn::{
    ChecksumPolicy, CompressedEmbedding, CompressedLinear, DenseEmbedding, DenseLinear, Embedding, Linear,
};

/// Where a model's weights come from. The VarStore path of a layer is its tensor path without `.weight`.
///
/// One of numbers of its own is given to a [`Llama`](crate::model::Llama); see its example.
pub trait WeightSource {
    /// The linear layer at `vs`, `shape` = `[out_features, in_features]`, with or without bias.
    ///
    /// # Errors
    /// A tensor that is missing, unexpected, of another shape or dtype, or unreadable, by its full path.
    fn linear(&self, vs: &nn::Path<'_>, shape: [usize; 2], bias: bool) -> Result<Linear>;

    /// The embedding at `vs`, `shape` = `[vocab, hidden]`.
    ///
    /// # Errors
    /// As [`WeightSource::linear`].
    fn embedding(&self, vs: &nn::Path<'_>, shape: [usize; 2]) -> Result<Embedding>;

    /// The ordinary tensor `weight` at `vs`.
    ///
    /// # Errors
    /// As [`WeightSource::linear`].
    fn tensor(&self, vs: &nn::Path<'_>, shape: &[usize]) -> Result<Tensor>;
}

/// The weights in a model directory, converted to one dtype as they are read.
///
/// ```
/// use codecllm::checkpoint::{CheckpointWeights, Reader, WeightSource, Writer};
/// use tch::{nn, Device, Kind};
/// # let parent = tempfile::tempdir().unwrap();
/// # let model = parent.path().join("model");
/// # let mut writer = Writer::create(&model)?;
/// # writer.add("model.norm.weight", safetensors::Dtype::F32, &[1], &1.5f32.to_le_bytes())?;
/// # writer.finish()?;
/// let (reader, vs) = (Reader::open(&model)?, nn::VarStore::new(Device::Cpu));
/// let norm = CheckpointWeights::new(&reader, Kind::Half).tensor(&(vs.root() / "model" / "norm"), &[1])?;
/// assert_eq!((norm.kind(), norm.double_value(&[0])), (Kind::Half, 1.5));
/// assert!(vs.variables().contains_key("model.norm.weight"));
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Debug)]
pub struct CheckpointWeights<'a> {
    reader: &'a Reader,
    kind: Kind,
}

impl<'a> CheckpointWeights<'a> {
    /// The weights of `reader` as `kind` (`Float`, `Half` or `BFloat16`).
    pub fn new(reader: &'a Reader, kind: Kind) -> Self {
        Self { reader, kind }
    }

    /// Reads a compressed tensor's buffers. Their checksum was compared as they were read, if it is wanted.
    fn buffers(&self, path: &str) -> Result<([Tensor; 5], ChecksumPolicy)> {
        let buffers = read_buffer_tensors(self.reader, path)?;
        Ok((buffers, ChecksumPolicy { first: Checksums::Ignore, later: self.reader.checksums() }))
    }

    /// Reads `leaf` of `vs`, checks it, and registers it in the VarStore as a buffer.
    fn register(&self, vs: &nn::Path<'_>, leaf: &str, shape: &[usize]) -> Result<Tensor> {
        let name = tensor_path(vs, leaf);
        self.check(&name, shape)?;
        let tensor = self.reader.read(&name)?;
        let tensor = tensor.f_to_device(vs.device()).about(&name)?.f_to_kind(self.kind).about(&name)?;
        // `Path::add` would silently rename on a clash.
        if vs.get(leaf).is_some() {
            return Err(Error::invalid(name, "is already in the VarStore, wanted an empty one"));
        }
        Ok(vs.add(leaf, tensor, false))
    }

    fn check(&self, name: &str, shape: &[usize]) -> Result<()> {
        use safetensors::Dtype::{BF16, F16, F32, F64};
        let dir = self.reader.dir().display();
        let Some(info) = self.reader.info(name) else {
            return Err(Error::corrupt(name, format!("missing from {dir}, wanted shape {shape:?}")));
        };
        if info.shape != shape {
            let message = format!("has shape {:?}, wanted {shape:?} from config.json of {dir}", info.shape);
            return Err(Error::corrupt(name, message));
        }
        if !matches!(info.dtype, F64 | F32 | F16 | BF16) {
            let message = format!("has dtype {:?}, wanted F32, F16 or BF16", info.dtype);
            return Err(Error::unsupported(name, message));
        }
        Ok(())
    }

    fn compressed_linear(
        &self,
        vs: &nn::Path<'_>,
        path: &str,
        shape: [usize; 2],
        bias: bool,
    ) -> Result<CompressedLinear> {
        let name = tensor_path(vs, "bias");
        let bias = match (bias, self.reader.info(&name)) {
            (true, None) => return Err(Error::corrupt(name, "missing, config.json says there is a bias")),
            (true, Some(_)) => Some(self.reader.read(&name)?),
            (false, _) => self.bias(vs, shape, false)?,
        };
        let (buffers, policy) = self.buffers(path)?;
        let linear = CompressedLinear::from_tensors_with(vs, buffers, bias, policy)?;
        self.check_compressed(path, linear.shape(), shape)?;
        Ok(linear)
    }

    fn check_compressed(&self, path: &str, got: [usize; 2], wanted: [usize; 2]) -> Result<()> {
        if got == wanted {
            return Ok(());
        }
        let dir = self.reader.dir().display();
        Err(Error::corrupt(path, format!("has shape {got:?}, wanted {wanted:?} from config.json of {dir}")))
    }

    fn bias(&self, vs: &nn::Path<'_>, shape: [usize; 2], wanted: bool) -> Result<Option<Tensor>> {
        let name = tensor_path(vs, "bias");
        if wanted {
            return self.register(vs, "bias", &shape[..1]).map(Some);
        }
        match self.reader.info(&name) {
            None => Ok(None),
            Some(_) => {
                Err(Error::corrupt(name, "is in the checkpoint, but config.json says there is no bias"))
            }
        }
    }
}

impl WeightSource for CheckpointWeights<'_> {
    fn linear(&self, vs: &nn::Path<'_>, shape: [usize; 2], bias: bool) -> Result<Linear> {
        let path = tensor_path(vs, "weight");
        if holds_compressed(self.reader, &path) {
            return self.compressed_linear(vs, &path, shape, bias).map(Linear::Compressed);
        }
        let weight = self.register(vs, "weight", &shape)?;
        let bias = self.bias(vs, shape, bias)?;
        Ok(Linear::Dense(DenseLinear::new(tensor_path(vs, "weight"), weight, bias)?))
    }

    fn embedding(&self, vs: &nn::Path<'_>, shape: [usize; 2]) -> Result<Embedding> {
        let path = tensor_path(vs, "weight");
        if holds_compressed(self.reader, &path) {
            let (buffers, policy) = self.buffers(&path)?;
            let embedding = CompressedEmbedding::from_tensors_with(vs, buffers, self.kind, policy)?;
            self.check_compressed(&path, embedding.shape(), shape)?;
            return Ok(Embedding::Compressed(embedding));
        }
        let weight = self.register(vs, "weight", &shape)?;
        Ok(Embedding::Dense(DenseEmbedding::new(tensor_path(vs, "weight"), weight)?))
    }

    fn tensor(&self, vs: &nn::Path<'_>, shape: &[usize]) -> Result<Tensor> {
        self.register(vs, "weight", shape)
    }
}

/// The full tensor path of `leaf` at `vs`.
fn tensor_path(vs: &nn::Path<'_>, leaf: &str) -> String {
    vs.components().chain([leaf]).collect::<Vec<_>>().join(".")
}
