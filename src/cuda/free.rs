//! How much memory a GPU has left.

use super::device::device;

/// Bytes of the GPU that nothing occupies; `None` where the driver does not say. What libtorch keeps for later counts as occupied:
/// asked for more than is free, it gives that back first.
pub(crate) fn free_bytes(ordinal: usize) -> Option<usize> {
    device(ordinal).and_then(|device| device.free_and_total_bytes()).map(|(free, _)| free).ok()
}
