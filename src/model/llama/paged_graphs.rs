//! Decoding steps over pages, captured once for each of a few numbers of sequences.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use tch::{Kind, Tensor};

use super::batch_scores::Freshness;
use super::step_graph::StepParts;
use super::step_launches::{MergedLayer, StepBuffers, StepPlanes};
use super::{BatchScores, Llama, PagedKvCache, PagedSequence, WeightsMark};
use crate::cuda::Graph;
use crate::error::{Result, TorchContext};
use crate::ops::cuda::Workspace;
use crate::ops::transformer::{takes_head, CachePlanes, Launcher};

/// The captured steps of one model with one cache, which owns them.
///
/// A step knows addresses only, so that it serves whatever sequences come: their tokens, lengths and pages are copied to where it
/// reads them. It takes a power of two of rows; the idle ones behind the sequences have length 0 and the spare page.
#[derive(Debug)]
pub(super) struct PagedGraphs {
    weights: WeightsMark,
    merged: Vec<MergedLayer>,
    /// Scratch of the linears. One for all steps: they run one after the other.
    workspace: Workspace,
    steps: Vec<CapturedStep>,
    /// Steps run so far.
    runs: Arc<AtomicU64>,
}

/// The step for one number of rows.
#[derive(Debug)]
struct CapturedStep {
    rows: usize,
    graph: Graph,
    buffers: StepBuffers,
    table: Table,
}

/// The page table on the device, and what it has.
#[derive(Debug)]
struct Table {
    /// `[rows, pages of a sequence]`, `Int`.
    pages: Tensor,
    /// The sequences' pages that were copied to it; empty where it has only spare pages, `None` where that is not known.
    copied: Option<Vec<Vec<u32>>>,
    spare: i32,
}

/// A cache, read through a table.
struct Tabled<'a> {
    cache: &'a PagedKvCache,
    table: &'a Tensor,
}

impl StepPlanes for Tabled<'_> {
    fn planes(&self, layer: usize) -> Result<CachePlanes<'_>> {
        self.cache.planes(layer, self.table)
    }
}

impl PagedGraphs {
    /// Whether there are captured steps for `llama` with `cache`: on a GPU, in one dtype that kernels take, with heads that they
    /// take.
    pub(super) fn fit(llama: &Llama, cache: &PagedKvCache) -> bool {
        cache.device().is_cuda()
            && cache.kind() == llama.norm.kind()
            && matches!(cache.kind(), Kind::Float | Kind::Half | Kind::BFloat16)
            && takes_head(llama.config.head_dim)
    }

    /// One token of each of `sequences`, which are of `cache` and have room.
    pub(super) fn step(
        llama: &Llama,
        tokens: &[u32],
        sequences: &[&mut PagedSequence],
        cache: &mut PagedKvCache,
    ) -> Result<BatchScores> {
        let mut graphs = Self::of(llama, cache)?;
        let scores = graphs.run(llama, tokens, sequences, cache);
        cache.put_graphs(graphs);
        scores
    }

    /// Captures what steps of up to `sequences` sequences need.
    pub(super) fn prepare(llama: &Llama, sequences: usize, cache: &mut PagedKvCache) -> Result<()> {
        let mut graphs = Self::of(llama, cache)?;
        let most = rows_for(sequences.clamp(1, PagedKvCache::MOST_SEQUENCES));
        // The largest first: scratch then is large enough for all.
        let mut rows = std::iter::successors(Some(most), |rows| Some(rows / 2).filter(|&rows| rows > 0));
        let captured = rows.try_for_each(|rows| graphs.captured(llama, rows, cache).map(|_| ()));
        cache.put_graphs(graphs);
        captured
    }

    /// Those of the cache where they were captured with the weights that `llama` has now, else new ones.
    fn of(llama: &Llama, cache: &mut PagedKvCache) -> Result<Box<Self>> {
        let weights = llama.weights_mark()?;
        if let Some(graphs) = cache.take_graphs().filter(|graphs| graphs.weights == weights) {
            return Ok(graphs);
        }
        llama.prepare_kernels(Launcher::on(cache.device())?.device)?;
        let merged = llama.layers.iter().map(MergedLayer::of).collect::<Result<Vec<_>>>()?;
        let workspace = Workspace::default();
        Ok(Box::new(Self { weights, merged, workspace, steps: Vec::new(), runs: Arc::default() }))
    }

    fn run(
        &mut self,
        llama: &Llama,
        tokens: &[u32],
        sequences: &[&mut PagedSequence],
        cache: &PagedKvCache,
    ) -> Result<BatchScores> {
        let runs = self.runs.clone();
        let step = self.captured(llama, rows_for(sequences.len()), cache)?;
        step.load(tokens, sequences)?;
        // What a step before has left is written over from here on.
        let run = runs.fetch_add(1, Ordering::Relaxed) + 1;
        step.graph.launch(Launcher::on(cache.device())?.stream)?;
        let first = |tensor: &Tensor| tensor.f_narrow(0, 0, sequences.len() as i64).about("logits");
        let (logits, chosen) = (first(&step.buffers.logits)?, first(&step.buffers.tokens)?);
        Ok(BatchScores::of_step(logits, chosen, Freshness::new(runs, run)))
    }

    /// The step for `rows` rows, captured where it is not yet.
    fn captured(&mut self, llama: &Llama, rows: usize, cache: &PagedKvCache) -> Result<&mut CapturedStep> {
        let at = match self.steps.iter().position(|step| step.rows == rows) {
            Some(at) => at,
            None => {
                let step = CapturedStep::new(llama, rows, cache, &self.merged, &self.workspace)?;
                self.steps.push(step);
                self.steps.len() - 1
            }
        };
        Ok(&mut self.steps[at])
    }
}

/// Rows of the step that takes `sequences` sequences.
fn rows_for(sequences: usize) -> usize {
    sequences.next_power_of_two()
}

impl CapturedStep {
    /// All rows are idle: the rehearsal writes to the spare page.
    fn new(
        llama: &Llama,
        rows: usize,
        cache: &PagedKvCache,
        merged: &[MergedLayer],
        workspace: &Workspace,
    ) -> Result<Self> {
        let launcher = Launcher::on(cache.device())?;
        let buffers = StepBuffers::new(&launcher, llama, &vec![0; rows], cache.kind())?;
        let table = Table::new(rows, cache)?;
        let parts =
            StepParts { llama, cache: &Tabled { cache, table: &table.pages }, buffers: &buffers, merged };
        let graph = parts.rehearsed_and_captured(&launcher, workspace)?;
        Ok(Self { rows, graph, buffers, table })
    }

    /// Copies what the next run begins with to the device.
    fn load(&mut self, tokens: &[u32], sequences: &[&mut PagedSequence]) -> Result<()> {
        let mut ids = vec![0_i64; self.rows];
        ids.iter_mut().zip(tokens).for_each(|(id, &token)| *id = i64::from(token));
        let mut lengths = vec![0_i32; self.rows];
        for (length, sequence) in lengths.iter_mut().zip(sequences) {
            // A cache has less slots than an i32 can count.
            *length = sequence.len() as i32;
        }
        copy(&ids, &self.buffers.tokens, "token ids")?;
        copy(&lengths, &self.buffers.lengths, "lengths")?;
        self.table.load(sequences)
    }
}

impl Table {
    /// Of spare pages.
    fn new(rows: usize, cache: &PagedKvCache) -> Result<Self> {
        let spare = cache.spare_page() as i32;
        let size = [rows as i64, cache.pages_of_a_sequence() as i64];
        let pages =
            Tensor::f_full(size, i64::from(spare), (Kind::Int, cache.device())).about("page table")?;
        Ok(Self { pages, copied: Some(Vec::new()), spare })
    }

    /// Copies the sequences' pages to the device unless they are there.
    fn load(&mut self, sequences: &[&mut PagedSequence]) -> Result<()> {
        if let Some(copied) = &self.copied {
            let held = copied.iter().map(Vec::as_slice);
            if held.eq(sequences.iter().map(|sequence| sequence.pages())) {
                return Ok(());
            }
        }
        // Not known while a copy is on its way or has failed.
        self.copied = None;
        let width = self.pages.size().last().map_or(0, |&width| width as usize);
        let mut table = vec![self.spare; self.pages.numel()];
        for (row, sequence) in table.chunks_exact_mut(width.max(1)).zip(sequences) {
            row.iter_mut().zip(sequence.pages()).for_each(|(entry, &page)| *entry = page as i32);
        }
        copy(&table, &self.pages, "page table")?;
        self.copied = Some(sequences.iter().map(|sequence| sequence.pages().to_vec()).collect());
        Ok(())
    }
}

/// Copies `values` to a tensor of their number and dtype.
fn copy<T: tch::kind::Element>(values: &[T], to: &Tensor, what: &str) -> Result<()> {
    let values = Tensor::f_from_slice(values).and_then(|values| values.f_view_as(to));
    values.and_then(|values| to.shallow_clone().f_copy_(&values)).about(what)
}
