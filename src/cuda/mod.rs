//! CUDA devices, found at run time: one binary with and without a GPU.
//!
//! Device code is CUDA C++ embedded in the crate (`csrc/kernels`), compiled by NVRTC for the device found and kept in
//! a cache on disk. It runs on libtorch's own streams, in its primary context and on its tensors' memory. Nothing
//! here knows a tensor format or a model.
//!
//! [`load`] must come before the first question to libtorch about CUDA: without `libtorch_cuda` it answers that there
//! is none, and keeps to that answer.
//!
//! [`Recorder`] times work on a GPU; see its example.

mod architecture;
mod at_once;
mod cache;
mod compile;
mod device;
mod driver;
mod event;
mod free;
mod graph;
mod info;
mod kernel;
pub(crate) mod kernels;
mod library;
mod memory;
mod modules;
mod preparation;
mod recorder;
mod slots;
mod stream;
#[cfg(test)]
pub(crate) mod tests;

pub use architecture::ARCHITECTURES;
pub use compile::{compile_all, has_compiler, Compiled};
pub use info::{device_info, DeviceInfo};
pub use library::{is_available, load};
pub use memory::PeakMemory;
pub use preparation::{time_kernel_preparation, KernelPreparation};
pub use recorder::{Recorder, Recording};

pub(crate) use device::{device, Device};
pub(crate) use event::EventTimer;
pub(crate) use free::free_bytes;
pub(crate) use graph::Graph;
pub(crate) use kernel::{arg, Kernel, Launch};
pub(crate) use kernels::Source;
pub(crate) use stream::Stream;
