//! The kernels of a step against tensor operators, over shapes that fit nothing. Every test skips, with a message, where there
//! is no GPU.

use tch::{Device, Kind, Tensor};

use super::*;

const GPU: Device = Device::Cuda(0);
const KINDS: [Kind; 3] = [Kind::Float, Kind::Half, Kind::BFloat16];

fn launcher() -> Option<Launcher> {
    Launcher::on(GPU).inspect_err(|error| println!("SKIPPED: {error}")).ok()
}

macro_rules! launcher_or_skip {
    () => {
        match launcher() {
            Some(launcher) => launcher,
            None => return,
        }
    };
}

fn random(shape: &[i64], kind: Kind) -> Tensor {
    Tensor::randn(shape, (Kind::Float, GPU)).to_kind(kind)
}

/// A tensor of NaN: what a kernel must write over.
fn poison(shape: &[i64], kind: Kind) -> Tensor {
    Tensor::full(shape, f64::NAN, (kind, GPU))
}

fn ints(values: &[i64]) -> Tensor {
    Tensor::from_slice(values).to_kind(Kind::Int).to(GPU)
}

/// Equal but for some units in the last place of the dtype.
fn assert_close(got: &Tensor, wanted: &Tensor, what: &str) {
    let kind = got.kind();
    assert_eq!((got.size(), kind), (wanted.size(), wanted.kind()), "{what}");
    let relative = match kind {
        Kind::Half => 4e-3,
        Kind::BFloat16 => 3e-2,
        _ => 2e-5,
    };
    let (got, wanted) = (got.to_kind(Kind::Float), wanted.to_kind(Kind::Float));
    let far = (&got - &wanted).abs().ge_tensor(&(wanted.abs() * relative + relative * 0.25));
    let wrong = far.logical_or(&got.isnan()).any().int64_value(&[]);
    assert_eq!(wrong, 0, "{what} {kind:?}: {got:?} differs from {wanted:?}");
}

#[test]
fn rms_norm_takes_in_and_normalizes_rows_of_any_width() {
    let at = launcher_or_skip!();
    for kind in KINDS {
        for width in [1, 5, 24, 288, 4096, 5000, 8200, 20_000] {
            let (before, delta) = (random(&[3, width], kind), random(&[3, width], kind));
            let weight = random(&[width], kind);
            for added in [None, Some(&delta)] {
                let (hidden, out) = (before.copy(), poison(&[3, width], kind));
                rms_norm(&at, &hidden, added, &weight, &out, 1e-5).unwrap();
                let sum = added.map_or_else(|| before.copy(), |delta| &before + delta);
                assert_eq!(hidden, sum, "{kind:?} {width}");
                let wide = sum.to_kind(Kind::Float);
                let mean = wide.square().mean_dim(-1, true, Kind::Float);
                let wanted = (wide * (mean + 1e-5).rsqrt()).to_kind(kind) * &weight;
                assert_close(&out, &wanted, &format!("norm of {width}"));
            }
        }
    }
}

#[test]
fn swiglu_gates_rows_of_any_width() {
    let at = launcher_or_skip!();
    for kind in KINDS {
        for (rows, width) in [(1, 1), (3, 43), (2, 40), (1, 14_336), (64, 768)] {
            let gate_up = random(&[rows, 2 * width], kind) * 3;
            let out = poison(&[rows, width], kind);
            swiglu(&at, &gate_up, &out).unwrap();
            let wanted = gate_up.narrow(1, 0, width).silu() * gate_up.narrow(1, width, width);
            assert_close(&out, &wanted, &format!("gate of {rows} x {width}"));
        }
    }
}

#[test]
fn embedding_gives_rows_and_nan_for_unknown_tokens() {
    let at = launcher_or_skip!();
    for kind in KINDS {
        for width in [3, 24, 300, 4096] {
            let table = random(&[50, width], kind);
            let out = poison(&[3, width], kind);
            let tokens = Tensor::from_slice(&[0_i64, 49, 7]).to(GPU);
            embedding(&at, &tokens, &table, &out).unwrap();
            assert_eq!(out, table.index_select(0, &tokens));
            embedding(&at, &Tensor::from_slice(&[50_i64, -1, 1 << 40]).to(GPU), &table, &out).unwrap();
            assert!(bool::try_from(out.isnan().all()).unwrap());
        }
    }
}

#[test]
fn argmax_is_the_first_of_the_largest() {
    let at = launcher_or_skip!();
    for kind in KINDS {
        for vocab in [1, 7, 50, 32_000, 32_003, 128_256] {
            let logits = random(&[5, vocab], kind);
            let largest = logits.get(1).max() + 1;
            logits.get(1).narrow(0, vocab / 2, vocab - vocab / 2).copy_(&largest);
            let _ = logits.get(2).narrow(0, vocab / 3, 1).fill_(f64::NAN);
            let _ = logits.get(3).narrow(0, vocab - 1, 1).fill_(f64::INFINITY);
            let _ = logits.narrow(0, 4, 1).fill_(-1.0);
            let (tokens, length) = (Tensor::full([5], -7, (Kind::Int64, GPU)), ints(&[41]));
            argmax(&at, &logits, &tokens, Some(&length)).unwrap();
            let first = logits.get(0).argmax(None, false).int64_value(&[]);
            let got = Vec::<i64>::try_from(&tokens).unwrap();
            assert_eq!(got, [first, vocab / 2, -1, -1, 0], "{kind:?} {vocab}");
            assert_eq!(length.int64_value(&[0]), 42);
            argmax(&at, &logits, &tokens, None).unwrap();
            assert_eq!(length.int64_value(&[0]), 42);
        }
    }
}

/// Sizes of one attention: heads, key heads, width of a head, slots.
#[derive(Clone, Copy, Debug)]
struct Heads {
    heads: i64,
    kv_heads: i64,
    head_dim: i64,
    capacity: i64,
}

impl Heads {
    fn qkv(&self, batch: i64, kind: Kind) -> Tensor {
        random(&[batch, (self.heads + 2 * self.kv_heads) * self.head_dim], kind)
    }

    fn plane(&self, batch: i64, kind: Kind) -> Tensor {
        random(&[batch, self.kv_heads, self.capacity, self.head_dim], kind)
    }
}

const MANY_HEADS: [Heads; 8] = [
    Heads { heads: 4, kv_heads: 2, head_dim: 8, capacity: 12 },
    Heads { heads: 6, kv_heads: 6, head_dim: 48, capacity: 300 },
    Heads { heads: 6, kv_heads: 2, head_dim: 64, capacity: 257 },
    Heads { heads: 4, kv_heads: 1, head_dim: 80, capacity: 700 },
    Heads { heads: 32, kv_heads: 8, head_dim: 128, capacity: 2304 },
    Heads { heads: 16, kv_heads: 2, head_dim: 128, capacity: 1000 },
    Heads { heads: 3, kv_heads: 3, head_dim: 128, capacity: 90 },
    Heads { heads: 5, kv_heads: 1, head_dim: 256, capacity: 520 },
];

#[test]
fn rope_turns_queries_and_keys_and_fills_one_slot() {
    let at = launcher_or_skip!();
    for kind in KINDS {
        for heads in MANY_HEADS {
            let Heads { kv_heads, head_dim, capacity, .. } = heads;
            let (slot, half) = (capacity - 2, head_dim / 2);
            let padding = [0, 3, slot];
            let frequencies: Vec<f64> =
                (0..half).map(|i| 1e4_f64.powf(-2.0 * i as f64 / head_dim as f64)).collect();
            let frequencies = Tensor::from_slice(&frequencies).to(GPU);
            let (length, angles) = (ints(&[slot]), poison(&[3, half, 2], Kind::Float));
            rope_angles(&at, &angles, &frequencies, &length, &ints(&padding)).unwrap();
            let positions = Tensor::from_slice(&padding.map(|pad| (slot - pad) as f64)).to(GPU).view([3, 1]);
            let turn = positions * &frequencies;
            let wanted = Tensor::stack(&[turn.cos(), turn.sin()], -1).to_kind(Kind::Float);
            assert_close(&angles, &wanted, "angles");

            let (before, qkv) = {
                let qkv = heads.qkv(3, kind);
                (qkv.copy().view([3, -1, head_dim]), qkv)
            };
            let (keys, values) = (heads.plane(3, kind), heads.plane(3, kind));
            let (wanted_keys, wanted_values) = (keys.copy(), values.copy());
            let planes = CachePlanes { keys: &keys, values: &values };
            rope_cache(&at, &qkv, planes, &angles, &length, heads.heads).unwrap();
            let [cos, sin] = [0, 1].map(|i| angles.select(2, i).to_kind(kind).unsqueeze(1).repeat([1, 1, 2]));
            let signed = Tensor::cat(&[-sin.narrow(2, 0, half), sin.narrow(2, half, half)], 2);
            let swapped = before.roll([half], [2]);
            let turned = (&before * cos).addcmul(&swapped, &signed);
            let part = |tensor: &Tensor, first, count| tensor.narrow(1, first, count);
            let what = format!("{heads:?}");
            let got = qkv.view([3, -1, head_dim]);
            assert_close(&part(&got, 0, heads.heads), &part(&turned, 0, heads.heads), &what);
            wanted_keys.select(2, slot).copy_(&part(&turned, heads.heads, kv_heads));
            wanted_values.select(2, slot).copy_(&part(&before, heads.heads + kv_heads, kv_heads));
            assert_close(&keys, &wanted_keys, &what);
            assert_eq!(values, wanted_values);
            // A slot outside the cache is left alone.
            rope_cache(&at, &qkv, planes, &angles, &ints(&[capacity]), heads.heads).unwrap();
            assert_eq!(values, wanted_values);
        }
    }
}

#[test]
fn attention_is_softmax_over_the_slots_seen() {
    let at = launcher_or_skip!();
    for kind in KINDS {
        for heads in MANY_HEADS {
            let Heads { heads: query_heads, kv_heads, head_dim, capacity } = heads;
            for batch in [1, 3] {
                let scratch =
                    AttentionScratch::new(&at, kind, [batch, query_heads, kv_heads, head_dim]).unwrap();
                let (qkv, keys, values) =
                    (heads.qkv(batch, kind), heads.plane(batch, kind), heads.plane(batch, kind));
                for last in [0, 1, capacity / 2, capacity - 1] {
                    let padding: Vec<i64> = [0, last / 3, last][..batch as usize].to_vec();
                    // What lies outside must not matter.
                    let slots = Tensor::arange(capacity, (Kind::Int64, GPU));
                    let first = Tensor::from_slice(&padding).to(GPU).view([batch, 1, 1, 1]);
                    let outside = slots
                        .gt(last)
                        .logical_or(&slots.view([1, 1, -1, 1]).lt_tensor(&first).squeeze_dim(-1));
                    let outside = outside.view([batch, 1, capacity, 1]);
                    let (keys, values) =
                        (keys.masked_fill(&outside, f64::NAN), values.masked_fill(&outside, f64::NAN));
                    let run = || {
                        let out = poison(&[batch, query_heads * head_dim], kind);
                        let planes = CachePlanes { keys: &keys, values: &values };
                        attention(&at, &out, &qkv, planes, &scratch, [&ints(&[last]), &ints(&padding)])
                            .unwrap();
                        out
                    };
                    let out = run();
                    assert_eq!(out, run(), "another launch, another answer");
                    let query = qkv.narrow(1, 0, query_heads * head_dim).to_kind(Kind::Double);
                    let query = query.view([batch, kv_heads, query_heads / kv_heads, head_dim]);
                    let wide = |plane: &Tensor| plane.nan_to_num(0.0, None, None).to_kind(Kind::Double);
                    let scores = query.matmul(&wide(&keys).transpose(2, 3)) / (head_dim as f64).sqrt();
                    let hidden = outside.view([batch, 1, 1, capacity]);
                    let weights = scores.masked_fill(&hidden, f64::NEG_INFINITY).softmax(-1, Kind::Double);
                    let wanted = weights.matmul(&wide(&values)).reshape([batch, -1]).to_kind(kind);
                    assert_close(&out, &wanted, &format!("{heads:?}, {last}, {padding:?}"));
                }
            }
        }
    }
}

#[test]
fn tensors_of_another_shape_dtype_or_device_are_refused() {
    let at = launcher_or_skip!();
    let good = random(&[2, 16], Kind::Half);
    let weight = random(&[16], Kind::Half);
    let refused = |out: &Tensor| rms_norm(&at, &good, None, &weight, out, 1e-5).unwrap_err().to_string();
    assert!(refused(&random(&[2, 8], Kind::Half)).contains("wanted Half [2, 16]"));
    assert!(refused(&random(&[2, 16], Kind::Float)).contains("normed states: Float"));
    assert!(refused(&good.to(Device::Cpu)).contains("on Cpu"));
    assert!(refused(&random(&[16, 2], Kind::Half).transpose(0, 1)).contains("not contiguous"));
    assert!(AttentionScratch::new(&at, Kind::Half, [1, 4, 3, 64]).is_err());
    assert!(AttentionScratch::new(&at, Kind::Half, [1, 4, 4, 12]).is_err());
    assert!(Launcher::on(Device::Cpu).is_err());
}
