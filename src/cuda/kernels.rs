//! The device code, embedded: every file of `csrc/kernels`, one line each.

/// One file of CUDA C++.
#[derive(Debug)]
pub(crate) struct Source {
    /// The file's name.
    pub(crate) name: &'static str,
    pub(crate) text: &'static str,
}

/// `NAME: "file"` makes a static `NAME` of each kernel file, and the list of them all.
macro_rules! kernels {
    ($($name:ident: $file:literal,)*) => {
        $(
            #[doc = concat!("`csrc/kernels/", $file, "`.")]
            pub(crate) static $name: Source = embedded!($file);
        )*
        /// Every kernel file.
        pub(crate) static ALL: &[&Source] = &[$(&$name),*];
    };
}

macro_rules! embedded {
    ($file:literal) => {
        Source {
            name: $file,
            text: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/csrc/kernels/", $file)),
        }
    };
}

kernels! {
    ARGMAX: "argmax.cu",
    ATTENTION: "attention.cu",
    EMBEDDING: "embedding.cu",
    RMS_NORM: "rms_norm.cu",
    ROPE_CACHE: "rope_cache.cu",
    SWIGLU: "swiglu.cu",
}

/// What kernels include, by name.
pub(super) static HEADERS: &[Source] = &[embedded!("element.cuh"), embedded!("half.cuh")];
