//! `--device`: where a verb computes.

use anyhow::Result;
use clap::ValueEnum;
use codecllm::cuda::{device_info, DeviceInfo, PeakMemory};
use tch::Device;

/// The first GPU: which one that is, CUDA_VISIBLE_DEVICES decides.
pub(crate) const ORDINAL: usize = 0;

/// Where to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceArg {
    #[default]
    Cpu,
    /// The first GPU
    Cuda,
}

impl DeviceArg {
    /// Makes libtorch find the GPU: must come before everything else that calls libtorch.
    pub(crate) fn prepare(self) -> Result<()> {
        match self {
            Self::Cpu => Ok(()),
            Self::Cuda => Ok(codecllm::cuda::load()?),
        }
    }

    pub(crate) fn device(self) -> Device {
        match self {
            Self::Cpu => Device::Cpu,
            Self::Cuda => Device::Cuda(ORDINAL),
        }
    }

    /// What the GPU is; `None` on the CPU.
    pub(crate) fn info(self) -> Result<Option<DeviceInfo>> {
        match self {
            Self::Cpu => Ok(None),
            Self::Cuda => Ok(Some(device_info(ORDINAL)?)),
        }
    }

    /// Watches the GPU's memory from here on; `None` on the CPU.
    pub(crate) fn watch_memory(self) -> Result<Option<PeakMemory>> {
        match self {
            Self::Cpu => Ok(None),
            Self::Cuda => Ok(Some(PeakMemory::start(ORDINAL)?)),
        }
    }
}
