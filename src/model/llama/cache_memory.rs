//! What a key-value cache needs, told where there is no room for it.

use tch::Device;

use crate::cuda;
use crate::error::Error;

/// Memory for `count` units of a cache, all layers together.
#[derive(Clone, Copy, Debug)]
pub(super) struct CacheMemory {
    /// What a unit is, in the plural.
    pub unit: &'static str,
    pub count: usize,
    pub unit_bytes: usize,
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

    fn need(&self, free_bytes: Option<usize>) -> String {
        let Self { unit, count, unit_bytes, .. } = *self;
        let needed = count.saturating_mul(unit_bytes);
        let need = format!("needs {needed} bytes for {count} {unit}");
        match free_bytes {
            Some(free) => format!("{need}, {free} are free: room for {} {unit}", free / unit_bytes.max(1)),
            None => need,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_and_what_fits_are_told() {
        let memory = CacheMemory { unit: "tokens", count: 100, unit_bytes: 7, device: Device::Cpu };
        assert_eq!(memory.need(Some(50)), "needs 700 bytes for 100 tokens, 50 are free: room for 7 tokens");
        assert_eq!(memory.need(None), "needs 700 bytes for 100 tokens");
    }
}
