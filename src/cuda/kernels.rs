//! The device code, embedded: every file of `csrc/kernels`, cut into the modules that it is compiled as, one line each.

/// What becomes one module: a file of CUDA C++ with its defines.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// No two modules share one. A module with one kernel is named like it.
    pub(crate) name: &'static str,
    /// The file's name, for the compiler's messages.
    pub(super) file: &'static str,
    pub(super) text: &'static str,
    /// The compiler's options, beside those of all.
    pub(super) defines: &'static [&'static str],
}

/// A file that kernels include by its name.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) name: &'static str,
    pub(super) text: &'static str,
}

impl Source {
    /// A whole file.
    pub(super) const fn file(name: &'static str, text: &'static str) -> Self {
        Self { name, file: name, text, defines: &[] }
    }
}

/// `NAME: "file"` makes a static `NAME` of a kernel file; `NAME: "file" kernel (KEY = value)` one of a single kernel of a file
/// that has many, which takes the compiler a second: the file is told its name and which it is. And the list of all.
macro_rules! kernels {
    ($($name:ident: $file:literal $($kernel:ident ($($key:ident = $value:tt),*))?,)*) => {
        $(
            #[doc = concat!("Of `csrc/kernels/", $file, "`.")]
            pub(crate) static $name: Source = kernels!(@source $file $($kernel ($($key = $value),*))?);
        )*
        /// Every module.
        pub(crate) static ALL: &[&Source] = &[$(&$name),*];
    };
    (@source $file:literal) => { Source::file($file, text!($file)) };
    (@source $file:literal $kernel:ident ($($key:ident = $value:tt),*)) => {
        Source {
            name: stringify!($kernel),
            file: $file,
            text: text!($file),
            defines: &[
                concat!("-DKERNEL=", stringify!($kernel)),
                $(concat!("-DKERNEL_", stringify!($key), "=", stringify!($value))),*
            ],
        }
    };
}

macro_rules! text {
    ($file:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/csrc/kernels/", $file))
    };
}

macro_rules! header {
    ($file:literal) => {
        Header { name: $file, text: text!($file) }
    };
}

// What takes longest to compile comes first: so all are done soonest.
kernels! {
    FUSED_LINEAR_FAST_64_20: "fused_linear.cu" fused_linear_fast_64_20 (LAYOUT = FAST, ROWS = 64, WARPS = 20),
    FUSED_LINEAR_FAST_32_20: "fused_linear.cu" fused_linear_fast_32_20 (LAYOUT = FAST, ROWS = 32, WARPS = 20),
    FUSED_LINEAR_SMALL_64_20: "fused_linear.cu" fused_linear_small_64_20 (LAYOUT = SMALL, ROWS = 64, WARPS = 20),
    FUSED_LINEAR_FAST_16_24: "fused_linear.cu" fused_linear_fast_16_24 (LAYOUT = FAST, ROWS = 16, WARPS = 24),
    FUSED_LINEAR_FAST_16_16: "fused_linear.cu" fused_linear_fast_16_16 (LAYOUT = FAST, ROWS = 16, WARPS = 16),
    DECODE_TO_SCRATCH_FAST_BF16: "decode_to_scratch.cu" decode_to_scratch_fast_bf16 (LAYOUT = FAST, ELEMENT = BF16),
    DECODE_TO_SCRATCH_FAST_F16: "decode_to_scratch.cu" decode_to_scratch_fast_f16 (LAYOUT = FAST, ELEMENT = F16),
    DECODE_TO_SCRATCH_FAST_F32: "decode_to_scratch.cu" decode_to_scratch_fast_f32 (LAYOUT = FAST, ELEMENT = F32),
    FUSED_LINEAR_FAST_8_32: "fused_linear.cu" fused_linear_fast_8_32 (LAYOUT = FAST, ROWS = 8, WARPS = 32),
    FUSED_LINEAR_FAST_8_24: "fused_linear.cu" fused_linear_fast_8_24 (LAYOUT = FAST, ROWS = 8, WARPS = 24),
    FUSED_LINEAR_FAST_8_16: "fused_linear.cu" fused_linear_fast_8_16 (LAYOUT = FAST, ROWS = 8, WARPS = 16),
    FUSED_LINEAR_SMALL_32_20: "fused_linear.cu" fused_linear_small_32_20 (LAYOUT = SMALL, ROWS = 32, WARPS = 20),
    GATHER_ROWS_FAST: "gather_rows.cu" gather_rows_fast (LAYOUT = FAST),
    FUSED_LINEAR_SMALL_16_24: "fused_linear.cu" fused_linear_small_16_24 (LAYOUT = SMALL, ROWS = 16, WARPS = 24),
    FUSED_LINEAR_SMALL_16_16: "fused_linear.cu" fused_linear_small_16_16 (LAYOUT = SMALL, ROWS = 16, WARPS = 16),
    FUSED_LINEAR_SMALL_8_32: "fused_linear.cu" fused_linear_small_8_32 (LAYOUT = SMALL, ROWS = 8, WARPS = 32),
    FUSED_LINEAR_SMALL_8_24: "fused_linear.cu" fused_linear_small_8_24 (LAYOUT = SMALL, ROWS = 8, WARPS = 24),
    FUSED_LINEAR_SMALL_8_16: "fused_linear.cu" fused_linear_small_8_16 (LAYOUT = SMALL, ROWS = 8, WARPS = 16),
    DECODE_TO_SCRATCH_SMALL_BF16: "decode_to_scratch.cu" decode_to_scratch_small_bf16 (LAYOUT = SMALL, ELEMENT = BF16),
    DECODE_TO_SCRATCH_SMALL_F16: "decode_to_scratch.cu" decode_to_scratch_small_f16 (LAYOUT = SMALL, ELEMENT = F16),
    DECODE_TO_SCRATCH_SMALL_F32: "decode_to_scratch.cu" decode_to_scratch_small_f32 (LAYOUT = SMALL, ELEMENT = F32),
    GATHER_ROWS_SMALL: "gather_rows.cu" gather_rows_small (LAYOUT = SMALL),
    FUSED_LINEAR_EXACT_BF16_64_20: "fused_linear.cu" fused_linear_exact_bf16_64_20 (LAYOUT = EXACT_BF16, ROWS = 64, WARPS = 20),
    FUSED_LINEAR_EXACT_FP16_64_20: "fused_linear.cu" fused_linear_exact_fp16_64_20 (LAYOUT = EXACT_FP16, ROWS = 64, WARPS = 20),
    FUSED_LINEAR_EXACT_BF16_32_20: "fused_linear.cu" fused_linear_exact_bf16_32_20 (LAYOUT = EXACT_BF16, ROWS = 32, WARPS = 20),
    FUSED_LINEAR_EXACT_FP16_32_20: "fused_linear.cu" fused_linear_exact_fp16_32_20 (LAYOUT = EXACT_FP16, ROWS = 32, WARPS = 20),
    FUSED_LINEAR_EXACT_BF16_16_24: "fused_linear.cu" fused_linear_exact_bf16_16_24 (LAYOUT = EXACT_BF16, ROWS = 16, WARPS = 24),
    FUSED_LINEAR_EXACT_FP16_16_24: "fused_linear.cu" fused_linear_exact_fp16_16_24 (LAYOUT = EXACT_FP16, ROWS = 16, WARPS = 24),
    FUSED_LINEAR_EXACT_BF16_16_16: "fused_linear.cu" fused_linear_exact_bf16_16_16 (LAYOUT = EXACT_BF16, ROWS = 16, WARPS = 16),
    FUSED_LINEAR_EXACT_FP16_16_16: "fused_linear.cu" fused_linear_exact_fp16_16_16 (LAYOUT = EXACT_FP16, ROWS = 16, WARPS = 16),
    FUSED_LINEAR_EXACT_BF16_8_32: "fused_linear.cu" fused_linear_exact_bf16_8_32 (LAYOUT = EXACT_BF16, ROWS = 8, WARPS = 32),
    FUSED_LINEAR_EXACT_FP16_8_32: "fused_linear.cu" fused_linear_exact_fp16_8_32 (LAYOUT = EXACT_FP16, ROWS = 8, WARPS = 32),
    FUSED_LINEAR_EXACT_BF16_8_24: "fused_linear.cu" fused_linear_exact_bf16_8_24 (LAYOUT = EXACT_BF16, ROWS = 8, WARPS = 24),
    FUSED_LINEAR_EXACT_FP16_8_24: "fused_linear.cu" fused_linear_exact_fp16_8_24 (LAYOUT = EXACT_FP16, ROWS = 8, WARPS = 24),
    FUSED_LINEAR_EXACT_BF16_8_16: "fused_linear.cu" fused_linear_exact_bf16_8_16 (LAYOUT = EXACT_BF16, ROWS = 8, WARPS = 16),
    FUSED_LINEAR_EXACT_FP16_8_16: "fused_linear.cu" fused_linear_exact_fp16_8_16 (LAYOUT = EXACT_FP16, ROWS = 8, WARPS = 16),
    DECODE_TO_SCRATCH_EXACT_BF16_BF16: "decode_to_scratch.cu" decode_to_scratch_exact_bf16_bf16 (LAYOUT = EXACT_BF16, ELEMENT = BF16),
    DECODE_TO_SCRATCH_EXACT_FP16_BF16: "decode_to_scratch.cu" decode_to_scratch_exact_fp16_bf16 (LAYOUT = EXACT_FP16, ELEMENT = BF16),
    DECODE_TO_SCRATCH_EXACT_BF16_F16: "decode_to_scratch.cu" decode_to_scratch_exact_bf16_f16 (LAYOUT = EXACT_BF16, ELEMENT = F16),
    DECODE_TO_SCRATCH_EXACT_FP16_F16: "decode_to_scratch.cu" decode_to_scratch_exact_fp16_f16 (LAYOUT = EXACT_FP16, ELEMENT = F16),
    DECODE_TO_SCRATCH_EXACT_BF16_F32: "decode_to_scratch.cu" decode_to_scratch_exact_bf16_f32 (LAYOUT = EXACT_BF16, ELEMENT = F32),
    DECODE_TO_SCRATCH_EXACT_FP16_F32: "decode_to_scratch.cu" decode_to_scratch_exact_fp16_f32 (LAYOUT = EXACT_FP16, ELEMENT = F32),
    GATHER_ROWS_EXACT_BF16: "gather_rows.cu" gather_rows_exact_bf16 (LAYOUT = EXACT_BF16),
    GATHER_ROWS_EXACT_FP16: "gather_rows.cu" gather_rows_exact_fp16 (LAYOUT = EXACT_FP16),
    RMS_NORM: "rms_norm.cu",
    ATTENTION_F16_256_4: "attention.cu" attention_f16_256_4 (ELEMENT = Fp16, WIDTH = 256, GROUP = 4),
    ATTENTION_F32_256_4: "attention.cu" attention_f32_256_4 (ELEMENT = Fp32, WIDTH = 256, GROUP = 4),
    ATTENTION_BF16_256_4: "attention.cu" attention_bf16_256_4 (ELEMENT = Bf16, WIDTH = 256, GROUP = 4),
    ATTENTION_F16_128_4: "attention.cu" attention_f16_128_4 (ELEMENT = Fp16, WIDTH = 128, GROUP = 4),
    ATTENTION_F32_128_4: "attention.cu" attention_f32_128_4 (ELEMENT = Fp32, WIDTH = 128, GROUP = 4),
    ATTENTION_BF16_128_4: "attention.cu" attention_bf16_128_4 (ELEMENT = Bf16, WIDTH = 128, GROUP = 4),
    ATTENTION_F16_64_4: "attention.cu" attention_f16_64_4 (ELEMENT = Fp16, WIDTH = 64, GROUP = 4),
    ATTENTION_F32_64_4: "attention.cu" attention_f32_64_4 (ELEMENT = Fp32, WIDTH = 64, GROUP = 4),
    ATTENTION_BF16_64_4: "attention.cu" attention_bf16_64_4 (ELEMENT = Bf16, WIDTH = 64, GROUP = 4),
    ATTENTION_F16_256_1: "attention.cu" attention_f16_256_1 (ELEMENT = Fp16, WIDTH = 256, GROUP = 1),
    ATTENTION_F32_256_1: "attention.cu" attention_f32_256_1 (ELEMENT = Fp32, WIDTH = 256, GROUP = 1),
    ATTENTION_BF16_256_1: "attention.cu" attention_bf16_256_1 (ELEMENT = Bf16, WIDTH = 256, GROUP = 1),
    ATTENTION_F16_128_1: "attention.cu" attention_f16_128_1 (ELEMENT = Fp16, WIDTH = 128, GROUP = 1),
    ATTENTION_F32_128_1: "attention.cu" attention_f32_128_1 (ELEMENT = Fp32, WIDTH = 128, GROUP = 1),
    ATTENTION_BF16_128_1: "attention.cu" attention_bf16_128_1 (ELEMENT = Bf16, WIDTH = 128, GROUP = 1),
    ATTENTION_F16_64_1: "attention.cu" attention_f16_64_1 (ELEMENT = Fp16, WIDTH = 64, GROUP = 1),
    ATTENTION_F32_64_1: "attention.cu" attention_f32_64_1 (ELEMENT = Fp32, WIDTH = 64, GROUP = 1),
    ATTENTION_BF16_64_1: "attention.cu" attention_bf16_64_1 (ELEMENT = Bf16, WIDTH = 64, GROUP = 1),
    ARGMAX: "argmax.cu",
    SWIGLU: "swiglu.cu",
    ACTIVATIONS: "activations.cu",
    ROPE_CACHE: "rope_cache.cu",
    EMBEDDING: "embedding.cu",
}

/// What kernels include, by name.
pub(super) static HEADERS: &[Header] = &[
    header!("decode.cuh"),
    header!("dequantize.cuh"),
    header!("element.cuh"),
    header!("group.cuh"),
    header!("half.cuh"),
    header!("pages.cuh"),
    header!("rans.cuh"),
    header!("tile.cuh"),
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

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

    fn sorted<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
        let mut names: Vec<String> = names.map(str::to_owned).collect();
        names.sort();
        names
    }

    #[test]
    fn every_file_is_embedded() {
        let (Some(kernels), Some(headers)) = (files("cu"), files("cuh")) else {
            println!("SKIPPED: csrc/kernels is not here");
            return;
        };
        let mut embedded = sorted(ALL.iter().map(|source| source.file));
        embedded.dedup();
        assert_eq!(embedded, kernels);
        assert_eq!(sorted(HEADERS.iter().map(|header| header.name)), headers);
    }

    #[test]
    fn no_two_modules_share_a_name_or_are_the_same() {
        let names: HashSet<_> = ALL.iter().map(|source| source.name).collect();
        let contents: HashSet<_> = ALL.iter().map(|source| (source.file, source.defines)).collect();
        assert_eq!((names.len(), contents.len()), (ALL.len(), ALL.len()));
    }

    #[test]
    fn a_single_kernel_is_told_its_name_and_which_it_is() {
        let source = &FUSED_LINEAR_FAST_8_32;
        assert_eq!((source.name, source.file), ("fused_linear_fast_8_32", "fused_linear.cu"));
        assert_eq!(
            source.defines,
            [
                "-DKERNEL=fused_linear_fast_8_32",
                "-DKERNEL_LAYOUT=FAST",
                "-DKERNEL_ROWS=8",
                "-DKERNEL_WARPS=32"
            ]
        );
    }
}
