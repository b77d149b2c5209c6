//! The rotary embedding of a new token and its way into the cache.

use tch::{Kind, Tensor};

use super::launcher::{blocks, int, Launcher};
use crate::cuda::{arg, kernels};
use crate::error::{Error, Result};

/// One layer's keys and values, both `[batch, kv_heads, capacity, head_dim]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CachePlanes<'a> {
    pub(crate) keys: &'a Tensor,
    pub(crate) values: &'a Tensor,
}

impl CachePlanes<'_> {
    /// `[batch, kv_heads, capacity, head_dim]`.
    pub(super) fn size(&self) -> Result<[i64; 4]> {
        <[i64; 4]>::try_from(self.keys.size()).map_err(|size| {
            Error::invalid(
                "key-value cache",
                format!("shape {size:?}, wanted [batch, kv_heads, capacity, head_dim]"),
            )
        })
    }
}

/// Cosine and sine of each sequence's new position, `angles` `[batch, half, 2]` in FP32: slot `length` less its `padding`
/// (`[1]` and `[batch]`, `Int`) times `frequencies` `[half]` (`Double`).
pub(crate) fn rope_angles(
    launcher: &Launcher,
    angles: &Tensor,
    frequencies: &Tensor,
    length: &Tensor,
    padding: &Tensor,
) -> Result<()> {
    let (batch, half) = (padding.numel() as i64, frequencies.numel() as i64);
    let angles = launcher.address("angles", angles, Kind::Float, &[batch, half, 2])?;
    let frequencies = launcher.address("frequencies", frequencies, Kind::Double, &[half])?;
    let length = launcher.address("length", length, Kind::Int, &[1])?;
    let padding = launcher.address("padding", padding, Kind::Int, &[batch])?;
    let (grid, half) = (blocks("batch", batch)?, int("head_dim", half)?);
    let kernel = launcher.device.kernel(&kernels::ROPE_CACHE, "rope_angles")?;
    let args = [arg(&angles), arg(&frequencies), arg(&length), arg(&padding), arg(&half)];
    // SAFETY: the parameters of `rope_angles` in order; the tensors have the sizes it is told, checked above.
    unsafe { launcher.launch(kernel, [grid, 1, 1], 128, &args) }
}

/// Rotates the queries in `qkv` `[batch, (heads + 2 * kv_heads) * head_dim]` in place, its keys on their way into slot
/// `length` of the cache, and copies its values there.
pub(crate) fn rope_cache(
    launcher: &Launcher,
    qkv: &Tensor,
    cache: CachePlanes<'_>,
    angles: &Tensor,
    length: &Tensor,
    heads: i64,
) -> Result<()> {
    let kind = qkv.kind();
    let size = cache.size()?;
    let [batch, kv_heads, capacity, head_dim] = size;
    let all_heads = heads + 2 * kv_heads;
    let qkv = launcher.address("queries, keys and values", qkv, kind, &[batch, all_heads * head_dim])?;
    let keys = launcher.address("cached keys", cache.keys, kind, &size)?;
    let values = launcher.address("cached values", cache.values, kind, &size)?;
    let angles = launcher.address("angles", angles, Kind::Float, &[batch, head_dim / 2, 2])?;
    let length = launcher.address("length", length, Kind::Int, &[1])?;
    let grid = [blocks("heads", all_heads)?, blocks("batch", batch)?, 1];
    let (heads, kv_heads) = (int("heads", heads)?, int("kv_heads", kv_heads)?);
    let (head_dim, capacity) = (int("head_dim", head_dim)?, int("capacity", capacity)?);
    let threads = (head_dim as u32 / 2).next_multiple_of(32).clamp(32, 128);
    let kernel = launcher.kernel(
        &kernels::ROPE_CACHE,
        kind,
        ["rope_cache_f32", "rope_cache_f16", "rope_cache_bf16"],
    )?;
    let args = [
        arg(&qkv),
        arg(&keys),
        arg(&values),
        arg(&angles),
        arg(&length),
        arg(&heads),
        arg(&kv_heads),
        arg(&head_dim),
        arg(&capacity),
    ];
    // SAFETY: the parameters of `rope_cache` in order; the tensors have the sizes it is told, checked above, and it leaves
    // the cache alone where `length` is outside it.
    unsafe { launcher.launch(kernel, grid, threads, &args) }
}
