//! Forward of a compressed linear on the GPU, fused and through scratch, with the dense one beside it: replays of a CUDA
//! graph, by the GPU's clock. `codecllm bench --device cuda` has all shapes and ratios; this one compares with the last run.
#![allow(missing_docs, reason = "criterion's macros make public functions")]

mod gaussian;

use std::time::Duration;

use codecllm::cuda::{self, Recorder, Recording};
use codecllm::nn::{CompressedLinear, Linear, MergedLinear};
use criterion::{criterion_group, Criterion, Throughput};
use gaussian::{sample, Sample, LAYOUTS};
use tch::{nn, Device, Kind, Tensor};

const DEVICE: Device = Device::Cuda(0);
const SHAPES: [[usize; 2]; 2] = [[4096, 4096], [14336, 4096]];
const BATCHES: [i64; 3] = [1, 8, 64];
/// Copies take this much together, more than the L2 of any GPU.
const ROTATED_BYTES: usize = 512 << 20;

/// Copies of one compressed weight, each as a layer.
fn layers(sample: &Sample, vs: &nn::VarStore) -> Vec<MergedLinear> {
    let copies = ROTATED_BYTES.div_ceil(sample.compressed.buffers().total_bytes());
    let layer = |copy| CompressedLinear::new(&(vs.root() / copy), &sample.compressed, None).unwrap();
    (0..copies).map(|copy| MergedLinear::new(&[&Linear::Compressed(layer(copy))]).unwrap()).collect()
}

/// The time of `iterations` forwards, of which a replay holds `forwards`.
fn time(recording: &Recording, forwards: usize, iterations: u64) -> Duration {
    let replays = iterations.div_ceil(forwards as u64);
    let seconds: f64 = (0..replays).map(|_| recording.replay_seconds().unwrap()).sum();
    Duration::from_secs_f64(seconds * iterations as f64 / (replays * forwards as u64) as f64)
}

fn bench_forward(criterion: &mut Criterion) {
    let recorder = Recorder::new(0).unwrap();
    let mut group = criterion.benchmark_group("cuda_linear");
    for shape in SHAPES {
        let sample = sample(shape, LAYOUTS[0]);
        let vs = nn::VarStore::new(DEVICE);
        let layers = layers(&sample, &vs);
        let dense_copies = ROTATED_BYTES.div_ceil(2 * sample.weight.numel());
        let dense: Vec<Tensor> = (0..dense_copies).map(|_| sample.weight.to_device(DEVICE) * 1.0).collect();
        group.throughput(Throughput::Elements(sample.weight.numel() as u64));
        for batch in BATCHES {
            let x = Tensor::randn([batch, shape[1] as i64], (Kind::Half, DEVICE));
            let y = Tensor::zeros([batch, shape[0] as i64], (Kind::Half, DEVICE));
            for (path, fused_rows) in [("fused", usize::MAX), ("scratch", 0)] {
                layers.iter().for_each(|layer| layer.set_fused_rows(fused_rows));
                let forwards = || layers.iter().try_for_each(|layer| layer.forward_into(&x, &y));
                // SAFETY: layers, x and y outlive the recording, and scratch is the layers' own.
                let recording = unsafe { recorder.record(forwards) }.unwrap();
                group.bench_function(format!("{path}/{}/batch {batch}", sample.name), |bencher| {
                    bencher.iter_custom(|iterations| time(&recording, layers.len(), iterations));
                });
            }
            let products = || {
                dense.iter().for_each(|weight| drop(x.mm_out(&y, &weight.tr())));
                Ok(())
            };
            // SAFETY: weights, x and y outlive the recording, and the products go into y.
            let recording = unsafe { recorder.record(products) }.unwrap();
            let [rows, cols] = shape;
            group.bench_function(format!("dense/{rows}x{cols}/batch {batch}"), |bencher| {
                bencher.iter_custom(|iterations| time(&recording, dense.len(), iterations));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, bench_forward);

fn main() {
    if let Err(error) = cuda::load() {
        eprintln!("SKIPPED: {error}");
        return;
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
