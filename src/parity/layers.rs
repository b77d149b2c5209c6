//! Which layer goes wrong first, and which ones are wrong by themselves.

use serde::Serialize;
use tch::{Kind, TchError, Tensor};

use super::logits::ids_tensor;
use crate::error::{Error, Result, TorchContext};
use crate::model::LogitsOf;
use crate::runtime::Model;

/// Most tokens of the window that the layers are compared on: the residual streams of all layers are in memory.
const MOST_TOKENS: usize = 512;
/// Positions whose logits are compared: those of the largest vocabularies are wider than all layers together.
const HEAD_POSITIONS: i64 = 64;
/// How much larger than the median's a layer's own error must be to be conspicuous. From 5 to 8 bits a weight the layers of real
/// models stay within 1.5.
const OVER_MEDIAN: f64 = 3.0;
/// An own error that is conspicuous whatever the others are: half of what the layer does is wrong.
const MOST_OWN_ERROR: f64 = 0.5;

/// How far one layer is from the reference's.
///
/// ```
/// use codecllm::parity::{conspicuous, steepest, LayerError};
/// let layer = |number: usize, relative_error, own_error| LayerError {
///     layer: format!("model.layers.{number}"),
///     relative_error,
///     own_error,
/// };
/// // The third is wrong; behind it the error only piles up.
/// let errors = [layer(0, 0.01, 0.02), layer(1, 0.02, 0.02), layer(2, 0.6, 0.9), layer(3, 0.61, 0.02)];
/// assert_eq!(steepest(&errors).unwrap().layer, "model.layers.2");
/// assert!(conspicuous(&errors).map(|error| &*error.layer).eq(["model.layers.2"]));
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerError {
    /// `model.embed_tokens`, `model.layers.N`, or `lm_head`: the last norm and the head.
    pub layer: String,
    /// The error piled up: `|compressed - reference| / |reference|`, Euclidean, of the residual stream behind the layer over all tokens,
    /// or of the logits.
    pub relative_error: f64,
    /// The error that the layer makes by itself, fed what the reference's is fed: `|compressed - reference|` over the
    /// size of what the reference's layer adds to the stream; the median of the tokens.
    pub own_error: f64,
}

/// The errors of all layers over one window of token ids, first layer first.
pub(super) fn layer_errors(reference: &Model, compressed: &Model, window: &[i64]) -> Result<Vec<LayerError>> {
    let window = window.get(..MOST_TOKENS).unwrap_or(window);
    let wanted = residual_streams(reference, window)?;
    let got = residual_streams(compressed, window)?;
    let apart = streams_apart(compressed, window, &wanted)?;
    let mut errors = vec![embedding_error(&wanted, &got)?];
    let before = wanted.iter();
    let behind = wanted.iter().zip(&got).skip(1);
    for (layer, ((before, (wanted, got)), apart)) in before.zip(behind).zip(&apart).enumerate() {
        let layer = format!("model.layers.{layer}");
        let relative_error = relative_error(wanted, got).about(&layer)?;
        let added = wanted.f_sub(before).about(&layer)?;
        let own_error = own_error(wanted, apart, &added).about(&layer)?;
        errors.push(LayerError { layer, relative_error, own_error });
    }
    errors.push(head_error([reference, compressed], &wanted, &got)?);
    Ok(errors)
}

/// The first layer behind which the error rises as it does at wrong weights: at least half as much as at the layer
/// where it rises most. `None` where nothing differs.
///
/// Of several a [`LayerError`]; see its example.
pub fn steepest(errors: &[LayerError]) -> Option<&LayerError> {
    let before = std::iter::once(0.0).chain(errors.iter().map(|error| error.relative_error));
    let rises: Vec<f64> =
        errors.iter().zip(before).map(|(error, before)| error.relative_error - before).collect();
    let most = rises.iter().copied().fold(0.0, f64::max);
    let index = rises.iter().position(|&rise| rise >= 0.5 * most)?;
    errors.get(index).filter(|_| most > 0.0)
}

/// The layers that are wrong by themselves: their own error is more than three times the median of the layers that have any, or
/// more than a half. Compression alone makes none such; weights of another layer do, all of them.
///
/// Of several a [`LayerError`]; see its example.
pub fn conspicuous(errors: &[LayerError]) -> impl Iterator<Item = &LayerError> {
    let mut sorted: Vec<f64> =
        errors.iter().map(|error| error.own_error).filter(|error| *error > 0.0).collect();
    sorted.sort_by(f64::total_cmp);
    // The lower one of two in the middle: in a small model half of the layers may be wrong.
    let median =
        sorted.len().checked_sub(1).and_then(|last| sorted.get(last / 2)).copied().unwrap_or_default();
    let most = (OVER_MEDIAN * median).min(MOST_OWN_ERROR);
    errors.iter().filter(move |error| error.own_error > most)
}

/// The residual streams `[1, seq, hidden]` before the first layer and behind each.
fn residual_streams(model: &Model, window: &[i64]) -> Result<Vec<Tensor>> {
    let ids = ids_tensor(model, window)?;
    let mut cache = model.new_cache(1, window.len())?;
    let mut streams = vec![model.llama().embed(&ids)?];
    let mut keep = |_, stream: &Tensor| streams.push(stream.shallow_clone());
    let _logits = model.llama().forward_observed(&ids, &mut cache, LogitsOf::Last, &mut keep)?;
    Ok(streams)
}

/// What each layer of `model` makes of the stream before it in `wanted`.
fn streams_apart(model: &Model, window: &[i64], wanted: &[Tensor]) -> Result<Vec<Tensor>> {
    let mut cache = model.new_cache(1, window.len())?;
    let mut apart = Vec::new();
    let inputs = wanted.split_last().map_or(wanted, |(_, inputs)| inputs);
    let mut keep = |_, stream: &Tensor| apart.push(stream.shallow_clone());
    model.llama().forward_apart(inputs, &mut cache, &mut keep)?;
    Ok(apart)
}

fn embedding_error(wanted: &[Tensor], got: &[Tensor]) -> Result<LayerError> {
    let layer = "model.embed_tokens".to_owned();
    let (Some(wanted), Some(got)) = (wanted.first(), got.first()) else {
        return Err(Error::invalid(layer, "gave no residual stream"));
    };
    let relative_error = relative_error(wanted, got).about(&layer)?;
    let own_error = own_error(wanted, got, wanted).about(&layer)?;
    Ok(LayerError { layer, relative_error, own_error })
}

/// Of the logits at the last positions.
fn head_error([reference, compressed]: [&Model; 2], wanted: &[Tensor], got: &[Tensor]) -> Result<LayerError> {
    let layer = "lm_head".to_owned();
    let (Some(wanted), Some(got)) = (wanted.last(), got.last()) else {
        return Err(Error::invalid(layer, "got no residual stream"));
    };
    let last = |stream: &Tensor| {
        let seq = stream.size().get(1).copied().unwrap_or_default();
        let positions = seq.min(HEAD_POSITIONS);
        stream.f_narrow(1, seq - positions, positions).about(&layer)
    };
    let (stream, other_stream) = (last(wanted)?, last(got)?);
    let logits = reference.llama().head(&stream)?;
    let apart = compressed.llama().head(&stream)?;
    let relative_error = relative_error(&logits, &compressed.llama().head(&other_stream)?).about(&layer)?;
    let own_error = own_error(&logits, &apart, &logits).about(&layer)?;
    Ok(LayerError { layer, relative_error, own_error })
}

fn relative_error(wanted: &Tensor, got: &Tensor) -> std::result::Result<f64, TchError> {
    let (wanted, got) = (wanted.f_to_kind(Kind::Double)?, got.f_to_kind(Kind::Double)?);
    let error = got.f_sub(&wanted)?.f_norm()?.f_double_value(&[])?;
    let size = wanted.f_norm()?.f_double_value(&[])?;
    Ok(if error == 0.0 { 0.0 } else { error / size })
}

/// The median over the tokens: a few tokens carry activations that outweigh all others together.
fn own_error(wanted: &Tensor, got: &Tensor, added: &Tensor) -> std::result::Result<f64, TchError> {
    let size_of =
        |of: &Tensor| of.f_to_kind(Kind::Double)?.f_norm_scalaropt_dim(2.0, [-1i64].as_slice(), false);
    let error = size_of(&got.f_to_kind(Kind::Double)?.f_sub(&wanted.f_to_kind(Kind::Double)?)?)?;
    // A layer that adds nothing has no error if it adds nothing here either.
    let relative = error.f_div(&size_of(added)?)?.f_masked_fill(&error.f_eq(0.0)?, 0.0)?;
    relative.f_median()?.f_double_value(&[])
}
