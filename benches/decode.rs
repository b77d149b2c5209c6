//! Buffers to fragments (what the fused kernels multiply) and to a row-major grid, with every instruction set.
#![allow(missing_docs, reason = "criterion's macros make public functions")]

mod gaussian;

use codecllm::codec::{decode_grid, DecodeTables, Fragments, Level, TileDecoder, TileSink, View};
use codecllm::tile::Group;
use criterion::{criterion_group, criterion_main, Criterion, Throughput};
use gaussian::{sample, LAYOUTS, SHAPES};

/// Takes the fragments and does nothing with them.
struct Discard(u32);

impl TileSink for Discard {
    fn group(&mut self, _: &Group, fragments: &Fragments) {
        self.0 ^= fragments.0[0][0];
    }

    fn escape(&mut self, _: usize, _: usize, _: i16) -> bool {
        true
    }
}

fn decode_tiles(view: &View<'_>, tables: &DecodeTables, decoder: &mut TileDecoder) -> u32 {
    let mut sink = Discard(0);
    (0..view.header.grid.tile_count())
        .for_each(|tile| decoder.decode(view, tables, tile, &mut sink).unwrap());
    sink.0
}

fn bench_decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    for (shape, layout) in SHAPES.into_iter().flat_map(|shape| LAYOUTS.map(|layout| (shape, layout))) {
        let sample = sample(shape, layout);
        let view = sample.compressed.buffers().view("gaussian").unwrap();
        let tables = DecodeTables::new(&view).unwrap();
        group.throughput(Throughput::Elements(sample.quantized.values.len() as u64));
        for level in Level::available() {
            assert_eq!(decode_grid(&view, Some(level)).unwrap(), sample.quantized.values);
            let mut decoder = TileDecoder::with_level(level).unwrap();
            group.bench_function(format!("fragments/{}/{level:?}/1 thread", sample.name), |bencher| {
                bencher.iter(|| decode_tiles(&view, &tables, &mut decoder));
            });
        }
        group.bench_function(format!("grid/{}/all threads", sample.name), |bencher| {
            bencher.iter(|| decode_grid(&view, None).unwrap());
        });
    }
    group.finish();
}

criterion_group!(benches, bench_decode);
criterion_main!(benches);
