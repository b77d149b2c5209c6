use proptest::prelude::*;
use tch::Kind;

use super::*;

fn dense() -> Choice {
    estimates(&ModelShape::of(&LlamaConfig::llama_3_1_8b()), Kind::Half, None).remove(0)
}

/// As `bench generate` measured it.
fn compressed(weight_bytes: u64, bits_per_weight: f64) -> Choice {
    Choice {
        name: "5.3 bits".to_owned(),
        coding: Coding::Grid,
        bits_per_weight,
        weight_bytes,
        basis: Basis::Exact,
    }
}

/// Peaks that `codecllm bench generate --config 8b --bits 5.3 --prompt 2048 --json` measured (`peak_device_bytes`; H100, driver
/// 580.159.04, libtorch 2.11.0, 2026-11-25, scratch of 128 MiB): choice, positions of each sequence, sequences, bytes.
fn measured_peaks() -> [(Choice, usize, usize, u64); 6] {
    [
        (dense(), 2176, 1, 17_030_971_392),
        (compressed(5_337_250_087, 5.3171), 2176, 1, 6_635_388_928),
        (dense(), 2304, 1, 17_051_942_912),
        (compressed(5_309_713_667, 5.2897), 2304, 1, 6_631_194_624),
        (dense(), 512, 8, 17_265_852_416),
        (compressed(5_309_713_667, 5.2897), 512, 8, 6_840_909_824),
    ]
}

fn ratio_to_peak((choice, context, batch, peak): &(Choice, usize, usize, u64)) -> f64 {
    let workload = Workload { context: *context, batch: *batch, kind: Kind::Half };
    let memory = Memory::of(&LlamaConfig::llama_3_1_8b(), choice, &workload, Place::Gpu);
    let ratio = memory.total_without_context() as f64 / *peak as f64;
    println!("{} {context} x {batch}: {ratio:.4} {memory:?}", choice.name);
    ratio
}

#[test]
fn the_plan_is_within_one_percent_of_measured_peaks() {
    for measured in &measured_peaks()[..4] {
        assert!((0.99..=1.01).contains(&ratio_to_peak(measured)));
    }
}

/// The batches were prompts of one length that filled half of the context: planned are prompts of any length, which need a mask, and as
/// long as the context.
#[test]
fn a_batch_is_planned_for_the_worst() {
    for measured in &measured_peaks()[4..] {
        assert!((1.0..=1.06).contains(&ratio_to_peak(measured)));
    }
}

/// Tokens a second that the same command measured at batch 1 and 8 on both GPUs, docs/kernels.md.
#[test]
fn the_speed_is_within_three_percent_of_what_was_measured() {
    let own = || compressed(5_337_250_087, 5.3171);
    let cases = [
        (Gpu::H100, dense(), 1, 159.5),
        (Gpu::H100, own(), 1, 262.5),
        (Gpu::H100, dense(), 8, 1261.3),
        (Gpu::H100, own(), 8, 1986.7),
        (Gpu::H200, dense(), 1, 210.6),
        (Gpu::H200, own(), 1, 268.8),
        (Gpu::H200, dense(), 8, 1659.4),
        (Gpu::H200, own(), 8, 2018.7),
    ];
    for (gpu, choice, batch, measured) in cases {
        // In the middle of the answer.
        let workload = Workload { context: 2048 / batch + 64, batch, kind: Kind::Half };
        let speed =
            expected(&LlamaConfig::llama_3_1_8b(), &choice, &workload, &Machine::gpu(Some(gpu), None))
                .unwrap();
        let ratio = speed.tokens_per_second / measured;
        assert!((0.97..=1.03).contains(&ratio), "{gpu:?} {} batch {batch}: {ratio}", choice.name);
        assert_eq!(speed.basis, SpeedBasis::Measured);
    }
}

#[test]
fn a_device_that_was_never_measured_gets_a_bound() {
    let workload = Workload::default();
    let speed = |machine: &Machine, choice: &Choice| {
        expected(&LlamaConfig::llama_3_1_8b(), choice, &workload, machine)
    };
    let rtx = Machine::gpu(Some(Gpu::Rtx4090), None);
    let bound = speed(&rtx, &dense()).unwrap();
    assert_eq!(bound.basis, SpeedBasis::Bound);
    // 7.5 G weights of two bytes and 0.54 GB of cache at 1008 GB/s.
    let bytes = 2.0 * 7_504_924_672.0 + 131_072.0 * 4096.0;
    assert!((bound.tokens_per_second - 1008e9 / bytes).abs() < 0.1, "{bound:?}");
    assert_eq!(speed(&Machine::gpu(None, Some(1)), &dense()), None);
    assert_eq!(speed(&Machine::cpu(1), &dense()), None);
    // On a measured device: FP16 without loss has no figure near.
    let lossless = Choice { coding: Coding::Exact, bits_per_weight: 13.7, ..dense() };
    let h100 = Machine::gpu(Some(Gpu::H100), None);
    assert_eq!(speed(&h100, &lossless).unwrap().basis, SpeedBasis::Bound);
    let int8 = compressed(7_327_000_000, 7.3);
    assert_eq!(speed(&h100, &int8).unwrap().basis, SpeedBasis::Extrapolated);
}

#[test]
fn a_name_of_the_drivers_tells_the_gpu() {
    let gpu = |name| Gpu::named(name);
    assert_eq!(gpu("NVIDIA H100 80GB HBM3"), Some(Gpu::H100));
    assert_eq!(gpu("NVIDIA H200"), Some(Gpu::H200));
    assert_eq!(gpu("NVIDIA L4"), Some(Gpu::L4));
    assert_eq!(gpu("NVIDIA GeForce RTX 4090 Laptop GPU"), None);
}

#[test]
fn what_no_memory_could_hold_does_not_fit() {
    let most = 1 << 31;
    let huge = LlamaConfig {
        vocab_size: most,
        hidden_size: most,
        intermediate_size: most,
        num_hidden_layers: most,
        num_attention_heads: most,
        num_key_value_heads: most,
        head_dim: most,
        max_position_embeddings: most,
        attention_bias: true,
        mlp_bias: true,
        ..LlamaConfig::llama_3_1_8b()
    };
    let shape = ModelShape::of(&huge);
    assert_eq!([shape.weights(), shape.matrix_weights(), shape.step_weights()], [usize::MAX; 3]);
    let endless = Workload { batch: usize::MAX, ..Workload::default() };
    for (config, workload) in
        [(&huge, Workload::default()), (&huge, endless), (&LlamaConfig::llama_3_1_8b(), endless)]
    {
        let choices = estimates(&ModelShape::of(config), Kind::Float, None);
        for machine in [Machine::gpu(Some(Gpu::H100), None), Machine::cpu(1 << 40)] {
            let plan = plan(config, &choices, &workload, &machine);
            assert!(!plan.fits());
            assert!(plan.choices.iter().all(|planned| planned.total_bytes == u64::MAX), "{plan:?}");
        }
    }
}

/// Any Llama, any size of a choice, any workload.
fn any_config() -> impl Strategy<Value = LlamaConfig> {
    let sizes = (1usize..40, 1usize..9, 1usize..9, 1usize..65, 1usize..3000, 1usize..200_000);
    (sizes, any::<bool>()).prop_map(|((layers, kv, shared, half_head, wide, vocab), tied)| LlamaConfig {
        vocab_size: vocab,
        hidden_size: 16 * half_head,
        intermediate_size: wide,
        num_hidden_layers: layers,
        num_attention_heads: kv * shared,
        num_key_value_heads: kv,
        head_dim: 2 * half_head,
        tie_word_embeddings: tied,
        ..LlamaConfig::llama_3_1_8b()
    })
}

fn any_choice_of(config: &LlamaConfig, index: usize) -> Choice {
    let choices = estimates(&ModelShape::of(config), Kind::Half, None);
    choices[index % choices.len()].clone()
}

fn any_place() -> impl Strategy<Value = Place> {
    prop_oneof![Just(Place::Cpu), Just(Place::Gpu)]
}

proptest! {
    #[test]
    fn longer_and_more_sequences_take_no_less(
        config in any_config(), index in 0usize..6, place in any_place(),
        context in 1usize..200_000, batch in 1usize..70_000, longer in 0usize..10_000, more in 0usize..1000,
    ) {
        let choice = any_choice_of(&config, index);
        let total = |context, batch| {
            Memory::of(&config, &choice, &Workload { context, batch, kind: Kind::Half }, place).total()
        };
        prop_assert!(total(context + longer, batch) >= total(context, batch));
        prop_assert!(total(context, batch + more) >= total(context, batch));
    }

    #[test]
    fn more_memory_never_fits_less(
        config in any_config(), index in 0usize..6, place in any_place(),
        context in 1usize..100_000, batch in 1usize..100, memory in 0u64..1 << 38, more in 0u64..1 << 36,
    ) {
        let choices = [any_choice_of(&config, index)];
        let workload = Workload { context, batch, kind: Kind::Half };
        let planned = |memory_bytes| {
            let machine = Machine { place, ..Machine::cpu(memory_bytes) };
            plan(&config, &choices, &workload, &machine).choices.remove(0)
        };
        let (less, enough) = (planned(memory), planned(memory + more));
        prop_assert!(enough.fits || !less.fits);
        prop_assert!(enough.largest_context >= less.largest_context);
        prop_assert!(enough.largest_batch >= less.largest_batch);
    }

    #[test]
    fn the_largest_fits_and_one_more_does_not(
        config in any_config(), index in 0usize..6, place in any_place(), batch in 1usize..100,
        memory in 1u64 << 29..1 << 36,
    ) {
        let choices = [any_choice_of(&config, index)];
        let machine = Machine { place, ..Machine::cpu(memory) };
        let workload = Workload { context: 1000, batch, kind: Kind::Half };
        let planned = plan(&config, &choices, &workload, &machine).choices.remove(0);
        let total = |workload: Workload| Memory::of(&config, &choices[0], &workload, place).total();
        let at = |context| total(Workload { context, ..workload });
        if planned.largest_context > 0 {
            prop_assert!(at(planned.largest_context) <= memory);
        }
        if planned.largest_context < config.max_position_embeddings {
            prop_assert!(at(planned.largest_context + 1) > memory);
        }
        let of = |batch| total(Workload { batch, ..workload });
        if planned.largest_batch > 0 {
            prop_assert!(of(planned.largest_batch) <= memory);
        }
        if planned.largest_batch < MOST_SEQUENCES {
            prop_assert!(of(planned.largest_batch + 1) > memory);
        }
    }

    #[test]
    fn fewer_bits_take_less(config in any_config(), place in any_place()) {
        let of = |index| Memory::of(&config, &any_choice_of(&config, index), &Workload::default(), place);
        // small, balanced, int8, near: the same coding.
        let weights: Vec<u64> = [5, 4, 3, 2].map(|index| of(index).weight_bytes).to_vec();
        prop_assert!(weights.is_sorted(), "{weights:?}");
    }
}
