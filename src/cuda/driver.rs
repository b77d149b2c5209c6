//! The CUDA driver: whether it is there, and its errors as ours.

use std::sync::OnceLock;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use crate::error::{Error, ErrorKind, Result};

/// Of CUDA versions the oldest whose driver has every function that is called here, as the driver counts.
const OLDEST_VERSION: i32 = 12080;

/// Initializes the driver and gives the number of devices, at least one.
pub(super) fn initialize() -> Result<i32> {
    static DEVICES: OnceLock<std::result::Result<i32, String>> = OnceLock::new();
    DEVICES.get_or_init(count_devices).clone().map_err(|reason| Error::unsupported("CUDA", reason))
}

fn count_devices() -> std::result::Result<i32, String> {
    // SAFETY: loading NVIDIA's driver library runs only its own initializers.
    if !unsafe { sys::is_culib_present() } {
        return Err(
            "no NVIDIA driver here (libcuda.so.1 does not load); install one, or use the CPU".to_owned()
        );
    }
    let failed = |error: DriverError| format!("the NVIDIA driver reports {}; use the CPU", describe(error));
    let version = version().map_err(failed)?;
    if version < OLDEST_VERSION {
        return Err(format!(
            "the NVIDIA driver is for CUDA {}, {} is needed; update the driver",
            dotted(version),
            dotted(OLDEST_VERSION)
        ));
    }
    result::init().map_err(failed)?;
    match result::device::get_count().map_err(failed)? {
        0 => Err("the NVIDIA driver finds no GPU (is CUDA_VISIBLE_DEVICES empty?); use the CPU".to_owned()),
        count => Ok(count),
    }
}

/// The newest CUDA version that the driver supports, as it counts: 13000 for 13.0. Needs no initialized driver, only
/// a present one.
pub(super) fn version() -> std::result::Result<i32, DriverError> {
    let mut version = 0;
    // SAFETY: the pointer is to a live integer.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result()?;
    Ok(version)
}

/// 13000 as `13.0`.
pub(super) fn dotted(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// Gives a fallible driver call its subject.
pub(super) trait DriverContext<T> {
    /// Turns a [`DriverError`] into an [`Error`] about `subject`.
    fn about(self, subject: &str) -> Result<T>;
}

impl<T> DriverContext<T> for std::result::Result<T, DriverError> {
    fn about(self, subject: &str) -> Result<T> {
        self.map_err(|error| Error::new(ErrorKind::Cuda, subject, describe(error)).with_source(error))
    }
}

/// The driver's own words, with the name to look up.
fn describe(error: DriverError) -> String {
    let name = format!("{:?}", error.0);
    match error.error_string() {
        Ok(text) => format!("{} ({name})", text.to_string_lossy()),
        Err(_) => name,
    }
}
