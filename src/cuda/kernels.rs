//! The device code, embedded: every file of `csrc/kernels`, one line each.

/// One file of CUDA C++.
#[derive(Debug)]
pub(crate) struct Source {
    /// The file's name; no two files share one.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of the files with this extension in `csrc/kernels`; none where the sources are not at hand.
    fn files(extension: &str) -> Option<Vec<String>> {
        let folder = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/csrc/kernels")).ok()?;
        let paths = folder.map(|entry| entry.unwrap().path());
        let mut names: Vec<String> = paths
            .filter(|path| path.extension().is_some_and(|found| found == extension))
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        names.sort();
        Some(names)
    }

    fn sorted<'a>(sources: impl Iterator<Item = &'a Source>) -> Vec<String> {
        let mut names: Vec<String> = sources.map(|source| source.name.to_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn every_file_is_embedded() {
        let (Some(kernels), Some(headers)) = (files("cu"), files("cuh")) else {
            println!("SKIPPED: csrc/kernels is not here");
            return;
        };
        assert_eq!(sorted(ALL.iter().copied()), kernels);
        assert_eq!(sorted(HEADERS.iter()), headers);
    }
}
