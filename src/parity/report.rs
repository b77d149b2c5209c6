//! The comparison of two models, and its figures.

use std::path::{Path, PathBuf};

use serde::Serialize;
use tch::{Device, Kind};

use super::divergence::Divergence;
use super::greedy::{greedy, GreedyAgreement};
use super::layers::{conspicuous, layer_errors, steepest, LayerError};
use super::scores::Scores;
use super::side::Side;
use super::text::Text;
use crate::error::{Error, Result};

/// What to compare, and how.
///
/// Given to [`compare`]; see its example.
#[derive(Clone, Debug)]
pub struct Options {
    /// The UTF-8 text to read.
    pub text: PathBuf,
    /// The model directory whose tokenizer reads the text for TorchScript files; `None` for the other side, if that is a directory.
    pub tokenizer: Option<PathBuf>,
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
            tokenizer: None,
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
///
/// Told by [`compare`] on the way; see its example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// `load`, `text`, or `prompts`.
    pub stage: &'a str,
    /// Models, windows or prompts done.
    pub done: usize,
    /// Of how many.
    pub total: usize,
}

/// One window of the text.
///
/// In what [`compare`] gives, one for each window; see its example.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct WindowScore {
    /// Tokens that both models predicted.
    pub tokens: usize,
    /// Perplexity of the reference.
    pub perplexity_reference: f64,
    /// Perplexity of the compressed model.
    pub perplexity_compressed: f64,
    /// Mean divergence, nats.
    pub kl_mean: f64,
}

/// The figures of a comparison.
///
/// Made by [`compare`]; see its example.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The model directory that is right.
    pub reference: String,
    /// The model directory that was compared with it.
    pub compressed: String,
    /// The file that both read.
    pub text: String,
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
    /// The windows, one by one.
    pub per_window: Vec<WindowScore>,
    /// The divergence that 0 %, 1 %, ... 100 % of the positions stay within, nats.
    pub kl_percentiles: Vec<f64>,
    /// The errors of embedding, layers and head, over the first window (512 tokens of it at most); none where a side is TorchScript.
    pub layers: Vec<LayerError>,
    /// The first layer behind which the error rises as much as anywhere; `None` where nothing differs.
    pub steepest_layer: Option<String>,
    /// The layers whose own error stands out: what is wrong there is more than compression ([`conspicuous`]).
    pub conspicuous_layers: Vec<String>,
    /// Prompts whose answers are the same to the end.
    pub greedy_agreed: usize,
    /// The earliest token at which the answers to any prompt diverge, from 0; `None` where all agree.
    pub greedy_first_divergence: Option<usize>,
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
        let mut message = format!(
            "kl_mean is {mean:.4} nats, wanted at most {most}; the error first rises steeply behind {layer}"
        );
        if !self.conspicuous_layers.is_empty() {
            message += &format!("; wrong by themselves: {}", self.conspicuous_layers.join(", "));
        }
        Err(Error::corrupt("parity", message))
    }
}

/// Compares the model `compressed` with the model `reference`: directories, or TorchScript files whose `forward` takes token ids
/// `[1, seq]` and gives logits `[1, seq, vocab]`, alone or first.
///
/// ```no_run
/// // Needs two models.
/// use codecllm::parity::{compare, Options, DEFAULT_WINDOW};
/// let prompts = vec!["What is the capital of France?".to_owned()];
/// let options = Options { window: Some(DEFAULT_WINDOW), prompts, ..Options::new("text.txt") };
/// let report = compare("model", "out", &options, &mut |at| eprintln!("{} {} of {}", at.stage, at.done, at.total))?;
/// report.check(0.01)?; // nats
/// println!("perplexity {:+.2} %", report.perplexity_change_percent());
/// for (name, value) in report.figures() {
///     println!("{name}: {value}");
/// }
/// for error in &report.layers {
///     println!("{}: {:.4} by itself, {}", error.layer, error.own_error, report.remark(error));
/// }
/// println!("{}", report.greedy_summary());
/// for answer in report.greedy.iter().filter(|answer| !answer.agrees) {
///     let parted = answer.divergence.as_ref().unwrap();
///     println!("{}: {} | {}", answer.prompt, parted.reference, parted.compressed);
/// }
/// let worst = report.per_window.iter().map(|window| window.kl_mean).fold(0.0, f64::max);
/// println!("a window's divergence is {worst} at most");
/// std::fs::write("report.html", report.html()?).map_err(|e| codecllm::Error::io("report.html", e))?;
/// # Ok::<(), codecllm::Error>(())
/// ```
///
/// # Errors
/// What loading and generating report; `InvalidArgument` for a text shorter than one window, a window that the models do not
/// allow, models of different vocabularies or tokenizers, or a tokenizer that does not belong to its model; `Corrupt` where logits
/// are not finite.
pub fn compare(
    reference: impl AsRef<Path>,
    compressed: impl AsRef<Path>,
    options: &Options,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Report> {
    let dirs = [reference.as_ref(), compressed.as_ref()];
    let languages = languages(dirs, options.tokenizer.as_deref())?;
    let text = Text::read(&options.text, languages, options.window, options.max_windows)?;
    let sides = open(dirs, languages, options, progress)?;
    let [reference, compressed] = sides.each_ref();
    let mut scores = Scores::default();
    for (index, window) in text.windows().enumerate() {
        progress(Progress { stage: "text", done: index, total: text.count() });
        scores.read([reference, compressed], window)?;
        if scores.divergence.kl.iter().any(|kl| kl.is_nan()) {
            return Err(not_finite(dirs, &scores, index));
        }
    }
    progress(Progress { stage: "text", done: text.count(), total: text.count() });
    let layers = match (text.windows().next(), reference.model(), compressed.model()) {
        (Some(window), Some(reference), Some(compressed)) => layer_errors(reference, compressed, window)?,
        _ => Vec::new(),
    };
    let greedy = answer_all([reference, compressed], options, progress)?;
    let names = [dirs[0], dirs[1], &options.text].map(|path| path.display().to_string());
    let weight_bytes = [reference.weight_bytes()?, compressed.weight_bytes()?];
    Ok(report(names, scores, &text, weight_bytes, layers, greedy))
}

/// The directories whose tokenizers belong to the two models.
fn languages<'a>(paths: [&'a Path; 2], tokenizer: Option<&'a Path>) -> Result<[&'a Path; 2]> {
    let [reference, compressed] = paths;
    let of = |own: &'a Path, other: &'a Path| match (own.is_file(), tokenizer, other.is_file()) {
        (false, _, _) => Ok(own),
        (true, Some(tokenizer), _) => Ok(tokenizer),
        (true, None, false) => Ok(other),
        (true, None, true) => Err(Error::invalid(
            "--tokenizer",
            format!("{} has none; name the model directory whose tokenizer belongs to it", own.display()),
        )),
    };
    Ok([of(reference, compressed)?, of(compressed, reference)?])
}

fn open(
    paths: [&Path; 2],
    languages: [&Path; 2],
    options: &Options,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<[Side; 2]> {
    progress(Progress { stage: "load", done: 0, total: 2 });
    let reference = Side::open(paths[0], languages[0], options)?;
    progress(Progress { stage: "load", done: 1, total: 2 });
    let compressed = Side::open(paths[1], languages[1], options)?;
    progress(Progress { stage: "load", done: 2, total: 2 });
    Ok([reference, compressed])
}

fn answer_all(
    sides: [&Side; 2],
    options: &Options,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Vec<GreedyAgreement>> {
    let total = options.prompts.len();
    let mut answers = Vec::with_capacity(total);
    for (done, prompt) in options.prompts.iter().enumerate() {
        progress(Progress { stage: "prompts", done, total });
        answers.push(greedy(sides, prompt, options)?);
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

fn report(
    [reference, compressed, read]: [String; 3],
    scores: Scores,
    text: &Text,
    [weight_bytes_reference, weight_bytes_compressed]: [usize; 2],
    layers: Vec<LayerError>,
    greedy: Vec<GreedyAgreement>,
) -> Report {
    Report {
        reference,
        compressed,
        text: read,
        perplexity_reference: scores.text[0].perplexity(),
        perplexity_compressed: scores.text[1].perplexity(),
        divergence: scores.divergence.summary(),
        tokens_scored: scores.text[0].tokens,
        windows: text.count(),
        window: text.window(),
        weight_bytes_reference,
        weight_bytes_compressed,
        per_window: scores.windows,
        kl_percentiles: scores.divergence.percentiles(),
        steepest_layer: steepest(&layers).map(|error| error.layer.clone()),
        conspicuous_layers: conspicuous(&layers).map(|error| error.layer.clone()).collect(),
        layers,
        greedy_agreed: greedy.iter().filter(|answer| answer.agrees).count(),
        greedy_first_divergence: greedy
            .iter()
            .filter_map(|answer| answer.divergence.as_ref())
            .map(|at| at.token)
            .min(),
        greedy,
    }
}
