//! Steps of one token after another: one CUDA graph each on a GPU, layer by layer on the CPU.

use codecllm::model::{DecodeStep, KvCache, Llama, LogitsOf, StepPart};
use codecllm::{Error, Result};
use tch::{Device, Tensor};

use crate::cli::bench::torch_error;

/// Replays behind a time of a part.
const REPLAYS: usize = 32;

/// Microseconds of a step's two parts, each alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts {
    pub(super) linears_us: f64,
    pub(super) rest_us: f64,
}

/// A model that picks the likeliest token again and again.
pub(super) struct Decoder<'a> {
    pub(super) model: &'a Llama,
    /// The first token of each sequence's answer.
    pub(super) first: &'a [i64],
    pub(super) device: Device,
}

impl Decoder<'_> {
    /// Captures the step, so that no later one does.
    pub(super) fn prepare(&self, cache: &mut KvCache) -> Result<()> {
        match self.device {
            Device::Cuda(_) if !DecodeStep::fits(self.model, cache) => {
                Err(Error::unsupported("--batch", "there is no captured step for more than 64 sequences"))
            }
            Device::Cuda(_) => DecodeStep::new(self.model, cache).map(drop),
            _ => Ok(()),
        }
    }

    /// Generates `count` tokens of each sequence behind what `cache` holds.
    pub(super) fn generate(&self, cache: &mut KvCache, count: usize) -> Result<()> {
        match self.device {
            Device::Cuda(_) => self.captured(cache, count),
            _ => self.eager(cache, count),
        }
    }

    /// The tokens stay on the device until the last.
    fn captured(&self, cache: &mut KvCache, count: usize) -> Result<()> {
        let mut step = DecodeStep::new(self.model, cache)?;
        let _ = step.run(self.first)?;
        for _ in 1..count {
            let _ = step.run_greedy()?;
        }
        step.tokens().map(drop)
    }

    fn eager(&self, cache: &mut KvCache, count: usize) -> Result<()> {
        let size = [self.first.len() as i64, 1];
        let mut ids = Tensor::f_from_slice(self.first)
            .and_then(|ids| ids.f_view(size))
            .map_err(torch_error("token ids"))?;
        for _ in 0..count {
            let logits = self.model.forward(&ids, cache, LogitsOf::Last)?;
            ids = logits.f_argmax(-1, false).map_err(torch_error("logits"))?;
        }
        Ok(())
    }

    /// Times a step's linears and the rest of it behind what `cache` holds; `None` on the CPU.
    pub(super) fn parts(&self, cache: &mut KvCache) -> Result<Option<Parts>> {
        if !self.device.is_cuda() {
            return Ok(None);
        }
        let mut step = DecodeStep::new(self.model, cache)?;
        let mut us = |part| step.seconds(part, REPLAYS).map(|seconds| seconds * 1e6);
        Ok(Some(Parts { linears_us: us(StepPart::Linears)?, rest_us: us(StepPart::Rest)? }))
    }
}
