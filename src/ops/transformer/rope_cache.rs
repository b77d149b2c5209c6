//! The rotary embedding of a new token and its way into the cache.

use tch::{Kind, Tensor};

use super::launcher::{blocks, int, Launcher};
use super::pages::{CachePlanes, PlaneAddresses};
use crate::cuda::{arg, kernels};
use crate::error::Result;

/// Cosine and sine of each sequence's new position, `angles` `[batch, half, 2]` in FP32: its slot of `lengths` less its
/// `padding` (both `[batch]`, `Int`) times `frequencies` `[half]` (`Double`).
pub(crate) fn rope_angles(
    launcher: &Launcher,
    angles: &Tensor,
    frequencies: &Tensor,
    lengths: &Tensor,
    padding: &Tensor,
) -> Result<()> {
    let (batch, half) = (padding.numel() as i64, frequencies.numel() as i64);
    let angles = launcher.address("angles", angles, Kind::Float, &[batch, half, 2])?;
    let frequencies = launcher.address("frequencies", frequencies, Kind::Double, &[half])?;
    let lengths = launcher.address("lengths", lengths, Kind::Int, &[batch])?;
    let padding = launcher.address("padding", padding, Kind::Int, &[batch])?;
    let (grid, half) = (blocks("batch", batch)?, int("head_dim", half)?);
    let kernel = launcher.device.kernel(&kernels::ROPE_CACHE, "rope_angles")?;
    let args = [arg(&angles), arg(&frequencies), arg(&lengths), arg(&padding), arg(&half)];
    // SAFETY: the parameters of `rope_angles` in order; the tensors have the sizes it is told, checked above.
    unsafe { launcher.launch(kernel, [grid, 1, 1], 128, &args) }
}

/// Rotates the queries in `qkv` `[batch, (heads + 2 * kv_heads) * head_dim]` in place, its keys on their way into
/// each sequence's slot of `lengths` `[batch]` (`Int`), and copies its values there.
pub(crate) fn rope_cache(
    launcher: &Launcher,
    qkv: &Tensor,
    cache: CachePlanes<'_>,
    angles: &Tensor,
    lengths: &Tensor,
    heads: i64,
) -> Result<()> {
    let kind = qkv.kind();
    let batch = lengths.numel() as i64;
    let [kv_heads, head_dim] = cache.heads()?;
    let all_heads = heads + 2 * kv_heads;
    let qkv = launcher.address("queries, keys and values", qkv, kind, &[batch, all_heads * head_dim])?;
    let PlaneAddresses { keys, values, pages } = cache.addresses(launcher, kind, batch)?;
    let angles = launcher.address("angles", angles, Kind::Float, &[batch, head_dim / 2, 2])?;
    let lengths = launcher.address("lengths", lengths, Kind::Int, &[batch])?;
    let grid = [blocks("heads", all_heads)?, blocks("batch", batch)?, 1];
    let (heads, kv_heads) = (int("heads", heads)?, int("kv_heads", kv_heads)?);
    let head_dim = int("head_dim", head_dim)?;
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
        arg(&lengths),
        arg(&pages),
        arg(&heads),
        arg(&kv_heads),
        arg(&head_dim),
    ];
    // SAFETY: the parameters of `rope_cache` in order, the struct laid out as its own; the tensors have the sizes it is told,
    // checked above, and it leaves the cache alone where a length or a page is outside it.
    unsafe { launcher.launch(kernel, grid, threads, &args) }
}
