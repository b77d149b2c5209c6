//! Which layer goes wrong first.

use serde::Serialize;
use tch::{Kind, TchError, Tensor};

use super::logits::ids_tensor;
use crate::error::{Result, TorchContext};
use crate::model::LogitsOf;
use crate::runtime::Model;

/// How far the residual stream behind one layer is from the reference's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerError {
    /// The layer, `model.layers.N`.
    pub layer: String,
    /// `|compressed - reference| / |reference|` over all tokens of a window, Euclidean.
    pub relative_error: f64,
}

/// The error of the hidden states behind every layer, over one window of token ids, first layer first.
///
/// Errors pile up from layer to layer; a layer whose weights are wrong stands out as the first great rise
/// ([`steepest`]).
pub(super) fn layer_errors(reference: &Model, compressed: &Model, window: &[i64]) -> Result<Vec<LayerError>> {
    let wanted = hidden_states(reference, window)?;
    let got = hidden_states(compressed, window)?;
    let errors = wanted.iter().zip(&got).enumerate().map(|(layer, (wanted, got))| {
        let layer = format!("model.layers.{layer}");
        let relative_error = relative_error(wanted, got).about(&layer)?;
        Ok(LayerError { layer, relative_error })
    });
    errors.collect()
}

/// The first layer behind which the error rises as it does at wrong weights: at least half as much as at the layer
/// where it rises most. `None` where nothing differs.
pub fn steepest(errors: &[LayerError]) -> Option<&LayerError> {
    let before = std::iter::once(0.0).chain(errors.iter().map(|error| error.relative_error));
    let rises: Vec<f64> =
        errors.iter().zip(before).map(|(error, before)| error.relative_error - before).collect();
    let most = rises.iter().copied().fold(0.0, f64::max);
    let index = rises.iter().position(|&rise| rise >= 0.5 * most)?;
    errors.get(index).filter(|_| most > 0.0)
}

/// The residual streams `[1, seq, hidden]` behind each layer.
fn hidden_states(model: &Model, window: &[i64]) -> Result<Vec<Tensor>> {
    let ids = ids_tensor(model, window)?;
    let mut cache = model.new_cache(1, window.len())?;
    let mut states = Vec::new();
    let mut failed = None;
    let mut keep = |_, hidden: &Tensor| match hidden.f_to_device(tch::Device::Cpu) {
        Ok(hidden) => states.push(hidden),
        Err(error) => failed = Some(error),
    };
    let _logits = model.llama().forward_observed(&ids, &mut cache, LogitsOf::Last, &mut keep)?;
    match failed {
        Some(error) => Err(error).about("hidden states"),
        None => Ok(states),
    }
}

fn relative_error(wanted: &Tensor, got: &Tensor) -> std::result::Result<f64, TchError> {
    let (wanted, got) = (wanted.f_to_kind(Kind::Double)?, got.f_to_kind(Kind::Double)?);
    let error = got.f_sub(&wanted)?.f_norm()?.f_double_value(&[])?;
    let size = wanted.f_norm()?.f_double_value(&[])?;
    Ok(if error == 0.0 { 0.0 } else { error / size })
}
