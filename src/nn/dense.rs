//! The uncompressed layers: what the compressed ones are measured and checked against.

use tch::{nn::Module, Kind, Tensor};

use crate::error::{Error, Result, TorchContext};

/// `y = x W^T + bias` with an ordinary weight tensor `[out_features, in_features]`.
#[derive(Debug)]
pub struct DenseLinear {
    tensor_path: String,
    weight: Tensor,
    bias: Option<Tensor>,
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
        Ok(Self { tensor_path, weight, bias })
    }

    /// `x` `[..., in_features]` to `[..., out_features]`.
    pub fn try_forward(&self, x: &Tensor) -> Result<Tensor> {
        x.f_linear(&self.weight, self.bias.as_ref()).about(&self.tensor_path)
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
#[derive(Debug)]
pub struct DenseEmbedding {
    tensor_path: String,
    weight: Tensor,
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
        Ok(Self { tensor_path, weight })
    }

    /// Token ids (any shape, `Int64`) to vectors `[..., hidden]`.
    pub fn try_forward(&self, ids: &Tensor) -> Result<Tensor> {
        if ids.kind() != Kind::Int64 {
            return Err(Error::invalid(
                &*self.tensor_path,
                format!("token ids have dtype {:?}, wanted Int64", ids.kind()),
            ));
        }
        Tensor::f_embedding(&self.weight, ids, -1, false, false).about(&self.tensor_path)
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
        DenseLinear { tensor_path: self.tensor_path.clone(), weight: self.weight.shallow_clone(), bias: None }
    }
}

fn matrix_shape(tensor: &Tensor) -> [usize; 2] {
    let size = tensor.size();
    [size[0] as usize, size[1] as usize]
}

fn tensor_bytes(tensor: &Tensor) -> usize {
    tensor.numel() * tensor.kind().elt_size_in_bytes()
}
