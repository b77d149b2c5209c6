//! Patched TorchScript modules on a GPU.

use codecllm::checkpoint::Target;
use codecllm::torchscript::{compare, patch_linears, InputSet, Module, PatchOptions};
use tch::{Device, IValue, Kind, Tensor};

use super::ops::{need_gpu, row_error, CUDA};
use super::torchscript_fixtures::fixture;

/// Small enough to travel.
const MODULES: [&str; 6] = ["mlp", "bert", "gpt", "gpt_frozen", "twins", "stateful"];

fn tensors(value: IValue) -> Vec<Tensor> {
    match value {
        IValue::Tensor(tensor) => vec![tensor],
        IValue::Tuple(values) => values.into_iter().flat_map(tensors).collect(),
        other => panic!("unexpected {other:?}"),
    }
}

fn outputs(module: &Module, inputs: &InputSet, device: Device) -> Vec<Tensor> {
    let arguments: Vec<IValue> =
        inputs.arguments.iter().map(|tensor| IValue::Tensor(tensor.copy().to_device(device))).collect();
    let outputs = tensors(tch::no_grad(|| module.forward_is(&arguments)).unwrap());
    outputs
        .into_iter()
        .map(|output| {
            // A count of calls is made where it was.
            assert!(output.device() == device || !output.is_floating_point());
            output.to_device(Device::Cpu)
        })
        .collect()
}

#[test]
fn a_patched_module_moves_to_the_gpu_and_gives_the_same() {
    need_gpu!();
    for name in MODULES {
        let Some(path) = fixture(name) else { return };
        let inputs = InputSet::read(path.with_extension("safetensors")).unwrap().remove(0);
        let mut module = Module::load(&path, Device::Cpu).unwrap();
        patch_linears(&mut module, &PatchOptions { embeddings: true, ..PatchOptions::default() }).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("patched.pt");
        module.save(&file).unwrap();
        let wanted = outputs(&module, &inputs, Device::Cpu);

        let loaded = Module::load(&file, CUDA).unwrap();
        let mut moved = Module::load(&file, Device::Cpu).unwrap();
        moved.to_device(CUDA).unwrap();
        // Constants in a graph, which freezing makes of norms, are moved by loading only.
        let modules = if name == "gpt_frozen" { vec![&loaded] } else { vec![&loaded, &moved] };
        for module in modules {
            for (name, buffer) in module.named_buffers().unwrap() {
                assert_eq!(buffer.device(), CUDA, "{name}");
            }
            for (got, wanted) in outputs(module, &inputs, CUDA).iter().zip(&wanted) {
                let error = row_error(got, wanted);
                assert!(error < 2e-3, "{name}: {error}");
            }
        }
    }
}

#[test]
fn a_module_on_the_gpu_is_patched_there() {
    need_gpu!();
    for name in MODULES {
        let Some(path) = fixture(name) else { return };
        let inputs = InputSet::read(path.with_extension("safetensors")).unwrap().remove(0);
        let (dense, mut module) = (Module::load(&path, CUDA).unwrap(), Module::load(&path, CUDA).unwrap());
        let options = PatchOptions { target: Target::Lossless, ..PatchOptions::default() };
        let report = patch_linears(&mut module, &options).unwrap();
        assert!(!report.patched.is_empty());
        assert!(module.named_buffers().unwrap().iter().all(|(_, buffer)| buffer.device() == CUDA));
        for (got, wanted) in outputs(&module, &inputs, CUDA).iter().zip(outputs(&dense, &inputs, CUDA)) {
            let error = row_error(got, &wanted);
            assert!(error < 2e-3, "{name}: {error}");
        }
    }
}

#[test]
fn an_input_on_the_other_device_is_an_error_that_names_the_weight() {
    need_gpu!();
    let Some(path) = fixture("mlp") else { return };
    let inputs = InputSet::read(path.with_extension("safetensors")).unwrap();
    let mut module = Module::load(&path, Device::Cpu).unwrap();
    patch_linears(&mut module, &PatchOptions::default()).unwrap();
    let x = inputs[0].arguments[0].to_device(CUDA);
    let error = tch::no_grad(|| module.forward_ts(&[&x])).unwrap_err().to_string();
    assert!(error.contains("0.weight"), "{error}");
    module.to_device(CUDA).unwrap();
    assert_eq!(tch::no_grad(|| module.forward_ts(&[&x])).unwrap().kind(), Kind::Float);
    // The cache of the operator must not mistake the buffers of another module for those that were here.
    drop(module);
    for target in [Target::Int8, Target::Lossless] {
        let mut module = Module::load(&path, CUDA).unwrap();
        patch_linears(&mut module, &PatchOptions { target, ..PatchOptions::default() }).unwrap();
        let mut on_cpu = Module::load(&path, Device::Cpu).unwrap();
        patch_linears(&mut on_cpu, &PatchOptions { target, ..PatchOptions::default() }).unwrap();
        let got = tch::no_grad(|| module.forward_ts(&[&x])).unwrap().to_device(Device::Cpu);
        assert!(row_error(&got, &outputs(&on_cpu, &inputs[0], Device::Cpu)[0]) < 2e-3);
    }
    let dense = Module::load(&path, Device::Cpu).unwrap();
    assert!(compare(&dense, &dense, &inputs).unwrap().is_exact());
}
