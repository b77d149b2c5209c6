//! Every embedded kernel compiles for every architecture that is promised, without a warning; no GPU is needed.

use codecllm::cuda::{compile_all, has_compiler, Compiled, ARCHITECTURES};

/// Whether a module of one kernel holds it under the module's name, by which it is looked up; a whole file has several.
fn has_its_symbol(module: &Compiled) -> bool {
    let section = format!(".text.{}\0", module.name);
    module.name.ends_with(".cu")
        || module.binary.windows(section.len()).any(|bytes| bytes == section.as_bytes())
}

fn check(arch: &str) {
    if !has_compiler() {
        println!("SKIPPED: NVRTC is not here");
        return;
    }
    let compiled = compile_all(arch).unwrap();
    for kernel in &compiled {
        assert!(kernel.binary.starts_with(b"\x7fELF"), "{arch}: {} is no ELF file", kernel.name);
        assert_eq!(kernel.log, "", "{arch}: {}", kernel.name);
        assert!(has_its_symbol(kernel), "{arch}: {} has no kernel of its name", kernel.name);
    }
}

/// One test for each, so that a failure names its architecture and they run side by side.
macro_rules! architectures {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                check(stringify!($name));
            }
        )*

        #[test]
        fn none_is_forgotten() {
            assert_eq!([$(stringify!($name)),*], ARCHITECTURES);
        }
    };
}

architectures!(sm_80 sm_86 sm_89 sm_90a sm_100 sm_120);
