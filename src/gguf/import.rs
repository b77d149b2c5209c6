//! The way from a file to a directory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value as Json;
use tch::Kind;

use super::blocks::widen;
use super::config::{dtype_name, Model, Shape};
use super::convert::{convert, element};
use super::file::{zeros, GgufFile, TensorInfo};
use super::rope::RopeScaling;
use super::special_tokens::{generation_config, stop_tokens};
use super::tensor_type::TensorType;
use super::tensors::Plan;
use super::tokenizer::{checked_text, tokenizer_config, Source, Tokenizer};
use super::vocabulary::{SpecialIds, Vocabulary, CURE};
use crate::checkpoint::{Progress, Writer};
use crate::error::{Error, Result};
use crate::model::LlamaConfig;

/// How to import.
///
/// Given to [`import`]; see its example.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// The dtype to write: `Half`, `BFloat16` or `Float`. Without one it is that of the file's matrices where all are F32 or all are
    /// BF16, and FP16 else, quantized ones included.
    pub dtype: Option<Kind>,
    /// Spellings of tokens that end a generation, beside those that the file tells.
    pub stop_tokens: Vec<String>,
    /// A `tokenizer.json` to take instead of the file's own tokenizer.
    pub tokenizer: Option<PathBuf>,
}

/// What was imported.
///
/// Made by [`import`]; see its example.
#[derive(Clone, Debug, Serialize)]
pub struct ImportReport {
    /// PyTorch's name of the dtype written: `float16`, `bfloat16` or `float32`.
    pub dtype: &'static str,
    /// Tensors written.
    pub tensors: usize,
    /// Their weights.
    pub weights: u64,
    /// How many of them the file stores in which type.
    pub types: BTreeMap<&'static str, usize>,
    /// Which tokenizer it is.
    pub tokenizer: String,
    /// Tokens in it.
    pub tokens: usize,
    /// Ids of the tokens that end a generation.
    pub stop_tokens: Vec<u32>,
    /// Whether there is a chat template.
    pub chat_template: bool,
    /// Bytes of the GGUF file.
    pub source_bytes: u64,
    /// Bytes of the tensor files written.
    pub bytes_written: u64,
}

/// Imports the GGUF file `file` into the new Hugging Face directory `out`, which appears when it is complete.
///
/// ```no_run
/// // Needs a GGUF file.
/// use codecllm::gguf::{import, ImportOptions};
/// let report = import("SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2", &ImportOptions::default(), &mut |_| {})?;
/// println!("{} tensors in {}", report.tensors, report.dtype);
/// # Ok::<(), codecllm::Error>(())
/// ```
///
/// # Errors
/// By the tensor's or the key's name: `Truncated` or `Corrupt` for a damaged file, `Unsupported` for one that is no Llama, or one whose
/// maths or tokenizer cannot be said in a Hugging Face directory. `InvalidArgument` for options that do not fit the file or an `out` that
/// exists, `Io`.
pub fn import(
    file: impl AsRef<Path>,
    out: impl AsRef<Path>,
    options: &ImportOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<ImportReport> {
    let file = GgufFile::open(file.as_ref())?;
    let shape = Shape::read(&file.metadata)?;
    let plan = Plan::of(&file, &shape)?;
    let kind = choose_dtype(options.dtype, &plan)?;
    let files = Files::of(&file, &shape, &plan, kind, options)?;
    let mut writer = Writer::create(out.as_ref())?;
    writer.metadata("format", "pt");
    for (name, text) in &files.texts {
        writer.write_file(name, text.as_bytes())?;
    }
    write_tensors(&file, &plan, kind, &mut writer, progress)?;
    file.check_unchanged()?;
    Ok(ImportReport {
        dtype: dtype_name(kind),
        tensors: plan.imports.len(),
        weights: plan.imports.iter().map(|import| import.info.weights).sum(),
        types: types(&plan),
        tokenizer: files.tokenizer,
        tokens: files.tokens,
        stop_tokens: files.stop_tokens,
        chat_template: files.chat_template,
        source_bytes: file.bytes(),
        bytes_written: writer.finish()?,
    })
}

fn write_tensors(
    file: &GgufFile,
    plan: &Plan<'_>,
    kind: Kind,
    writer: &mut Writer,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<()> {
    let total_bytes = plan.imports.iter().map(|import| import.info.bytes).sum();
    let mut done_bytes = 0;
    for import in &plan.imports {
        writer.add(&import.path, element(kind), &import.info.shape, &convert(file, import, kind)?)?;
        done_bytes += import.info.bytes;
        progress(Progress { stage: "import", tensor_path: &import.path, done_bytes, total_bytes });
    }
    Ok(())
}

/// The asked dtype, or the one that loses nothing of the file's matrices. Norms are FP32 in every GGUF and tell nothing.
fn choose_dtype(asked: Option<Kind>, plan: &Plan<'_>) -> Result<Kind> {
    let matrices =
        || plan.imports.iter().filter(|import| import.info.shape.len() > 1).map(|import| import.info.kind);
    match asked {
        Some(kind @ (Kind::Half | Kind::BFloat16 | Kind::Float)) => Ok(kind),
        Some(other) => Err(Error::invalid("dtype", format!("{other:?}, wanted Half, BFloat16 or Float"))),
        None if matrices().all(|kind| kind == TensorType::F32) => Ok(Kind::Float),
        None if matrices().all(|kind| kind == TensorType::BF16) => Ok(Kind::BFloat16),
        None => Ok(Kind::Half),
    }
}

fn types(plan: &Plan<'_>) -> BTreeMap<&'static str, usize> {
    let mut types = BTreeMap::new();
    for import in &plan.imports {
        *types.entry(import.info.kind.name()).or_default() += 1;
    }
    types
}

/// The files beside the tensors.
struct Files {
    texts: Vec<(&'static str, String)>,
    tokenizer: String,
    tokens: usize,
    stop_tokens: Vec<u32>,
    chat_template: bool,
}

impl Files {
    fn of(
        file: &GgufFile,
        shape: &Shape,
        plan: &Plan<'_>,
        kind: Kind,
        options: &ImportOptions,
    ) -> Result<Self> {
        let metadata = &file.metadata;
        let divisors = plan.rope_factors.map(|tensor| floats(file, tensor)).transpose()?;
        let scaling = RopeScaling::read(metadata, shape, divisors.as_deref())?;
        let said = metadata.count_or("llama.vocab_size", Some(plan.vocab_size))?;
        if said > plan.vocab_size {
            let wanted = format!("at most {}, the rows of token_embd.weight", plan.vocab_size);
            return Err(metadata.corrupt("llama.vocab_size", said, &wanted));
        }
        let vocabulary = Vocabulary::read(metadata, plan.vocab_size)?;
        let ids = SpecialIds::read(metadata, vocabulary.as_ref().map_or(plan.vocab_size, Vocabulary::len))?;
        let model = Model {
            kind,
            vocab_size: plan.vocab_size,
            tied: plan.tied,
            biases: plan.biases,
            scaling: &scaling,
            ids,
        };
        let config = pretty(&shape.config(&model));
        LlamaConfig::from_json(&config, file.path())?;
        let tokens = Tokens::of(file, vocabulary.as_ref(), ids, plan.vocab_size, options)?;
        let tokenizer_config =
            tokenizer_config(metadata, tokens.class, vocabulary.as_ref(), ids, shape.context)?;
        Ok(Self {
            chat_template: tokenizer_config.get("chat_template").is_some(),
            texts: vec![
                ("config.json", config),
                ("generation_config.json", pretty(&generation_config(ids, &tokens.stop_tokens))),
                ("tokenizer.json", tokens.text),
                ("tokenizer_config.json", pretty(&tokenizer_config)),
            ],
            tokenizer: tokens.name,
            tokens: tokens.count,
            stop_tokens: tokens.stop_tokens,
        })
    }
}

/// The tokenizer, whichever it is.
struct Tokens {
    name: String,
    /// `tokenizer.json`.
    text: String,
    class: serde_json::Map<String, Json>,
    count: usize,
    stop_tokens: Vec<u32>,
}

impl Tokens {
    fn of(
        file: &GgufFile,
        vocabulary: Option<&Vocabulary<'_>>,
        ids: SpecialIds,
        vocab_size: usize,
        options: &ImportOptions,
    ) -> Result<Self> {
        if let Some(path) = &options.tokenizer {
            return Self::given(path, vocabulary, ids, vocab_size, options);
        }
        let Some(vocabulary) = vocabulary else {
            let message = format!(
                "tokenizer.ggml.tokens is missing, wanted the model's tokens; get a file with them, {CURE}"
            );
            return Err(Error::unsupported(file.path(), message));
        };
        let tokenizer = Tokenizer::read(&Source { metadata: &file.metadata, vocabulary, ids })?;
        Ok(Self {
            name: tokenizer.name,
            text: checked_text(file.path(), &tokenizer.json)?,
            class: tokenizer.class,
            count: vocabulary.len(),
            stop_tokens: stop_tokens(Some(vocabulary), ids, &options.stop_tokens, &|text| {
                vocabulary.id(text)
            })?,
        })
    }

    /// The tokenizer in the file at `path`.
    fn given(
        path: &Path,
        vocabulary: Option<&Vocabulary<'_>>,
        ids: SpecialIds,
        vocab_size: usize,
        options: &ImportOptions,
    ) -> Result<Self> {
        let subject = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let tokenizer = crate::runtime::Tokenizer::from_bytes(text.as_bytes(), &subject)?;
        let count = tokenizer.vocab_size();
        if count > vocab_size {
            let message =
                format!("has {count} tokens, the model has {vocab_size}; wanted the model's own tokenizer");
            return Err(Error::invalid(subject, message));
        }
        let class =
            [("tokenizer_class".to_owned(), Json::from("PreTrainedTokenizerFast"))].into_iter().collect();
        let stop_tokens =
            stop_tokens(vocabulary, ids, &options.stop_tokens, &|text| tokenizer.token_id(text))?;
        Ok(Self { name: subject, text, class, count, stop_tokens })
    }
}

/// A small tensor in FP32.
fn floats(file: &GgufFile, tensor: &TensorInfo) -> Result<Vec<f32>> {
    let stored = file.read(tensor)?;
    let mut floats = zeros(tensor.weights as usize, &tensor.name)?;
    widen(tensor.kind, &stored, &mut floats);
    Ok(floats)
}

fn pretty(json: &Json) -> String {
    format!("{json:#}\n")
}
