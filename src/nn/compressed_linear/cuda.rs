//! The forward on a GPU: fused for a few rows, through scratch and libtorch's `matmul` for many.

use std::sync::atomic::Ordering;
use std::sync::Arc;

use tch::Tensor;

use super::{CompressedLinear, BY_DTYPE};
use crate::error::{Error, Result, TorchContext};
use crate::nn::compressed::{CompressedWeight, Prepared};
use crate::nn::switch_over::{self, Profile, DEFAULT_ROWS};
use crate::ops::cuda::{
    can_fuse, decode_to_scratch, fused_linear, keep, lend, prepare_decode, DeviceWeight, FusedPart, Purpose,
    MOST_ROWS,
};
use crate::ops::transformer::Launcher;

/// Most bytes of the scratch buffer, unless one band needs more: a wider weight, such as a head, is decoded and multiplied in
/// stripes of rows. All other linears of an 8B model fit, in FP16.
pub(crate) const SCRATCH_BYTES: usize = 128 << 20;

/// A layer whose buffers have been looked at: good for one forward.
#[derive(Debug)]
pub(in crate::nn) struct Ready<'a> {
    linear: &'a CompressedLinear,
    prepared: Arc<Prepared>,
    /// In FP32, as the fused kernel adds it.
    bias: Option<Tensor>,
}

impl CompressedLinear {
    /// `x` `[batch, in_features]` to `y` `[batch, out_features]`, both on the weight's GPU.
    pub(super) fn forward_on_cuda(&self, x: &Tensor, y: &Tensor) -> Result<()> {
        let launcher = Launcher::on(x.device())?;
        self.weight.counted(|| self.ready(&launcher)?.forward(&launcher, x, y))
    }

    /// Decodes the whole weight into `out` on its GPU.
    pub(super) fn decode_on_cuda(&self, out: &Tensor) -> Result<()> {
        let launcher = Launcher::on(out.device())?;
        self.weight.counted(|| {
            let ready = self.ready(&launcher)?;
            let weight = ready.weight()?;
            decode_to_scratch(&launcher, weight, 0..weight.bands().1, out)
        })
    }

    pub(super) fn is_fused_on_cuda(&self, x: &Tensor, batch: usize) -> Result<bool> {
        let launcher = Launcher::on(x.device())?;
        self.ready(&launcher)?.prefers_fused(&launcher, batch, x.kind())
    }

    /// Looks at the buffers, and makes what decoding needs beside them where they have changed.
    pub(in crate::nn) fn ready(&self, launcher: &Launcher) -> Result<Ready<'_>> {
        let prepared = self.weight.prepared()?;
        let device = tch::Device::Cuda(launcher.device.ordinal);
        if prepared.device_weight().is_none_or(|weight| weight.ordinal() != launcher.device.ordinal) {
            return Err(self.weight.elsewhere(device));
        }
        let bias = self.bias.as_ref().map(|bias| bias.tensor(tch::Kind::Float)).transpose()?;
        keep(prepared.clone());
        bias.iter().for_each(|bias| keep(bias.shallow_clone()));
        Ok(Ready { linear: self, prepared, bias })
    }
}

impl Ready<'_> {
    pub(in crate::nn) fn weight(&self) -> Result<&DeviceWeight> {
        self.prepared
            .device_weight()
            .ok_or_else(|| Error::invalid(self.linear.tensor_path(), "weight is on the CPU, wanted a GPU"))
    }

    pub(in crate::nn) fn compressed(&self) -> &CompressedWeight {
        &self.linear.weight
    }

    /// This layer's part of a fused launch whose product goes to `y`.
    pub(in crate::nn) fn part<'a>(&'a self, y: &'a Tensor) -> Result<FusedPart<'a>> {
        Ok(FusedPart { weight: self.weight()?, bias: self.bias.as_ref(), y })
    }

    fn forward(&self, launcher: &Launcher, x: &Tensor, y: &Tensor) -> Result<()> {
        let batch = x.size().first().map_or(0, |&batch| batch as usize);
        if self.prefers_fused(launcher, batch, x.kind())? {
            self.fused(launcher, x, y)
        } else {
            self.through_scratch(launcher, x, y)
        }
    }

    /// Whether the fused kernel takes the weight and is the faster way for so many rows of `kind`, as far as is known; finds out
    /// where that is doubtful and nothing is being captured.
    pub(in crate::nn) fn prefers_fused(
        &self,
        launcher: &Launcher,
        batch: usize,
        kind: tch::Kind,
    ) -> Result<bool> {
        let weight = self.weight()?;
        if !can_fuse(launcher, &[weight], batch.clamp(1, MOST_ROWS)) {
            return Ok(false);
        }
        let rows = match self.linear.fused_rows.load(Ordering::Relaxed) {
            BY_DTYPE if switch_over::is_doubtful(batch) => self.measured_rows(launcher, weight, kind)?,
            BY_DTYPE => DEFAULT_ROWS,
            rows => rows,
        };
        Ok(batch <= rows)
    }

    fn measured_rows(&self, launcher: &Launcher, weight: &DeviceWeight, kind: tch::Kind) -> Result<usize> {
        let (layout, quarter_raw_bits) = weight.profile();
        let (ordinal, shape) = (weight.ordinal(), weight.shape());
        let device = tch::Device::Cuda(ordinal);
        let profile = Profile { ordinal, shape, layout, quarter_raw_bits, kind };
        if let Some(rows) = switch_over::known(&profile) {
            return Ok(rows);
        }
        if launcher.stream.is_capturing(launcher.device)? {
            return Ok(DEFAULT_ROWS);
        }
        let [out_features, in_features] = shape.map(|features| features as i64);
        let zeros = |features| Tensor::f_zeros([MOST_ROWS as i64, features], (kind, device));
        let (Ok(x), Ok(y)) = (zeros(in_features), zeros(out_features)) else {
            // No memory to spare for a measurement.
            return Ok(DEFAULT_ROWS);
        };
        let rows_of = |tensor: &Tensor, rows: usize| {
            tensor.f_narrow(0, 0, rows as i64).about(self.linear.tensor_path())
        };
        let run = |rows, fused| {
            let (x, y) = (rows_of(&x, rows)?, rows_of(&y, rows)?);
            if fused {
                self.fused(launcher, &x, &y)
            } else {
                self.through_scratch(launcher, &x, &y)
            }
        };
        let takes = |rows| can_fuse(launcher, &[weight], rows);
        switch_over::measure(profile, launcher, takes, |rows| run(rows, true), |rows| run(rows, false))
    }

    fn fused(&self, launcher: &Launcher, x: &Tensor, y: &Tensor) -> Result<()> {
        fused_linear(launcher, x, &[self.part(y)?])
    }

    /// Decodes into scratch, as many rows at a time as fit it, and multiplies.
    fn through_scratch(&self, launcher: &Launcher, x: &Tensor, y: &Tensor) -> Result<()> {
        let (subject, weight, kind) = (self.linear.tensor_path(), self.weight()?, x.kind());
        let bias = self.linear.bias.as_ref().map(|bias| bias.tensor(kind)).transpose()?;
        let [out_features, in_features] = weight.shape();
        let (band_rows, bands) = weight.bands();
        let row_bytes = in_features * kind.elt_size_in_bytes();
        let bands_at_once = (SCRATCH_BYTES / (row_bytes * band_rows)).clamp(1, bands);
        let bytes = out_features.min(bands_at_once * band_rows) * row_bytes;
        prepare_decode(launcher, weight, kind)?;
        lend(launcher, Purpose::Weight, bytes, subject, |scratch| {
            for first in (0..bands).step_by(bands_at_once) {
                let bands = first..bands.min(first + bands_at_once);
                let (start, end) = (bands.start * band_rows, out_features.min(bands.end * band_rows));
                let (start, rows) = (start as i64, (end - start) as i64);
                let dense = scratch
                    .f_narrow(0, 0, rows * row_bytes as i64)
                    .and_then(|bytes| bytes.f_view_dtype(kind))
                    .and_then(|flat| flat.f_view([rows, in_features as i64]))
                    .about(subject)?;
                decode_to_scratch(launcher, weight, bands, &dense)?;
                let mut out = y.f_narrow(1, start, rows).about(subject)?;
                let dense = dense.f_tr().about(subject)?;
                // Not `linear`: with a bias it allocates.
                match &bias {
                    None => x.f_mm_out(&out, &dense).map(|_| ()),
                    Some(bias) => bias
                        .f_narrow(0, start, rows)
                        .and_then(|bias| out.f_copy_(&bias))
                        .and_then(|()| out.f_addmm_(x, &dense).map(|_| ())),
                }
                .about(subject)?;
            }
            Ok(())
        })
    }
}
