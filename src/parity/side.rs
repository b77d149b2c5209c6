//! One of the two models that are compared: a directory or a TorchScript file.

use std::ops::ControlFlow;
use std::path::Path;

use tch::{Device, IValue, Kind, Tensor};

use super::logits::logits;
use super::report::Options;
use crate::error::{Error, Result, TorchContext};
use crate::model::{KvCache, LlamaConfig};
use crate::runtime::{GenerateOptions, Generator, Language, LoadOptions, Message, Model, Prompt};
use crate::torchscript::Module;

/// A model that reads and answers.
pub(super) enum Side {
    Directory(Box<Generator>),
    TorchScript(Box<Script>),
}

/// A TorchScript language model: `forward` takes token ids `[1, seq]` and gives logits `[1, seq, vocab]`, alone or first among others.
pub(super) struct Script {
    module: Module,
    language: Language,
    config: LlamaConfig,
    device: Device,
}

/// Logits of one window, piece by piece.
pub(super) enum Reading<'a> {
    /// Reads as it is asked.
    Cached(&'a Model, KvCache),
    /// All were computed at once, `[seq, vocab]`; those up to the position were given away.
    Whole(Tensor, i64),
}

impl Side {
    /// Opens `path`. `language` is the directory whose tokenizer belongs to it.
    pub(super) fn open(path: &Path, language: &Path, options: &Options) -> Result<Self> {
        let Options { device, kind, threads, .. } = *options;
        if path.is_dir() || !path.exists() {
            let load = LoadOptions { device, kind, threads, ..LoadOptions::default() };
            return Ok(Self::Directory(Box::new(Generator::open(path, &load)?)));
        }
        // The small files first: a broken one is reported before a large model is read.
        let (language, config) = (Language::open(language)?, LlamaConfig::from_dir(language)?);
        let module = Module::load(path, device)?;
        Ok(Self::TorchScript(Box::new(Script { module, language, config, device })))
    }

    /// Begins to read `window`, all of whose logits are wanted.
    pub(super) fn read(&self, window: &[i64]) -> Result<Reading<'_>> {
        match self {
            Self::Directory(generator) => {
                let model = generator.model();
                Ok(Reading::Cached(model, model.new_cache(1, window.len())?))
            }
            Self::TorchScript(script) => Ok(Reading::Whole(script.logits(window)?, 0)),
        }
    }

    /// The model whose layers can be looked at.
    pub(super) fn model(&self) -> Option<&Model> {
        match self {
            Self::Directory(generator) => Some(generator.model()),
            Self::TorchScript(_) => None,
        }
    }

    /// Bytes of the weights in memory.
    pub(super) fn weight_bytes(&self) -> Result<usize> {
        match self {
            Self::Directory(generator) => Ok(generator.model().weight_bytes()),
            Self::TorchScript(script) => script.module.tensor_bytes(),
        }
    }

    /// The text that `ids` stand for.
    pub(super) fn decode(&self, ids: &[u32]) -> Result<String> {
        self.language().tokenizer.decode(ids)
    }

    fn language(&self) -> &Language {
        match self {
            Self::Directory(generator) => generator.language(),
            Self::TorchScript(script) => &script.language,
        }
    }

    /// The greedy answer to `prompt`.
    pub(super) fn answer(&self, prompt: &str, options: &Options) -> Result<Vec<u32>> {
        let prompt = if options.raw || self.language().chat.is_none() {
            Prompt::Text(prompt.to_owned())
        } else {
            Prompt::Chat(vec![Message::new("user", prompt)])
        };
        match self {
            Self::TorchScript(script) => script.answer(&prompt, options.new_tokens),
            Self::Directory(generator) => {
                let options =
                    GenerateOptions { max_new_tokens: options.new_tokens, ..GenerateOptions::default() };
                let mut answers =
                    generator.generate(&[prompt], &options, &mut |_| ControlFlow::Continue(()))?;
                Ok(answers.pop().map(|answer| answer.token_ids).unwrap_or_default())
            }
        }
    }
}

impl Script {
    /// The logits `[seq, vocab]` of `ids`.
    fn logits(&self, ids: &[i64]) -> Result<Tensor> {
        let subject = self.module.origin();
        let input = Tensor::f_from_slice(ids)
            .and_then(|ids| ids.f_view([1, -1])?.f_to_device(self.device))
            .about(subject)?;
        let out = tch::no_grad(|| self.module.forward_is(&[IValue::Tensor(input)]))?;
        let logits = first_tensor(out).ok_or_else(|| {
            Error::unsupported(
                subject,
                "forward returns no tensor, wanted logits [1, seq, vocab], alone or first",
            )
        })?;
        let (size, wanted) = (logits.size(), [1, ids.len() as i64, self.config.vocab_size as i64]);
        if size != wanted && size != wanted[1..] {
            return Err(Error::unsupported(
                subject,
                format!("forward of token ids returns {size:?}, wanted logits {wanted:?}"),
            ));
        }
        logits.f_view(&wanted[1..]).about(subject)
    }

    /// Reads everything anew for each token: what state the module keeps is its own affair.
    fn answer(&self, prompt: &Prompt, new_tokens: usize) -> Result<Vec<u32>> {
        let subject = self.module.origin();
        let prompt = self.language.encode(prompt)?;
        let mut ids: Vec<i64> = prompt.iter().map(|&id| i64::from(id)).collect();
        let mut answer = Vec::new();
        while answer.len() < new_tokens && ids.len() < self.config.max_position_embeddings {
            let last = self.logits(&ids)?.f_select(0, -1).about(subject)?;
            let next =
                last.f_to_kind(Kind::Float).and_then(|last| last.f_argmax(-1, false)).about(subject)?;
            let id = next.f_int64_value(&[]).about(subject)?;
            let token = u32::try_from(id)
                .map_err(|e| Error::corrupt(subject, format!("token {id} is none")).with_source(e))?;
            if self.language.stop_tokens.contains(&token) {
                break;
            }
            answer.push(token);
            ids.push(id);
        }
        Ok(answer)
    }
}

impl Reading<'_> {
    /// The logits `[positions, vocab]` of the next `ids` of the window.
    pub(super) fn next(&mut self, ids: &[i64]) -> Result<Tensor> {
        match self {
            Self::Cached(model, cache) => logits(model, cache, ids),
            Self::Whole(all, at) => {
                let piece = all.f_narrow(0, *at, ids.len() as i64).about("logits");
                *at += ids.len() as i64;
                piece
            }
        }
    }
}

/// The tensor that `value` is, or the first within it.
fn first_tensor(value: IValue) -> Option<Tensor> {
    match value {
        IValue::Tensor(tensor) => Some(tensor),
        IValue::TensorList(tensors) => tensors.into_iter().next(),
        IValue::Tuple(values) | IValue::GenericList(values) => values.into_iter().find_map(first_tensor),
        IValue::GenericDict(pairs) => pairs.into_iter().find_map(|(_, value)| first_tensor(value)),
        _ => None,
    }
}
