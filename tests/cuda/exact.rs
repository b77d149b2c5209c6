//! Weights that are kept bit for bit, on a GPU.

use codecllm::codec::{CompressedTensor, EncodeOptions};
use codecllm::nn::{CompressedEmbedding, CompressedLinear};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use super::ops::{
    assert_same_bits, linear, need_gpu, poisoned, product, random, row_error, tolerance, CUDA, KINDS,
};

/// One weight; ragged in both directions; one whole group; several stripes a tile; lanes that are whole in a cut group; bands of
/// several tiles.
const SHAPES: [[i64; 2]; 7] = [[1, 1], [77, 300], [333, 577], [16, 64], [1000, 48], [64, 2080], [300, 4096]];

const EXACT: [Kind; 2] = [Kind::BFloat16, Kind::Half];

fn compress(weight: &Tensor) -> CompressedTensor {
    CompressedTensor::compress_exact("layer.weight", weight, EncodeOptions::default()).unwrap()
}

/// Weights of a bell, among them zeros of both signs and some far outside any window of exponents.
fn floats(shape: &[i64], kind: Kind, seed: i64) -> Tensor {
    let bell = random(shape, seed) * 0.02;
    let flat = bell.view([-1]);
    let count = flat.size()[0];
    for (first, step, factor) in [(0, 97, 0.0), (1, 101, -0.0), (2, 89, 1e-4), (3, 83, 50.0), (5, 113, 1e-7)]
    {
        if first < count {
            let _ = flat.slice(0, first, count, step).g_mul_scalar_(factor);
        }
    }
    bell.to_kind(kind)
}

/// All halves there are, as the dtype's.
fn every_half(kind: Kind) -> Tensor {
    let bits: Vec<i16> = (i16::MIN..=i16::MAX).collect();
    Tensor::from_slice(&bits).view([256, 256]).view_dtype(kind)
}

#[test]
fn scratch_holds_the_weights_own_bits() {
    need_gpu!();
    for kind in EXACT {
        for weight in SHAPES.iter().map(|shape| floats(shape, kind, 1)).chain([every_half(kind)]) {
            let compressed = compress(&weight);
            let (_vs, linear) = linear(&compressed, None);
            let on_cpu = VarStore::new(Device::Cpu);
            let reference = CompressedLinear::new(&(on_cpu.root() / "layer"), &compressed, None).unwrap();
            for out_kind in [kind, Kind::Float] {
                let out = poisoned(&weight.size(), out_kind);
                linear.decode_into(&out).unwrap();
                // libtorch's own conversion may quiet a NaN.
                let want = Tensor::zeros(weight.size(), (out_kind, Device::Cpu));
                reference.decode_into(&want).unwrap();
                assert_same_bits(&out, &want, &format!("{kind:?} {:?} to {out_kind:?}", weight.size()));
                if out_kind == kind {
                    assert_same_bits(&out, &weight, &format!("{kind:?} {:?}", weight.size()));
                }
            }
        }
    }
}

#[test]
fn another_dtype_is_rounded_to_nearest() {
    need_gpu!();
    for (kind, other) in [(Kind::BFloat16, Kind::Half), (Kind::Half, Kind::BFloat16)] {
        for shape in SHAPES {
            let weight = floats(&shape, kind, 2);
            let (_vs, linear) = linear(&compress(&weight), None);
            let out = poisoned(&shape, other);
            linear.decode_into(&out).unwrap();
            assert_same_bits(&out, &weight.to_kind(other), &format!("{kind:?} {shape:?}"));
        }
    }
}

#[test]
fn fused_is_the_product_for_every_batch_and_dtype() {
    need_gpu!();
    for weight_kind in EXACT {
        for shape in [[333, 577], [16, 64], [5, 1000], [64, 2080], [1000, 48], [300, 4096]] {
            let compressed = compress(&floats(&shape, weight_kind, 3));
            let bias = random(&[shape[0]], 4);
            let (_vs, linear) = linear(&compressed, Some(&bias));
            linear.set_fused_rows(usize::MAX);
            for kind in KINDS {
                for batch in [1, 2, 7, 8, 9, 16, 17, 33, 64, 65] {
                    let x = random(&[batch, shape[1]], batch).to_kind(kind);
                    let on_device = x.to_device(CUDA);
                    assert!(linear.is_fused(&on_device).unwrap());
                    let got = linear.try_forward(&on_device).unwrap();
                    let error = row_error(&got, &product(&compressed, &x, Some(&bias)));
                    let most = tolerance(kind).max(3e-5);
                    assert!(error < most, "{weight_kind:?} {shape:?} {kind:?} {batch}: {error}");
                }
            }
        }
    }
}

#[test]
fn inputs_beyond_fp16_reach_weights_of_either_type() {
    need_gpu!();
    for weight_kind in EXACT {
        let weight = floats(&[100, 320], weight_kind, 5);
        // What the large inputs meet, so that the small ones decide the result.
        let _ = weight.narrow(1, 0, 4).zero_();
        let compressed = compress(&weight);
        let (_vs, linear) = linear(&compressed, None);
        linear.set_fused_rows(usize::MAX);
        for kind in [Kind::Float, Kind::BFloat16] {
            for (scale, large) in [(1e30, 1e30), (1e-30, 0.0), (1e-3, 1e5)] {
                let x = random(&[5, 320], 6) * scale;
                let _ = x.narrow(1, 0, 4).fill_(large);
                let x = x.to_kind(kind);
                let got = linear.try_forward(&x.to_device(CUDA)).unwrap();
                let error = row_error(&got, &product(&compressed, &x, None));
                let most = tolerance(kind).max(3e-5);
                assert!(error < most, "{weight_kind:?} {kind:?} {scale} beside {large}: {error}");
            }
        }
    }
}

#[test]
fn a_row_is_the_same_alone_and_in_any_batch() {
    need_gpu!();
    for weight_kind in EXACT {
        for kind in KINDS {
            let bias = random(&[96], 12);
            let (_vs, linear) = linear(&compress(&floats(&[96, 4096], weight_kind, 7)), Some(&bias));
            linear.set_fused_rows(usize::MAX);
            let x = random(&[64, 4096], 8).to_kind(kind).to_device(CUDA);
            let all = linear.try_forward(&x).unwrap();
            for batch in [1, 8, 9, 16, 20, 50] {
                let first = linear.try_forward(&x.narrow(0, 0, batch)).unwrap();
                let what = format!("{weight_kind:?} {kind:?} {batch} rows");
                assert_same_bits(&first, &all.narrow(0, 0, batch), &what);
            }
        }
    }
}

#[test]
fn the_scratch_path_is_the_dense_product_bit_for_bit() {
    need_gpu!();
    for kind in EXACT {
        let weight = floats(&[200, 1024], kind, 9);
        let (_vs, linear) = linear(&compress(&weight), None);
        linear.set_fused_rows(0);
        for batch in [1, 3, 100] {
            let x = random(&[batch, 1024], 10).to_kind(kind).to_device(CUDA);
            let want = x.matmul(&weight.to_device(CUDA).tr());
            assert_same_bits(&linear.try_forward(&x).unwrap(), &want, &format!("{kind:?} {batch}"));
        }
    }
}

#[test]
fn looked_up_rows_are_the_tables_own() {
    need_gpu!();
    for kind in EXACT {
        for shape in [[1000, 288], [77, 300], [300, 2080]] {
            let table = floats(&shape, kind, 11);
            let options = EncodeOptions { row_access: true, ..EncodeOptions::default() };
            let compressed = CompressedTensor::compress_exact("embed.weight", &table, options).unwrap();
            let vs = VarStore::new(CUDA);
            let embedding = CompressedEmbedding::new(&(vs.root() / "embed"), &compressed, kind).unwrap();
            let rows: Vec<i64> = vec![0, 5, shape[0] - 1, 17, 5];
            let index = Tensor::from_slice(&rows);
            let got = embedding.try_forward(&index.to_device(CUDA)).unwrap();
            assert_same_bits(&got, &table.index_select(0, &index), &format!("{kind:?} {shape:?}"));
        }
    }
}

#[test]
fn infinite_weights_and_inputs_stay_among_themselves() {
    need_gpu!();
    for weight_kind in EXACT {
        let weight = floats(&[48, 320], weight_kind, 13);
        let _ = weight.narrow(0, 5, 1).narrow(1, 7, 1).fill_(f64::INFINITY);
        // An escape at the first column, beside which an infinite input must not count for the other rows.
        let _ = weight.narrow(0, 20, 1).narrow(1, 0, 1).fill_(3.0);
        let (_vs, linear) = linear(&compress(&weight), None);
        linear.set_fused_rows(usize::MAX);
        for kind in KINDS {
            let x = random(&[3, 320], 14).to_kind(kind);
            let y = linear.try_forward(&x.to_device(CUDA)).unwrap().to_device(Device::Cpu);
            let infinite = y.isinf();
            assert_eq!(infinite.narrow(1, 5, 1).all().int64_value(&[]), 1, "{weight_kind:?} {kind:?} {y:?}");
            assert_eq!(infinite.sum(Kind::Int64).int64_value(&[]), 3, "{weight_kind:?} {kind:?}");
            let sign = x.narrow(1, 7, 1).sign().to_kind(Kind::Double);
            assert_eq!(y.narrow(1, 5, 1).sign().to_kind(Kind::Double), sign, "{weight_kind:?} {kind:?}");
            assert_eq!(y.isnan().any().int64_value(&[]), 0, "{weight_kind:?} {kind:?}");
        }
    }
}
