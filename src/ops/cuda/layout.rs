//! The layouts that the kernels decode: the one place that says so.

use crate::codec::{Layout, View};
use crate::error::{Error, Result};

/// A layout that the kernels decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum KernelLayout {
    /// [`Layout::Fast`].
    Fast,
    /// [`Layout::Small`].
    Small,
}

impl KernelLayout {
    /// The layout of `view`.
    ///
    /// # Errors
    /// `Unsupported` where no kernel decodes it.
    pub(super) fn of(view: &View) -> Result<Self> {
        match view.header.layout {
            Layout::Fast => Ok(Self::Fast),
            Layout::Small => Ok(Self::Small),
            other @ (Layout::ExactBf16 | Layout::ExactFp16) => Err(Error::unsupported(
                view.subject(),
                format!(
                    "layout {} is not decoded on a GPU (use --device cpu, or decompress it)",
                    other.name()
                ),
            )),
        }
    }

    /// The same for the codec.
    pub(super) fn codec(self) -> Layout {
        match self {
            Self::Fast => Layout::Fast,
            Self::Small => Layout::Small,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{encode_exact, EncodeOptions, SourceDtype};
    use crate::ops::cuda::CheckedWeight;

    #[test]
    fn floats_are_refused_by_name() {
        for (layout, dtype) in [(Layout::ExactBf16, SourceDtype::BF16), (Layout::ExactFp16, SourceDtype::F16)]
        {
            let options = EncodeOptions { layout, ..EncodeOptions::default() };
            let buffers = encode_exact("a.weight", &[0x3C00; 100], [10, 10], dtype, options).unwrap();
            let error = CheckedWeight::of(&buffers.view("a.weight").unwrap()).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Unsupported);
            let wanted = format!("a.weight: layout {} is not decoded on a GPU", layout.name());
            assert!(error.to_string().starts_with(&wanted), "{error}");
        }
    }
}
