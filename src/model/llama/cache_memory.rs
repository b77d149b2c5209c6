//! What a key-value cache needs, told where there is no room for it.

use tch::Device;

use crate::cuda;
use crate::error::Error;

/// What libtorch's allocator rounds a large tensor of a GPU up to.
const GPU_STEP_BYTES: usize = 2 << 20;

/// Memory for `count` units of a cache, all layers together.
#[derive(Clone, Copy, Debug)]
pub(super) struct CacheMemory {
    /// What a unit is, in the plural.
    pub unit: &'static str,
    pub count: usize,
    pub unit_bytes: usize,
    /// Units that are taken together.
    pub step: usize,
    /// Units that there are beside those.
    pub spare: usize,
    /// Tensors of a GPU that it is cut into, as far as their rounding counts.
    pub rounded: usize,
    pub device: Device,
}

impl CacheMemory {
    /// `error`, which ended the making of the cache, with what all of it needs and for how much there is room. `made_bytes` of it
    /// were made before, and are free again by the time the error is read.
    pub(super) fn explain(&self, error: Error, made_bytes: usize) -> Error {
        error.with_need(|| {
            let free = match self.device {
                Device::Cuda(ordinal) => cuda::free_bytes(ordinal),
                _ => None,
            };
            self.need(free.map(|free| free + made_bytes))
        })
    }

    /// The most units that a cache in `free_bytes` can have.
    pub(super) fn room(&self, free_bytes: usize) -> usize {
        let whole = free_bytes.saturating_sub(self.rounded.saturating_mul(GPU_STEP_BYTES));
        let units = (whole / self.unit_bytes.max(1)).saturating_sub(self.spare);
        units - units % self.step.max(1)
    }

    /// What all of it needs and, of `free_bytes`, for how much there is room.
    pub(super) fn need(&self, free_bytes: Option<usize>) -> String {
        let Self { unit, count, unit_bytes, .. } = *self;
        let needed = count.saturating_add(self.spare).saturating_mul(unit_bytes);
        let need = format!("needs {needed} bytes for {count} {unit}");
        match free_bytes {
            Some(free) => format!("{need}, {free} are free: room for {} {unit}", self.room(free)),
            None => need,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_and_what_fits_are_told() {
        let memory = CacheMemory {
            unit: "tokens",
            count: 100,
            unit_bytes: 7,
            step: 1,
            spare: 0,
            rounded: 0,
            device: Device::Cpu,
        };
        assert_eq!(memory.need(Some(50)), "needs 700 bytes for 100 tokens, 50 are free: room for 7 tokens");
        assert_eq!(memory.need(None), "needs 700 bytes for 100 tokens");
    }

    #[test]
    fn room_is_for_whole_steps_beside_what_is_spare_and_rounded() {
        let memory = CacheMemory {
            unit: "tokens",
            count: 96,
            unit_bytes: 7,
            step: 32,
            spare: 32,
            rounded: 0,
            device: Device::Cpu,
        };
        assert_eq!([7 * 63, 7 * 64, 7 * 127, 7 * 128].map(|free| memory.room(free)), [0, 32, 64, 96]);
        assert_eq!(memory.need(Some(900)), "needs 896 bytes for 96 tokens, 900 are free: room for 96 tokens");
        let rounded = CacheMemory { rounded: 4, ..memory };
        assert_eq!([7 * 128, (8 << 20) + 7 * 128].map(|free| rounded.room(free)), [0, 96]);
    }
}
