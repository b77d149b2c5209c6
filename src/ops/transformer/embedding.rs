//! Rows of a dense table, by token.

use tch::{Kind, Tensor};

use super::launcher::{blocks, int, Launcher};
use crate::cuda::{arg, kernels};
use crate::error::{Error, Result};

const THREADS: i64 = 256;

/// The rows of `table` `[vocab, width]` that `tokens` `[rows]` (`Int64`) name, into `out` `[rows, width]`. A token outside
/// the table gives NaN.
pub(crate) fn embedding(launcher: &Launcher, tokens: &Tensor, table: &Tensor, out: &Tensor) -> Result<()> {
    let &[vocab, width] = table.size().as_slice() else {
        return Err(Error::invalid(
            "embedding table",
            format!("shape {:?}, wanted [vocab, width]", table.size()),
        ));
    };
    let (kind, rows) = (table.kind(), tokens.numel() as i64);
    let tokens = launcher.address("token ids", tokens, Kind::Int64, &[rows])?;
    let table = launcher.address("embedding table", table, kind, &[vocab, width])?;
    let out = launcher.address("embedded tokens", out, kind, &[rows, width])?;
    let across = (width as u64).div_ceil(THREADS as u64) as i64;
    let grid = [blocks("width", across)?, blocks("tokens", rows)?, 1];
    let (vocab, width) = (int("vocab", vocab)?, int("width", width)?);
    let kernel =
        launcher.kernel(&kernels::EMBEDDING, kind, ["embedding_f32", "embedding_f16", "embedding_bf16"])?;
    let args = [arg(&tokens), arg(&table), arg(&out), arg(&vocab), arg(&width)];
    // SAFETY: the parameters of `embedding` in order; the tensors have the sizes it is told, checked above, and it reads no
    // row outside the table.
    unsafe { launcher.launch(kernel, grid, THREADS as u32, &args) }
}
