//! The uncompressed layers: what the compressed ones are measured and checked against.

use super::byte_buffer::BufferVersion;
use super::recorder::Recorder;
use tch::{nn::Module, Kind, TchError, Tensor};

use crate::error::{Error, Result, TorchContext};
use crate::ops::transformer::{embedding, Launcher};

/// `y = x W^T + bias` with an ordinary weight tensor `[out_features, in_features]`.
///
/// ```
/// use codecllm::nn::DenseLinear;
/// let weight = tch::Tensor::from_slice(&[1f32, 2.0]).view([1, 2]);
/// let linear = DenseLinear::new("fc.weight", weight, None)?;
/// let y = linear.try_forward(&tch::Tensor::from_slice(&[3f32, 4.0]))?;
/// assert_eq!((y.double_value(&[0]), linear.weight_bytes(), linear.shape()), (11.0, 8, [1, 2]));
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Debug)]
pub struct DenseLinear {
    tensor_path: String,
    weight: Tensor,
    bias: Option<Tensor>,
    recorder: Option<Recorder>,
}

impl DenseLinear {
    /// Wraps `weight` `[out_features, in_features]` and `bias` `[out_features]`; `tensor_path` is the weight's
    /// full name.
    pub fn new(tensor_path: impl Into<String>, weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        let tensor_path = tensor_path.into();
        if weight.dim() != 2 {
            return Err(Error::invalid(
                tensor_path,
                format!("weight has shape {:?}, wanted [out_features, in_features]", weight.size()),
            ));
        }
        if let Some(bias) = &bias {
            if bias.size() != [weight.size()[0]] {
                return Err(Error::invalid(
                    tensor_path,
                    format!("bias has shape {:?}, wanted [{}]", bias.size(), weight.size()[0]),
                ));
            }
        }
        Ok(Self { tensor_path, weight, bias, recorder: None })
    }

    /// The same layer; `recorder` keeps what passes through [`DenseLinear::try_forward`].
    pub(crate) fn recorded(mut self, recorder: &Recorder) -> Self {
        self.recorder = Some(recorder.clone());
        self
    }

    /// `x` `[..., in_features]` to `[..., out_features]`.
    pub fn try_forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.f_linear(&self.weight, self.bias.as_ref()).about(&self.tensor_path)?;
        if let Some(recorder) = &self.recorder {
            recorder.record(&self.tensor_path, x, &y);
        }
        Ok(y)
    }

    /// `x` `[batch, in_features]` to `y` `[batch, out_features]` on the current stream, without allocating: `linear` would
    /// make its own output, and with a bias its own workspace.
    pub(crate) fn forward_into(&self, x: &Tensor, y: &Tensor) -> Result<()> {
        super::check_output(&self.tensor_path, x, y, self.shape()[0])?;
        let multiply = || {
            let _ = x.f_mm_out(y, &self.weight.f_tr()?)?;
            if let Some(bias) = &self.bias {
                let _ = y.shallow_clone().f_add_(bias)?;
            }
            Ok(())
        };
        tch::no_grad(multiply).about(&self.tensor_path)
    }

    /// Another handle to the same weight.
    pub(super) fn share(&self) -> Self {
        Self {
            tensor_path: self.tensor_path.clone(),
            weight: self.weight.shallow_clone(),
            bias: self.bias.as_ref().map(Tensor::shallow_clone),
            recorder: self.recorder.clone(),
        }
    }

    #[cfg(test)]
    pub(super) fn weight_address(&self) -> usize {
        self.weight.data_ptr() as usize
    }

    /// One linear with the outputs of all `parts`. Their weights are views of its own afterwards.
    pub(super) fn merge(parts: &[&Self]) -> Result<Self> {
        let Some(first) = parts.first() else {
            return Err(Error::invalid("merged linear", "has no parts, wanted at least one"));
        };
        let path = &first.tensor_path;
        let weights: Vec<&Tensor> = parts.iter().map(|part| &part.weight).collect();
        let weight = match side_by_side(&weights) {
            Some(weight) => weight,
            None => tch::no_grad(|| lay_side_by_side(&weights)).about(path)?,
        };
        let biases: Vec<&Tensor> = parts.iter().filter_map(|part| part.bias.as_ref()).collect();
        let bias = match biases.len() {
            0 => None,
            count if count == parts.len() => Some(Tensor::f_cat(&biases, 0).about(path)?),
            count => {
                let message =
                    format!("{count} of {} merged parts have a bias, wanted all or none", parts.len());
                return Err(Error::invalid(path, message));
            }
        };
        Self::new(path, weight, bias)
    }

    /// Whether the weights of `parts` lie one behind the other, so that [`DenseLinear::merge`] leaves them where they are.
    pub(super) fn lie_side_by_side(parts: &[&Self]) -> bool {
        let weights: Vec<&Tensor> = parts.iter().map(|part| &part.weight).collect();
        side_by_side(&weights).is_some()
    }

    /// The versions of weight and bias.
    pub(super) fn versions(&self) -> Result<Vec<BufferVersion>> {
        [Some(&self.weight), self.bias.as_ref()]
            .into_iter()
            .flatten()
            .map(|tensor| BufferVersion::of(tensor, &self.tensor_path))
            .collect()
    }

    /// `[out_features, in_features]`.
    pub fn shape(&self) -> [usize; 2] {
        matrix_shape(&self.weight)
    }

    /// Bytes of weight and bias.
    pub fn weight_bytes(&self) -> usize {
        tensor_bytes(&self.weight) + self.bias.as_ref().map_or(0, tensor_bytes)
    }
}

impl Module for DenseLinear {
    fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, self.bias.as_ref())
    }
}

/// An ordinary embedding table `[vocab, hidden]`.
///
/// One of the two kinds of an [`Embedding`](super::Embedding); see its example.
#[derive(Debug)]
pub struct DenseEmbedding {
    tensor_path: String,
    weight: Tensor,
    recorder: Option<Recorder>,
}

impl DenseEmbedding {
    /// Wraps the table `weight` `[vocab, hidden]`; `tensor_path` is its full name.
    pub fn new(tensor_path: impl Into<String>, weight: Tensor) -> Result<Self> {
        let tensor_path = tensor_path.into();
        if weight.dim() != 2 {
            return Err(Error::invalid(
                tensor_path,
                format!("embedding has shape {:?}, wanted [vocab, hidden]", weight.size()),
            ));
        }
        Ok(Self { tensor_path, weight, recorder: None })
    }

    /// The same table; `recorder` keeps what passes through [`DenseEmbedding::try_forward`] and through a tied head. The
    /// vectors then are what a derivative can be taken by.
    pub(crate) fn recorded(mut self, recorder: &Recorder) -> Self {
        self.recorder = Some(recorder.clone());
        self
    }

    /// Token ids (any shape, `Int64`) to vectors `[..., hidden]`.
    pub fn try_forward(&self, ids: &Tensor) -> Result<Tensor> {
        if ids.kind() != Kind::Int64 {
            return Err(Error::invalid(
                &*self.tensor_path,
                format!("token ids have dtype {:?}, wanted Int64", ids.kind()),
            ));
        }
        let vectors = Tensor::f_embedding(&self.weight, ids, -1, false, false).about(&self.tensor_path)?;
        match &self.recorder {
            None => Ok(vectors),
            Some(recorder) => {
                let vectors = vectors.set_requires_grad(true);
                recorder.record(&self.tensor_path, ids, &vectors);
                Ok(vectors)
            }
        }
    }

    /// The vectors of `tokens` `[batch]` (`Int64`) into `out` `[batch, hidden]` on a GPU's current stream, without allocating.
    pub(crate) fn forward_into(&self, tokens: &Tensor, out: &Tensor) -> Result<()> {
        embedding(&Launcher::on(out.device())?, tokens, &self.weight, out)
            .map_err(|error| error.about(&*self.tensor_path))
    }

    /// Changes when the table is another or has been written to.
    pub(super) fn version(&self) -> Result<BufferVersion> {
        BufferVersion::of(&self.weight, &self.tensor_path)
    }

    /// `[vocab, hidden]`.
    pub fn shape(&self) -> [usize; 2] {
        matrix_shape(&self.weight)
    }

    /// Bytes of the table.
    pub fn weight_bytes(&self) -> usize {
        tensor_bytes(&self.weight)
    }

    /// The head that shares this table.
    pub fn tied_head(&self) -> DenseLinear {
        DenseLinear {
            tensor_path: self.tensor_path.clone(),
            weight: self.weight.shallow_clone(),
            bias: None,
            recorder: self.recorder.clone(),
        }
    }
}

/// One tensor over `weights`, if they lie one behind the other in the same memory.
fn side_by_side(weights: &[&Tensor]) -> Option<Tensor> {
    let first = weights.first()?;
    let cols = first.size().get(1).copied()?;
    let (mut rows, mut end) = (0, first.data_ptr() as usize);
    for weight in weights {
        let same = weight.kind() == first.kind() && weight.size().get(1) == Some(&cols);
        if !same || !weight.is_contiguous() || weight.data_ptr() as usize != end {
            return None;
        }
        rows += weight.size().first()?;
        end += tensor_bytes(weight);
    }
    // Neighbors may still be allocations of their own: libtorch refuses a tensor beyond the first one's then.
    first.f_as_strided([rows, cols], [cols, 1], None).ok()
}

/// Copies `weights` into one tensor and makes each a view of it, in the VarStore too.
fn lay_side_by_side(weights: &[&Tensor]) -> std::result::Result<Tensor, TchError> {
    let merged = Tensor::f_cat(weights, 0)?;
    let mut start = 0;
    for weight in weights {
        let rows = weight.size2()?.0;
        weight.shallow_clone().f_set_data(&merged.f_narrow(0, start, rows)?)?;
        start += rows;
    }
    Ok(merged)
}

fn matrix_shape(tensor: &Tensor) -> [usize; 2] {
    let size = tensor.size();
    [size[0] as usize, size[1] as usize]
}

fn tensor_bytes(tensor: &Tensor) -> usize {
    tensor.numel() * tensor.kind().elt_size_in_bytes()
}
