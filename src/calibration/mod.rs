//! What an error of each weight costs, learned by running the dense model on a text.
//!
//! The model reads windows of the text and, behind each, tells by a derivative how its own next token depends on the output of
//! every layer. Inputs and derivatives are summed up to [`Importance`]s; nothing of the text itself is kept.
//!
//! [`calibrate`] does it; see its example.

mod labels;
mod sums;
mod weights;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use tch::{nn, Device, Kind, Tensor};

use self::sums::Sums;
use self::weights::RecordedWeights;
use crate::checkpoint::{CheckpointWeights, Reader};
use crate::codec::Importance;
use crate::error::{Error, Result, TorchContext};
use crate::model::{KvCache, Llama, LlamaConfig, LogitsOf};
use crate::nn::Recorder;
use crate::parity::Text;

/// Windows to read where the caller names no number.
///
/// What [`calibrate`] reads unless told otherwise; see its example.
pub const DEFAULT_WINDOWS: usize = 16;
/// Of the labels that the model draws for itself: the same text gives the same calibration.
const SEED: u64 = 0;

/// What to read.
///
/// Given to [`calibrate`]; see its example.
#[derive(Clone, Debug)]
pub struct Options {
    /// A UTF-8 text like those that the model will meet.
    pub text: PathBuf,
    /// Tokens of a window; `None` for 512, or less if the model allows less.
    pub window: Option<usize>,
    /// Most windows to read, spread evenly over the text.
    pub windows: usize,
}

impl Options {
    /// Sixteen windows of 512 tokens of `text`.
    pub fn new(text: impl Into<PathBuf>) -> Self {
        Self { text: text.into(), window: None, windows: DEFAULT_WINDOWS }
    }
}

/// What the error of a model's matrices costs.
///
/// Made by [`calibrate`]; see its example.
#[derive(Clone, Debug)]
pub struct Calibration {
    /// By tensor path: every linear, the embedding and the head.
    pub importance: HashMap<String, Importance>,
    /// Tokens read.
    pub tokens: usize,
}

/// Runs the dense Llama in `dir` on a text, in FP32 on the CPU; `progress` is told how many windows are done, and of how many.
///
/// ```no_run
/// // Needs a model. What is done with it shows `checkpoint::compress_calibrated`.
/// use codecllm::calibration::{calibrate, Options, DEFAULT_WINDOWS};
/// let options = Options { windows: 4 * DEFAULT_WINDOWS, ..Options::new("text.txt") };
/// let calibration = calibrate("model", &options, &mut |done, windows| eprintln!("{done} of {windows}"))?;
/// println!("{} tokens, {} matrices", calibration.tokens, calibration.importance.len());
/// # Ok::<(), codecllm::Error>(())
/// ```
///
/// # Errors
/// What [`LlamaConfig::from_dir`], [`Reader::open`] and the weights report; `Io` for a text or a tokenizer that cannot be read;
/// `InvalidArgument` for an empty text, one shorter than a window, or a model that is compressed already; `Corrupt` where
/// the model's numbers are not finite.
pub fn calibrate(
    dir: impl AsRef<Path>,
    options: &Options,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Calibration> {
    let dir = dir.as_ref();
    let text = Text::read(&options.text, [dir, dir], options.window, None)?;
    let windows = choose_windows(&text, options)?;
    let config = LlamaConfig::from_dir(dir)?;
    let reader = Reader::open(dir)?;
    let recorder = Recorder::default();
    let var_store = nn::VarStore::new(Device::Cpu);
    let dense = CheckpointWeights::new(&reader, Kind::Float);
    let llama =
        Llama::load(&var_store.root(), &config, &RecordedWeights { dense, recorder: recorder.clone() })?;
    let mut sums = Sums::new(SEED);
    for (done, window) in windows.iter().enumerate() {
        progress(done, windows.len());
        tch::with_grad(|| read(&llama, window))?;
        sums.add(recorder.take())?;
    }
    progress(windows.len(), windows.len());
    let tokens = windows.iter().map(|window| window.len()).sum();
    Ok(Calibration { importance: sums.importance()?, tokens })
}

/// Whole windows only, spread evenly.
fn choose_windows<'a>(text: &'a Text, options: &Options) -> Result<Vec<&'a [i64]>> {
    let whole: Vec<&[i64]> = text.windows().filter(|window| window.len() == text.window()).collect();
    let subject = options.text.display().to_string();
    if options.windows == 0 {
        return Err(Error::invalid(subject, "0 windows to calibrate with, wanted at least 1"));
    }
    let count = whole.len().min(options.windows);
    Ok((0..count).map(|index| whole[index * whole.len() / count]).collect())
}

fn read(llama: &Llama, window: &[i64]) -> Result<()> {
    let ids = Tensor::f_from_slice(window).and_then(|ids| ids.f_view([1, -1])).about("token ids")?;
    let mut cache = KvCache::new(llama.config(), 1, window.len(), Kind::Float, Device::Cpu)?;
    // The head is recorded like every other layer.
    llama.forward(&ids, &mut cache, LogitsOf::All).map(drop)
}
