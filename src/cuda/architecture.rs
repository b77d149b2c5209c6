//! For which architecture a device's kernels are compiled.

use crate::error::{Error, Result};

/// The architectures that kernels are compiled and tested for, oldest first.
///
/// Taken one by one by [`compile_all`](super::compile_all); see its example.
pub const ARCHITECTURES: [&str; 6] = ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120"];

/// What NVRTC is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Machine code for `sm_XX`.
    Cubin(&'static str),
    /// PTX for `compute_XX`, which the driver compiles for a device that none of the list fits.
    Ptx(String),
}

impl Target {
    /// The target for a device of this compute capability: machine code runs on every later minor version of its
    /// major version, PTX on everything later.
    pub(super) fn for_compute(compute: (u32, u32)) -> Result<Self> {
        let older = ARCHITECTURES.into_iter().rev().find(|arch| capability(arch) <= compute);
        match older {
            Some(arch) if capability(arch).0 == compute.0 => Ok(Self::Cubin(arch)),
            Some(arch) => {
                let (major, minor) = capability(arch);
                Ok(Self::Ptx(format!("compute_{major}{minor}")))
            }
            None => Err(Error::unsupported(
                "CUDA",
                format!(
                    "the GPU has compute capability {}.{}, 8.0 or newer is needed; use the CPU",
                    compute.0, compute.1
                ),
            )),
        }
    }

    /// The architecture as NVRTC names it.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Cubin(name) => name,
            Self::Ptx(name) => name,
        }
    }
}

/// `sm_90a` as (9, 0): the last digit is the minor version, a letter says that it runs on that version alone.
fn capability(arch: &str) -> (u32, u32) {
    let digits = arch.bytes().filter(u8::is_ascii_digit);
    let number = digits.fold(0, |number, digit| 10 * number + u32::from(digit - b'0'));
    (number / 10, number % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_the_names_and_ascend() {
        let capabilities = ARCHITECTURES.map(capability);
        assert_eq!(capabilities, [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]);
        assert!(capabilities.is_sorted());
    }

    #[test]
    fn a_device_gets_the_newest_machine_code_that_it_runs() {
        let target = |compute| Target::for_compute(compute).unwrap();
        for arch in ARCHITECTURES {
            assert_eq!(target(capability(arch)), Target::Cubin(arch));
        }
        assert_eq!(target((8, 7)), Target::Cubin("sm_86"));
        assert_eq!(target((10, 3)), Target::Cubin("sm_100"));
        assert_eq!(target((12, 1)), Target::Cubin("sm_120"));
    }

    #[test]
    fn a_device_of_an_unknown_generation_gets_ptx() {
        assert_eq!(Target::for_compute((11, 0)).unwrap(), Target::Ptx("compute_100".to_owned()));
        assert_eq!(Target::for_compute((13, 5)).unwrap(), Target::Ptx("compute_120".to_owned()));
    }

    #[test]
    fn a_device_older_than_all_is_refused() {
        let error = Target::for_compute((7, 5)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "CUDA: the GPU has compute capability 7.5, 8.0 or newer is needed; use the CPU"
        );
    }
}
