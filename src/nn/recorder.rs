//! Keeps what passes through the layers of a dense model.

use std::sync::{Arc, Mutex, PoisonError};

use tch::Tensor;

/// What went into a layer and what came out.
#[derive(Debug)]
pub(crate) struct Passage {
    /// The full name of the layer's weight.
    pub(crate) tensor_path: String,
    /// Token ids of an embedding, `[.., in_features]` of a linear.
    pub(crate) input: Tensor,
    /// `[.., out_features]`.
    pub(crate) output: Tensor,
}

/// A shared list of passages, in the order in which they happened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recorder(Arc<Mutex<Vec<Passage>>>);

impl Recorder {
    /// Adds a passage; the tensors are shared, not copied.
    pub(super) fn record(&self, tensor_path: &str, input: &Tensor, output: &Tensor) {
        let (input, output) = (input.shallow_clone(), output.shallow_clone());
        let passage = Passage { tensor_path: tensor_path.to_owned(), input, output };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(passage);
    }

    /// Takes all passages so far.
    pub(crate) fn take(&self) -> Vec<Passage> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
