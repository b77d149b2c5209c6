//! TorchScript modules, patched: against the dense ones, as files, and damaged.

mod torchscript_fixtures;

use std::path::Path;
use std::process::Command;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use codecllm::checkpoint::Target;
use codecllm::nn::set_operator_fused_rows;
use codecllm::runtime::rss_bytes;
use codecllm::torchscript::{compare, patch_linears, InputSet, Module, PatchOptions, PatchReport};
use codecllm::ErrorKind;
use tch::{Device, IValue, Kind, Tensor};
use torchscript_fixtures::fixture;

/// How rows are multiplied is one setting of the process: tests that need the default share it, the one that forces scratch has it alone.
static PATHS: RwLock<()> = RwLock::new(());

fn default_path() -> RwLockReadGuard<'static, ()> {
    PATHS.read().unwrap_or_else(PoisonError::into_inner)
}

/// Scratch for every call until it is dropped.
struct Scratch(#[allow(dead_code)] RwLockWriteGuard<'static, ()>);

impl Scratch {
    fn forced() -> Self {
        let alone = PATHS.write().unwrap_or_else(PoisonError::into_inner);
        set_operator_fused_rows(Some(0));
        Self(alone)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        set_operator_fused_rows(None);
    }
}

/// Every fixture with linears; the number of matrices that are patched by default.
const PATCHABLE: [(&str, usize); 20] = [
    ("scripted", 43),
    ("scripted_fp16", 43),
    ("scripted_bf16", 43),
    ("traced", 43),
    ("frozen", 43),
    ("tied", 43),
    ("tied_functional", 43),
    ("kv_cache", 43),
    ("bert", 13),
    ("bert_traced", 13),
    ("gpt", 9),
    ("gpt_traced", 9),
    ("gpt_frozen", 9),
    ("mlp", 3),
    ("methods", 2),
    ("stateful", 1),
    ("dropout_training", 2),
    ("twins", 3),
    ("signature", 2),
    ("weight_read", 1),
];

fn load(path: &Path) -> Module {
    Module::load(path, Device::Cpu).unwrap()
}

fn inputs(path: &Path) -> Vec<InputSet> {
    InputSet::read(path.with_extension("safetensors")).unwrap()
}

fn patched(path: &Path, options: &PatchOptions) -> (Module, PatchReport) {
    let mut module = load(path);
    let report = patch_linears(&mut module, options).unwrap();
    (module, report)
}

fn to(target: Target) -> PatchOptions {
    PatchOptions { target, ..PatchOptions::default() }
}

#[test]
fn every_module_is_patched_and_its_outputs_stay_within_the_quantization() {
    let _path = default_path();
    for (name, count) in PATCHABLE {
        let Some(path) = fixture(name) else { return };
        let (module, report) = patched(&path, &PatchOptions::default());
        assert_eq!(report.patched.len(), count, "{name}: {:?}", report.skipped);
        let parity = compare(&load(&path), &module, &inputs(&path)).unwrap();
        let error = parity.worst_relative_error();
        // Int8 leaves 0.007 to 0.04 in these; an output of another weight is off by about 1.
        assert!(error > 0.0 && error < 0.06, "{name}: {error}");
    }
}

#[test]
fn a_lossless_module_is_the_dense_one_bit_for_bit_through_scratch() {
    let _scratch = Scratch::forced();
    for (name, count) in PATCHABLE {
        let Some(path) = fixture(name) else { return };
        let options = PatchOptions { embeddings: true, ..to(Target::Lossless) };
        let (module, report) = patched(&path, &options);
        assert!(report.patched.len() >= count, "{name}: {:?}", report.skipped);
        let parity = compare(&load(&path), &module, &inputs(&path)).unwrap();
        assert!(parity.is_exact(), "{name}: {parity:?}");
    }
}

#[test]
fn fp32_weights_that_no_half_holds_stay_as_they_are() {
    let Some(path) = fixture("mlp_fp32_weights") else { return };
    let (module, report) = patched(&path, &to(Target::Lossless));
    assert!(report.patched.is_empty());
    assert!(report.skipped.iter().all(|skipped| skipped.reason.contains("neither BF16 nor FP16")));
    assert!(compare(&load(&path), &module, &inputs(&path)).unwrap().is_exact());
}

#[test]
fn a_size_is_met_by_all_matrices_together() {
    let _path = default_path();
    let Some(path) = fixture("tied") else { return };
    for bits in [4.5, 6.0] {
        let (module, report) = patched(&path, &to(Target::Bits(bits)));
        assert!((report.bits_per_weight() - bits).abs() < 0.02, "{}", report.bits_per_weight());
        let parity = compare(&load(&path), &module, &inputs(&path)).unwrap();
        assert!(parity.worst_relative_error() < 0.5);
    }
}

#[test]
fn greedy_tokens_of_a_patched_llama_are_those_of_the_dense_one() {
    let _scratch = Scratch::forced();
    let (Some(path), Some(tokens)) = (fixture("kv_cache"), fixture("greedy")) else { return };
    let (module, _) = patched(&path, &PatchOptions { embeddings: true, ..to(Target::Lossless) });
    let wanted = Tensor::read_safetensors(tokens.with_extension("safetensors")).unwrap();
    let find = |name| wanted.iter().find(|(tensor, _)| tensor == name).unwrap().1.shallow_clone();
    let (prompt, tokens) = (find("prompt"), find("tokens"));
    let empty = || Tensor::zeros([6, 1, 6, 0, 48], (Kind::Float, Device::Cpu));
    let (mut ids, mut keys, mut values) = (prompt, empty(), empty());
    let mut said = Vec::new();
    for _ in 0..tokens.numel() {
        let arguments = [ids, keys, values].map(IValue::Tensor);
        let IValue::Tuple(mut out) = module.forward_is(&arguments).unwrap() else { panic!("wanted a tuple") };
        let mut next = || Tensor::try_from(out.remove(0)).unwrap();
        let logits = next();
        (keys, values) = (next(), next());
        ids = logits.select(1, -1).argmax(-1, true);
        said.push(ids.int64_value(&[0, 0]));
    }
    assert_eq!(said, Vec::<i64>::try_from(tokens.view(-1)).unwrap());
}

#[test]
fn a_patched_file_gives_the_same_outputs_and_is_smaller_by_what_the_report_says() {
    let _path = default_path();
    let folder = tempfile::tempdir().unwrap();
    for (name, _) in PATCHABLE {
        let Some(path) = fixture(name) else { return };
        let (module, report) = patched(&path, &PatchOptions::default());
        let file = folder.path().join(format!("{name}.pt"));
        module.save(&file).unwrap();
        assert!(compare(&module, &load(&file), &inputs(&path)).unwrap().is_exact(), "{name}");
        let bytes = |path: &Path| std::fs::metadata(path).unwrap().len() as i64;
        let saved = bytes(&path) - bytes(&file);
        let reported = report.original_bytes as i64 - report.compressed_bytes as i64;
        // Six buffers instead of a weight: their entries in the archive, and the code.
        let places: usize = report.patched.iter().map(|matrix| matrix.paths.len()).sum();
        let overhead = 16_384 + 3_072 * places as i64;
        assert!((reported - saved).abs() < overhead, "{name}: {saved} saved, {reported} reported");
    }
    let left: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("partial")), "{left:?}");
}

#[test]
fn compressed_data_are_byte_buffers_and_the_dense_weight_is_gone() {
    let Some(path) = fixture("scripted_fp16") else { return };
    let (module, report) = patched(&path, &PatchOptions::default());
    let parameters = module.named_parameters().unwrap();
    let buffers = module.named_buffers().unwrap();
    for matrix in &report.patched {
        for path in &matrix.paths {
            assert!(parameters.iter().all(|(name, _)| name != path), "{path} is still there");
            for buffer in codecllm::codec::BUFFER_NAMES {
                let name = format!("{path}_{buffer}");
                let (_, tensor) = buffers.iter().find(|(found, _)| *found == name).unwrap();
                assert_eq!((tensor.kind(), tensor.dim()), (Kind::Uint8, 1), "{name}");
            }
            let (_, like) = buffers.iter().find(|(found, _)| *found == format!("{path}_like")).unwrap();
            assert_eq!((like.kind(), like.numel()), (Kind::Half, 0));
        }
    }
    let largest = parameters.iter().map(|(_, tensor)| tensor.dim()).max();
    // The embedding's table stays: it was not asked for.
    assert_eq!((largest, parameters.iter().filter(|(_, tensor)| tensor.dim() == 2).count()), (Some(2), 1));
}

#[test]
fn shared_weights_are_compressed_once() {
    let Some(path) = fixture("tied") else { return };
    let (module, report) = patched(&path, &PatchOptions::default());
    let tied = report.patched.iter().find(|matrix| matrix.shape[0] == 32000).unwrap();
    assert_eq!(tied.paths, ["model.embed_tokens.weight", "lm_head.weight"]);
    let buffers = module.named_buffers().unwrap();
    let address = |path: &str| {
        let name = format!("{path}_payload");
        buffers.iter().find(|(found, _)| *found == name).unwrap().1.data_ptr() as usize
    };
    assert_eq!(address(&tied.paths[0]), address(&tied.paths[1]));
    let Some(path) = fixture("twins") else { return };
    let (_, report) = patched(&path, &PatchOptions::default());
    assert_eq!(report.patched.len(), 3, "`first` and `second` are one module");
}

#[test]
fn modules_of_one_class_are_patched_each_by_its_own_path() {
    let _path = default_path();
    let Some(path) = fixture("twins") else { return };
    let options = PatchOptions { exclude: vec!["layers.0.*".to_owned()], ..PatchOptions::default() };
    let (module, report) = patched(&path, &options);
    let patched_paths: Vec<&str> =
        report.patched.iter().flat_map(|matrix| matrix.paths.iter().map(String::as_str)).collect();
    assert!(patched_paths.iter().all(|path| !path.starts_with("layers.0.")), "{patched_paths:?}");
    assert!(report
        .skipped
        .iter()
        .any(|skipped| skipped.paths[0].starts_with("layers.0.") && skipped.reason == "excluded"));
    let parameters = module.named_parameters().unwrap();
    assert!(parameters.iter().any(|(name, _)| name == "layers.0.0.weight"), "{parameters:?}");
    assert!(parameters.iter().all(|(name, _)| name != "layers.1.0.weight"));
    assert!(compare(&load(&path), &module, &inputs(&path)).unwrap().worst_relative_error() < 0.05);
}

#[test]
fn options_choose_and_the_report_says_why() {
    let Some(path) = fixture("bert") else { return };
    let reasons = |options: &PatchOptions| {
        let (_, report) = patched(&path, options);
        (report.patched.len(), report.skipped.into_iter().map(|skipped| skipped.reason).collect::<Vec<_>>())
    };
    let (all, _) = reasons(&PatchOptions::default());
    let (some, why) =
        reasons(&PatchOptions { include: vec!["*query*".to_owned()], ..PatchOptions::default() });
    assert!(some > 0 && some < all && why.iter().any(|reason| reason == "not included"));
    let (large, why) = reasons(&PatchOptions { min_weights: 100_000, ..PatchOptions::default() });
    assert!(large < all && why.iter().any(|reason| reason.contains("fewer than the 100000")), "{why:?}");
    let (with_tables, _) = reasons(&PatchOptions { embeddings: true, ..PatchOptions::default() });
    assert!(with_tables > all);
    for (include, exclude) in [("no.such.*", None), ("*", Some("no.such.*"))] {
        let options = PatchOptions {
            include: vec![include.to_owned()],
            exclude: exclude.map(str::to_owned).into_iter().collect(),
            ..PatchOptions::default()
        };
        let mut module = load(&path);
        let error = patch_linears(&mut module, &options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.subject().contains("no.such.*"), "{error}");
        assert!(
            compare(&load(&path), &module, &inputs(&path)).unwrap().is_exact(),
            "unchanged after an error"
        );
    }
}

#[test]
fn a_weight_that_is_read_otherwise_stays_dense() {
    let Some(path) = fixture("weight_read") else { return };
    let (_, report) = patched(&path, &PatchOptions::default());
    assert_eq!(report.patched[0].paths, ["plain.weight"]);
    assert_eq!(report.skipped[0].paths, ["read.weight"]);
    assert!(report.skipped[0].reason.contains("aten::norm"), "{}", report.skipped[0].reason);
}

#[test]
fn other_methods_state_and_the_training_flag_work_as_before() {
    let _path = default_path();
    let Some(path) = fixture("methods") else { return };
    let (module, _) = patched(&path, &PatchOptions::default());
    let dense = load(&path);
    let x = inputs(&path).remove(0).arguments;
    let [wanted, got] = [&dense, &module].map(|module| module.method_ts("encode", &x).unwrap());
    assert!((&wanted - got).norm().double_value(&[]) < 0.05 * wanted.norm().double_value(&[]));
    assert!(module.method_ts("no_such_method", &x).is_err());

    let Some(path) = fixture("stateful") else { return };
    let (module, _) = patched(&path, &PatchOptions::default());
    let x = inputs(&path).remove(0).arguments;
    let [first, second] = [0, 1].map(|_| module.forward_is(&[IValue::Tensor(x[0].shallow_clone())]).unwrap());
    assert_ne!(first, second, "the state is changed by a call");

    // Its dropout drops everything unless it is in evaluation mode.
    let Some(path) = fixture("dropout_training") else { return };
    let (module, _) = patched(&path, &PatchOptions::default());
    let parity = compare(&load(&path), &module, &inputs(&path)).unwrap();
    assert!(parity.worst_relative_error() < 0.05);
}

#[test]
fn a_module_without_linears_gives_an_empty_report() {
    let Some(path) = fixture("no_linears") else { return };
    let (module, report) = patched(&path, &PatchOptions::default());
    assert!(report.patched.is_empty() && report.weights == 0);
    assert!(compare(&load(&path), &module, &inputs(&path)).unwrap().is_exact());
}

#[test]
fn a_patched_file_runs_through_tch_alone() {
    let _path = default_path();
    let Some(path) = fixture("mlp") else { return };
    let (module, _) = patched(&path, &PatchOptions::default());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("patched.pt");
    module.save(&file).unwrap();
    let x = inputs(&path).remove(0).arguments;
    let foreign = tch::CModule::load(&file).unwrap();
    assert_eq!(foreign.forward_ts(&x).unwrap(), tch::no_grad(|| module.forward_ts(&x).unwrap()));
}

#[test]
fn a_patched_module_is_refused_a_second_patch() {
    let Some(path) = fixture("mlp") else { return };
    let (mut module, _) = patched(&path, &PatchOptions::default());
    let error = patch_linears(&mut module, &PatchOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("patched already"), "{error}");
}

#[test]
fn two_threads_run_one_patched_module() {
    let _path = default_path();
    let Some(path) = fixture("scripted") else { return };
    let (module, _) = patched(&path, &PatchOptions::default());
    let ids = |first: i64| Tensor::from_slice(&[first, 403, 2501, 263]).unsqueeze(0);
    let alone: Vec<Tensor> =
        (1..3).map(|first| tch::no_grad(|| module.forward_ts(&[ids(first)]).unwrap())).collect();
    std::thread::scope(|scope| {
        for (first, wanted) in (1..3).zip(&alone) {
            let (module, wanted) = (&module, wanted.shallow_clone());
            scope.spawn(move || {
                for _ in 0..5 {
                    assert_eq!(tch::no_grad(|| module.forward_ts(&[ids(first)]).unwrap()), wanted);
                }
            });
        }
    });
}

#[test]
fn what_is_not_a_module_is_an_error() {
    let Some(path) = fixture("mlp") else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let file = folder.path().join(name);
        std::fs::write(&file, bytes).unwrap();
        file
    };
    let whole = std::fs::read(&path).unwrap();
    let cases = [
        (file("empty.pt", b""), ErrorKind::Corrupt),
        (file("text.pt", b"not a module"), ErrorKind::Corrupt),
        (file("half.pt", &whole[..whole.len() / 2]), ErrorKind::Truncated),
        (file("short.pt", &whole[..whole.len() - 1]), ErrorKind::Truncated),
        (folder.path().join("absent.pt"), ErrorKind::Io),
        (path.with_extension("safetensors"), ErrorKind::Corrupt),
    ];
    for (file, kind) in cases {
        let error = Module::load(&file, Device::Cpu).unwrap_err();
        assert_eq!((error.kind(), error.subject()), (kind, file.display().to_string().as_str()), "{error}");
    }
    let error = load(&path).save(folder.path().join("no/such/folder/x.pt")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
}

#[test]
fn damaged_buffers_are_errors_that_name_the_weight() {
    let _path = default_path();
    let Some(path) = fixture("mlp") else { return };
    let x = inputs(&path).remove(0).arguments;
    for buffer in codecllm::codec::BUFFER_NAMES {
        let (module, _) = patched(&path, &PatchOptions::default());
        let name = format!("2.weight_{buffer}");
        let (_, tensor) =
            module.named_buffers().unwrap().into_iter().find(|(found, _)| *found == name).unwrap();
        let whole = tensor.copy();
        let forward = || tch::no_grad(|| module.forward_ts(&x));
        let wanted = forward().unwrap();
        let mut handle = tensor.shallow_clone();
        let shorter = whole.narrow(0, 0, whole.numel() as i64 - 1).contiguous();
        let longer = Tensor::cat(&[&whole, &whole], 0);
        let empty = whole.narrow(0, 0, 0).contiguous();
        for wrong in [shorter, longer, empty] {
            tch::no_grad(|| handle.set_data(&wrong));
            let error = forward().unwrap_err();
            assert!(error.to_string().contains("2.weight"), "{name}: {error}");
        }
        tch::no_grad(|| handle.set_data(&whole));
        assert_eq!(forward().unwrap(), wanted, "{name} restored");
        let middle = whole.numel() as i64 / 2;
        let flipped = handle.int64_value(&[middle]) ^ 1;
        let _ = tch::no_grad(|| handle.narrow(0, middle, 1).fill_(flipped));
        assert!(forward().unwrap_err().to_string().contains("2.weight"), "{name}");
    }
}

#[test]
fn swapped_buffers_do_not_pass_for_the_module() {
    let _path = default_path();
    let Some(path) = fixture("twins") else { return };
    let (module, _) = patched(&path, &PatchOptions::default());
    let buffers = module.named_buffers().unwrap();
    for buffer in codecllm::codec::BUFFER_NAMES {
        let find = |layer: usize| {
            let name = format!("layers.{layer}.0.weight_{buffer}");
            buffers.iter().find(|(found, _)| *found == name).unwrap().1.shallow_clone()
        };
        let (mut first, mut second) = (find(0), find(1));
        let copies = [first.copy(), second.copy()];
        tch::no_grad(|| first.set_data(&copies[1]));
        tch::no_grad(|| second.set_data(&copies[0]));
    }
    let parity = compare(&load(&path), &module, &inputs(&path)).unwrap();
    assert!(parity.worst_relative_error() > 0.3, "{parity:?}");
}

#[test]
fn results_of_other_shapes_are_not_compared() {
    let (Some(mlp), Some(twins)) = (fixture("mlp"), fixture("methods")) else { return };
    let wide = Tensor::zeros([2, 256], (Kind::Float, Device::Cpu));
    let sets = [InputSet { name: "zeros".to_owned(), arguments: vec![wide] }];
    assert!(compare(&load(&mlp), &load(&twins), &sets).is_err());
}

/// The memory of the process is all tests' at once: this one is looked at alone, by the test below.
#[test]
#[ignore = "run by patching_frees_the_dense_weights"]
fn memory_of_patching() {
    let Some(path) = fixture("frozen") else { return };
    let mut module = load(&path);
    let before = rss_bytes().unwrap();
    let report = patch_linears(&mut module, &to(Target::Bits(5.3))).unwrap();
    let after = rss_bytes().unwrap();
    let freed = before as i64 - after as i64;
    let promised = report.original_bytes as i64 - report.compressed_bytes as i64;
    println!("{freed} bytes of {promised} went");
    // Buffers of threads and of the allocator came in the meantime.
    assert!(freed > promised / 2, "{freed} of {promised} bytes");
}

#[test]
fn patching_frees_the_dense_weights() {
    if fixture("frozen").is_none() {
        return;
    }
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "memory_of_patching", "--ignored", "--nocapture"])
        // Freed memory goes back to the system at once.
        .env("MALLOC_MMAP_THRESHOLD_", "65536")
        .env("MALLOC_TRIM_THRESHOLD_", "65536")
        .env("MALLOC_ARENA_MAX", "1")
        .status()
        .unwrap();
    assert!(status.success());
}
