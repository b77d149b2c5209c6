//! Sums over windows: second moments of inputs, squared derivatives by outputs.

use std::collections::HashMap;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::SeedableRng;
use tch::{Kind, TchError, Tensor};

use super::labels::draw;
use crate::codec::{Importance, InputMoments};
use crate::error::{Error, Result, TorchContext};
use crate::nn::Passage;

/// A layer with more inputs than this keeps their squares only: the square matrix would have 256 MB and more.
const MOST_SQUARE: i64 = 8192;

/// What is summed up, in FP32 on the CPU.
#[derive(Debug)]
pub(super) struct Sums {
    random: StdRng,
    tokens: f64,
    /// Moments of each distinct input: query, key and value read the same.
    inputs: Vec<Tensor>,
    /// In the order in which they are met: the embedding first, the head last.
    layers: Vec<LayerSums>,
}

#[derive(Debug)]
struct LayerSums {
    tensor_path: String,
    /// Which of the inputs; `None` for the embedding, which reads ids.
    input: Option<usize>,
    /// `[out_features]`.
    squared_derivatives: Tensor,
}

impl Sums {
    pub(super) fn new(seed: u64) -> Self {
        Self { random: StdRng::seed_from_u64(seed), tokens: 0.0, inputs: Vec::new(), layers: Vec::new() }
    }

    /// Adds what passed through the model while it read one window.
    pub(super) fn add(&mut self, passages: Vec<Passage>) -> Result<()> {
        let [_, .., head] = passages.as_slice() else {
            return Err(Error::invalid("calibration", "the model has no recorded layers"));
        };
        let derivatives = self.derivatives(&passages, head).about(&head.tensor_path)?;
        let first = self.layers.is_empty();
        let mut input = None;
        for (index, (passage, squared)) in passages.iter().zip(derivatives).enumerate() {
            let path = &passage.tensor_path;
            let before = index.checked_sub(1).map(|index| &passages[index].input);
            let shared = before.is_some_and(|before| before.data_ptr() == passage.input.data_ptr());
            let reads = passage.input.kind() == Kind::Float;
            if reads && !shared {
                let next = input.map_or(0, |input| input + 1);
                tch::no_grad(|| self.add_input(next, &passage.input)).about(path)?;
                input = Some(next);
            }
            if first {
                let layer = LayerSums {
                    tensor_path: path.clone(),
                    input: input.filter(|_| reads),
                    squared_derivatives: squared,
                };
                self.layers.push(layer);
            } else if let Some(layer) = self.layers.get_mut(index) {
                layer.squared_derivatives = layer.squared_derivatives.f_add(&squared).about(path)?;
            }
        }
        self.tokens +=
            head.output.numel() as f64 / head.output.size().last().copied().unwrap_or(1).max(1) as f64;
        Ok(())
    }

    /// Sums over the tokens of the squared derivatives of the negative log-likelihood of drawn labels, layer by layer. The
    /// head's are exact: with every label in its turn.
    fn derivatives(
        &mut self,
        passages: &[Passage],
        head: &Passage,
    ) -> std::result::Result<Vec<Tensor>, TchError> {
        let logits = flat(&head.output)?;
        let (probabilities, labels) = tch::no_grad(|| {
            let probabilities = logits.f_softmax(-1, Kind::Float)?;
            let labels = draw(&probabilities, &mut self.random)?;
            Ok::<_, TchError>((probabilities, labels))
        })?;
        let outputs: Vec<&Tensor> =
            passages[..passages.len() - 1].iter().map(|passage| &passage.output).collect();
        let nats = tch::with_grad(|| {
            logits.f_log_softmax(-1, Kind::Float)?.f_gather(-1, &labels, false)?.f_sum(Kind::Float)?.f_neg()
        })?;
        let derivatives = Tensor::f_run_backward(&[nats], &outputs, false, false)?;
        tch::no_grad(|| {
            let mut squares =
                derivatives.iter().map(sum_of_squares).collect::<std::result::Result<Vec<_>, _>>()?;
            let of_head = probabilities.f_mul(&probabilities.f_neg()?.f_add_scalar(1.0)?)?;
            squares.push(of_head.f_sum_dim_intlist([0i64].as_slice(), false, Kind::Float)?);
            Ok(squares)
        })
    }

    fn add_input(&mut self, index: usize, input: &Tensor) -> std::result::Result<(), TchError> {
        let input = flat(input)?;
        let moments = match input.size2()?.1 <= MOST_SQUARE {
            true => input.f_tr()?.f_matmul(&input)?,
            false => sum_of_squares(&input)?,
        };
        match self.inputs.get_mut(index) {
            Some(sum) => *sum = sum.f_add(&moments)?,
            None => self.inputs.push(moments),
        }
        Ok(())
    }

    /// The mean over all tokens, by tensor path.
    pub(super) fn importance(&self) -> Result<HashMap<String, Importance>> {
        let Some((embedding, linears)) = self.layers.split_first() else {
            return Err(Error::invalid("calibration", "no window was read"));
        };
        let mut moments: Vec<Option<Arc<InputMoments>>> = vec![None; self.inputs.len()];
        let mut importance = HashMap::new();
        for layer in linears {
            let Some(index) = layer.input else { continue };
            let path = &layer.tensor_path;
            let rows = self.mean(&layer.squared_derivatives, path)?;
            let inputs = match (&moments[index], path == &embedding.tensor_path) {
                (_, true) => Arc::new(self.tied_moments(index, &rows, embedding)?),
                (Some(moments), false) => moments.clone(),
                (None, false) => {
                    let sums = &self.inputs[index];
                    let features = sums.size().last().copied().unwrap_or_default() as usize;
                    Arc::new(InputMoments::new(features, self.mean(sums, path)?, path)?)
                }
            };
            if path != &embedding.tensor_path {
                moments[index] = Some(inputs.clone());
            }
            importance.insert(path.clone(), Importance::new(rows, inputs));
        }
        if !importance.contains_key(&embedding.tensor_path) {
            importance.insert(embedding.tensor_path.clone(), self.untied(embedding, linears)?);
        }
        Ok(importance)
    }

    /// Of a table that is embedding and head: an error of a row is met as often as the token is predicted, and about as
    /// often as it is read.
    fn tied_moments(&self, index: usize, rows: &[f32], embedding: &LayerSums) -> Result<InputMoments> {
        let path = &embedding.tensor_path;
        let read = self.mean(&embedding.squared_derivatives, path)?;
        let predicted: f32 = rows.iter().sum();
        let mut moments = self.mean(&self.inputs[index], path)?;
        let features = read.len();
        let stride = if moments.len() == features { 1 } else { features + 1 };
        for (column, read) in read.iter().enumerate() {
            moments[column * stride] += read / predicted.max(f32::MIN_POSITIVE);
        }
        InputMoments::new(features, moments, path)
    }

    /// Of a table that is embedding only: which tokens another text reads is not known.
    fn untied(&self, embedding: &LayerSums, linears: &[LayerSums]) -> Result<Importance> {
        let path = &embedding.tensor_path;
        let read = self.mean(&embedding.squared_derivatives, path)?;
        let vocab = linears.last().map_or(1, |head| head.squared_derivatives.numel());
        let inputs = InputMoments::new(read.len(), read, path)?;
        Ok(Importance::new(vec![1.0 / vocab as f32; vocab], Arc::new(inputs)))
    }

    /// The sums divided by the tokens, as a list.
    fn mean(&self, sums: &Tensor, subject: &str) -> Result<Vec<f32>> {
        let means = sums.f_div_scalar(self.tokens).and_then(|means| means.f_reshape([-1])).about(subject)?;
        let means = Vec::<f32>::try_from(means).about(subject)?;
        match means.iter().all(|mean| mean.is_finite()) {
            true => Ok(means),
            false => {
                Err(Error::corrupt(subject, "calibration gives numbers that are not finite (overflow?)"))
            }
        }
    }
}

/// `[.., width]` as `[tokens, width]`.
fn flat(tensor: &Tensor) -> std::result::Result<Tensor, TchError> {
    tensor.f_reshape([-1, tensor.size().last().copied().unwrap_or(1)])
}

/// Over all dimensions but the last.
fn sum_of_squares(tensor: &Tensor) -> std::result::Result<Tensor, TchError> {
    flat(tensor)?.f_square()?.f_sum_dim_intlist([0i64].as_slice(), false, Kind::Float)
}
