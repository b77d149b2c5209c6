//! The residual sum and its RMS norm.

use tch::Tensor;

use super::launcher::{blocks, int, Launcher};
use crate::cuda::{arg, kernels};
use crate::error::{Error, Result};

/// Elements that a thread handles at once.
const PACK: i64 = 8;
/// Most threads of a block, as the kernel is built for.
const MOST_THREADS: u32 = 512;

/// `hidden += delta` where there is one, then `out = hidden / sqrt(mean(hidden^2) + epsilon) * weight`, over rows
/// `[rows, width]`.
pub(crate) fn rms_norm(
    launcher: &Launcher,
    hidden: &Tensor,
    delta: Option<&Tensor>,
    weight: &Tensor,
    out: &Tensor,
    epsilon: f64,
) -> Result<()> {
    let &[rows, width] = hidden.size().as_slice() else {
        return Err(Error::invalid(
            "hidden states",
            format!("shape {:?}, wanted [rows, width]", hidden.size()),
        ));
    };
    let kind = hidden.kind();
    let shape = [rows, width];
    let hidden = launcher.address("hidden states", hidden, kind, &shape)?;
    let delta = match delta {
        Some(delta) => launcher.address("residual", delta, kind, &shape)?,
        None => std::ptr::null_mut(),
    };
    let weight = launcher.address("norm weight", weight, kind, &[width])?;
    let out = launcher.address("normed states", out, kind, &shape)?;
    let (grid, columns, epsilon) = (blocks("rows", rows)?, int("width", width)?, epsilon as f32);
    let threads = (columns as u32).div_ceil(PACK as u32).next_multiple_of(32).min(MOST_THREADS);
    let kernel =
        launcher.kernel(&kernels::RMS_NORM, kind, ["rms_norm_f32", "rms_norm_f16", "rms_norm_bf16"])?;
    let args = [arg(&hidden), arg(&delta), arg(&weight), arg(&out), arg(&columns), arg(&epsilon)];
    // SAFETY: the parameters of `rms_norm.cu` in order; the tensors have the sizes it is told, checked above, and the number
    // of threads is a multiple of 32 up to what it has room for.
    unsafe { launcher.launch(kernel, [grid, 1, 1], threads, &args) }
}
