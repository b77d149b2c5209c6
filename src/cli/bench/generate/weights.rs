//! Random weights, dense or compressed, where a checkpoint's would come from.

use std::cell::RefCell;
use std::collections::btree_map::{BTreeMap, Entry};

use codecllm::checkpoint::WeightSource;
use codecllm::codec::{solve_exponent, CompressedTensor, EncodeOptions, RateSample, StepRule};
use codecllm::nn::{CompressedEmbedding, CompressedLinear, DenseEmbedding, DenseLinear, Embedding, Linear};
use codecllm::{Error, Result};
use tch::{nn, Kind, Tensor};

use super::super::random::{gaussian_matrix, SIGMA};
use super::super::torch_error;

/// Dense weights, made where they stay.
#[derive(Debug)]
pub(super) struct RandomDense {
    pub(super) kind: Kind,
}

/// Compressed weights of `bits` a weight. What has the same name in every layer is encoded once, and every layer gets a
/// copy of its own on the device: time and memory are those of different weights, encoding is not.
#[derive(Debug)]
pub(super) struct RandomCompressed {
    kind: Kind,
    bits: f64,
    encoded: RefCell<BTreeMap<String, CompressedTensor>>,
}

impl RandomCompressed {
    pub(super) fn new(kind: Kind, bits: f64) -> Self {
        Self { kind, bits, encoded: RefCell::default() }
    }

    /// Calls `work` with the encoded matrix for `vs`, encoding it if no other layer has.
    fn with_encoded<T>(
        &self,
        vs: &nn::Path<'_>,
        shape: [usize; 2],
        row_access: bool,
        work: impl FnOnce(&CompressedTensor) -> Result<T>,
    ) -> Result<T> {
        let name = vs.components().last().unwrap_or_default().to_owned();
        let mut encoded = self.encoded.borrow_mut();
        let seed = encoded.len() as u64;
        match encoded.entry(name) {
            Entry::Occupied(entry) => work(entry.get()),
            Entry::Vacant(entry) => {
                let tensor = self.encode(entry.key(), shape, row_access, seed)?;
                work(entry.insert(tensor))
            }
        }
    }

    fn encode(&self, name: &str, shape: [usize; 2], row_access: bool, seed: u64) -> Result<CompressedTensor> {
        let options = EncodeOptions { row_access, ..EncodeOptions::default() };
        let matrix = gaussian_matrix(shape, seed);
        let sample = RateSample::new(name, &matrix, options)?;
        let exponent = solve_exponent(std::slice::from_ref(&sample), 0, sample.weights(), self.bits)?;
        let quantized = StepRule::Step(sample.step(exponent)).quantize(&matrix, name)?;
        CompressedTensor::encode(name, &matrix, &quantized, options)
    }
}

impl WeightSource for RandomDense {
    fn linear(&self, vs: &nn::Path<'_>, shape: [usize; 2], bias: bool) -> Result<Linear> {
        refuse_bias(vs, bias)?;
        let weight = random_weight(vs, shape, self.kind)?;
        Ok(Linear::Dense(DenseLinear::new(tensor_path(vs), weight, None)?))
    }

    fn embedding(&self, vs: &nn::Path<'_>, shape: [usize; 2]) -> Result<Embedding> {
        let weight = random_weight(vs, shape, self.kind)?;
        Ok(Embedding::Dense(DenseEmbedding::new(tensor_path(vs), weight)?))
    }

    fn tensor(&self, vs: &nn::Path<'_>, shape: &[usize]) -> Result<Tensor> {
        ones(vs, shape, self.kind)
    }
}

impl WeightSource for RandomCompressed {
    fn linear(&self, vs: &nn::Path<'_>, shape: [usize; 2], bias: bool) -> Result<Linear> {
        refuse_bias(vs, bias)?;
        self.with_encoded(vs, shape, false, |tensor| {
            CompressedLinear::new(vs, tensor, None).map(Linear::Compressed)
        })
    }

    fn embedding(&self, vs: &nn::Path<'_>, shape: [usize; 2]) -> Result<Embedding> {
        self.with_encoded(vs, shape, true, |tensor| {
            CompressedEmbedding::new(vs, tensor, self.kind).map(Embedding::Compressed)
        })
    }

    fn tensor(&self, vs: &nn::Path<'_>, shape: &[usize]) -> Result<Tensor> {
        ones(vs, shape, self.kind)
    }
}

fn refuse_bias(vs: &nn::Path<'_>, bias: bool) -> Result<()> {
    match bias {
        true => Err(Error::unsupported(tensor_path(vs), "the random model has no biases")),
        false => Ok(()),
    }
}

fn random_weight(vs: &nn::Path<'_>, [rows, cols]: [usize; 2], kind: Kind) -> Result<Tensor> {
    let path = tensor_path(vs);
    let mut weight =
        Tensor::f_empty([rows as i64, cols as i64], (kind, vs.device())).map_err(torch_error(&path))?;
    let weight = weight.f_normal_(0.0, SIGMA).map_err(torch_error(&path))?;
    Ok(vs.add("weight", weight, false))
}

/// What a norm multiplies by.
fn ones(vs: &nn::Path<'_>, shape: &[usize], kind: Kind) -> Result<Tensor> {
    let size: Vec<i64> = shape.iter().map(|&count| count as i64).collect();
    let ones = Tensor::f_ones(&size, (kind, vs.device())).map_err(torch_error("weight"))?;
    Ok(vs.add("weight", ones, false))
}

fn tensor_path(vs: &nn::Path<'_>) -> String {
    vs.components().chain(["weight"]).collect::<Vec<_>>().join(".")
}
