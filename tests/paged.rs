//! Sequences that come and go in a paged cache, against each of them alone.

mod stories;
mod tiny_llama;

use std::path::Path;

use codecllm::checkpoint::{compress, CheckpointWeights, CompressOptions, Reader};
use codecllm::model::{BatchScores, KvCache, Llama, LlamaConfig, LogitsOf, PagedKvCache, PagedSequence};
use codecllm::runtime::rss_bytes;
use codecllm::{Error, ErrorKind};
use serde_json::Value;
use stories::{stories, Story};
use tch::{nn, Device, Kind, Tensor};
use tiny_llama::{downloaded, full_config, plain_config, TinyLlama};

const MOST: usize = PagedKvCache::MOST_SEQUENCES;

/// A model with the VarStore that owns its weights.
struct Loaded {
    _vs: nn::VarStore,
    model: Llama,
}

fn load(dir: &Path, kind: Kind) -> Loaded {
    let config = LlamaConfig::from_dir(dir).unwrap();
    let reader = Reader::open(dir).unwrap();
    let vs = nn::VarStore::new(Device::Cpu);
    let model = Llama::load(&vs.root(), &config, &CheckpointWeights::new(&reader, kind)).unwrap();
    Loaded { _vs: vs, model }
}

/// A compressed model whose linears give each of up to 64 rows what it gets alone.
fn load_compressed(dir: &Path, kind: Kind) -> Loaded {
    let folder = tempfile::tempdir().unwrap();
    let compressed = folder.path().join("int8");
    compress(dir, &compressed, &CompressOptions::default(), &mut |_| ()).unwrap();
    let loaded = load(&compressed, kind);
    loaded.model.set_fused_rows(MOST);
    loaded
}

/// So wide that libtorch divides a batch among threads, at places that fit no vector.
fn wide_config() -> Value {
    let mut config = plain_config();
    for (name, value) in [
        ("head_dim", 80),
        ("hidden_size", 52),
        ("num_attention_heads", 6),
        ("num_key_value_heads", 2),
        ("intermediate_size", 1003),
    ] {
        config[name] = value.into();
    }
    config
}

/// The logits behind the prompt and behind each step, through a cache of its own.
fn alone(story: &Story, model: &Llama, kind: Kind) -> Vec<Vec<f32>> {
    let tokens: Vec<i64> = story.tokens(model.config().vocab_size).into_iter().map(i64::from).collect();
    let mut cache = KvCache::new(model.config(), 1, tokens.len(), kind, Device::Cpu).unwrap();
    let row = |ids: &[i64]| Tensor::from_slice(ids).view([1, -1]);
    let prompt = model.prefill(&row(&tokens[..story.prompt]), &mut cache).unwrap();
    let mut logits = vec![values(&prompt)];
    for &token in &tokens[story.prompt..] {
        logits.push(values(&model.forward(&row(&[token]), &mut cache, LogitsOf::Last).unwrap()));
    }
    logits
}

fn values(logits: &Tensor) -> Vec<f32> {
    Vec::try_from(logits.to_kind(Kind::Float).view([-1])).unwrap()
}

/// A story under way.
struct Running {
    story: Story,
    tokens: Vec<u32>,
    sequence: PagedSequence,
    seen: Vec<Vec<f32>>,
}

impl Running {
    fn next(&self) -> u32 {
        self.tokens[self.sequence.len()]
    }
}

/// All stories, each from its step on, as far as there are pages. Gives every story's logits.
fn together(model: &Llama, stories: &[Story], cache: &mut PagedKvCache) -> Vec<Vec<Vec<f32>>> {
    let mut seen = vec![Vec::new(); stories.len()];
    let mut waiting: Vec<(usize, Story)> = stories.iter().copied().enumerate().collect();
    let mut running: Vec<(usize, Running)> = Vec::new();
    let mut step = 0;
    while !(waiting.is_empty() && running.is_empty()) {
        waiting.retain(|&(index, story)| {
            if story.joins > step || running.len() == MOST {
                return true;
            }
            let Some(mut sequence) = cache.sequence(story.prompt + story.steps) else { return true };
            let tokens = story.tokens(model.config().vocab_size);
            let scores = model.prefill_paged(&tokens[..story.prompt], &mut sequence, cache).unwrap();
            assert_eq!(scores.rows(), 1);
            let seen = vec![scores.logits(0).unwrap()];
            running.push((index, Running { story, tokens, sequence, seen }));
            false
        });
        // Another order in every step.
        if !running.is_empty() {
            let turn = step % running.len();
            running.rotate_left(turn);
        }
        let (done, going): (Vec<_>, Vec<_>) =
            running.into_iter().partition(|(_, running)| running.sequence.len() == running.tokens.len());
        running = going;
        for (index, finished) in done {
            assert_eq!(finished.seen.len(), finished.story.steps + 1);
            seen[index] = finished.seen;
            cache.release(finished.sequence);
        }
        if !running.is_empty() {
            let tokens: Vec<u32> = running.iter().map(|(_, running)| running.next()).collect();
            let mut sequences: Vec<_> =
                running.iter_mut().map(|(_, running)| &mut running.sequence).collect();
            let scores = model.decode_paged(&tokens, &mut sequences, cache).unwrap();
            for (row, (_, running)) in running.iter_mut().enumerate() {
                running.seen.push(scores.logits(row).unwrap());
            }
        }
        step += 1;
    }
    seen
}

fn assert_same_bits(model: &Llama, kind: Kind, stories: &[Story], pages: usize, what: &str) {
    let mut cache = PagedKvCache::new(model.config(), pages, kind, Device::Cpu).unwrap();
    let bits = |rows: &[Vec<f32>]| -> Vec<Vec<u32>> {
        rows.iter().map(|row| row.iter().map(|value| value.to_bits()).collect()).collect()
    };
    for (story, got) in stories.iter().zip(together(model, stories, &mut cache)) {
        let wanted = alone(story, model, kind);
        assert!(
            bits(&got) == bits(&wanted),
            "{what} {kind:?}: sequence {} differs from itself alone",
            story.who
        );
    }
    assert_eq!(cache.free_pages(), pages);
}

#[test]
fn a_compressed_model_gives_each_sequence_the_bits_it_gets_alone() {
    for (index, config) in [full_config(), plain_config(), wide_config()].iter().enumerate() {
        let tiny = TinyLlama::new(config, 31);
        for kind in [Kind::Float, Kind::Half, Kind::BFloat16] {
            let loaded = load_compressed(&tiny.dir(), kind);
            // Few pages: sequences wait, and get what others leave, in pieces.
            assert_same_bits(&loaded.model, kind, &stories(20), 9, &format!("config {index}"));
        }
    }
}

/// Rows of keys that begin anywhere: what libtorch makes of them depends on where, and so only pages give what pages give.
#[test]
fn heads_of_any_width_get_the_same_bits_from_whatever_pages() {
    let mut config = wide_config();
    config["head_dim"] = 74.into();
    let tiny = TinyLlama::new(&config, 38);
    let loaded = load_compressed(&tiny.dir(), Kind::Float);
    let new_cache =
        |pages| PagedKvCache::new(loaded.model.config(), pages, Kind::Float, Device::Cpu).unwrap();
    let stories = stories(20);
    let got = together(&loaded.model, &stories, &mut new_cache(9));
    for (story, got) in stories.iter().zip(got) {
        let alone = together(&loaded.model, &[Story { joins: 0, ..*story }], &mut new_cache(4));
        assert!(got == alone[0], "sequence {} differs from itself alone", story.who);
    }
}

#[test]
fn sixty_four_sequences_are_each_as_alone() {
    let tiny = TinyLlama::new(&wide_config(), 32);
    let stories: Vec<Story> =
        stories(MOST).into_iter().map(|story| Story { joins: 0, steps: 3, ..story }).collect();
    for kind in [Kind::Float, Kind::Half] {
        let loaded = load_compressed(&tiny.dir(), kind);
        assert_same_bits(&loaded.model, kind, &stories, 200, "64 sequences");
    }
}

#[test]
fn a_real_model_gives_each_sequence_the_bits_it_gets_alone() {
    let Some(dir) = downloaded("stories15M") else { return };
    let loaded = load_compressed(&dir, Kind::Float);
    let stories: Vec<Story> = stories(48)
        .into_iter()
        .map(|story| Story { joins: story.joins / 16, steps: 3 + story.steps % 3, ..story })
        .collect();
    assert_same_bits(&loaded.model, Kind::Float, &stories, 200, "stories15M");
}

#[test]
fn a_dense_model_gives_each_sequence_nearly_what_it_gets_alone() {
    for config in [full_config(), plain_config()] {
        let tiny = TinyLlama::new(&config, 33);
        let loaded = load(&tiny.dir(), Kind::Float);
        let stories = stories(20);
        let mut cache = PagedKvCache::new(loaded.model.config(), 12, Kind::Float, Device::Cpu).unwrap();
        for (story, got) in stories.iter().zip(together(&loaded.model, &stories, &mut cache)) {
            for (got, wanted) in got.iter().zip(alone(story, &loaded.model, Kind::Float)) {
                let error = got.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(error < 1e-4, "sequence {}: {error}", story.who);
            }
        }
    }
}

#[test]
fn a_prompt_in_pieces_is_the_prompt() {
    let tiny = TinyLlama::new(&full_config(), 34);
    let loaded = load(&tiny.dir(), Kind::Float);
    let model = &loaded.model;
    let tokens: Vec<u32> = (0..1100).map(|i| (i * i + 7) % 50).collect();
    let mut cache = PagedKvCache::new(model.config(), 80, Kind::Float, Device::Cpu).unwrap();
    let ids: Vec<i64> = tokens.iter().map(|&id| i64::from(id)).collect();
    let mut own = KvCache::new(model.config(), 1, 1100, Kind::Float, Device::Cpu).unwrap();
    let wanted = values(&model.prefill(&Tensor::from_slice(&ids).view([1, -1]), &mut own).unwrap());
    let mut whole = cache.sequence(1100).unwrap();
    let got = model.prefill_paged(&tokens, &mut whole, &mut cache).unwrap();
    assert_eq!(got.logits(0).unwrap(), wanted);
    let mut pieces = cache.sequence(1100).unwrap();
    for piece in [&tokens[..33], &tokens[33..34], &tokens[34..700]] {
        let _ = model.prefill_paged(piece, &mut pieces, &mut cache).unwrap();
    }
    let got = model.prefill_paged(&tokens[700..], &mut pieces, &mut cache).unwrap().logits(0).unwrap();
    let error = got.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(error < 1e-4, "{error}");
    assert_eq!((whole.len(), pieces.len()), (1100, 1100));
}

#[test]
fn the_likeliest_token_is_the_largest_logit() {
    let tiny = TinyLlama::new(&full_config(), 35);
    let loaded = load(&tiny.dir(), Kind::Half);
    let mut cache = PagedKvCache::new(loaded.model.config(), 8, Kind::Half, Device::Cpu).unwrap();
    let [mut one, mut two] = [0; 2].map(|_| cache.sequence(9).unwrap());
    let _ = loaded.model.prefill_paged(&[3, 4, 5], &mut one, &mut cache).unwrap();
    let scores = loaded.model.decode_paged(&[7, 9], &mut [&mut one, &mut two], &mut cache).unwrap();
    let largest = |scores: &BatchScores, row| {
        let logits = scores.logits(row).unwrap();
        let best = logits.iter().copied().fold(f32::MIN, f32::max);
        logits.iter().position(|&logit| logit == best).unwrap() as u32
    };
    assert_eq!(scores.likeliest().unwrap(), [largest(&scores, 0), largest(&scores, 1)]);
    assert_eq!((scores.rows(), scores.logits(1).unwrap().len()), (2, 50));
    let error = scores.logits(2).unwrap_err();
    assert_eq!(error.to_string(), "row of scores: 2, wanted less than 2 (sequences of the step)");
}

#[test]
fn a_full_pool_gives_none_and_a_released_sequence_its_pages() {
    let config = LlamaConfig::from_json(&full_config().to_string(), "config.json").unwrap();
    let mut cache = PagedKvCache::new(&config, 10, Kind::Half, Device::Cpu).unwrap();
    let page = PagedKvCache::page_bytes(&config, Kind::Half, Device::Cpu);
    // Keys and values of two layers of two heads of 8, in FP32.
    assert_eq!((page, cache.bytes()), (2 * 2 * 2 * 8 * 32 * 4, 10 * page));
    assert_eq!([0, 1, 32, 33].map(PagedKvCache::pages_for), [0, 1, 1, 2]);
    let (a, b) = (cache.sequence(100).unwrap(), cache.sequence(160).unwrap());
    assert_eq!((a.capacity(), b.capacity(), a.len()), (128, 160, 0));
    assert!(a.is_empty() && b.is_empty());
    assert_eq!((cache.pages(), cache.free_pages()), (10, 1));
    assert!(cache.sequence(33).is_none());
    assert_eq!(cache.free_pages(), 1);
    cache.release(a);
    assert_eq!(cache.free_pages(), 5);
    // Where one is dropped on the way out of an error, the pages come back too.
    drop(b);
    assert_eq!(cache.free_pages(), 10);
    assert_eq!(cache.sequence(0).unwrap().capacity(), 0);
    // No more than the model is made for.
    let mut large = PagedKvCache::new(&config, 100, Kind::Half, Device::Cpu).unwrap();
    let long = large.sequence(1_000_000).unwrap();
    assert_eq!((long.capacity(), large.free_pages()), (2048, 36));
}

#[test]
fn pages_that_change_hands_carry_nothing_over() {
    let tiny = TinyLlama::new(&plain_config(), 36);
    let loaded = load(&tiny.dir(), Kind::Float);
    let run = |cache: &mut PagedKvCache| {
        let mut sequence = cache.sequence(70).unwrap();
        let mut logits =
            vec![loaded.model.prefill_paged(&[1, 2, 3], &mut sequence, cache).unwrap().logits(0).unwrap()];
        for token in 0..40 {
            let scores = loaded.model.decode_paged(&[token], &mut [&mut sequence], cache).unwrap();
            logits.push(scores.logits(0).unwrap());
        }
        logits
    };
    let mut fresh = PagedKvCache::new(loaded.model.config(), 3, Kind::Float, Device::Cpu).unwrap();
    let wanted = run(&mut fresh);
    let mut used = PagedKvCache::new(loaded.model.config(), 3, Kind::Float, Device::Cpu).unwrap();
    let mut other = used.sequence(96).unwrap();
    let tokens: Vec<u32> = (0..96).map(|i| (i * 11 + 5) % 50).collect();
    let _ = loaded.model.prefill_paged(&tokens, &mut other, &mut used).unwrap();
    used.release(other);
    assert_eq!(run(&mut used), wanted);
}

fn message(result: codecllm::Result<BatchScores>) -> String {
    let error: Error = result.expect_err("a wrong use was accepted");
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    error.to_string()
}

#[test]
fn wrong_uses_are_errors_and_change_nothing() {
    let [tiny, other] = [plain_config(), wide_config()].map(|config| TinyLlama::new(&config, 37));
    let [loaded, other] = [tiny, other].map(|tiny| load(&tiny.dir(), Kind::Float));
    let model = &loaded.model;
    let new_cache = || PagedKvCache::new(model.config(), 70, Kind::Float, Device::Cpu).unwrap();
    let (mut cache, mut second) = (new_cache(), new_cache());
    let mut one = cache.sequence(32).unwrap();
    let mut foreign = second.sequence(32).unwrap();
    let _ = model.prefill_paged(&[1; 31], &mut one, &mut cache).unwrap();

    assert_eq!(
        message(model.prefill_paged(&[], &mut one, &mut cache)),
        "token ids: are none, wanted at least one"
    );
    assert_eq!(
        message(model.prefill_paged(&[1, 2], &mut one, &mut cache)),
        "context: is 32 tokens, wanted 33 for 2 more tokens; ask for a longer sequence or shorten the prompt"
    );
    let unknown = "token ids: 50, wanted 0 to 49 (vocab_size of the model)";
    assert_eq!(message(model.prefill_paged(&[50], &mut one, &mut cache)), unknown);
    assert_eq!(message(model.decode_paged(&[50], &mut [&mut one], &mut cache)), unknown);
    let elsewhere = "sequence: has pages of another cache, wanted one of this cache";
    assert_eq!(message(model.prefill_paged(&[1], &mut foreign, &mut cache)), elsewhere);
    assert_eq!(message(model.decode_paged(&[1, 2], &mut [&mut one, &mut foreign], &mut cache)), elsewhere);
    assert!(message(model.decode_paged(&[], &mut [], &mut cache)).contains("0 tokens of 0 sequences, wanted"));
    assert!(
        message(model.decode_paged(&[1, 2], &mut [&mut one], &mut cache)).contains("2 tokens of 1 sequences")
    );
    let mut many: Vec<_> = (0..MOST + 1).map(|_| cache.sequence(1).unwrap()).collect();
    let mut all: Vec<_> = many.iter_mut().collect();
    assert!(message(model.decode_paged(&[1; MOST + 1], &mut all, &mut cache)).contains("65 tokens of 65"));
    assert!(
        message(other.model.decode_paged(&[1], &mut [&mut one], &mut cache)).starts_with("key-value cache: ")
    );
    assert!(message(other.model.prefill_paged(&[1], &mut one, &mut cache)).starts_with("key-value cache: "));
    assert_eq!((one.len(), foreign.len()), (31, 0));
    assert!(many.iter().all(PagedSequence::is_empty));

    let _ = model.decode_paged(&[1], &mut [&mut one], &mut cache).unwrap();
    assert!(
        message(model.decode_paged(&[1], &mut [&mut one], &mut cache)).starts_with("context: is 32 tokens")
    );
    assert_eq!(one.len(), 32);
    for pages in [0, usize::MAX] {
        let error = PagedKvCache::new(model.config(), pages, Kind::Float, Device::Cpu).unwrap_err();
        assert_eq!((error.kind(), error.subject()), (ErrorKind::InvalidArgument, "key-value cache"));
    }
}

#[test]
fn a_reserved_cache_takes_its_memory_at_once() {
    let config = LlamaConfig::from_json(&wide_config().to_string(), "config.json").unwrap();
    let page_bytes = PagedKvCache::page_bytes(&config, Kind::Float, Device::Cpu);
    let pages = (64 << 20) / page_bytes + 1;
    let mut cache = PagedKvCache::new(&config, pages, Kind::Float, Device::Cpu).unwrap();
    // Other tests of this program take and free little beside it.
    let before = rss_bytes().unwrap();
    cache.reserve().unwrap();
    let taken = rss_bytes().unwrap().saturating_sub(before) as f64 / cache.bytes() as f64;
    assert!((0.8..1.5).contains(&taken), "{taken} of {} bytes", cache.bytes());
    // What a sequence holds is not wiped out.
    let sequence = cache.sequence(40).unwrap();
    let error = cache.reserve().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert_eq!(
        error.to_string(),
        "key-value cache: sequences have 2 of its pages, wanted all of them free to reserve them"
    );
    drop(sequence);
    cache.reserve().unwrap();
}

#[test]
fn what_is_said_to_fit_does() {
    let config = LlamaConfig::from_json(&full_config().to_string(), "config.json").unwrap();
    let page = PagedKvCache::page_bytes(&config, Kind::Float, Device::Cpu);
    for bytes in [0, 1, page - 1, page, 10 * page + 17, 1 << 30] {
        let tokens = PagedKvCache::room_in(&config, Kind::Float, Device::Cpu, bytes);
        assert_eq!(tokens % PagedKvCache::PAGE_TOKENS, 0);
        assert!(PagedKvCache::pages_for(tokens) * page <= bytes);
        assert!((PagedKvCache::pages_for(tokens) + 1) * page > bytes);
        // A GPU has a page of its own beside, and rounds each of the four planes up to two megabytes.
        let on_gpu = PagedKvCache::room_in(&config, Kind::Float, Device::Cuda(0), bytes);
        assert_eq!(on_gpu, tokens.saturating_sub(32 + (8 << 20) / page * 32));
    }
}

#[test]
fn a_cache_that_nothing_could_hold_is_refused() {
    let mut config = LlamaConfig::from_json(&full_config().to_string(), "config.json").unwrap();
    (config.num_key_value_heads, config.head_dim) = (1 << 31, 1 << 31);
    assert_eq!(PagedKvCache::page_bytes(&config, Kind::Float, Device::Cpu), usize::MAX);
    let error = PagedKvCache::new(&config, 10, Kind::Float, Device::Cpu).unwrap_err();
    assert_eq!(error.subject(), "key-value cache", "{error}");
}
