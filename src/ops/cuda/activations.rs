//! `x` as the fused kernel reads it: rows of FP16, or of BF16 for weights that are BF16, with zeros up to a whole group.
//!
//! FP32 and BF16 reach further than FP16: their rows are divided by a power of two, each by its own, and the result is
//! multiplied by it again. An FP32 row becomes two, of 11 bits of each element's mantissa. In BF16 nothing is divided; an FP32 or FP16
//! row becomes two, of 8 bits of each mantissa.

use tch::{Kind, Tensor};

use super::launch::Element;
use super::pool::{lend, Purpose};
use super::weight::number;
use crate::codec::Layout;
use crate::cuda::{arg, kernels, Launch};
use crate::error::{Error, Result};
use crate::ops::transformer::Launcher;
use crate::rans::LANES;
use crate::tile::GROUP_COLS;

/// Where the kernel's loads begin.
const ALIGN_BYTES: usize = 16;
const HALF_BYTES: usize = 2;
/// Of a block that packs: several share a row, so that few rows keep many multiprocessors busy.
const PACKING_THREADS: usize = 256;

/// Rows that the fused kernel can read, valid on the stream they were made on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Activations {
    pub(super) address: u64,
    /// Of one `i32` a row, or null.
    pub(super) exponents: u64,
    /// In elements.
    pub(super) row_stride: u32,
    /// Rows, all pieces counted.
    pub(super) rows: u32,
    /// Rows for one of `x`.
    pub(super) pieces: u32,
    /// What the second of two counts for.
    pub(super) second: f32,
}

/// The halves that weights of `layout` are multiplied as.
fn half_kind(layout: Layout) -> Kind {
    match layout {
        Layout::Fast | Layout::Small | Layout::ExactFp16 => Kind::Half,
        Layout::ExactBf16 => Kind::BFloat16,
    }
}

/// Rows that one of `x` in `kind` becomes for weights of `layout`.
pub(super) fn pieces(kind: Kind, layout: Layout) -> usize {
    match (kind, half_kind(layout)) {
        (Kind::Float, _) | (Kind::Half, Kind::BFloat16) => 2,
        _ => 1,
    }
}

/// Mirrors `Arguments` of `csrc/kernels/activations.cu`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Arguments {
    x: u64,
    out: u64,
    exponents: u64,
    x_stride: u64,
    cols: u32,
    padded_cols: u32,
    rows: u32,
    packed_rows: u32,
}

const _: () = assert!(size_of::<Arguments>() == 48);

/// Gives `work`, which launches what reads them, the rows of `x` `[batch, cols]` for weights of `layout`: `x` itself if it can be read
/// as it is, else a copy in the pool. `packed_rows`: packed, for so many rows, all pieces counted; those that `x` lacks are zero.
pub(super) fn with_activations<R>(
    launcher: &Launcher,
    x: &Tensor,
    layout: Layout,
    packed_rows: Option<usize>,
    subject: &str,
    work: impl FnOnce(&Activations) -> Result<R>,
) -> Result<R> {
    let source = Source::of(x, layout, subject)?;
    if packed_rows.is_none() {
        if let Some(activations) = source.in_place(subject)? {
            return work(&activations);
        }
    }
    let row_bytes = source.padded_cols() * HALF_BYTES;
    let rows = packed_rows.unwrap_or(source.batch * source.pieces);
    let bytes = rows * row_bytes + source.batch * size_of::<i32>();
    lend(launcher, Purpose::Activations, bytes, subject, |buffer| {
        let address = buffer.data_ptr() as u64;
        let exponents = address + (rows * row_bytes) as u64;
        let activations = Activations {
            address,
            exponents: if source.is_divided() { exponents } else { 0 },
            row_stride: number(subject, source.padded_cols())?,
            rows: number(subject, source.batch * source.pieces)?,
            pieces: source.pieces as u32,
            second: source.second(),
        };
        source.bring(launcher, &activations, packed_rows, subject)?;
        work(&activations)
    })
}

/// `x` as it came.
#[derive(Clone, Copy, Debug)]
struct Source {
    address: usize,
    kind: Kind,
    /// What it is to become.
    half: Kind,
    pieces: usize,
    batch: usize,
    cols: usize,
    /// In elements.
    row_stride: usize,
}

impl Source {
    fn of(x: &Tensor, layout: Layout, subject: &str) -> Result<Self> {
        let (size, stride) = (x.size(), x.stride());
        let (&[batch, cols], &[row_stride, col_stride]) = (size.as_slice(), stride.as_slice()) else {
            return Err(Error::invalid(subject, format!("input has shape {size:?}, wanted two dimensions")));
        };
        if col_stride != 1 && cols > 1 {
            return Err(Error::invalid(
                subject,
                format!("input has strides {stride:?}, wanted neighboring columns (use contiguous)"),
            ));
        }
        let (batch, cols) = (batch as usize, cols as usize);
        // The stride of a single row may be anything.
        let row_stride = if batch == 1 { cols } else { row_stride as usize };
        let (kind, half) = (x.kind(), half_kind(layout));
        Ok(Self {
            address: x.data_ptr() as usize,
            kind,
            half,
            pieces: pieces(kind, layout),
            batch,
            cols,
            row_stride,
        })
    }

    /// Whether rows are divided by a power of two: FP16 does not reach as far as they do.
    fn is_divided(&self) -> bool {
        self.half == Kind::Half && self.kind != Kind::Half
    }

    /// `SECOND_PIECE` of `csrc/kernels/activations.cu`, which it undoes.
    fn second(&self) -> f32 {
        if self.half == Kind::Half {
            1.0 / 2048.0
        } else {
            1.0
        }
    }

    fn padded_cols(&self) -> usize {
        self.cols.next_multiple_of(GROUP_COLS)
    }

    /// The rows as they are, if the kernel can read them.
    fn in_place(&self, subject: &str) -> Result<Option<Activations>> {
        let row_bytes = self.row_stride * HALF_BYTES;
        let aligned = self.address.is_multiple_of(ALIGN_BYTES) && row_bytes.is_multiple_of(ALIGN_BYTES);
        if self.kind != self.half || self.cols != self.padded_cols() || !aligned {
            return Ok(None);
        }
        Ok(Some(Activations {
            address: self.address as u64,
            exponents: 0,
            row_stride: number(subject, self.row_stride)?,
            rows: number(subject, self.batch)?,
            pieces: 1,
            second: self.second(),
        }))
    }

    /// Launches what brings the rows to `to`.
    fn bring(
        &self,
        launcher: &Launcher,
        to: &Activations,
        packed_rows: Option<usize>,
        subject: &str,
    ) -> Result<()> {
        let [as_rows, packed] = match (Element::of(self.kind, subject)?, self.half) {
            (Element::F32, Kind::BFloat16) => ["activations_f32_to_bf16", "activations_f32_to_bf16_packed"],
            (Element::F16, Kind::BFloat16) => ["activations_f16_to_bf16", "activations_f16_to_bf16_packed"],
            (Element::BF16, Kind::BFloat16) => {
                ["activations_bf16_to_bf16", "activations_bf16_to_bf16_packed"]
            }
            (Element::F32, _) => ["activations_f32", "activations_f32_packed"],
            (Element::F16, _) => ["activations_f16", "activations_f16_packed"],
            (Element::BF16, _) => ["activations_bf16", "activations_bf16_packed"],
        };
        let symbol = if packed_rows.is_some() { packed } else { as_rows };
        let arguments = Arguments {
            x: self.address as u64,
            out: to.address,
            exponents: to.exponents,
            x_stride: self.row_stride as u64,
            cols: number(subject, self.cols)?,
            padded_cols: to.row_stride,
            rows: number(subject, self.batch)?,
            packed_rows: number(subject, packed_rows.unwrap_or(0))?,
        };
        let (blocks, block) = match packed_rows {
            // Eight elements a thread.
            None => ([self.batch, 1], (self.padded_cols() / 8).next_multiple_of(LANES).min(1024)),
            // Four columns of two rows a thread.
            Some(rows) => {
                let threads = self.padded_cols() / 4;
                let block = threads.next_multiple_of(LANES).min(PACKING_THREADS);
                ([rows / (2 * self.pieces), threads.div_ceil(block)], block)
            }
        };
        let launch = Launch {
            grid: [number(subject, blocks[0])?, number(subject, blocks[1])?, 1],
            block: block as u32,
            shared_bytes: 0,
            overlap: true,
        };
        let kernel = launcher.device.kernel(&kernels::ACTIVATIONS, symbol)?;
        // SAFETY: the kernel reads `cols` elements of each of the rows of x, which `Source::of` took from the tensor, and writes
        // `padded_cols` halves for each piece, packed or not, and one exponent for each row: the pool lent room for them. Both live on the launcher's
        // stream: the caller's tensor by libtorch's rule, the pool's buffer by its own.
        unsafe { kernel.launch(launcher.stream, &launch, &[arg(&arguments)]) }
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    fn source(batch: i64, cols: i64, kind: Kind) -> Source {
        Source::of(&Tensor::zeros([batch, cols], (kind, Device::Cpu)), Layout::Fast, "x").unwrap()
    }

    #[test]
    fn only_aligned_whole_halves_are_read_in_place() {
        let in_place = |source: Source| source.in_place("x").unwrap().is_some();
        assert!(in_place(source(3, 128, Kind::Half)));
        assert!(!in_place(source(3, 100, Kind::Half)));
        assert!(!in_place(source(3, 128, Kind::Float)));
        assert!(!in_place(source(3, 128, Kind::BFloat16)));
        let wide = Tensor::zeros([3, 256], (Kind::Half, Device::Cpu));
        assert!(in_place(Source::of(&wide.narrow(1, 64, 64), Layout::Fast, "x").unwrap()));
        assert!(!in_place(Source::of(&wide.narrow(1, 63, 64), Layout::Fast, "x").unwrap()));
        let odd = Tensor::zeros([3, 129], (Kind::Half, Device::Cpu));
        assert!(!in_place(Source::of(&odd.narrow(1, 0, 128), Layout::Fast, "x").unwrap()));
        let x = Tensor::zeros([3, 128], (Kind::BFloat16, Device::Cpu));
        assert!(in_place(Source::of(&x, Layout::ExactBf16, "x").unwrap()));
        assert!(!in_place(Source::of(&x, Layout::ExactFp16, "x").unwrap()));
        // A single row is aligned whatever its stride.
        assert!(in_place(Source::of(&odd.narrow(1, 0, 128).narrow(0, 0, 1), Layout::Fast, "x").unwrap()));
    }

    #[test]
    fn columns_that_are_apart_are_refused() {
        let x = Tensor::zeros([128, 3], (Kind::Half, Device::Cpu)).tr();
        assert!(Source::of(&x, Layout::Fast, "x").is_err());
        assert!(Source::of(&Tensor::zeros([3], (Kind::Half, Device::Cpu)), Layout::Fast, "x").is_err());
    }
}
