//! What a compressed weight can do on a GPU. Tensor in, tensor out, on libtorch's current stream: nothing here waits for the
//! device or asks it anything.

mod activations;
mod decode_to_scratch;
mod fused_linear;
mod gather_rows;
mod launch;
mod layout;
mod pool;
mod sources;
mod tables;
mod weight;

pub(crate) use decode_to_scratch::decode_to_scratch;
pub(crate) use fused_linear::{can_fuse, fused_linear, should_merge, FusedPart, MOST_ROWS};
pub(crate) use gather_rows::gather_rows;
pub(crate) use layout::KernelLayout;
pub(crate) use pool::{keep, lend, Purpose, Workspace};
pub(crate) use sources::sources;
pub(crate) use weight::{CheckedWeight, DeviceWeight};
