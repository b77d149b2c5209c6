//! The likeliest token of each sequence, and the end of a step.

use tch::{Kind, Tensor};

use super::launcher::{blocks, int, Launcher};
use crate::cuda::{arg, kernels};
use crate::error::{Error, Result};

/// The likeliest token of each row of `logits` `[batch, vocab]`, the lowest of equals, into `tokens` `[batch]` (`Int64`): -1
/// where a logit is NaN or the largest is infinite. `lengths` `[batch]` (`Int`), where given, grow by one.
pub(crate) fn argmax(
    launcher: &Launcher,
    logits: &Tensor,
    tokens: &Tensor,
    lengths: Option<&Tensor>,
) -> Result<()> {
    let &[batch, vocab] = logits.size().as_slice() else {
        return Err(Error::invalid("logits", format!("shape {:?}, wanted [batch, vocab]", logits.size())));
    };
    let kind = logits.kind();
    let logits = launcher.address("logits", logits, kind, &[batch, vocab])?;
    let tokens = launcher.address("token ids", tokens, Kind::Int64, &[batch])?;
    let lengths = match lengths {
        Some(lengths) => launcher.address("lengths", lengths, Kind::Int, &[batch])?,
        None => std::ptr::null_mut(),
    };
    let (grid, vocab) = (blocks("batch", batch)?, int("vocab", vocab)?);
    let kernel = launcher.kernel(&kernels::ARGMAX, kind, ["argmax_f32", "argmax_f16", "argmax_bf16"])?;
    let args = [arg(&logits), arg(&tokens), arg(&lengths), arg(&vocab)];
    // SAFETY: the parameters of `argmax` in order; the tensors have the sizes it is told, checked above.
    unsafe { launcher.launch(kernel, [grid, 1, 1], 1024, &args) }
}
