//! A GGUF file from a stranger: imported, and what comes out of it read.

use std::path::Path;

use codecllm::checkpoint::Reader;
use codecllm::gguf::{import, ImportOptions};
use codecllm::model::LlamaConfig;
use codecllm::runtime::Tokenizer;

pub fn run(data: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder for the input");
    let (file, out) = (folder.path().join("model.gguf"), folder.path().join("out"));
    std::fs::write(&file, data).expect("room for it");
    let imported = import(&file, &out, &ImportOptions::default(), &mut |_| {});
    assert_eq!(out.exists(), imported.is_ok(), "an output is whole or not there");
    let Ok(report) = imported else { return };
    assert!(report.bytes_written < 32 * data.len() as u64 + 65_536, "{} bytes became {report:?}", data.len());
    let reader = Reader::open(&out).expect("what was imported opens");
    assert_eq!(reader.names().count(), report.tensors);
    LlamaConfig::from_dir(&out).expect("its config is one");
    Tokenizer::from_dir(&out).expect("its tokenizer is one");
}

#[allow(dead_code, reason = "libFuzzer reads its seeds from a folder")]
pub fn seeds(root: &Path) -> Vec<Vec<u8>> {
    let folder = root.join("tests/fixtures/gguf");
    ["types", "sentencepiece", "llama-bpe", "default"]
        .map(|name| std::fs::read(folder.join(name).with_extension("gguf")).expect("a fixture"))
        .into()
}
