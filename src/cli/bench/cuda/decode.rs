//! Decoding alone, and the copy that it is held against.

use std::time::Duration;

use codecllm::cuda::Recorder;
use codecllm::Result;
use serde::Serialize;
use tch::{Kind, TchError, Tensor};

use super::super::torch_error;
use super::contest::{contest, Contender, GpuTiming};
use super::dtype_name;
use super::layer::{Layer, DEVICE};

/// Bytes that are copied to learn what the memory does.
const COPIED_BYTES: usize = 1 << 30;
/// The dtypes that are decoded to.
const KINDS: [Kind; 3] = [Kind::Half, Kind::BFloat16, Kind::Float];

/// Time to decode all of a layer's weights.
#[derive(Clone, Debug, Serialize)]
pub(super) struct DecodeTime {
    pub(super) dtype: &'static str,
    #[serde(flatten)]
    pub(super) timing: GpuTiming,
    pub(super) tweights_per_second: f64,
    /// Bytes read and written a second, of those that a copy reads and writes.
    pub(super) share_of_copy: f64,
}

/// Bytes a second, read and written, of a copy within the device's memory.
pub(super) fn copy_bytes_per_second(recorder: &Recorder, budget: Duration) -> Result<f64> {
    let bytes = |byte: i64| {
        let size = [COPIED_BYTES as i64];
        Tensor::f_full(size, byte, (Kind::Uint8, DEVICE)).map_err(torch_error("--device"))
    };
    let (mut to, from) = (bytes(0)?, bytes(1)?);
    let piece = |_| to.f_copy_(&from).map_err(torch_error("--device"));
    // SAFETY: both live until the end of this function, and a copy allocates nothing.
    let copy = unsafe { Contender::record(recorder, 1, 2 * COPIED_BYTES, piece) }?;
    let timings = contest(&[copy], budget)?;
    Ok(timings.first().map_or(f64::NAN, |timing| 2.0 * COPIED_BYTES as f64 / timing.median_us * 1e6))
}

/// Decodes to every dtype, in turn. `copy`: what a copy moves, bytes a second.
pub(super) fn time(
    layer: &Layer,
    recorder: &Recorder,
    copy: f64,
    budget: Duration,
) -> Result<Vec<DecodeTime>> {
    let mut contenders = Vec::new();
    let mut kept = Vec::new();
    for kind in KINDS {
        let outputs = outputs(layer, kind).map_err(torch_error(&layer.spec.name))?;
        let copies = layer.compressed.len();
        let decode =
            |turn: usize| layer.compressed[turn % copies].decode_into(&outputs[turn % outputs.len()]);
        // SAFETY: the weights are the layer's, and the outputs are kept until the contest is over.
        contenders.push(unsafe { Contender::record(recorder, copies, 2 * layer.weights(), decode) }?);
        kept.push(outputs); // a recording writes them at every replay
    }
    let timings = contest(&contenders, budget)?;
    drop(kept);
    let weights = layer.weights() as f64;
    let figures = KINDS.into_iter().zip(timings).map(|(kind, timing)| {
        let bytes = layer.bits_per_weight() / 8.0 + kind.elt_size_in_bytes() as f64;
        DecodeTime {
            dtype: dtype_name(kind),
            timing,
            tweights_per_second: weights / timing.median_us / 1e6,
            share_of_copy: weights * bytes / timing.median_us * 1e6 / copy,
        }
    });
    Ok(figures.collect())
}

/// As many outputs as pass the cache: what stays in it was never written to memory.
fn outputs(layer: &Layer, kind: Kind) -> std::result::Result<Vec<Tensor>, TchError> {
    let size = layer.spec.shape().map(|count| count as i64);
    let copies = layer.copies_of(layer.weights() * kind.elt_size_in_bytes());
    (0..copies).map(|_| Tensor::f_empty(size, (kind, DEVICE))).collect()
}
