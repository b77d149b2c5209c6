//! Rows of a compressed matrix on its GPU, by index: an embedding lookup.

use tch::{Kind, Tensor};

use super::decode_to_scratch::{too_many_tables, DecodePlan};
use super::launch::{kernel, Element, Limits, Rows};
use super::sources::sources_of;
use super::weight::{number, DeviceWeight, Weight};
use crate::codec::Layout;
use crate::cuda::{arg, kernels, Source};
use crate::error::{Error, Result};
use crate::ops::transformer::Launcher;

/// Mirrors `Arguments` of `csrc/kernels/gather_rows.cu`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Arguments {
    weight: Weight,
    indices: u64,
    out: u64,
    out_stride: u64,
    count: u32,
    words_bytes: u32,
    element: u32,
    padding: u32,
}

const _: () = assert!(size_of::<Arguments>() == 112);

/// Gathers the rows `indices` (contiguous `[count]`, `Int64`, on the weight's device) into `out` `[count, cols]` in FP32, FP16 or
/// BF16, on the launcher's stream. An index outside the table gives a row of NaN: the host does not see the indices.
///
/// # Errors
/// `Unsupported` where the weight's tables don't fit the shared memory, `InvalidArgument` for tensors that are not as said.
pub(crate) fn gather_rows(
    launcher: &Launcher,
    weight: &DeviceWeight,
    indices: &Tensor,
    out: &Tensor,
) -> Result<()> {
    let (facts, subject) = (&weight.facts, weight.subject());
    let device = tch::Device::Cuda(weight.ordinal());
    let fits = indices.kind() == Kind::Int64
        && indices.dim() == 1
        && indices.is_contiguous()
        && indices.device() == device
        && launcher.device.ordinal == weight.ordinal();
    if !fits {
        return Err(Error::invalid(
            subject,
            format!(
                "token ids are {:?} {:?} on {:?}, wanted Int64 in one dimension on {device:?}",
                indices.kind(),
                indices.size(),
                indices.device()
            ),
        ));
    }
    let count = indices.numel();
    let element = Element::of(out.kind(), subject)?;
    let output = Rows::of(out, [count, facts.cols], device, subject)?;
    if count == 0 {
        return Ok(());
    }
    let limits = Limits::of(launcher);
    let plan = DecodePlan::new(limits, facts, count * facts.tiles_across)
        .ok_or_else(|| too_many_tables(subject, facts, limits))?;
    let arguments = Arguments {
        weight: weight.mirror,
        indices: indices.data_ptr() as u64,
        out: output.address,
        out_stride: output.stride as u64,
        // The kernel counts tiles of rows.
        count: number(subject, count * facts.tiles_across).and(number(subject, count))?,
        words_bytes: number(subject, facts.words_bytes)?,
        element: element as u32,
        padding: 0,
    };
    let source = gather_rows_source(facts.layout);
    let kernel = kernel(launcher, source, || sources_of(facts.layout, element))?;
    let launch = plan.launch(subject)?;
    // SAFETY: the one parameter is `Arguments`, whose size both sides check. The weight was checked on the host, is on this
    // device, and kept by the caller; the kernel bounds every read of it. It reads `count` indices, looks at each before
    // using it, and writes `count` rows of `out`; both were checked above. Shared memory: as the kernel divides it,
    // see `DecodePlan`.
    unsafe { kernel.launch(launcher.stream, &launch, &[arg(&arguments)]) }
}

pub(super) fn gather_rows_source(layout: Layout) -> &'static Source {
    match layout {
        Layout::Fast => &kernels::GATHER_ROWS_FAST,
        Layout::Small => &kernels::GATHER_ROWS_SMALL,
        Layout::ExactBf16 => &kernels::GATHER_ROWS_EXACT_BF16,
        Layout::ExactFp16 => &kernels::GATHER_ROWS_EXACT_FP16,
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn the_mirror_has_the_offsets_of_the_kernel() {
        assert_eq!((offset_of!(Arguments, indices), offset_of!(Arguments, element)), (72, 104));
    }
}
