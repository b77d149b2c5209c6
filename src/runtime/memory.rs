//! What the process occupies in memory, as the operating system counts it.

/// The most memory the process has had resident so far, bytes. `None` where the system does not say.
///
/// Beside [`rss_bytes`]; see its example.
pub fn peak_rss_bytes() -> Option<u64> {
    status_bytes("VmHWM:")
}

/// The memory the process has resident now, bytes. `None` where the system does not say.
///
/// ```
/// use codecllm::runtime::{peak_rss_bytes, rss_bytes};
/// if let (Some(now), Some(peak)) = (rss_bytes(), peak_rss_bytes()) {
///     assert!(0 < now && now <= peak + (1 << 20));
/// }
/// # Ok::<(), codecllm::Error>(())
/// ```
pub fn rss_bytes() -> Option<u64> {
    status_bytes("VmRSS:")
}

/// The memory that the process can still have without anything being swapped out, bytes: what the system has, or less where control
/// groups limit it, as in a container. `None` where the system does not say.
#[cfg(feature = "serve")]
pub(crate) fn available_bytes() -> Option<u64> {
    let system = field_bytes("/proc/meminfo", "MemAvailable:");
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limit = super::cgroup::available_bytes(std::path::Path::new("/sys/fs/cgroup"), &own);
    [system, limit].into_iter().flatten().min()
}

fn status_bytes(field: &str) -> Option<u64> {
    field_bytes("/proc/self/status", field)
}

/// A line such as `VmHWM:     1234 kB` of a file of Linux's `/proc`.
fn field_bytes(file: &str, field: &str) -> Option<u64> {
    let status = std::fs::read_to_string(file).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}
