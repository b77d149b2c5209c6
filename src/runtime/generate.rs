//! Batched generation of text.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use tch::{Kind, Tensor};

use super::continuation::{Continuation, Ending};
use super::prompt::{Prompt, PromptLimits};
use super::stop::StopReason;
use super::tokenizer::Tokenizer;
use super::{ChatTemplate, Language, LoadOptions, Model, SamplerOptions};
use crate::error::{Error, Result, TorchContext};
use crate::model::{DecodeStep, KvCache, LogitsOf};

/// How to generate.
///
/// Given to a [`Generator`]; see its example.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    /// Most tokens to generate for each prompt.
    pub max_new_tokens: usize,
    /// How tokens are picked. Prompt `i` of a batch uses seed `seed + i`.
    pub sampling: SamplerOptions,
    /// Strings that end the answer.
    pub stop_strings: Vec<String>,
    /// Go on behind the model's stop tokens, for measuring.
    pub ignore_stop_tokens: bool,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_new_tokens: 256,
            sampling: SamplerOptions::default(),
            stop_strings: Vec::new(),
            ignore_stop_tokens: false,
        }
    }
}

/// New text of one prompt's answer, as it comes.
///
/// Given by a [`Generator`] as it comes; see its example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Which prompt, from 0.
    pub prompt: usize,
    /// The text, never empty.
    pub text: &'a str,
}

/// One prompt's answer.
///
/// Made by a [`Generator`]; see its example.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Generation {
    /// The answer without the prompt: all pieces, one behind the other.
    pub text: String,
    /// Its tokens, the stop token excluded.
    pub token_ids: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the answer.
    pub new_tokens: usize,
    /// Seconds from the prompt to the first logits, of the whole batch.
    pub prefill_seconds: f64,
    /// Seconds from there to the end of this answer.
    pub decode_seconds: f64,
    /// Decoding steps of this answer a second (the first token comes of the prefill); 0 if there were none.
    pub tokens_per_second: f64,
    /// Why it ended.
    pub stop_reason: StopReason,
}

/// A model with all that turns text into tokens and back.
///
/// ```no_run
/// // Needs a model.
/// use std::ops::ControlFlow;
/// use codecllm::runtime::{GenerateOptions, Generation, Generator, LoadOptions, Piece, Prompt, StopReason};
/// let generator = Generator::open("model", &LoadOptions::default())?;
/// let prompts = ["Once upon a time", "One day"].map(|text| Prompt::Text(text.to_owned()));
/// println!("{} of {} tokens", generator.encode(&prompts[0])?.len(), generator.model().context());
/// let options = GenerateOptions { max_new_tokens: 64, ..GenerateOptions::default() };
/// let answers: Vec<Generation> = generator.generate(&prompts, &options, &mut |piece: Piece| {
///     if piece.prompt == 0 {
///         print!("{}", piece.text);
///     }
///     ControlFlow::Continue(())
/// })?;
/// for answer in &answers {
///     println!("{} tokens/s, {}", answer.tokens_per_second, answer.stop_reason == StopReason::MaxNewTokens);
/// }
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Debug)]
pub struct Generator {
    model: Model,
    language: Arc<Language>,
}

impl Generator {
    /// Opens a model directory.
    ///
    /// # Errors
    /// As [`Model::load`], [`Tokenizer::from_dir`], [`ChatTemplate::from_dir`] and [`stop_tokens`](super::stop_tokens).
    pub fn open(dir: impl AsRef<Path>, options: &LoadOptions) -> Result<Self> {
        let dir = dir.as_ref();
        // The small files first: a broken one is reported before a large model is read.
        let language = Arc::new(Language::open(dir)?);
        Ok(Self { model: Model::load(dir, options)?, language })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.language.tokenizer
    }

    pub(crate) fn language(&self) -> &Arc<Language> {
        &self.language
    }

    /// The model alone.
    #[cfg(feature = "serve")]
    pub(crate) fn into_model(self) -> Model {
        self.model
    }

    /// The chat template, if the model has one.
    pub fn chat(&self) -> Option<&ChatTemplate> {
        self.language.chat.as_ref()
    }

    /// The token ids of `prompt`, special tokens included.
    ///
    /// # Errors
    /// `InvalidArgument` for a conversation where the model has no chat template, or one it refuses.
    pub fn encode(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        self.language.encode(prompt)
    }

    /// Continues all `prompts` together; `on_piece` sees the text as it comes and may end the generation.
    ///
    /// Prompts of different lengths share one context: the longest decides how much is left to answer.
    ///
    /// # Errors
    /// `InvalidArgument` for an empty prompt, a token outside the vocabulary, or a prompt that does not fit the
    /// context; and what sampling and libtorch report.
    pub fn generate(
        &self,
        prompts: &[Prompt],
        options: &GenerateOptions,
        on_piece: &mut dyn FnMut(Piece<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<Generation>> {
        let ids = prompts.iter().map(|prompt| self.encode(prompt)).collect::<Result<Vec<_>>>()?;
        let limits = PromptLimits::new(self.model.llama().config(), self.model.context());
        ids.iter().enumerate().try_for_each(|(i, ids)| limits.check(&format!("prompt {}", i + 1), ids))?;
        let mut answers = (ids.iter().enumerate())
            .map(|(i, ids)| Answer::new(&self.language.tokenizer, i, ids, options))
            .collect::<Result<Vec<_>>>()?;
        let Some(longest) = ids.iter().map(Vec::len).max() else { return Ok(Vec::new()) };
        let start = Instant::now();
        let (mut cache, logits) = self.prefill(&ids, longest, options)?;
        let mut scores = Scores::Logits(logits);
        let prefill_seconds = start.elapsed().as_secs_f64();
        let start = Instant::now();
        loop {
            let next = self.pick(&mut answers, &scores, on_piece)?;
            for answer in answers.iter_mut().filter(|_| cache.len() == cache.capacity()) {
                answer.end_if_running(StopReason::Context, &self.language, on_piece)?;
            }
            answers.iter_mut().for_each(|answer| answer.note_time(start));
            if answers.iter().all(|answer| answer.ended.is_some()) {
                break;
            }
            scores = self.decode(&next, &mut cache, options)?;
            answers.iter_mut().filter(|answer| answer.ended.is_none()).for_each(|answer| answer.steps += 1);
        }
        Ok(answers.into_iter().map(|answer| answer.into_generation(prefill_seconds)).collect())
    }

    /// Runs the prompts, padded on the left to the `longest`; the cache has room for the answers.
    fn prefill(
        &self,
        ids: &[Vec<u32>],
        longest: usize,
        options: &GenerateOptions,
    ) -> Result<(KvCache, Tensor)> {
        let padding: Vec<usize> = ids.iter().map(|ids| longest - ids.len()).collect();
        let capacity = longest.saturating_add(options.max_new_tokens).min(self.model.context());
        let mut cache = self.model.new_cache(ids.len(), capacity)?.with_left_padding(&padding)?;
        let rows: Vec<i64> = (ids.iter().zip(&padding))
            .flat_map(|(ids, &pad)| std::iter::repeat_n(0, pad).chain(ids.iter().map(|&id| i64::from(id))))
            .collect();
        let rows =
            Tensor::f_from_slice(&rows).and_then(|rows| rows.f_view([ids.len() as i64, longest as i64]));
        let rows = rows.and_then(|rows| rows.f_to_device(self.model.var_store().device()));
        let logits = self.model.llama().prefill(&rows.about("token ids")?, &mut cache)?;
        Ok((cache, logits))
    }

    /// Runs one token a sequence. Where the likeliest is wanted and the GPU has found it, the logits stay there.
    fn decode(&self, tokens: &[i64], cache: &mut KvCache, options: &GenerateOptions) -> Result<Scores> {
        let llama = self.model.llama();
        if options.sampling.is_greedy() && DecodeStep::fits(llama, cache) {
            let mut step = DecodeStep::new(llama, cache)?;
            let _ = step.run(tokens)?;
            return step.tokens().map(Scores::Likeliest);
        }
        let ids = Tensor::f_from_slice(tokens).and_then(|ids| ids.f_view([-1, 1]));
        let ids = ids.and_then(|ids| ids.f_to_device(self.model.var_store().device()));
        llama.forward(&ids.about("token ids")?, cache, LogitsOf::Last).map(Scores::Logits)
    }

    /// Picks each answer's next token; an answer that has ended gets 0.
    fn pick(
        &self,
        answers: &mut [Answer],
        scores: &Scores,
        on_piece: &mut dyn FnMut(Piece<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<i64>> {
        let logits = match scores {
            Scores::Likeliest(tokens) => return self.take_likeliest(answers, tokens, on_piece),
            Scores::Logits(logits) => logits,
        };
        let logits =
            logits.f_to_kind(Kind::Float).and_then(|logits| logits.f_reshape([-1])).about("logits")?;
        let logits = Vec::<f32>::try_from(logits).about("logits")?;
        let rows = logits.chunks(self.model.llama().config().vocab_size);
        let mut next = Vec::with_capacity(answers.len());
        for (answer, row) in answers.iter_mut().zip(rows) {
            next.push(match answer.ended {
                Some(_) => 0,
                None => answer.take_token(|continuation| continuation.pick(row), &self.language, on_piece)?,
            });
        }
        Ok(next)
    }

    /// As [`Generator::pick`], where each answer's likeliest token is known.
    fn take_likeliest(
        &self,
        answers: &mut [Answer],
        tokens: &[i64],
        on_piece: &mut dyn FnMut(Piece<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<i64>> {
        let mut next = Vec::with_capacity(answers.len());
        for (answer, &token) in answers.iter_mut().zip(tokens) {
            next.push(match answer.ended {
                Some(_) => 0,
                None => answer.take_token(|_| known(token), &self.language, on_piece)?,
            });
        }
        Ok(next)
    }
}

/// What the next tokens are picked from.
enum Scores {
    /// `[batch, 1, vocab]`.
    Logits(Tensor),
    /// The likeliest token of each sequence.
    Likeliest(Vec<i64>),
}

fn known(token: i64) -> Result<u32> {
    u32::try_from(token)
        .map_err(|_| Error::corrupt("token ids", format!("{token}, wanted one of the vocabulary")))
}

/// An answer in the making.
struct Answer {
    prompt: usize,
    prompt_tokens: usize,
    continuation: Continuation,
    token_ids: Vec<u32>,
    text: String,
    ended: Option<StopReason>,
    decode_seconds: Option<f64>,
    steps: usize,
}

impl Answer {
    fn new(tokenizer: &Tokenizer, prompt: usize, ids: &[u32], options: &GenerateOptions) -> Result<Self> {
        let seed = options.sampling.seed.wrapping_add(prompt as u64);
        Ok(Self {
            prompt,
            prompt_tokens: ids.len(),
            continuation: Continuation::after(tokenizer, ids, options, seed)?,
            token_ids: Vec::new(),
            text: String::new(),
            ended: None,
            decode_seconds: None,
            steps: 0,
        })
    }

    /// Picks a token and takes it in. Returns it.
    fn take_token(
        &mut self,
        pick: impl FnOnce(&mut Continuation) -> Result<u32>,
        language: &Language,
        on_piece: &mut dyn FnMut(Piece<'_>) -> ControlFlow<()>,
    ) -> Result<i64> {
        if self.continuation.is_full() {
            self.end_if_running(StopReason::MaxNewTokens, language, on_piece)?;
            return Ok(0);
        }
        let token = pick(&mut self.continuation)?;
        let taken = self.continuation.take(token, language)?;
        if taken.kept {
            self.token_ids.push(token);
        }
        self.show(&taken.text, on_piece);
        if let Some(ending) = taken.ending {
            self.close(ending, on_piece);
        }
        Ok(i64::from(token))
    }

    fn end_if_running(
        &mut self,
        reason: StopReason,
        language: &Language,
        on_piece: &mut dyn FnMut(Piece<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        if self.ended.is_none() {
            let ending = self.continuation.end(reason, &language.tokenizer)?;
            self.close(ending, on_piece);
        }
        Ok(())
    }

    /// Shows the text that was held back, unless the caller has asked for an end.
    fn close(&mut self, ending: Ending, on_piece: &mut dyn FnMut(Piece<'_>) -> ControlFlow<()>) {
        if self.ended.is_none() {
            self.show(&ending.text, on_piece);
        }
        if self.ended.is_none() || matches!(ending.reason, StopReason::StopString(_)) {
            self.ended = Some(ending.reason);
        }
    }

    fn show(&mut self, text: &str, on_piece: &mut dyn FnMut(Piece<'_>) -> ControlFlow<()>) {
        if text.is_empty() {
            return;
        }
        self.text.push_str(text);
        if on_piece(Piece { prompt: self.prompt, text }).is_break() {
            self.ended = Some(StopReason::Interrupted);
        }
    }

    fn note_time(&mut self, start: Instant) {
        if self.ended.is_some() && self.decode_seconds.is_none() {
            self.decode_seconds = Some(start.elapsed().as_secs_f64());
        }
    }

    fn into_generation(self, prefill_seconds: f64) -> Generation {
        let decode_seconds = self.decode_seconds.unwrap_or(0.0);
        Generation {
            text: self.text,
            new_tokens: self.continuation.new_tokens(),
            token_ids: self.token_ids,
            prompt_tokens: self.prompt_tokens,
            prefill_seconds,
            decode_seconds,
            tokens_per_second: if self.steps == 0 { 0.0 } else { self.steps as f64 / decode_seconds },
            stop_reason: self.ended.unwrap_or(StopReason::MaxNewTokens),
        }
    }
}
