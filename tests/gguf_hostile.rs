//! Whatever a GGUF file says of itself, importing it neither panics nor takes more memory than the file could fill.

mod counting_allocator;
mod gguf_writer;

use std::path::{Path, PathBuf};

use codecllm::gguf::{import, ImportOptions};
use codecllm::{ErrorKind, Result};

use counting_allocator::{asked, Asked, Counting};
use gguf_writer::{f32s, flag, i32s, text, texts, u32, u8s, Gguf};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Files with all kinds of keys: strings, arrays of strings and of numbers.
const FILES: [&str; 3] = ["types", "sentencepiece", "llama-bpe"];
/// The first tensor in a list.
const NAME: &[u8] = b"token_embd.weight";
/// Counts, lengths, offsets and dimensions that somebody could forge.
const FORGED: [u64; 4] = [u64::MAX, 1 << 40, (1 << 31) - 1, 1 << 24];

fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf").join(name);
    std::fs::read(path.with_extension("gguf")).unwrap()
}

/// A folder for imports, one after the other.
struct Place {
    parent: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { parent: tempfile::tempdir().unwrap() }
    }

    fn out(&self) -> PathBuf {
        self.parent.path().join("out")
    }

    /// Imports `bytes`; an output is there if and only if that went well, and nothing else is.
    fn import(&self, bytes: &[u8]) -> (Result<()>, Asked) {
        let file = self.parent.path().join("model.gguf");
        std::fs::write(&file, bytes).unwrap();
        let (result, asked) =
            asked(|| import(&file, self.out(), &ImportOptions::default(), &mut |_| {}).map(|_| ()));
        assert_eq!(self.out().exists(), result.is_ok());
        if result.is_ok() {
            std::fs::remove_dir_all(self.out()).unwrap();
        }
        assert_eq!(std::fs::read_dir(self.parent.path()).unwrap().count(), 1);
        (result, asked)
    }
}

/// What an import of the whole file asks for, and as much again.
fn limit(place: &Place, bytes: &[u8]) -> usize {
    let (result, asked) = place.import(bytes);
    result.unwrap();
    2 * asked.peak + 64 * bytes.len()
}

#[test]
fn every_shorter_file_is_truncated() {
    let place = Place::new();
    for name in FILES {
        let whole = fixture(name);
        let limit = limit(&place, &whole);
        // The last tensor may be followed by a few bytes that fill up.
        for length in (0..whole.len() - 32).step_by(31) {
            let (result, asked) = place.import(&whole[..length]);
            let error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Truncated, "{name}, {length} bytes: {error}");
            assert!(asked.largest.max(asked.peak) < limit, "{name}, {length} bytes: {asked:?}");
        }
    }
}

#[test]
fn forged_numbers_take_no_memory() {
    let place = Place::new();
    for name in FILES {
        let mut bytes = fixture(name);
        let limit = limit(&place, &bytes);
        // The first keys, and the list of tensors.
        let list = bytes.windows(NAME.len()).position(|window| window == NAME).unwrap();
        for at in (4..1000).chain(list - 8..list + 300).step_by(3) {
            let before: [u8; 8] = bytes[at..at + 8].try_into().unwrap();
            for forged in FORGED {
                bytes[at..at + 8].copy_from_slice(&forged.to_le_bytes());
                let (_, asked) = place.import(&bytes);
                assert!(asked.peak < limit, "{name}, {forged:#x} at {at}: {asked:?}, at most {limit}");
            }
            bytes[at..at + 8].copy_from_slice(&before);
        }
    }
}

#[test]
fn every_length_of_the_front_is_checked() {
    // The counts of tensors and keys, which nothing before bounds.
    let place = Place::new();
    let mut bytes = fixture("types");
    for (at, what) in [(8, "tensors"), (16, "keys")] {
        let before: [u8; 8] = bytes[at..at + 8].try_into().unwrap();
        bytes[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        let error = place.import(&bytes).0.unwrap_err();
        assert!(error.to_string().contains(&format!("has {} {what}, wanted at most", u64::MAX)), "{error}");
        bytes[at..at + 8].copy_from_slice(&before);
    }
}

/// A file whose tokens are each other's parts: all runs of up to `longest` of each of `letters`.
fn runs(letters: &str, longest: usize) -> Gguf {
    let runs = |letter: char| (1..=longest).map(move |length| String::from(letter).repeat(length));
    let tokens: Vec<String> =
        std::iter::once("<unk>".to_owned()).chain(letters.chars().flat_map(runs)).collect();
    let kinds: Vec<i32> = (0..tokens.len()).map(|id| if id == 0 { 2 } else { 1 }).collect();
    let mut gguf = Gguf::tiny();
    gguf.set("tokenizer.ggml.model", text("llama"));
    gguf.set("tokenizer.ggml.add_bos_token", flag(false));
    gguf.set("tokenizer.ggml.tokens", texts(&tokens.iter().map(String::as_str).collect::<Vec<_>>()));
    gguf.set("tokenizer.ggml.token_type", i32s(&kinds));
    gguf.set("tokenizer.ggml.scores", f32s(&vec![0.0; tokens.len()]));
    gguf.set("tokenizer.ggml.eos_token_id", u32(0));
    for key in ["pre", "merges"] {
        gguf.remove(&format!("tokenizer.ggml.{key}"));
    }
    let embedding = gguf.tensor("token_embd.weight");
    embedding.dimensions = vec![8, tokens.len() as u64];
    embedding.data = vec![0; 4 * 8 * tokens.len()];
    gguf
}

#[test]
fn tokens_that_are_each_others_parts_take_no_memory() {
    let place = Place::new();
    // Some of that is fine.
    place.import(&runs("ab", 20).bytes()).0.unwrap();
    let bytes = runs("abc", 512).bytes();
    let (result, asked) = place.import(&bytes);
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("ways to join them"), "{error}");
    assert!(error.to_string().contains("--tokenizer FILE"), "{error}");
    assert!(asked.peak < 64 << 20, "{asked:?} of a file of {} bytes", bytes.len());
}

#[test]
fn numbers_are_counted_before_they_are_read() {
    let place = Place::new();
    let mut sentencepiece = runs("ab", 20);
    for key in ["tokenizer.ggml.token_type", "tokenizer.ggml.scores"] {
        let mut gguf = if key.ends_with("scores") { sentencepiece.clone() } else { Gguf::tiny() };
        gguf.set(key, u8s(&vec![1; 8 << 20]));
        let bytes = gguf.bytes();
        let (result, asked) = place.import(&bytes);
        let error = result.unwrap_err().to_string();
        assert!(error.contains(&format!("{key} is an array of 8388608 numbers, wanted a number")), "{error}");
        assert!(asked.peak < 2 * bytes.len(), "{key}: {asked:?} of a file of {} bytes", bytes.len());
    }
    // An array as long as it should be is read.
    sentencepiece.set("tokenizer.ggml.token_type", u8s(&[vec![2], vec![1; 40]].concat()));
    place.import(&sentencepiece.bytes()).0.unwrap();
}

#[test]
fn messages_are_short_whatever_a_file_is_full_of() {
    let (place, long) = (Place::new(), "x".repeat(1 << 20));
    type Damage = fn(&mut Gguf, &str);
    let damages: [(&str, Damage); 5] = [
        ("a key is 1048576 bytes long, wanted at most 1024", |gguf, long| gguf.set(long, flag(true))),
        ("a tensor's name is 1048576 bytes long", |gguf, long| gguf.add(long, &[8])),
        ("general.architecture is \"xxx", |gguf, long| gguf.set("general.architecture", text(long))),
        ("tokenizer.ggml.model is ", |gguf, long| gguf.set("tokenizer.ggml.model", text(long))),
        ("tokenizer.ggml.pre is xxx", |gguf, long| gguf.set("tokenizer.ggml.pre", text(long))),
    ];
    for (wanted, damage) in damages {
        let mut gguf = Gguf::tiny();
        damage(&mut gguf, &long);
        let error = place.import(&gguf.bytes()).0.unwrap_err().to_string();
        assert!(error.contains(wanted), "{wanted} in {}", error.chars().take(1000).collect::<String>());
        assert!(error.len() < 2000, "{wanted}: {} bytes", error.len());
    }
}
