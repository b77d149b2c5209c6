//! The comparison of two models, and its figures.

use std::path::{Path, PathBuf};

use serde::Serialize;
use tch::{Device, Kind};

use super::divergence::{divergence, Divergence, PositionDivergence};
use super::greedy::{greedy, GreedyAgreement};
use super::layers::{layer_errors, steepest, LayerError};
use super::logits::{in_chunks, logits, PIECE_POSITIONS};
use super::perplexity::{perplexity, TextScore};
use super::text::Text;
use crate::error::{Error, Result};
use crate::runtime::{Generator, LoadOptions, Model};

/// What to compare, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The UTF-8 text to read.
    pub text: PathBuf,
    /// Tokens of a window, each read from nothing; `None` for 512, or less if the model allows less.
    pub window: Option<usize>,
    /// Windows to read; `None` for all.
    pub max_windows: Option<usize>,
    /// The dtype that both models compute in: `Half`, `BFloat16` or `Float`.
    pub kind: Kind,
    /// Where both models run.
    pub device: Device,
    /// Threads of libtorch's operators, for the whole process; `None` leaves them as they are.
    pub threads: Option<usize>,
    /// Prompts that both models answer greedily.
    pub prompts: Vec<String>,
    /// Continue the prompts as they are, without the models' chat template.
    pub raw: bool,
    /// Most tokens of an answer to a prompt.
    pub new_tokens: usize,
}

impl Options {
    /// Reads all of `text` on the CPU, without prompts; in FP32, which libtorch multiplies faster there than FP16.
    pub fn new(text: impl Into<PathBuf>) -> Self {
        Self {
            text: text.into(),
            window: None,
            max_windows: None,
            kind: Kind::Float,
            device: Device::Cpu,
            threads: None,
            prompts: Vec::new(),
            raw: false,
            new_tokens: 64,
        }
    }
}

/// How far a comparison has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// `load`, `text`, or `prompts`.
    pub stage: &'a str,
    /// Models, windows or prompts done.
    pub done: usize,
    /// Of how many.
    pub total: usize,
}

/// The figures of a comparison.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// `exp` of the mean negative log-likelihood of a token under the reference.
    pub perplexity_reference: f64,
    /// The same under the compressed model.
    pub perplexity_compressed: f64,
    /// How far the distributions are apart.
    #[serde(flatten)]
    pub divergence: Divergence,
    /// Tokens that both models predicted: all but the first of each window.
    pub tokens_scored: usize,
    /// Windows read.
    pub windows: usize,
    /// Tokens of a window.
    pub window: usize,
    /// Bytes of the reference's weights in memory.
    pub weight_bytes_reference: usize,
    /// Bytes of the compressed model's weights in memory.
    pub weight_bytes_compressed: usize,
    /// The error of the hidden states behind each layer, over the first window.
    pub layers: Vec<LayerError>,
    /// The first layer behind which the error rises as much as anywhere; `None` where nothing differs.
    pub steepest_layer: Option<String>,
    /// Prompts whose answers are the same to the end.
    pub greedy_agreed: usize,
    /// The answers, prompt by prompt.
    pub greedy: Vec<GreedyAgreement>,
}

impl Report {
    /// An error where the mean divergence is above `most` nats, naming the layer that goes wrong first.
    pub fn check(&self, most: f64) -> Result<()> {
        let mean = self.divergence.kl_mean;
        if mean <= most {
            return Ok(());
        }
        let layer = self.steepest_layer.as_deref().unwrap_or("none");
        Err(Error::corrupt(
            "parity",
            format!("kl_mean is {mean:.4} nats, wanted at most {most}; the error first rises steeply behind {layer}"),
        ))
    }
}

/// Compares the model directory `compressed` with the model directory `reference`.
///
/// # Errors
/// What loading and generating report; `InvalidArgument` for a text of fewer than two tokens, a window that the models
/// do not allow, or models of different vocabularies or tokenizers; `Corrupt` where logits are not finite.
pub fn compare(
    reference: impl AsRef<Path>,
    compressed: impl AsRef<Path>,
    options: &Options,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Report> {
    let dirs = [reference.as_ref(), compressed.as_ref()];
    let text = Text::read(&options.text, dirs, options.window, options.max_windows)?;
    let [reference, compressed] = load(dirs, options, progress)?;
    let models = [reference.model(), compressed.model()];
    let mut scores = Scores::default();
    for (index, window) in text.windows().enumerate() {
        progress(Progress { stage: "text", done: index, total: text.count() });
        scores.read(models, window)?;
        if scores.divergence.kl.iter().any(|kl| kl.is_nan()) {
            return Err(not_finite(dirs, &scores, index));
        }
    }
    progress(Progress { stage: "text", done: text.count(), total: text.count() });
    let layers = match text.windows().next() {
        Some(window) => layer_errors(models[0], models[1], window)?,
        None => Vec::new(),
    };
    let greedy = answer_all([&reference, &compressed], options, progress)?;
    Ok(scores.report(&text, models, layers, greedy))
}

fn load(
    dirs: [&Path; 2],
    options: &Options,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<[Generator; 2]> {
    let Options { device, kind, threads, .. } = *options;
    let load = LoadOptions { device, kind, threads, ..LoadOptions::default() };
    let [reference, compressed] = dirs;
    progress(Progress { stage: "load", done: 0, total: 2 });
    let reference = Generator::open(reference, &load)?;
    progress(Progress { stage: "load", done: 1, total: 2 });
    let compressed = Generator::open(compressed, &load)?;
    progress(Progress { stage: "load", done: 2, total: 2 });
    Ok([reference, compressed])
}

fn answer_all(
    generators: [&Generator; 2],
    options: &Options,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Vec<GreedyAgreement>> {
    let total = options.prompts.len();
    let mut answers = Vec::with_capacity(total);
    for (done, prompt) in options.prompts.iter().enumerate() {
        progress(Progress { stage: "prompts", done, total });
        answers.push(greedy(generators, prompt, options)?);
    }
    if total > 0 {
        progress(Progress { stage: "prompts", done: total, total });
    }
    Ok(answers)
}

fn not_finite(dirs: [&Path; 2], scores: &Scores, window: usize) -> Error {
    let dir = if scores.text[0].nats.is_nan() { dirs[0] } else { dirs[1] };
    Error::corrupt(
        dir.display().to_string(),
        format!("logits in window {window} of the text are not finite (overflow? try --dtype fp32)"),
    )
}

/// What is summed up over the windows.
#[derive(Default)]
struct Scores {
    /// Of the reference, and of the compressed model.
    text: [TextScore; 2],
    divergence: PositionDivergence,
}

impl Scores {
    /// Lets both models read `window` piece by piece and scores every token but the first.
    fn read(&mut self, models: [&Model; 2], window: &[i64]) -> Result<()> {
        let [mut cache, mut other_cache] =
            [models[0].new_cache(1, window.len())?, models[1].new_cache(1, window.len())?];
        let (read, targets) = (&window[..window.len() - 1], &window[1..]);
        for (ids, targets) in read.chunks(PIECE_POSITIONS).zip(targets.chunks(PIECE_POSITIONS)) {
            let reference = logits(models[0], &mut cache, ids)?;
            let compressed = logits(models[1], &mut other_cache, ids)?;
            in_chunks([&reference, &compressed], targets, |reference, compressed, targets| {
                self.text[0].add(perplexity(reference, targets)?);
                self.text[1].add(perplexity(compressed, targets)?);
                self.divergence.append(divergence(reference, compressed)?);
                Ok(())
            })?;
        }
        Ok(())
    }

    fn report(
        &self,
        text: &Text,
        models: [&Model; 2],
        layers: Vec<LayerError>,
        greedy: Vec<GreedyAgreement>,
    ) -> Report {
        Report {
            perplexity_reference: self.text[0].perplexity(),
            perplexity_compressed: self.text[1].perplexity(),
            divergence: self.divergence.summary(),
            tokens_scored: self.text[0].tokens,
            windows: text.count(),
            window: text.window(),
            weight_bytes_reference: models[0].weight_bytes(),
            weight_bytes_compressed: models[1].weight_bytes(),
            steepest_layer: steepest(&layers).map(|error| error.layer.clone()),
            layers,
            greedy_agreed: greedy.iter().filter(|answer| answer.agrees).count(),
            greedy,
        }
    }
}
