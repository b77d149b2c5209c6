//! Logits of a window of tokens, turned into log-probabilities a few positions at a time.

use tch::{Kind, TchError, Tensor};

use crate::error::{Result, TorchContext};
use crate::model::{KvCache, LogitsOf};
use crate::runtime::Model;

/// Positions that pass through the models at once: their logits are the largest thing in memory, 256 x 49152 x 4
/// bytes = 50 MB a model in FP32.
pub(super) const PIECE_POSITIONS: usize = 256;
/// Positions whose FP32 log-probabilities exist at once: 64 x 49152 x 4 bytes = 12.6 MB a model.
const CHUNK_POSITIONS: i64 = 64;

/// The logits `[positions, vocab]` of the next `ids` behind those in `cache`, in the model's dtype.
pub(super) fn logits(model: &Model, cache: &mut KvCache, ids: &[i64]) -> Result<Tensor> {
    let logits = model.llama().forward(&ids_tensor(model, ids)?, cache, LogitsOf::All)?;
    logits.f_squeeze_dim(0).about("logits")
}

/// Token ids `[1, len]` on the model's device.
pub(super) fn ids_tensor(model: &Model, ids: &[i64]) -> Result<Tensor> {
    Tensor::f_from_slice(ids)
        .and_then(|ids| ids.f_view([1, -1])?.f_to_device(model.var_store().device()))
        .about("token ids")
}

/// Calls `work` with chunks of the log-probabilities of both models and of the tokens that came next; logits behind the
/// last of them are left out.
pub(super) fn in_chunks(
    [reference, compressed]: [&Tensor; 2],
    targets: &[i64],
    mut work: impl FnMut(&Tensor, &Tensor, &Tensor) -> Result<()>,
) -> Result<()> {
    let targets = Tensor::f_from_slice(targets).about("token ids")?;
    let positions = targets.numel() as i64;
    let mut start = 0;
    while start < positions {
        let length = CHUNK_POSITIONS.min(positions - start);
        let cut = |logits: &Tensor| log_probabilities(logits, start, length).about("logits");
        let targets = targets.f_narrow(0, start, length).about("token ids")?;
        work(&cut(reference)?, &cut(compressed)?, &targets)?;
        start += length;
    }
    Ok(())
}

/// FP32 log-probabilities of `length` positions from `start`, on the CPU.
fn log_probabilities(logits: &Tensor, start: i64, length: i64) -> std::result::Result<Tensor, TchError> {
    logits.f_narrow(0, start, length)?.f_to_device(tch::Device::Cpu)?.f_log_softmax(-1, Kind::Float)
}
