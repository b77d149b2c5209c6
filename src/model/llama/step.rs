//! What all layers of one forward pass share: rotary tables and the attention mask.

use tch::{Device, Kind, TchError, Tensor};

use super::rope::{Rope, RopeTables};
use super::KvCache;
use crate::error::{Result, TorchContext};

#[derive(Debug)]
pub(super) struct Step {
    pub(super) rope: RopeTables,
    /// Added to the scores, `[batch or 1, 1, seq, tokens so far]`: zero or minus infinity. `None` where every
    /// query sees every key, or `causal` says it.
    pub(super) mask: Option<Tensor>,
    /// Whether each query sees the keys up to its own: on a GPU, where that is faster than a mask and needs no scores in memory.
    pub(super) causal: bool,
    /// Whether each row is computed as if it were alone, to the bit.
    pub(super) apart: bool,
}

impl Step {
    /// The step that puts `seq` tokens of dtype `kind` behind those in `cache`.
    pub(super) fn new(rope: &Rope, cache: &KvCache, seq: i64, kind: Kind, device: Device) -> Result<Self> {
        Self::padded(rope, cache.padding(), [cache.len() as i64, seq], (kind, device), cache.kind())
    }

    /// The step that puts the tokens of `hidden` `[1, seq, hidden]` behind `start` others of their sequence, whose keys are of
    /// dtype `keys`.
    pub(super) fn behind(rope: &Rope, start: i64, hidden: &Tensor, keys: Kind) -> Result<Self> {
        let seq = hidden.size().get(1).copied().unwrap_or_default();
        Self::padded(rope, &[0], [start, seq], (hidden.kind(), hidden.device()), keys)
    }

    /// The step of one token a sequence, `hidden` `[batch, 1, hidden]`, each at its own position. What each sees is up to the
    /// context.
    pub(super) fn rows(rope: &Rope, positions: &[i64], hidden: &Tensor) -> Result<Self> {
        let rope = rope.tables(positions, 1, hidden.kind(), hidden.device())?;
        // Where a GPU takes this way, its linears make no such promise.
        Ok(Self { rope, mask: None, causal: false, apart: !hidden.device().is_cuda() })
    }

    fn padded(
        rope: &Rope,
        padding: &[i64],
        [start, seq]: [i64; 2],
        (kind, device): (Kind, Device),
        keys: Kind,
    ) -> Result<Self> {
        let padded = padding.iter().any(|&n| n > 0);
        // Without padding one row of positions serves all sequences. Padding has positions below 0: no one sees it.
        let rows = if padded { padding } else { &[0] };
        let positions: Vec<i64> =
            rows.iter().flat_map(|pad| (start..start + seq).map(move |slot| slot - pad)).collect();
        let rope = rope.tables(&positions, seq, kind, device)?;
        let causal = device.is_cuda() && start == 0 && seq > 1 && !padded;
        let mask = match causal || (seq == 1 && !padded) {
            true => None,
            false => Some(mask(rows, start, seq, (keys, device)).about("attention mask")?),
        };
        Ok(Self { rope, mask, causal, apart: false })
    }
}

/// A query sees itself and the keys before it, except its sequence's padding. That padding sees itself keeps
/// its own (unused) scores finite.
fn mask(
    padding: &[i64],
    start: i64,
    seq: i64,
    options: (Kind, Device),
) -> std::result::Result<Tensor, TchError> {
    let (rows, device) = (padding.len() as i64, options.1);
    let keys = Tensor::f_arange(start + seq, (Kind::Int64, device))?;
    let queries = Tensor::f_arange_start(start, start + seq, (Kind::Int64, device))?.f_view([seq, 1])?;
    let padding = Tensor::f_from_slice(padding)?.f_to_device(device)?.f_view([rows, 1, 1, 1])?;
    let hidden = keys.f_lt_tensor(&padding)?.f_logical_or(&keys.f_gt_tensor(&queries)?)?;
    let hidden = hidden.f_logical_and(&keys.f_ne_tensor(&queries)?)?;
    let zeros = Tensor::f_zeros([rows, 1, seq, start + seq], options)?;
    zeros.f_masked_fill(&hidden, f64::NEG_INFINITY)
}
