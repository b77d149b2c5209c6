//! What a GPU is, for reports.

use cudarc::driver::result;
use cudarc::driver::sys::CUdevice_attribute;
use serde::Serialize;

use super::device::{attribute, handle, subject};
use super::driver::{self, DriverContext};
use crate::error::Result;

/// A GPU and its driver.
///
/// Made by [`device_info`]; see its example.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// Its number, as libtorch counts them.
    pub ordinal: usize,
    /// Its name, such as `NVIDIA H200`.
    pub name: String,
    /// The driver's version, such as `580.159.03`; where the system does not say, that of CUDA.
    pub driver: String,
    /// The newest version of CUDA that the driver supports, such as `13.0`.
    pub cuda: String,
    /// Compute capability, major and minor.
    pub compute_capability: (u32, u32),
    /// Number of multiprocessors.
    pub multiprocessors: u32,
    /// All of its memory, bytes.
    pub memory_bytes: u64,
    /// Its second-level cache, bytes.
    pub l2_bytes: u64,
}

/// What the GPU with this number is. Needs the driver only: neither loads libtorch's part nor occupies the GPU.
///
/// ```
/// use codecllm::cuda::device_info;
/// match device_info(0) {
///     Ok(info) => println!("{}, {} bytes", info.name, info.memory_bytes),
///     Err(error) => println!("no GPU: {error}"),
/// }
/// # Ok::<(), codecllm::Error>(())
/// ```
///
/// # Errors
/// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) without a driver or a GPU,
/// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) where there is no such GPU.
pub fn device_info(ordinal: usize) -> Result<DeviceInfo> {
    use CUdevice_attribute as Attribute;
    let handle = handle(ordinal)?;
    let subject = subject(ordinal);
    let cuda = driver::dotted(driver::version().about(&subject)?);
    // SAFETY: the handle comes from the driver.
    let memory_bytes = unsafe { result::device::total_mem(handle) }.about(&subject)? as u64;
    Ok(DeviceInfo {
        ordinal,
        name: result::device::get_name(handle).about(&subject)?,
        driver: kernel_module_version().unwrap_or_else(|| format!("CUDA {cuda}")),
        cuda,
        compute_capability: (
            attribute(handle, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(handle, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(handle, Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        memory_bytes,
        l2_bytes: u64::from(attribute(handle, Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?),
    })
}

/// The version that Linux shows of the loaded driver.
fn kernel_module_version() -> Option<String> {
    let version = std::fs::read_to_string("/sys/module/nvidia/version").ok()?;
    Some(version.trim().to_owned()).filter(|version| !version.is_empty())
}
