//! A decoding step, captured: what a cache keeps of it from token to token.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tch::Tensor;

use super::step_launches::{Launched, MergedLayer, StepBuffers, StepLaunches, StepPlanes};
use super::{KvCache, Llama, WeightsMark};
use crate::cuda::{Device, Graph, Stream};
use crate::error::{Result, TorchContext};
use crate::ops::cuda::Workspace;
use crate::ops::transformer::Launcher;

/// A captured step of one model with one cache. Both are known to it by their addresses alone: the cache owns it, and
/// [`StepGraph::belongs_to`] tells whether the weights are still those.
#[derive(Debug)]
pub(super) struct StepGraph {
    graph: Graph,
    buffers: StepBuffers,
    merged: Vec<MergedLayer>,
    logits: Tensor,
    /// Scratch of the linears.
    workspace: Workspace,
    weights: WeightsMark,
    /// What the device takes for the cache's length, where known.
    device_length: Option<usize>,
    /// Whether `buffers.tokens` are the likeliest ones behind a step of the caller's.
    has_tokens: bool,
}

impl StepGraph {
    /// Captures a step. A rehearsal loads what loads at the first use; it writes to the cache's first free slot, which is
    /// nobody's yet, if there is one.
    pub(super) fn new(llama: &Llama, cache: &KvCache) -> Result<Self> {
        let launcher = Launcher::on(cache.device())?;
        let device = launcher.device;
        llama.prepare_kernels(device)?;
        let buffers = StepBuffers::new(&launcher, llama, cache.padding(), cache.kind())?;
        let _ = buffers.lengths.shallow_clone().f_fill_(cache.len() as i64).about("lengths")?;
        let merged = llama.layers.iter().map(MergedLayer::of).collect::<Result<Vec<_>>>()?;
        let weights = llama.weights_mark()?;
        let workspace = Workspace::default();
        let parts = StepParts { llama, cache, buffers: &buffers, merged: &merged };
        let graph = parts.rehearsed_and_captured(&launcher, &workspace)?;
        let logits = buffers.logits.f_unsqueeze(1).about("logits")?;
        Ok(Self {
            graph,
            buffers,
            merged,
            logits,
            workspace,
            weights,
            device_length: None,
            has_tokens: false,
        })
    }

    /// Whether it was captured with the weights that `llama` has now.
    pub(super) fn belongs_to(&self, llama: &Llama) -> bool {
        llama.weights_mark().is_ok_and(|mark| mark == self.weights)
    }

    /// A step of another caller begins with tokens of its own: the cache may hold other sequences by now.
    pub(super) fn forget_tokens(&mut self) {
        self.has_tokens = false;
    }

    /// Captures some of the launches, for timing, with the length left as it is. The device must not be at the step meanwhile.
    pub(super) fn capture(
        &mut self,
        llama: &Llama,
        cache: &KvCache,
        launched: Launched,
    ) -> Result<(&'static Device, Graph)> {
        // Its replays choose tokens again and again.
        self.has_tokens = false;
        self.set_length(cache.len())?;
        let device = Launcher::on(cache.device())?.device;
        let parts = StepParts { llama, cache, buffers: &self.buffers, merged: &self.merged };
        let graph = alone_on_a_stream(device, |stream| {
            self.workspace.during(|| Graph::capture(device, stream, || parts.launch(device, launched)))
        })?;
        Ok((device, graph))
    }

    /// The tokens `[batch]` that the next step begins with.
    pub(super) fn set_tokens(&mut self, tokens: &Tensor) -> Result<()> {
        self.buffers.tokens.f_copy_(tokens).about("token ids")
    }

    /// Whether the last step has chosen tokens.
    pub(super) fn has_tokens(&self) -> bool {
        self.has_tokens
    }

    /// The tokens `[batch]` that the last step has chosen.
    pub(super) fn tokens(&self) -> &Tensor {
        &self.buffers.tokens
    }

    /// Runs the step on the current stream. The logits are `[batch, 1, vocab]`.
    pub(super) fn replay(&mut self, cache: &mut KvCache) -> Result<&Tensor> {
        self.begin(cache)?;
        let launcher = Launcher::on(cache.device())?;
        self.graph.launch(launcher.stream)?;
        Ok(self.end(cache))
    }

    /// As [`StepGraph::replay`], launch by launch.
    pub(super) fn run_eager(&mut self, llama: &Llama, cache: &mut KvCache) -> Result<&Tensor> {
        self.begin(cache)?;
        let parts = StepParts { llama, cache, buffers: &self.buffers, merged: &self.merged };
        parts.launch(Launcher::on(cache.device())?.device, Launched::STEP)?;
        Ok(self.end(cache))
    }

    fn begin(&mut self, cache: &KvCache) -> Result<()> {
        cache.check_room(cache.batch() as i64, 1)?;
        if self.device_length != Some(cache.len()) {
            self.set_length(cache.len())?;
        }
        // Unknown until the step is on its way.
        self.device_length = None;
        self.has_tokens = false;
        Ok(())
    }

    fn end(&mut self, cache: &mut KvCache) -> &Tensor {
        cache.advance(1);
        self.device_length = Some(cache.len());
        self.has_tokens = true;
        &self.logits
    }

    fn set_length(&mut self, length: usize) -> Result<()> {
        let _ = self.buffers.lengths.f_fill_(length as i64).about("lengths")?;
        self.device_length = Some(length);
        Ok(())
    }
}

/// What the launches of a step are made of.
pub(super) struct StepParts<'a> {
    pub(super) llama: &'a Llama,
    pub(super) cache: &'a dyn StepPlanes,
    pub(super) buffers: &'a StepBuffers,
    pub(super) merged: &'a [MergedLayer],
}

impl StepParts<'_> {
    /// The step as a graph, behind a rehearsal of it that loads what loads at the first use.
    pub(super) fn rehearsed_and_captured(&self, launcher: &Launcher, workspace: &Workspace) -> Result<Graph> {
        let device = launcher.device;
        device.synchronize(launcher.stream)?;
        let launch = || self.launch(device, Launched::STEP);
        alone_on_a_stream(device, |stream| {
            workspace.during(|| {
                let rehearsed = device.with_stream(stream, launch);
                // Also after an error: what is on its way writes to memory that is about to be given back.
                let done = device.synchronize(stream);
                rehearsed.and(done)?;
                Graph::capture(device, stream, launch)
            })
        })
    }

    /// Launches on libtorch's current stream of `device`.
    fn launch(&self, device: &Device, launched: Launched) -> Result<()> {
        let &Self { llama, cache, buffers, merged } = self;
        let launcher = Launcher::on(tch::Device::Cuda(device.ordinal))?;
        StepLaunches { llama, cache, buffers, merged, launcher, launched }.all()
    }
}

/// Calls `work` with a stream to capture on that nothing else is on: one for each thread and device, because libtorch keeps
/// a workspace for each stream that a matrix product ran on.
fn alone_on_a_stream<T>(device: &Device, work: impl FnOnce(Stream) -> Result<T>) -> Result<T> {
    thread_local! {
        static STREAMS: RefCell<HashMap<usize, Stream>> = RefCell::default();
    }
    /// libtorch hands out its few streams in turn: with many threads, two may have the same.
    static CAPTURING: Mutex<()> = Mutex::new(());
    let known = STREAMS.with_borrow(|streams| streams.get(&device.ordinal).copied());
    let stream = match known {
        Some(stream) => stream,
        None => device.pool_stream()?,
    };
    STREAMS.with_borrow_mut(|streams| streams.insert(device.ordinal, stream));
    let _alone = CAPTURING.lock().unwrap_or_else(PoisonError::into_inner);
    work(stream)
}
