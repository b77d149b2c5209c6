//! Decoding on a GPU, one token a sequence, with one call a token: the step is captured as a CUDA graph.

use tch::Tensor;

use super::step_graph::StepGraph;
use super::step_launches::Launched;
use super::{KvCache, Llama};
use crate::cuda::EventTimer;
use crate::error::{Error, Result, TorchContext};
use crate::ops::transformer::takes_head;

/// Most sequences that a step takes at once.
const MOST_SEQUENCES: usize = 64;

/// Which part of a step to time.
///
/// Timed by a [`DecodeStep`]; see its example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepPart {
    /// All of it.
    Whole,
    /// The linear layers alone, the head among them.
    Linears,
    /// All but the linear layers.
    Rest,
}

/// Decodes behind what a cache on a GPU holds, token by token.
///
/// The first one made for a cache captures the step; the cache keeps the graph, so that another costs nothing.
/// [`Llama::forward`] takes this way by itself; here logits stay where the step leaves them, and the likeliest tokens can feed
/// the next step without leaving the device.
///
/// ```no_run
/// // Needs a model and a GPU.
/// use codecllm::model::{DecodeStep, StepPart};
/// use codecllm::runtime::{LoadOptions, Model};
/// let model = Model::load("model", &LoadOptions { device: tch::Device::Cuda(0), ..LoadOptions::default() })?;
/// let mut cache = model.new_cache(1, 128)?;
/// // model.llama().prefill(...)
/// assert!(DecodeStep::fits(model.llama(), &cache));
/// let mut step = DecodeStep::new(model.llama(), &mut cache)?;
/// let eager = step.run_eager(&[42])?.copy();
/// let logits = step.run(&[43])?; // [1, 1, vocab]
/// for _ in 0..16 {
///     step.run_greedy()?;
/// }
/// println!("{:?}", step.tokens()?);
/// println!("{} s, linears {} s", step.seconds(StepPart::Whole, 10)?, step.seconds(StepPart::Linears, 10)?);
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Debug)]
pub struct DecodeStep<'a> {
    llama: &'a Llama,
    cache: &'a mut KvCache,
    graph: Option<Box<StepGraph>>,
}

impl<'a> DecodeStep<'a> {
    /// A step of `llama` behind what `cache` holds.
    ///
    /// # Errors
    /// `InvalidArgument` where the step is not made for the model or the cache, see [`DecodeStep::fits`]; what compiling the
    /// kernels and the capture report.
    pub fn new(llama: &'a Llama, cache: &'a mut KvCache) -> Result<Self> {
        if !Self::fits(llama, cache) {
            return Err(Error::invalid(
                "decoding step",
                format!(
                    "{} sequences on {:?}, {:?} keys, {:?} weights, heads of {}; wanted 1 to {MOST_SEQUENCES} on a \
                     GPU, one dtype, and heads of a multiple of 8 up to 256",
                    cache.batch(),
                    cache.device(),
                    cache.kind(),
                    llama.norm.kind(),
                    llama.config.head_dim
                ),
            ));
        }
        let graph = match cache.take_step_graph().filter(|graph| graph.belongs_to(llama)) {
            Some(mut graph) => {
                graph.forget_tokens();
                graph
            }
            None => Box::new(StepGraph::new(llama, cache)?),
        };
        Ok(Self { llama, cache, graph: Some(graph) })
    }

    /// Whether there is a step for `llama` with `cache`: both on one GPU and in one dtype, heads of a multiple of 8 up to 256,
    /// and up to 64 sequences.
    pub fn fits(llama: &Llama, cache: &KvCache) -> bool {
        let device = cache.device();
        device.is_cuda()
            && device == llama.norm.device()
            && cache.kind() == llama.norm.kind()
            && cache.batch() <= MOST_SEQUENCES
            && takes_head(llama.config.head_dim)
    }

    /// Appends one token a sequence and returns the logits `[batch, 1, vocab]` of the next, on the device. The next step
    /// writes over them.
    ///
    /// # Errors
    /// `InvalidArgument` for another number of tokens than sequences, one outside the vocabulary, or a full cache.
    pub fn run(&mut self, tokens: &[i64]) -> Result<&Tensor> {
        self.set_tokens(tokens)?;
        self.replay()
    }

    /// As [`DecodeStep::run`], launch by launch instead of as a graph: slower, the same numbers.
    ///
    /// # Errors
    /// As [`DecodeStep::run`].
    pub fn run_eager(&mut self, tokens: &[i64]) -> Result<&Tensor> {
        self.set_tokens(tokens)?;
        let (llama, graph) = (self.llama, taken(&mut self.graph)?);
        graph.run_eager(llama, self.cache)
    }

    /// As [`DecodeStep::run`], with the likeliest tokens of the step before, which never leave the device.
    ///
    /// # Errors
    /// As [`DecodeStep::run`]; `InvalidArgument` if there was no step before.
    pub fn run_greedy(&mut self) -> Result<&Tensor> {
        if !taken(&mut self.graph)?.has_tokens() {
            return Err(no_step_before());
        }
        self.replay()
    }

    /// The likeliest token of each sequence behind the last step, the lowest of equals. Waits for the step.
    ///
    /// # Errors
    /// `InvalidArgument` if there was no step before, `Corrupt` where its logits have a NaN or no finite largest.
    pub fn tokens(&self) -> Result<Vec<i64>> {
        let graph = self.graph.as_ref().filter(|graph| graph.has_tokens()).ok_or_else(no_step_before)?;
        let tokens = Vec::<i64>::try_from(graph.tokens()).about("token ids")?;
        match tokens.iter().position(|&token| token < 0) {
            None => Ok(tokens),
            Some(sequence) => Err(Error::corrupt(
                "logits",
                format!("of sequence {} have a NaN or no finite largest (weights damaged?)", sequence + 1),
            )),
        }
    }

    /// Seconds that `part` of the step takes on the device behind what the cache holds: the mean over `replays` of a graph.
    /// The cache stays as long as it is.
    ///
    /// # Errors
    /// As [`DecodeStep::new`].
    pub fn seconds(&mut self, part: StepPart, replays: usize) -> Result<f64> {
        let launched = match part {
            StepPart::Whole => Launched { linears: true, rest: true, advance: false },
            StepPart::Linears => Launched { linears: true, rest: false, advance: false },
            StepPart::Rest => Launched { linears: false, rest: true, advance: false },
        };
        let (device, graph) = taken(&mut self.graph)?.capture(self.llama, self.cache, launched)?;
        let stream = device.current_stream()?;
        let (timer, replays) = (EventTimer::new(device)?, replays.max(1));
        graph.launch(stream)?;
        timer.start(stream)?;
        (0..replays).try_for_each(|_| graph.launch(stream))?;
        timer.stop(stream)?;
        Ok(timer.elapsed()?.as_secs_f64() / replays as f64)
    }

    /// As [`DecodeStep::run`], with ids `[batch, 1]` (`Int64`) on any device, and logits of their own.
    pub(super) fn forward(&mut self, ids: &Tensor) -> Result<Tensor> {
        let batch = ids.numel() as i64;
        self.cache.check_room(batch, 1)?;
        taken(&mut self.graph)?.set_tokens(&ids.f_reshape([batch]).about("token ids")?)?;
        self.replay()?.f_detach_copy().about("logits")
    }

    fn set_tokens(&mut self, tokens: &[i64]) -> Result<()> {
        self.cache.check_room(tokens.len() as i64, 1)?;
        let vocab = self.llama.config.vocab_size;
        if let Some(token) = tokens.iter().find(|&&token| !usize::try_from(token).is_ok_and(|id| id < vocab))
        {
            return Err(Error::invalid(
                "token ids",
                format!("{token}, wanted 0 to {} (vocab_size of the model)", vocab - 1),
            ));
        }
        taken(&mut self.graph)?.set_tokens(&Tensor::f_from_slice(tokens).about("token ids")?)
    }

    fn replay(&mut self) -> Result<&Tensor> {
        taken(&mut self.graph)?.replay(self.cache)
    }
}

impl Drop for DecodeStep<'_> {
    /// Leaves the graph to the cache.
    fn drop(&mut self) {
        self.cache.put_step_graph(self.graph.take());
    }
}

/// There from `new` until drop.
fn taken(graph: &mut Option<Box<StepGraph>>) -> Result<&mut StepGraph> {
    graph.as_deref_mut().ok_or_else(no_step_before)
}

fn no_step_before() -> Error {
    Error::invalid("decoding step", "has not run yet, wanted one with tokens first")
}
