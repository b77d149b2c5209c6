//! Weights of a checkpoint whose layers record what passes through them.

use tch::{nn, Tensor};

use crate::checkpoint::{CheckpointWeights, WeightSource};
use crate::error::{Error, Result};
use crate::nn::{Embedding, Linear, Recorder};

#[derive(Debug)]
pub(super) struct RecordedWeights<'a> {
    pub(super) dense: CheckpointWeights<'a>,
    pub(super) recorder: Recorder,
}

impl WeightSource for RecordedWeights<'_> {
    fn linear(&self, vs: &nn::Path<'_>, shape: [usize; 2], bias: bool) -> Result<Linear> {
        match self.dense.linear(vs, shape, bias)? {
            Linear::Dense(linear) => Ok(Linear::Dense(linear.recorded(&self.recorder))),
            Linear::Compressed(_) => Err(compressed(vs)),
        }
    }

    fn embedding(&self, vs: &nn::Path<'_>, shape: [usize; 2]) -> Result<Embedding> {
        match self.dense.embedding(vs, shape)? {
            Embedding::Dense(embedding) => Ok(Embedding::Dense(embedding.recorded(&self.recorder))),
            Embedding::Compressed(_) => Err(compressed(vs)),
        }
    }

    fn tensor(&self, vs: &nn::Path<'_>, shape: &[usize]) -> Result<Tensor> {
        self.dense.tensor(vs, shape)
    }
}

fn compressed(vs: &nn::Path<'_>) -> Error {
    let path: Vec<_> = vs.components().collect();
    Error::invalid(path.join("."), "is compressed already; calibrate with the model that it was made from")
}
