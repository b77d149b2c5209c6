//! Compressed layers on a GPU where the tests need streams, graphs or merged launches. Every test skips, with a message, where
//! there is no GPU.

use tch::nn::VarStore;
use tch::{Kind, Tensor};

use super::{CompressedEmbedding, CompressedLinear, DenseLinear, Linear, MergedLinear};
use crate::codec::{CompressedTensor, EncodeOptions, Layout, StepRule};
use crate::cuda::{device, Device, Graph};
use crate::ops::cuda::Workspace;

const CUDA: tch::Device = tch::Device::Cuda(0);

fn gpu() -> Option<&'static Device> {
    device(0).inspect_err(|error| println!("SKIPPED: {error}")).ok()
}

macro_rules! gpu_or_skip {
    () => {
        match gpu() {
            Some(device) => device,
            None => return,
        }
    };
}

fn random(shape: &[i64], seed: i64) -> Tensor {
    tch::manual_seed(seed);
    Tensor::randn(shape, (Kind::Float, tch::Device::Cpu))
}

fn compressed(shape: [i64; 2], layout: Layout, seed: i64) -> CompressedTensor {
    let options = EncodeOptions { layout, ..EncodeOptions::default() };
    CompressedTensor::compress("w", &random(&shape, seed), StepRule::Step(0.1), options).unwrap()
}

fn linear(vs: &VarStore, name: &str, shape: [i64; 2], layout: Layout, bias: bool) -> Linear {
    let seed = shape[0] + name.len() as i64;
    let bias = bias.then(|| random(&[shape[0]], seed + 1));
    let compressed = compressed(shape, layout, seed);
    Linear::Compressed(CompressedLinear::new(&(vs.root() / name), &compressed, bias.as_ref()).unwrap())
}

fn input(batch: i64, cols: i64, kind: Kind) -> Tensor {
    random(&[batch, cols], batch).to_kind(kind).to(CUDA)
}

fn poisoned(shape: [i64; 2], kind: Kind) -> Tensor {
    Tensor::full(shape, f64::NAN, (kind, CUDA))
}

/// Each part by itself, into its own columns.
fn one_by_one(parts: &[&Linear], x: &Tensor) -> Tensor {
    let products: Vec<Tensor> = parts.iter().map(|part| part.try_forward(x).unwrap()).collect();
    Tensor::cat(&products, 1)
}

fn force_fused(linear: &Linear) {
    if let Linear::Compressed(compressed) = linear {
        compressed.set_fused_rows(usize::MAX);
    }
}

/// The same but for the order of sums: how libtorch multiplies depends on how the rows of the output are aligned.
#[track_caller]
fn assert_close(got: &Tensor, want: &Tensor) {
    let [got, want] = [got, want].map(|tensor| tensor.to_kind(Kind::Double));
    let error = ((got - &want).abs().max() / want.abs().max()).double_value(&[]);
    assert!(error < 2e-3, "{error}");
}

#[test]
fn merged_layers_are_the_single_ones_bit_for_bit() {
    let _ = gpu_or_skip!();
    for layout in [Layout::Fast, Layout::Small] {
        for cols in [256, 1000, 2048] {
            let vs = VarStore::new(CUDA);
            let q = linear(&vs, "q", [512, cols], layout, true);
            let k = linear(&vs, "key", [128, cols], layout, false);
            let v = linear(&vs, "value", [77, cols], layout, true);
            let merged = MergedLinear::new(&[&q, &k, &v]).unwrap();
            assert!(matches!(merged, MergedLinear::Compressed(_)));
            merged.set_fused_rows(usize::MAX);
            [&q, &k, &v].into_iter().for_each(force_fused);
            for kind in [Kind::Half, Kind::BFloat16, Kind::Float] {
                for batch in [1, 2, 8, 11, 64] {
                    let x = input(batch, cols, kind);
                    let y = poisoned([batch, 512 + 128 + 77], kind);
                    merged.forward_into(&x, &y).unwrap();
                    assert_eq!(y, one_by_one(&[&q, &k, &v], &x), "{layout:?} {cols} {kind:?} {batch}");
                }
            }
        }
    }
}

#[test]
fn layers_that_cannot_share_a_launch_run_one_after_the_other() {
    let _ = gpu_or_skip!();
    let vs = VarStore::new(CUDA);
    let fast = linear(&vs, "fast", [100, 512], Layout::Fast, false);
    let small = linear(&vs, "small", [60, 512], Layout::Small, true);
    let weight = random(&[40, 512], 3).to_kind(Kind::Half).to(CUDA);
    let dense = Linear::Dense(DenseLinear::new("dense", weight, None).unwrap());
    let x = input(3, 512, Kind::Half);
    for parts in [vec![&fast, &small], vec![&fast, &dense, &small], vec![&fast, &fast, &fast, &fast]] {
        let width = parts.iter().map(|part| part.shape()[0] as i64).sum();
        let y = poisoned([3, width], Kind::Half);
        MergedLinear::new(&parts).unwrap().forward_into(&x, &y).unwrap();
        assert_close(&y, &one_by_one(&parts, &x));
    }
}

#[test]
fn outputs_may_be_columns_of_a_wider_tensor() {
    let _ = gpu_or_skip!();
    let vs = VarStore::new(CUDA);
    let linear = linear(&vs, "layer", [100, 320], Layout::Fast, true);
    let Linear::Compressed(compressed) = &linear else { panic!("compressed") };
    for fused_rows in [0, usize::MAX] {
        compressed.set_fused_rows(fused_rows);
        for batch in [1, 5, 70] {
            let x = input(batch, 320, Kind::Half);
            let wide = Tensor::zeros([batch, 130], (Kind::Half, CUDA));
            linear.forward_into(&x, &wide.narrow(1, 17, 100)).unwrap();
            assert_close(&wide.narrow(1, 17, 100), &linear.try_forward(&x).unwrap());
            let beside =
                wide.narrow(1, 0, 17).abs().sum(Kind::Float) + wide.narrow(1, 117, 13).abs().sum(Kind::Float);
            assert_eq!(beside.double_value(&[]), 0.0, "nothing beside it is written");
        }
    }
}

#[test]
fn threads_with_streams_of_their_own_agree() {
    let device = gpu_or_skip!();
    let vs = VarStore::new(CUDA);
    let weight = compressed([700, 1000], Layout::Fast, 4);
    let linear = CompressedLinear::new(&(vs.root() / "layer"), &weight, None).unwrap();
    // Not random: the seed is the process's.
    let run = |thread: i64, batch: i64| {
        let x = Tensor::arange(batch * 1000, (Kind::Float, CUDA)).sin().view([batch, 1000]) + thread;
        linear.try_forward(&x.to_kind(Kind::BFloat16)).unwrap().to(tch::Device::Cpu)
    };
    let wanted: Vec<_> = (0..4).map(|thread| [1, 12, 64, 200].map(|batch| run(thread, batch))).collect();
    std::thread::scope(|scope| {
        for (thread, wanted) in (0..4).zip(wanted) {
            let run = &run;
            scope.spawn(move || {
                let stream = device.pool_stream().unwrap();
                for _ in 0..20 {
                    let got =
                        device.with_stream(stream, || Ok([1, 12, 64, 200].map(|batch| run(thread, batch))));
                    assert_eq!(got.unwrap(), wanted);
                }
            });
        }
    });
}

#[test]
fn a_captured_forward_gives_the_same_on_every_replay() {
    let device = gpu_or_skip!();
    let vs = VarStore::new(CUDA);
    let fused = linear(&vs, "fused", [700, 1000], Layout::Fast, true);
    let scratch = linear(&vs, "scratch", [512, 700], Layout::Fast, true);
    let Linear::Compressed(through_scratch) = &scratch else { panic!("compressed") };
    through_scratch.set_fused_rows(0);
    let table = compressed([300, 1000], Layout::Fast, 5);
    let embedding = CompressedEmbedding::new(&(vs.root() / "embed"), &table, Kind::BFloat16).unwrap();
    let tokens = Tensor::from_slice(&[3i64, 299, 7]).to(CUDA);
    let [x, hidden, y] = [1000, 700, 512].map(|cols| poisoned([3, cols], Kind::BFloat16));
    let step = || {
        embedding.forward_into(&tokens, &x)?;
        fused.forward_into(&x, &hidden)?;
        scratch.forward_into(&hidden, &y)
    };
    let stream = device.pool_stream().unwrap();
    device.synchronize(device.current_stream().unwrap()).unwrap();
    device.with_stream(stream, step).unwrap();
    device.synchronize(stream).unwrap();
    let graph = Graph::capture(device, stream, step).unwrap();
    for ids in [[3i64, 299, 7], [0, 1, 2]] {
        tokens.shallow_clone().copy_(&Tensor::from_slice(&ids));
        step().unwrap();
        let wanted = y.copy();
        let _ = [&x, &hidden, &y].map(|tensor| tensor.shallow_clone().fill_(f64::NAN));
        device.synchronize(device.current_stream().unwrap()).unwrap();
        for _ in 0..3 {
            graph.launch(stream).unwrap();
            device.synchronize(stream).unwrap();
            assert_eq!(y, wanted);
        }
    }
}

#[test]
fn graphs_with_workspaces_of_their_own_run_side_by_side() {
    let device = gpu_or_skip!();
    let vs = VarStore::new(CUDA);
    let linear = linear(&vs, "layer", [512, 1000], Layout::Fast, true);
    let stream = device.pool_stream().unwrap();
    // BF16 takes scratch even where it is fused.
    let steps = [1.0, -3.0].map(|factor| {
        let x = Tensor::arange(8 * 1000, (Kind::Float, CUDA)).sin().view([8, 1000]) * factor;
        (x.to_kind(Kind::BFloat16), poisoned([8, 512], Kind::BFloat16), Workspace::default())
    });
    let wanted = steps.each_ref().map(|(x, _, _)| linear.try_forward(x).unwrap());
    device.synchronize(device.current_stream().unwrap()).unwrap();
    let graphs = steps.each_ref().map(|(x, y, workspace)| {
        let run = || linear.forward_into(x, y);
        workspace.during(|| {
            device.with_stream(stream, run).unwrap();
            Graph::capture(device, stream, run).unwrap()
        })
    });
    device.synchronize(stream).unwrap();
    let streams = [device.pool_stream().unwrap(), device.pool_stream().unwrap()];
    for _ in 0..200 {
        graphs.iter().zip(streams).for_each(|(graph, stream)| graph.launch(stream).unwrap());
    }
    streams.into_iter().for_each(|stream| device.synchronize(stream).unwrap());
    assert_eq!(steps.map(|(_, y, _)| y), wanted);
}

#[test]
fn a_larger_need_after_a_capture_leaves_the_graph_its_scratch() {
    let device = gpu_or_skip!();
    let vs = VarStore::new(CUDA);
    let [narrow, wide] = [("narrow", 64), ("wide", 4000)].map(|(name, rows)| {
        let linear = linear(&vs, name, [rows, 512], Layout::Fast, false);
        if let Linear::Compressed(compressed) = &linear {
            compressed.set_fused_rows(0);
        }
        linear
    });
    let stream = device.pool_stream().unwrap();
    let x = input(4, 512, Kind::Half);
    let y = poisoned([4, 64], Kind::Half);
    let wanted = narrow.try_forward(&x).unwrap();
    device.synchronize(device.current_stream().unwrap()).unwrap();
    device.with_stream(stream, || narrow.forward_into(&x, &y)).unwrap();
    let graph = Graph::capture(device, stream, || narrow.forward_into(&x, &y)).unwrap();
    let others = device
        .with_stream(stream, || {
            drop(wide.try_forward(&x)?);
            // What the pool set free would be found here.
            Ok([0; 32].map(|_| Tensor::zeros([64, 512], (Kind::Half, CUDA))))
        })
        .unwrap();
    graph.launch(stream).unwrap();
    device.synchronize(stream).unwrap();
    assert_eq!(y, wanted);
    assert!(others.iter().all(|other| other.abs().max().double_value(&[]) == 0.0), "the graph wrote on");
}

#[test]
fn merged_layers_count_a_decode_each() {
    let _ = gpu_or_skip!();
    let vs = VarStore::new(CUDA);
    let parts = ["gate", "up"].map(|name| linear(&vs, name, [128, 256], Layout::Fast, false));
    let layers = parts.iter().map(|part| match part {
        Linear::Compressed(compressed) => compressed,
        Linear::Dense(_) => panic!("compressed"),
    });
    layers.clone().for_each(|layer| layer.set_counting(true));
    let merged = MergedLinear::new(&[&parts[0], &parts[1]]).unwrap();
    let y = poisoned([2, 256], Kind::Half);
    merged.forward_into(&input(2, 256, Kind::Half), &y).unwrap();
    assert_eq!(layers.map(|layer| layer.counters().decodes).collect::<Vec<_>>(), [1, 1]);
}
