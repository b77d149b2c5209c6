//! Forward of a compressed linear, fused and through scratch, with the dense matmul beside it.
#![allow(missing_docs, reason = "criterion's macros make public functions")]

mod gaussian;

use codecllm::nn::{CompressedLinear, DenseLinear};
use criterion::{criterion_group, criterion_main, Criterion, Throughput};
use gaussian::{sample, Sample, LAYOUTS, SHAPES};
use tch::{nn, Device, Kind, Tensor};

const BATCHES: [i64; 3] = [1, 8, 32];
/// Copies take this much together, so that no weight waits in a cache for its next turn.
const ROTATED_BYTES: usize = 96 << 20;

/// Layers that take turns.
struct Rotation<T> {
    layers: Vec<T>,
    turn: usize,
}

impl<T> Rotation<T> {
    fn new(bytes: usize, make: impl FnMut(usize) -> T) -> Self {
        let copies = ROTATED_BYTES.div_ceil(bytes).clamp(2, 256);
        Self { layers: (0..copies).map(make).collect(), turn: 0 }
    }

    fn next(&mut self) -> &T {
        self.turn = (self.turn + 1) % self.layers.len();
        &self.layers[self.turn]
    }
}

fn dense(sample: &Sample, kind: Kind) -> Rotation<DenseLinear> {
    Rotation::new(sample.weight.numel() * kind.elt_size_in_bytes(), |_| {
        DenseLinear::new("dense", sample.weight.to_kind(kind) * 1.0, None).unwrap()
    })
}

fn assert_close(linear: &CompressedLinear, sample: &Sample, x: &Tensor) {
    let dense = sample.compressed.decompress().unwrap().to_kind(Kind::Float);
    let wanted = x.to_kind(Kind::Float).linear(&dense, None::<&Tensor>);
    let got = linear.try_forward(x).unwrap().to_kind(Kind::Float);
    let error = ((&got - &wanted).norm() / wanted.norm()).double_value(&[]);
    assert!(error < 5e-3, "relative error {error}");
}

fn bench_forward(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("fused_linear");
    for shape in SHAPES {
        let sample = sample(shape, LAYOUTS[0]);
        let vs = nn::VarStore::new(Device::Cpu);
        let mut compressed = Rotation::new(sample.compressed.buffers().total_bytes(), |copy| {
            CompressedLinear::new(&(vs.root() / copy), &sample.compressed, None).unwrap()
        });
        group.throughput(Throughput::Elements(sample.weight.numel() as u64));
        for batch in BATCHES {
            let x = Tensor::randn([batch, shape[1] as i64], (Kind::Half, Device::Cpu));
            for (path, fused_rows) in [("fused", usize::MAX), ("scratch", 0)] {
                compressed.layers.iter().for_each(|linear| linear.set_fused_rows(fused_rows));
                assert_close(&compressed.layers[0], &sample, &x);
                group.bench_function(format!("{path}/{}/batch {batch}", sample.name), |bencher| {
                    bencher.iter(|| compressed.next().try_forward(&x).unwrap());
                });
            }
        }
        for kind in [Kind::Half, Kind::BFloat16, Kind::Float] {
            let mut dense = dense(&sample, kind);
            for batch in BATCHES {
                let x = Tensor::randn([batch, shape[1] as i64], (Kind::Float, Device::Cpu)).to_kind(kind);
                let [rows, cols] = shape;
                group.bench_function(format!("dense {kind:?}/{rows}x{cols}/batch {batch}"), |bencher| {
                    bencher.iter(|| dense.next().try_forward(&x).unwrap());
                });
            }
        }
    }
    group.finish();
}

criterion_group!(benches, bench_forward);
criterion_main!(benches);
