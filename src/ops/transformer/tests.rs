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
            let (tokens, lengths) = (Tensor::full([5], -7, (Kind::Int64, GPU)), ints(&[41, 0, 7, 1, 9]));
            argmax(&at, &logits, &tokens, Some(&lengths)).unwrap();
            let first = logits.get(0).argmax(None, false).int64_value(&[]);
            let got = Vec::<i64>::try_from(&tokens).unwrap();
            assert_eq!(got, [first, vocab / 2, -1, -1, 0], "{kind:?} {vocab}");
            assert_eq!(lengths, ints(&[42, 1, 8, 2, 10]));
            argmax(&at, &logits, &tokens, None).unwrap();
            assert_eq!(lengths, ints(&[42, 1, 8, 2, 10]));
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

/// The planes of a cache that gives each sequence one page.
fn whole<'a>([keys, values]: [&'a Tensor; 2]) -> CachePlanes<'a> {
    CachePlanes { keys, values, table: None }
}

const PAGE_TOKENS: i64 = 32;

/// The same keys or values in pages that lie anywhere, NaN in those of nobody and behind the capacity, and the table.
struct Paged {
    keys: Tensor,
    values: Tensor,
    table: Tensor,
}

impl Paged {
    fn of([keys, values]: [&Tensor; 2]) -> Self {
        let (batch, _, capacity, _) = keys.size4().unwrap();
        let per_sequence = (capacity as u64).div_ceil(PAGE_TOKENS as u64) as i64;
        let pages = batch * per_sequence + 3;
        let order = Tensor::randperm(pages, (Kind::Int64, GPU));
        let table = order.narrow(0, 0, batch * per_sequence).view([batch, per_sequence]);
        let [keys, values] = [keys, values].map(|plane| {
            let (_, heads, _, dim) = plane.size4().unwrap();
            let paged = poison(&[heads, pages * PAGE_TOKENS, dim], plane.kind());
            for sequence in 0..batch {
                let slots = slots_of(&table, sequence, capacity);
                let _ = paged.shallow_clone().index_copy_(1, &slots, &plane.get(sequence));
            }
            paged
        });
        Self { keys, values, table: table.to_kind(Kind::Int) }
    }

    fn planes(&self) -> CachePlanes<'_> {
        self.planes_with(&self.table)
    }

    fn planes_with<'a>(&'a self, pages: &'a Tensor) -> CachePlanes<'a> {
        let table = PageTable { pages, page_tokens: PAGE_TOKENS };
        CachePlanes { keys: &self.keys, values: &self.values, table: Some(table) }
    }

    /// What `plane`, keys or values, has for a sequence: `[kv_heads, capacity, head_dim]`.
    fn of_sequence(&self, plane: &Tensor, sequence: i64, capacity: i64) -> Tensor {
        plane.index_select(1, &slots_of(&self.table.to_kind(Kind::Int64), sequence, capacity))
    }
}

/// The slots of a sequence in pages, in order.
fn slots_of(table: &Tensor, sequence: i64, capacity: i64) -> Tensor {
    let offsets = Tensor::arange(PAGE_TOKENS, (Kind::Int64, GPU));
    let slots = table.get(sequence).unsqueeze(1) * PAGE_TOKENS + offsets;
    slots.view([-1]).narrow(0, 0, capacity)
}

#[test]
fn rope_turns_queries_and_keys_and_fills_one_slot() {
    let at = launcher_or_skip!();
    for kind in KINDS {
        for heads in MANY_HEADS {
            let Heads { kv_heads, head_dim, capacity, .. } = heads;
            let half = head_dim / 2;
            let slots = [capacity - 2, 7, capacity - 1];
            let padding = [0, 3, capacity - 1];
            let frequencies: Vec<f64> =
                (0..half).map(|i| 1e4_f64.powf(-2.0 * i as f64 / head_dim as f64)).collect();
            let frequencies = Tensor::from_slice(&frequencies).to(GPU);
            let (lengths, angles) = (ints(&slots), poison(&[3, half, 2], Kind::Float));
            rope_angles(&at, &angles, &frequencies, &lengths, &ints(&padding)).unwrap();
            let positions: Vec<f64> =
                slots.iter().zip(padding).map(|(slot, pad)| (slot - pad) as f64).collect();
            let positions = Tensor::from_slice(&positions).to(GPU).view([3, 1]);
            let turn = positions * &frequencies;
            let wanted = Tensor::stack(&[turn.cos(), turn.sin()], -1).to_kind(Kind::Float);
            assert_close(&angles, &wanted, "angles");

            let (before, qkv) = {
                let qkv = heads.qkv(3, kind);
                (qkv.copy().view([3, -1, head_dim]), qkv)
            };
            let (keys, values) = (heads.plane(3, kind), heads.plane(3, kind));
            let (wanted_keys, wanted_values) = (keys.copy(), values.copy());
            let paged = Paged::of([&keys, &values]);
            let (planes, again) = (whole([&keys, &values]), qkv.copy());
            rope_cache(&at, &qkv, planes, &angles, &lengths, heads.heads).unwrap();
            let [cos, sin] = [0, 1].map(|i| angles.select(2, i).to_kind(kind).unsqueeze(1).repeat([1, 1, 2]));
            let signed = Tensor::cat(&[-sin.narrow(2, 0, half), sin.narrow(2, half, half)], 2);
            let swapped = before.roll([half], [2]);
            let turned = (&before * cos).addcmul(&swapped, &signed);
            let part = |tensor: &Tensor, first, count| tensor.narrow(1, first, count);
            let what = format!("{heads:?}");
            let got = qkv.view([3, -1, head_dim]);
            assert_close(&part(&got, 0, heads.heads), &part(&turned, 0, heads.heads), &what);
            for (sequence, slot) in (0..3).zip(slots) {
                let into = |plane: &Tensor| plane.get(sequence).select(1, slot);
                into(&wanted_keys).copy_(&part(&turned, heads.heads, kv_heads).get(sequence));
                into(&wanted_values).copy_(&part(&before, heads.heads + kv_heads, kv_heads).get(sequence));
            }
            assert_close(&keys, &wanted_keys, &what);
            assert_eq!(values, wanted_values);

            // In pages the same goes to the same slots, and nowhere else.
            let untouched = [&paged.keys, &paged.values].map(Tensor::isnan);
            rope_cache(&at, &again, paged.planes(), &angles, &lengths, heads.heads).unwrap();
            assert_eq!(again, qkv, "{what}");
            for (plane, wanted) in [(&paged.keys, &keys), (&paged.values, &values)] {
                for sequence in 0..3 {
                    assert_eq!(paged.of_sequence(plane, sequence, capacity), wanted.get(sequence), "{what}");
                }
            }
            assert_eq!([&paged.keys, &paged.values].map(Tensor::isnan), untouched, "{what}");

            // A slot outside the cache is left alone, and so is one of a page that is not there.
            let outside = ints(&[capacity, -1, 1 << 30]);
            rope_cache(&at, &qkv, planes, &angles, &outside, heads.heads).unwrap();
            assert_eq!(values, wanted_values);
            let before = [&paged.keys, &paged.values].map(|plane| plane.nan_to_num(0.5, None, None));
            for damaged in [paged.keys.size()[1] / PAGE_TOKENS, -1, i64::from(i32::MAX), i64::from(i32::MIN)]
            {
                let table = paged.table.full_like(damaged);
                rope_cache(&at, &qkv, paged.planes_with(&table), &angles, &lengths, heads.heads).unwrap();
            }
            let past = (paged.table.size()[1]) * PAGE_TOKENS;
            rope_cache(&at, &qkv, paged.planes(), &angles, &ints(&[past, -1, 1 << 30]), heads.heads).unwrap();
            let after = [&paged.keys, &paged.values].map(|plane| plane.nan_to_num(0.5, None, None));
            assert_eq!(before, after, "{what}");
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
                    let lengths = [last, last / 2, last][..batch as usize].to_vec();
                    let padding: Vec<i64> = [0, last / 3, last][..batch as usize].to_vec();
                    // What lies outside must not matter.
                    let slots = Tensor::arange(capacity, (Kind::Int64, GPU)).view([1, 1, -1, 1]);
                    let [first, end] = [&padding, &lengths]
                        .map(|bounds| Tensor::from_slice(bounds).to(GPU).view([batch, 1, 1, 1]));
                    let outside = slots.gt_tensor(&end).logical_or(&slots.lt_tensor(&first));
                    let (keys, values) =
                        (keys.masked_fill(&outside, f64::NAN), values.masked_fill(&outside, f64::NAN));
                    let run = || {
                        let out = poison(&[batch, query_heads * head_dim], kind);
                        let range = [&ints(&lengths), &ints(&padding)];
                        attention(&at, &out, &qkv, whole([&keys, &values]), &scratch, range).unwrap();
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
                    assert_close(&out, &wanted, &format!("{heads:?}, {lengths:?}, {padding:?}"));
                }
            }
        }
    }
}

#[test]
fn attention_over_pages_is_attention_over_the_slots_in_a_row() {
    let at = launcher_or_skip!();
    for kind in KINDS {
        for heads in MANY_HEADS {
            let Heads { heads: query_heads, kv_heads, head_dim, capacity } = heads;
            for batch in [1, 4, 40] {
                let scratch =
                    AttentionScratch::new(&at, kind, [batch, query_heads, kv_heads, head_dim]).unwrap();
                let qkv = heads.qkv(batch, kind);
                let [keys, values] = [0; 2].map(|_| heads.plane(batch, kind));
                let paged = Paged::of([&keys, &values]);
                let lengths: Vec<i64> =
                    (0..batch).map(|sequence| (capacity - 1) * sequence % capacity).collect();
                let run = |planes: CachePlanes<'_>, lengths: &[i64]| {
                    let out = poison(&[batch, query_heads * head_dim], kind);
                    let range = [&ints(lengths), &ints(&vec![0; batch as usize])];
                    attention(&at, &out, &qkv, planes, &scratch, range).unwrap();
                    out
                };
                let what = format!("{heads:?} {kind:?}, {batch} sequences");
                let wanted = run(whole([&keys, &values]), &lengths);
                assert_eq!(run(paged.planes(), &lengths), wanted, "{what}");
                // Pages and lengths that are not there give nonsense, and no wild address.
                for damaged in [paged.keys.size()[1] / PAGE_TOKENS, -1, i64::from(i32::MAX)] {
                    let _ = run(paged.planes_with(&paged.table.full_like(damaged)), &lengths);
                }
                let _ = run(paged.planes(), &vec![1 << 30; batch as usize]);
                assert_eq!(run(paged.planes(), &lengths), wanted, "{what}: after damage");
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
    let (planes, table) = (random(&[2, 96, 8], Kind::Half), ints(&[0, 1, 2]));
    let table_of = |pages, page_tokens| CachePlanes {
        table: Some(PageTable { pages, page_tokens }),
        ..whole([&planes, &planes])
    };
    let (qkv, angles, lengths) = (random(&[1, 64], Kind::Half), poison(&[1, 4, 2], Kind::Float), ints(&[5]));
    let rope = |planes| rope_cache(&at, &qkv, planes, &angles, &lengths, 4);
    let one_row = table.view([1, 3]);
    rope(table_of(&one_row, 32)).unwrap();
    assert!(rope(table_of(&table, 32)).unwrap_err().to_string().contains("page table: Int [3]"));
    assert!(rope(table_of(&one_row, 24)).unwrap_err().to_string().contains("96 slots in pages of 24"));
    assert!(rope(whole([&planes, &planes])).unwrap_err().to_string().contains("with a table"));
    assert!(AttentionScratch::new(&at, Kind::Half, [1, 4, 3, 64]).is_err());
    assert!(AttentionScratch::new(&at, Kind::Half, [1, 4, 4, 12]).is_err());
    assert!(Launcher::on(Device::Cpu).is_err());
}
