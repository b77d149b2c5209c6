//! `codecllm bench --device cuda`: the linears of Llama-3.1-8B one by one, compressed and dense, as CUDA graphs.

mod contest;
mod decode;
mod forward;
mod layer;
mod step;
mod text;

use std::collections::btree_map::{BTreeMap, Entry};
use std::time::Instant;

use anyhow::Result;
use codecllm::codec::{CompressedTensor, Layout, Matrix};
use codecllm::cuda::{device_info, time_kernel_preparation, DeviceInfo, KernelPreparation, Recorder};
use codecllm::Error;
use serde::Serialize;
use tch::{Kind, Tensor};

use self::decode::{copy_bytes_per_second, DecodeTime};
use self::forward::ForwardTime;
use self::layer::{Layer, LayerSpec};
use self::step::{step_times, StepTime};
use super::matrix::{compress_checked, step_rule, Plan};
use super::random::gaussian_matrix;
use super::{torch_error, TORCH_VERSION};
use crate::cli::device::ORDINAL;
use crate::cli::output::{Measured, Output};
use crate::cli::steps::Steps;

/// Rows of the activations where none are named.
pub(super) const BATCHES: [usize; 9] = [1, 2, 4, 8, 16, 32, 64, 256, 2048];

#[derive(Debug, Serialize)]
struct Report {
    device: DeviceInfo,
    torch: &'static str,
    bits: Option<f64>,
    layout: &'static str,
    /// Of the activations of the compressed layers.
    dtype: &'static str,
    /// Making all kernels ready, in a first run and in later ones.
    kernels: KernelPreparation,
    /// Read and written, of a copy within the device's memory.
    copy_bytes_per_second: f64,
    layers: Vec<LayerReport>,
    /// All linears of one step of the 8B model; empty where other shapes were asked for.
    step: Vec<StepTime>,
}

/// All figures of one layer.
#[derive(Debug, Serialize)]
struct LayerReport {
    name: String,
    /// Output features of the parts that are one launch.
    parts: Vec<usize>,
    /// `[out_features, in_features]`, all parts together.
    shape: [usize; 2],
    /// How often a step of the 8B model runs it; 0 for a shape of the caller's.
    per_step: usize,
    bits_per_weight: f64,
    /// Decoding alone, into as much memory as the weight fills.
    decode: Vec<DecodeTime>,
    forward: Vec<ForwardTime>,
}

/// Times `shapes`, or the layers of the 8B model, and prints the figures.
pub(super) fn run(shapes: &[[usize; 2]], plan: &Plan, output: &Output) -> Result<()> {
    let start = Instant::now();
    let device = device_info(ORDINAL)?;
    let mut steps = Steps::new(output);
    steps.show("kernels", 0, 1, "compile");
    // Before anything else compiles.
    let kernels = time_kernel_preparation(ORDINAL)?;
    let recorder = Recorder::new(ORDINAL)?;
    steps.show("copy", 0, 1, "device memory");
    let copy = copy_bytes_per_second(&recorder, plan.budget)?;
    let specs = layer::specs(shapes);
    let mut encoded = BTreeMap::new();
    let mut layers = Vec::new();
    for (done, spec) in specs.iter().enumerate() {
        let mut progress = |next: &str| {
            steps.show("layers", done, specs.len(), &format!("{}: {next}", spec.name));
        };
        layers.push(bench_layer(spec, plan, &device, (&recorder, copy), &mut encoded, &mut progress)?);
    }
    drop(steps);
    let report = Report {
        device,
        torch: TORCH_VERSION,
        bits: plan.bits,
        layout: plan.options.layout.name(),
        dtype: dtype_name(plan.kind),
        kernels,
        copy_bytes_per_second: copy,
        step: step_times(&layers),
        layers,
    };
    output.report(&Measured::since(start, report), text::report)
}

/// `encoded` keeps the tensors by shape: what has the same shape is encoded once.
fn bench_layer(
    spec: &LayerSpec,
    plan: &Plan,
    device: &DeviceInfo,
    (recorder, copy): (&Recorder, f64),
    encoded: &mut BTreeMap<[usize; 2], CompressedTensor>,
    progress: &mut dyn FnMut(&str),
) -> codecllm::Result<LayerReport> {
    progress("encode");
    for shape in spec.part_shapes() {
        if let Entry::Vacant(entry) = encoded.entry(shape) {
            entry.insert(encode(shape, plan)?);
        }
    }
    let parts: Vec<&CompressedTensor> = spec.part_shapes().filter_map(|shape| encoded.get(&shape)).collect();
    let layer = Layer::new(spec, &parts, device.l2_bytes as usize)?;
    layer.check(plan.kind)?;
    progress("decode");
    let decode = decode::time(&layer, recorder, copy, plan.budget)?;
    let mut forward = Vec::new();
    for &batch in &plan.batches {
        progress(&format!("forward, batch {batch}"));
        forward.extend(forward::time(&layer, recorder, batch, plan)?);
    }
    Ok(LayerReport {
        name: spec.name.clone(),
        parts: spec.parts.clone(),
        shape: spec.shape(),
        per_step: spec.per_step,
        bits_per_weight: layer.bits_per_weight(),
        decode,
        forward,
    })
}

fn encode(shape: [usize; 2], plan: &Plan) -> codecllm::Result<CompressedTensor> {
    let path = format!("{}x{}", shape[0], shape[1]);
    let matrix = gaussian_matrix(shape, 0x5EED);
    if !plan.options.layout.is_grid() {
        return compress_exactly(&path, &matrix, plan);
    }
    let rule = step_rule(&path, &matrix, plan)?;
    compress_checked(&path, &matrix, rule, plan.options)
}

/// The matrix rounded to the dtype of the layout, and no further.
fn compress_exactly(path: &str, matrix: &Matrix, plan: &Plan) -> codecllm::Result<CompressedTensor> {
    let kind = if plan.options.layout == Layout::ExactBf16 { Kind::BFloat16 } else { Kind::Half };
    let [rows, cols] = matrix.shape;
    let weight = Tensor::f_from_slice(&matrix.weights)
        .and_then(|flat| flat.f_view([rows as i64, cols as i64]))
        .and_then(|weight| weight.f_to_kind(kind))
        .map_err(torch_error(path))?;
    let compressed = CompressedTensor::compress_exact(path, &weight, plan.options)?;
    if compressed.decompress()? != weight {
        return Err(Error::corrupt(path, "does not decode to the weights that were encoded"));
    }
    Ok(compressed)
}

/// A dtype's name in figures.
fn dtype_name(kind: Kind) -> &'static str {
    match kind {
        Kind::BFloat16 => "bf16",
        Kind::Float => "fp32",
        _ => "fp16",
    }
}
