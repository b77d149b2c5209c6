//! What a model takes in memory, and how fast it would generate, before anything of it is loaded: plain arithmetic over shapes.
//!
//! [`ModelShape`] counts weights, [`Choice`] says what each preset makes of them, [`Memory`] lists everything that lies in memory while
//! a [`Workload`] runs on a [`Machine`], and [`plan`] puts them together. docs/guide.md states the formulas and holds them against
//! measured peaks.
//!
//! All of them stand in the example of [`plan`](plan()); see its example.

mod choice;
mod machine;
mod memory;
mod shape;
mod speed;

pub use choice::{estimates, sampled, stored, Basis, Choice, Coding};
pub use machine::{Gpu, Machine, Place};
pub use memory::{Memory, Workload};
pub use shape::ModelShape;
pub use speed::{expected, Speed, SpeedBasis};

use serde::Serialize;

use crate::model::LlamaConfig;

/// Most sequences that a plan looks for.
const MOST_SEQUENCES: usize = 1 << 16;

/// What fits a machine.
///
/// Made by [`plan`](plan()); see its example.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Weights of the model.
    pub weights: u64,
    /// Tokens of each sequence, prompt and answer together.
    pub context: usize,
    /// Sequences at once.
    pub batch: usize,
    /// The machine's memory.
    pub memory_bytes: u64,
    /// One for each choice, in their order.
    pub choices: Vec<PlannedChoice>,
}

/// What one choice takes.
///
/// Made by [`plan`](plan()); see its example.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedChoice {
    /// The choice.
    #[serde(flatten)]
    pub choice: Choice,
    /// Whether everything fits.
    pub fits: bool,
    /// All that it takes.
    pub total_bytes: u64,
    /// What that consists of.
    pub memory: Memory,
    /// The longest context that fits with as many sequences; 0 if none does.
    pub largest_context: usize,
    /// The most sequences that fit with as long a context; 0 if none does.
    pub largest_batch: usize,
    /// How fast it generates, as far as that is known.
    pub speed: Option<Speed>,
}

/// Lays out each of `choices` of the model with `config` on `machine`, for `workload`.
///
/// ```
/// use codecllm::model::LlamaConfig;
/// use codecllm::plan::{estimates, plan, Basis, Coding, Gpu, Machine, ModelShape, Place, SpeedBasis, Workload};
/// let config = LlamaConfig::llama_3_1_8b();
/// let choices = estimates(&ModelShape::of(&config), tch::Kind::Half, None);
/// assert_eq!((choices[0].coding, choices[0].basis), (Coding::Dense, Basis::Exact)); // the others are estimates
/// let machine = Machine::gpu(Some(Gpu::Rtx4090), Some(24_000_000_000));
/// assert_eq!(machine.place, Place::Gpu);
/// let plan = plan(&config, &choices, &Workload { context: 8192, ..Workload::default() }, &machine);
/// let fitting: Vec<&str> = plan.choices.iter().filter(|it| it.fits).map(|it| it.choice.name.as_str()).collect();
/// assert_eq!(fitting, ["dense", "lossless", "near", "int8", "balanced", "small"]);
/// let small = plan.smallest().unwrap();
/// assert!(plan.fits() && small.choice.name == "small" && small.largest_context > 8192);
/// let speed = small.speed.as_ref().unwrap(); // nobody measured the kernels on this card
/// assert!(speed.basis == SpeedBasis::Bound && speed.tokens_per_second > 100.0);
/// ```
pub fn plan(config: &LlamaConfig, choices: &[Choice], workload: &Workload, machine: &Machine) -> Plan {
    let shape = ModelShape::of(config);
    let planned = |choice: &Choice| {
        let total = |workload: &Workload| Memory::of(config, choice, workload, machine.place).total();
        let fits = |workload: &Workload| total(workload) <= machine.memory_bytes;
        let longest =
            largest(config.max_position_embeddings, |context| fits(&Workload { context, ..*workload }));
        PlannedChoice {
            choice: choice.clone(),
            fits: fits(workload),
            total_bytes: total(workload),
            memory: Memory::of(config, choice, workload, machine.place),
            largest_context: longest,
            largest_batch: largest(MOST_SEQUENCES, |batch| fits(&Workload { batch, ..*workload })),
            speed: expected(config, choice, workload, machine),
        }
    };
    Plan {
        weights: shape.weights() as u64,
        context: workload.context,
        batch: workload.batch,
        memory_bytes: machine.memory_bytes,
        choices: choices.iter().map(planned).collect(),
    }
}

impl Plan {
    /// Whether anything fits.
    pub fn fits(&self) -> bool {
        self.choices.iter().any(|planned| planned.fits)
    }

    /// The choice that takes the least.
    pub fn smallest(&self) -> Option<&PlannedChoice> {
        self.choices.iter().min_by_key(|planned| planned.total_bytes)
    }
}

/// The largest number from 1 to `most` that `fits`, which holds up to some number and not beyond; 0 if 1 doesn't.
fn largest(most: usize, fits: impl Fn(usize) -> bool) -> usize {
    let (mut good, mut bad) = (0, most + 1);
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        match fits(middle) {
            true => good = middle,
            false => bad = middle,
        }
    }
    good
}

#[cfg(test)]
mod tests;
