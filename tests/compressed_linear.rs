//! Compressed layers against dense ones, and as good citizens of a VarStore.

use codecllm::codec::{CompressedTensor, EncodeOptions, Layout, StepRule, BUFFER_NAMES};
use codecllm::nn::{CompressedEmbedding, CompressedLinear, DenseLinear, Linear, MergedLinear};
use codecllm::ErrorKind;
use tch::nn::{Module, ModuleT, VarStore};
use tch::{nn, Device, Kind, Tensor};

const KINDS: [Kind; 3] = [Kind::Float, Kind::Half, Kind::BFloat16];

fn random(shape: &[i64], kind: Kind, seed: i64) -> Tensor {
    tch::manual_seed(seed);
    Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(kind)
}

fn compress(weight: &Tensor, layout: Layout) -> CompressedTensor {
    let options = EncodeOptions { layout, ..EncodeOptions::default() };
    CompressedTensor::compress("layer.weight", weight, StepRule::RowAbsmax, options).unwrap()
}

fn layer(vs: &VarStore, weight: &Tensor, bias: Option<&Tensor>) -> CompressedLinear {
    CompressedLinear::new(&(vs.root() / "layer"), &compress(weight, Layout::Fast), bias).unwrap()
}

/// Largest difference relative to the largest value.
fn relative_error(got: &Tensor, want: &Tensor) -> f64 {
    let (got, want) = (got.to_kind(Kind::Double), want.to_kind(Kind::Double));
    ((got - &want).abs().max() / want.abs().max()).double_value(&[])
}

#[test]
fn both_paths_agree_with_the_decompressed_weight_in_every_dtype_and_shape() {
    for (rows, cols) in [(1, 1), (5, 3), (77, 288), (96, 64), (300, 2100), (48, 130)] {
        for layout in [Layout::Fast, Layout::Small] {
            for kind in KINDS {
                let weight = random(&[rows, cols], kind, rows);
                let bias = random(&[rows], kind, 1);
                let compressed = compress(&weight, layout);
                let dense = compressed.decompress().unwrap().to_kind(Kind::Double);
                let vs = VarStore::new(Device::Cpu);
                let linear = CompressedLinear::new(&(vs.root() / "layer"), &compressed, Some(&bias)).unwrap();
                // Half the precision of the dtype, and FP32's own error in a long sum.
                let tolerance = match kind {
                    Kind::Float => 1e-5,
                    Kind::Half => 2e-3,
                    _ => 1.2e-2,
                };
                for batch in [1, 2, 7, 40] {
                    let x = random(&[batch, cols], kind, batch);
                    let want = x.to_kind(Kind::Double).linear(&dense, Some(&bias.to_kind(Kind::Double)));
                    for fused_rows in [0, usize::MAX] {
                        linear.set_fused_rows(fused_rows);
                        let got = linear.try_forward(&x).unwrap();
                        assert_eq!((got.kind(), got.size()), (kind, vec![batch, rows]));
                        let error = relative_error(&got, &want);
                        assert!(error < tolerance, "{rows}x{cols} {layout:?} {kind:?} {fused_rows}: {error}");
                    }
                }
            }
        }
    }
}

#[test]
fn the_scratch_path_is_the_dense_layer_bit_for_bit() {
    for kind in KINDS {
        let weight = random(&[200, 100], kind, 3);
        let bias = random(&[200], kind, 4);
        let vs = VarStore::new(Device::Cpu);
        let linear = layer(&vs, &weight, Some(&bias));
        linear.set_fused_rows(0);
        let x = random(&[3, 5, 100], kind, 5);
        let dense = compress(&weight, Layout::Fast).decompress().unwrap();
        assert_eq!(linear.forward(&x), x.linear(&dense, Some(&bias)));
    }
}

#[test]
fn a_weight_is_decoded_into_a_tensor_of_any_float_dtype() {
    let weight = random(&[77, 130], Kind::Half, 3);
    let vs = VarStore::new(Device::Cpu);
    let linear = layer(&vs, &weight, None);
    let want = compress(&weight, Layout::Fast).decompress().unwrap();
    for kind in KINDS {
        let out = Tensor::full([77, 130], f64::NAN, (kind, Device::Cpu));
        linear.decode_into(&out).unwrap();
        assert!(relative_error(&out, &want) < 1e-2, "{kind:?}");
        assert!(kind != Kind::Half || out == want);
    }
    for wrong in [Tensor::zeros([130, 77], (Kind::Half, Device::Cpu)).tr(), random(&[77, 129], Kind::Half, 1)]
    {
        let error = linear.decode_into(&wrong).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
    assert!(linear.decode_into(&Tensor::zeros([77, 130], (Kind::Int64, Device::Cpu))).is_err());
}

#[test]
fn merged_linears_give_what_their_parts_give_side_by_side() {
    let vs = VarStore::new(Device::Cpu);
    let x = random(&[3, 64], Kind::Float, 1);
    let weights = [16, 48].map(|rows| random(&[rows, 64], Kind::Float, rows));
    let compressed = |index: usize| {
        let path = vs.root() / index;
        Linear::Compressed(
            CompressedLinear::new(&path, &compress(&weights[index], Layout::Fast), None).unwrap(),
        )
    };
    let dense = |index: usize| {
        let weight = weights[index].copy();
        Linear::Dense(DenseLinear::new("dense", weight, None).unwrap())
    };
    for parts in [[compressed(0), compressed(1)], [dense(0), dense(1)]] {
        let want = Tensor::cat(&parts.each_ref().map(|part| part.try_forward(&x).unwrap()), 1);
        let merged = MergedLinear::new(&[&parts[0], &parts[1]]).unwrap();
        for fused_rows in [0, usize::MAX] {
            merged.set_fused_rows(fused_rows);
            let y = Tensor::full([3, 64], f64::NAN, (Kind::Float, Device::Cpu));
            merged.forward_into(&x, &y).unwrap();
            assert!(relative_error(&y, &want) < 1e-5);
        }
        if let [Linear::Compressed(_), _] = parts {
            let out = Tensor::full([64, 64], f64::NAN, (Kind::Float, Device::Cpu));
            merged.decode_into(&out).unwrap();
            assert!(relative_error(&x.matmul(&out.tr()), &want) < 1e-5);
        }
    }
}

#[test]
fn escapes_and_differences_count_in_both_paths() {
    // A few weights hundreds of steps out, and a ramp that codes differences: both leave the ordinary path.
    let mut heavy: Vec<f32> = Vec::try_from(random(&[96 * 200], Kind::Float, 31)).unwrap();
    heavy.iter_mut().step_by(97).for_each(|weight| *weight *= 300.0);
    let ramp: Vec<f32> = (0..96 * 200).map(|index| (index % 200) as f32 * 0.3).collect();
    for weights in [heavy, ramp] {
        let weight = Tensor::from_slice(&weights).reshape([96, 200]);
        let options = EncodeOptions::default();
        let compressed =
            CompressedTensor::compress("layer.weight", &weight, StepRule::Step(0.3), options).unwrap();
        let vs = VarStore::new(Device::Cpu);
        let linear = CompressedLinear::new(&(vs.root() / "layer"), &compressed, None).unwrap();
        let dense = compressed.decompress().unwrap();
        for batch in [1, 3] {
            let x = random(&[batch, 200], Kind::Float, batch);
            let want = x.linear(&dense, None::<&Tensor>);
            for fused_rows in [0, usize::MAX] {
                linear.set_fused_rows(fused_rows);
                assert!(relative_error(&linear.forward(&x), &want) < 1e-5);
            }
        }
    }
}

#[test]
fn a_row_of_a_batch_is_what_it_is_alone() {
    let vs = VarStore::new(Device::Cpu);
    let linear = layer(&vs, &random(&[130, 300], Kind::Half, 6), None);
    linear.set_fused_rows(usize::MAX);
    let x = random(&[64, 300], Kind::Half, 7);
    let alone: Vec<Tensor> = (0..64).map(|row| linear.forward(&x.narrow(0, row, 1))).collect();
    // As a sequence must not notice who else is in a batch, whatever its size.
    for rows in 1..=64 {
        let together = linear.forward(&x.narrow(0, 0, rows));
        assert_eq!(together, Tensor::cat(&alone[..rows as usize], 0), "{rows} rows");
    }
}

#[test]
fn a_wide_head_goes_through_scratch_in_stripes() {
    // 40,000 x 256 in FP32 is 41 MB: more than one scratch buffer.
    let weight = random(&[40_000, 256], Kind::Float, 8);
    let vs = VarStore::new(Device::Cpu);
    let linear = layer(&vs, &weight, None);
    linear.set_fused_rows(0);
    let x = random(&[2, 256], Kind::Float, 9);
    let dense = compress(&weight, Layout::Fast).decompress().unwrap();
    let error = relative_error(&linear.forward(&x), &x.linear(&dense, None::<&Tensor>));
    assert!(error < 1e-6, "{error}");
}

#[test]
fn buffers_are_bytes_listed_saved_loaded_and_never_trainable() {
    let dir = tempfile::tempdir().unwrap();
    let weight = random(&[64, 96], Kind::Float, 10);
    let bias = random(&[64], Kind::Float, 11);
    let mut vs = VarStore::new(Device::Cpu);
    let linear = layer(&vs, &weight, Some(&bias));
    let mut names: Vec<String> = vs.variables().keys().cloned().collect();
    names.sort();
    let mut wanted: Vec<String> = BUFFER_NAMES.iter().map(|name| format!("layer.weight.{name}")).collect();
    wanted.push("layer.bias".to_owned());
    wanted.sort();
    assert_eq!(names, wanted);
    assert!(vs.trainable_variables().is_empty());
    assert!(vs.variables().values().all(|buffer| buffer.kind() == Kind::Uint8));
    let x = random(&[2, 96], Kind::Float, 12);
    let want = linear.forward(&x);
    for name in ["store.safetensors", "store.ot"] {
        let file = dir.path().join(name);
        vs.save(&file).unwrap();
        // Zeroed in place, the layer must notice; loaded again, it must be itself.
        for buffer in vs.variables().values_mut() {
            let _ = buffer.zero_();
        }
        let error = linear.try_forward(&x).unwrap_err();
        assert!(error.to_string().starts_with("layer."), "{error}");
        vs.load(&file).unwrap();
        assert_eq!(linear.forward(&x), want, "{name}");
    }
}

#[test]
fn no_change_of_dtype_of_the_store_changes_an_answer() {
    let mut vs = VarStore::new(Device::Cpu);
    let linear = layer(&vs, &random(&[80, 200], Kind::Float, 13), Some(&random(&[80], Kind::Float, 14)));
    let x = random(&[3, 200], Kind::Float, 15);
    let want = linear.forward(&x);
    for kind in [Kind::Half, Kind::BFloat16, Kind::Float, Kind::Double, Kind::Int, Kind::Int64] {
        vs.set_kind(kind);
        assert_eq!(linear.forward(&x), want, "set_kind {kind:?}");
        assert!(vs.variables().values().all(|buffer| buffer.kind() == Kind::Uint8));
    }
    for change in [VarStore::half, VarStore::bfloat16, VarStore::float, VarStore::double] {
        change(&mut vs);
        assert_eq!(linear.forward(&x), want);
    }
    vs.set_device(Device::Cpu);
    assert_eq!(linear.forward(&x), want);
    // Saved while converted, loaded into bytes.
    let file = tempfile::tempdir().unwrap();
    vs.set_kind(Kind::Half);
    let path = file.path().join("half.ot");
    vs.save(&path).unwrap();
    assert_eq!(linear.forward(&x), want);
    vs.load(&path).unwrap();
    assert_eq!(linear.forward(&x), want);
}

#[test]
fn several_threads_get_the_same_answer() {
    let vs = VarStore::new(Device::Cpu);
    let linear = layer(&vs, &random(&[256, 512], Kind::Float, 16), None);
    let x = random(&[2, 512], Kind::Float, 17);
    let want: Vec<f32> = Vec::try_from(linear.forward(&x).reshape([-1])).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let x = x.copy();
            let (linear, want) = (&linear, &want);
            scope.spawn(move || {
                for round in 0..20 {
                    linear.set_fused_rows(if round % 2 == 0 { usize::MAX } else { 0 });
                    let got: Vec<f32> = Vec::try_from(linear.forward(&x).reshape([-1])).unwrap();
                    let close = got.iter().zip(want).all(|(a, b)| (a - b).abs() <= 1e-4 * b.abs().max(1.0));
                    assert!(close);
                }
            });
        }
    });
}

#[test]
fn counters_are_off_until_asked_for() {
    let vs = VarStore::new(Device::Cpu);
    let linear = layer(&vs, &random(&[32, 64], Kind::Float, 18), None);
    let x = random(&[1, 64], Kind::Float, 19);
    let _ = linear.forward(&x);
    assert_eq!(linear.counters().decodes, 0);
    linear.set_counting(true);
    let _ = linear.forward(&x);
    let _ = linear.forward(&x);
    assert_eq!(linear.counters().decodes, 2);
    assert!(linear.counters().nanoseconds > 0);
}

#[test]
fn wrong_inputs_and_a_second_registration_are_errors() {
    let vs = VarStore::new(Device::Cpu);
    let weight = random(&[32, 64], Kind::Float, 20);
    let linear = layer(&vs, &weight, None);
    for x in [
        random(&[1, 63], Kind::Float, 0),
        random(&[], Kind::Float, 0),
        Tensor::zeros([1, 64], (Kind::Int64, Device::Cpu)),
    ] {
        let error = linear.try_forward(&x).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().starts_with("layer.weight: "), "{error}");
    }
    let again = CompressedLinear::new(&(vs.root() / "layer"), &compress(&weight, Layout::Fast), None);
    assert!(again.unwrap_err().to_string().contains("registered already"));
    let bias = random(&[31], Kind::Float, 0);
    let other = CompressedLinear::new(&(vs.root() / "other"), &compress(&weight, Layout::Fast), Some(&bias));
    assert!(other.unwrap_err().to_string().starts_with("other.bias: "));
}

#[test]
fn an_embedding_gives_the_rows_of_its_table_and_its_head_shares_them() {
    for kind in KINDS {
        let table = random(&[500, 80], kind, 21);
        let options = EncodeOptions { row_access: true, ..EncodeOptions::default() };
        let compressed =
            CompressedTensor::compress("embed.weight", &table, StepRule::RowAbsmax, options).unwrap();
        let vs = VarStore::new(Device::Cpu);
        let embedding = CompressedEmbedding::new(&(vs.root() / "embed"), &compressed, kind).unwrap();
        let ids = Tensor::from_slice(&[0i64, 499, 17, 17, 16, 15]).reshape([2, 3]);
        let dense = compressed.decompress().unwrap();
        let want = Tensor::embedding(&dense, &ids, -1, false, false);
        assert_eq!(embedding.try_forward(&ids).unwrap(), want);
        let head = embedding.tied_head();
        assert_eq!((vs.variables().len(), head.shape()), (5, [500, 80]));
        let x = random(&[1, 80], kind, 22);
        let error = relative_error(&head.forward(&x), &x.linear(&dense, None::<&Tensor>));
        assert!(error < 1e-2, "{error}");
        for bad in [-1i64, 500] {
            let error = embedding.try_forward(&Tensor::from_slice(&[bad])).unwrap_err();
            assert!(error.to_string().starts_with(&format!("embed.weight: row {bad}")), "{error}");
        }
    }
}

#[test]
fn threads_that_meet_a_converted_store_at_once_agree() {
    let mut vs = VarStore::new(Device::Cpu);
    let linear = layer(&vs, &random(&[300, 512], Kind::Float, 25), Some(&random(&[300], Kind::Float, 26)));
    let x = random(&[1, 512], Kind::Float, 27);
    let want = linear.forward(&x);
    for kind in [Kind::Half, Kind::BFloat16, Kind::Float].into_iter().cycle().take(30) {
        vs.set_kind(kind);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let (x, want, linear) = (x.copy(), want.copy(), &linear);
                scope.spawn(move || assert_eq!(linear.forward(&x), want));
            }
        });
    }
}

#[test]
fn another_shape_in_the_same_buffers_is_refused() {
    let zeros = |cols: i64| compress(&Tensor::zeros([16, cols], (Kind::Float, Device::Cpu)), Layout::Fast);
    let vs = VarStore::new(Device::Cpu);
    let linear = CompressedLinear::new(&(vs.root() / "layer"), &zeros(64), None).unwrap();
    let header = Tensor::from_slice(&zeros(32).buffers().header);
    vs.variables()["layer.weight.header"].shallow_clone().copy_(&header);
    let error = linear.try_forward(&Tensor::zeros([1, 64], (Kind::Float, Device::Cpu))).unwrap_err();
    assert!(error.to_string().contains("buffers now hold shape [16, 32]"), "{error}");
}

#[test]
fn empty_inputs_give_empty_outputs_and_no_gradient_is_promised() {
    let vs = VarStore::new(Device::Cpu);
    let linear = layer(&vs, &random(&[32, 64], Kind::Float, 28), None);
    for fused_rows in [0, usize::MAX] {
        linear.set_fused_rows(fused_rows);
        let none = Tensor::zeros([0, 3, 64], (Kind::Half, Device::Cpu));
        assert_eq!(linear.try_forward(&none).unwrap().size(), [0, 3, 32]);
        let x = random(&[2, 64], Kind::Float, 29).set_requires_grad(true);
        assert!(!linear.forward(&x).requires_grad());
    }
    let table = compress(&random(&[32, 64], Kind::Float, 30), Layout::Fast);
    let embedding = CompressedEmbedding::new(&(vs.root() / "embed"), &table, Kind::Float).unwrap();
    let none = Tensor::zeros([2, 0], (Kind::Int64, Device::Cpu));
    assert_eq!(embedding.try_forward(&none).unwrap().size(), [2, 0, 64]);
}

#[test]
fn weights_at_the_edge_of_their_dtype_stay_finite() {
    for (kind, largest) in [(Kind::Half, 65504.0), (Kind::BFloat16, 3.3895e38), (Kind::Float, 3.4e38)] {
        let weight =
            Tensor::from_slice(&[largest, -largest, largest / 3.0, 0.0]).reshape([2, 2]).to_kind(kind);
        let compressed = compress(&weight, Layout::Fast);
        let back = compressed.decompress().unwrap();
        assert!(bool::try_from(back.isfinite().all()).unwrap(), "{kind:?}: {back:?}");
        assert!(compressed.stats().max_error < largest / 100.0);
    }
}

/// The original's first test: a compressed tensor's error is within tolerance in FP16 and FP32, in its own dtype.
#[test]
fn original_compressed_tensor_is_within_tolerance() {
    for kind in [Kind::Half, Kind::Float] {
        let weight = random(&[256, 256], Kind::Float, 23) * 0.1;
        let weight = weight.to_kind(kind);
        let back = compress(&weight, Layout::Fast).decompress().unwrap();
        assert_eq!((back.kind(), back.size()), (kind, weight.size()));
        let error = (back - &weight).abs().to_kind(Kind::Double);
        assert!(error.max().double_value(&[]) < 0.01);
        assert!(error.mean(Kind::Double).double_value(&[]) < 0.001);
    }
}

/// The original's second test: a compressed linear is a child module and agrees with the dense one.
#[test]
fn original_compressed_linear_is_a_child_module() {
    let vs = VarStore::new(Device::Cpu);
    let dense = nn::linear(vs.root() / "dense", 128, 64, nn::LinearConfig::default());
    let compressed =
        CompressedTensor::compress("fc.weight", &dense.ws, StepRule::RowAbsmax, EncodeOptions::default())
            .unwrap();
    let own = VarStore::new(Device::Cpu);
    let child = CompressedLinear::new(&(own.root() / "fc"), &compressed, dense.bs.as_ref()).unwrap();
    let model = nn::seq().add(child).add_fn(Tensor::relu);
    let x = random(&[10, 128], Kind::Float, 24);
    let want = dense.forward(&x).relu();
    assert!(relative_error(&model.forward_t(&x, false), &want) < 0.02);
    assert_eq!(own.variables().len(), 6);
}
