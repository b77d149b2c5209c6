//! Where a model is to run.

use serde::Serialize;

use crate::cuda::device_info;
use crate::error::Result;

/// CPU or GPU: they keep keys, values and scratch in different ways.
///
/// Known of the machine that [`plan`](super::plan()) is given; see its example.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// The machine's own memory.
    Cpu,
    /// A GPU's.
    Gpu,
}

/// A GPU whose data sheet is known.
///
/// Of a [`Machine`]; see its example.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Gpu {
    /// NVIDIA H200.
    H200,
    /// NVIDIA H100 SXM, 80 GB.
    H100,
    /// NVIDIA A100, 80 GB.
    A100,
    /// NVIDIA L40S.
    L40s,
    /// NVIDIA L4.
    L4,
    /// NVIDIA A10.
    A10,
    /// NVIDIA GeForce RTX 5090.
    Rtx5090,
    /// NVIDIA GeForce RTX 4090.
    Rtx4090,
    /// NVIDIA GeForce RTX 3090.
    Rtx3090,
}

/// Each GPU with how the driver names it, its memory in GB, and what its memory moves in GB/s, from NVIDIA's data sheets.
const GPUS: [(Gpu, &str, u64, u64); 9] = [
    (Gpu::H200, "H200", 141, 4800),
    (Gpu::H100, "H100 80GB HBM3", 80, 3350),
    (Gpu::A100, "A100-SXM4-80GB", 80, 2039),
    (Gpu::L40s, "L40S", 48, 864),
    (Gpu::L4, "L4", 24, 300),
    (Gpu::A10, "A10", 24, 600),
    (Gpu::Rtx5090, "RTX 5090", 32, 1792),
    (Gpu::Rtx4090, "RTX 4090", 24, 1008),
    (Gpu::Rtx3090, "RTX 3090", 24, 936),
];

impl Gpu {
    /// The one with this name of the driver's, such as `NVIDIA H200`.
    ///
    /// ```
    /// use codecllm::plan::Gpu;
    /// assert_eq!(Gpu::named("NVIDIA GeForce RTX 4090"), Some(Gpu::Rtx4090));
    /// assert_eq!(Gpu::named("NVIDIA L40"), None);
    /// ```
    pub fn named(name: &str) -> Option<Self> {
        GPUS.iter().find(|(_, known, ..)| ends_with_words(name, known)).map(|(gpu, ..)| *gpu)
    }

    /// Its memory, bytes.
    pub fn memory_bytes(self) -> u64 {
        GPUS.iter().find(|(gpu, ..)| *gpu == self).map_or(0, |(_, _, memory, _)| memory * 1_000_000_000)
    }

    /// What its memory moves, bytes a second.
    pub fn bytes_per_second(self) -> f64 {
        GPUS.iter().find(|(gpu, ..)| *gpu == self).map_or(0.0, |(.., bandwidth)| *bandwidth as f64 * 1e9)
    }
}

/// `L4` is not the end of `XL4`.
fn ends_with_words(name: &str, words: &str) -> bool {
    name.strip_suffix(words).is_some_and(|rest| rest.is_empty() || rest.ends_with(' '))
}

/// Memory, and what is known of its speed.
///
/// ```
/// use codecllm::plan::{Gpu, Machine, Place};
/// let h100 = Machine::gpu(Some(Gpu::H100), None);
/// assert_eq!((h100.place, h100.memory_bytes), (Place::Gpu, Gpu::H100.memory_bytes()));
/// assert_eq!(h100.bytes_per_second, Some(Gpu::H100.bytes_per_second()));
/// assert_eq!(Gpu::named("NVIDIA H100 80GB HBM3"), Some(Gpu::H100)); // as the driver says
/// let here = Machine::detected().unwrap_or_else(|_| Machine::cpu(16_000_000_000));
/// assert!(here.memory_bytes > 0);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Machine {
    /// CPU or GPU.
    pub place: Place,
    /// Which GPU, where that is known.
    pub gpu: Option<Gpu>,
    /// All memory, bytes.
    pub memory_bytes: u64,
    /// What the memory moves, bytes a second, where that is known.
    pub bytes_per_second: Option<f64>,
}

impl Machine {
    /// A GPU with `memory_bytes`, or as much as its data sheet says.
    pub fn gpu(gpu: Option<Gpu>, memory_bytes: Option<u64>) -> Self {
        let known = gpu.map_or(0, Gpu::memory_bytes);
        Self {
            place: Place::Gpu,
            gpu,
            memory_bytes: memory_bytes.unwrap_or(known),
            bytes_per_second: gpu.map(Gpu::bytes_per_second),
        }
    }

    /// A CPU with `memory_bytes`.
    pub fn cpu(memory_bytes: u64) -> Self {
        Self { place: Place::Cpu, gpu: None, memory_bytes, bytes_per_second: None }
    }

    /// The first GPU of this machine, which the driver describes; nothing is loaded onto it.
    ///
    /// # Errors
    /// As [`device_info`].
    pub fn detected() -> Result<Self> {
        let info = device_info(0)?;
        Ok(Self::gpu(Gpu::named(&info.name), Some(info.memory_bytes)))
    }
}
