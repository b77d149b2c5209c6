//! The gate of the feed-forward layer.

use tch::Tensor;

use super::launcher::{blocks, int, Launcher};
use crate::cuda::{arg, kernels};
use crate::error::{Error, Result};

/// Threads of a block, and elements that a thread handles at once.
const THREADS: i64 = 128;
const PACK: i64 = 8;

/// `out` `[rows, width]` becomes `silu(gate) * up`, both from `gate_up` `[rows, 2 * width]`.
pub(crate) fn swiglu(launcher: &Launcher, gate_up: &Tensor, out: &Tensor) -> Result<()> {
    let &[rows, width] = out.size().as_slice() else {
        return Err(Error::invalid("gated states", format!("shape {:?}, wanted [rows, width]", out.size())));
    };
    let kind = out.kind();
    let gate_up = launcher.address("gate and up", gate_up, kind, &[rows, 2 * width])?;
    let out = launcher.address("gated states", out, kind, &[rows, width])?;
    let across = (width as u64).div_ceil((THREADS * PACK) as u64) as i64;
    let grid = [blocks("width", across)?, blocks("rows", rows)?, 1];
    let width = int("width", 2 * width)? / 2;
    let kernel = launcher.kernel(&kernels::SWIGLU, kind, ["swiglu_f32", "swiglu_f16", "swiglu_bf16"])?;
    let args = [arg(&gate_up), arg(&out), arg(&width)];
    // SAFETY: the parameters of `swiglu` in order; the tensors have the sizes it is told, checked above.
    unsafe { launcher.launch(kernel, grid, THREADS as u32, &args) }
}
