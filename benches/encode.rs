//! Grid to buffers, and the whole way from FP16 weights.
#![allow(missing_docs, reason = "criterion's macros make public functions")]

mod gaussian;

use codecllm::codec::{decode_grid_reference, encode, CompressedTensor, StepRule};
use criterion::{criterion_group, criterion_main, Criterion, Throughput};
use gaussian::{sample, LAYOUTS, SHAPES};

fn bench_encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    group.sample_size(10);
    for (shape, layout) in SHAPES.into_iter().flat_map(|shape| LAYOUTS.map(|layout| (shape, layout))) {
        let sample = sample(shape, layout);
        let view = sample.compressed.buffers().view("gaussian").unwrap();
        assert_eq!(decode_grid_reference(&view).unwrap(), sample.quantized.values);
        group.throughput(Throughput::Bytes(2 * sample.quantized.values.len() as u64));
        group.bench_function(format!("grid/{}", sample.name), |bencher| {
            let (quantized, dtype) = (&sample.quantized, sample.matrix.dtype);
            bencher.iter(|| {
                encode("gaussian", &quantized.values, shape, &quantized.scales, dtype, sample.options)
                    .unwrap()
            });
        });
        group.bench_function(format!("weights/{}", sample.name), |bencher| {
            let rule = StepRule::RowAbsmax;
            bencher.iter(|| {
                CompressedTensor::compress("gaussian", &sample.weight, rule, sample.options).unwrap()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, bench_encode);
criterion_main!(benches);
