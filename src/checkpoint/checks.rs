//! Checksums compared aside, while the next tensor is read.

use std::sync::mpsc::{channel, Receiver, Sender};

use tch::Tensor;

use crate::error::Result;
use crate::nn::view_of;

/// Comparisons under way. Nothing that was read may be given out before [`Checks::finish`] says that all of it is as it was written.
#[derive(Debug)]
pub(crate) struct Checks {
    sender: Sender<Result<()>>,
    results: Receiver<Result<()>>,
}

impl Checks {
    pub(crate) fn new() -> Self {
        let (sender, results) = channel();
        Self { sender, results }
    }

    /// Compares the checksum of a compressed tensor's buffers, which are on the CPU, on one of rayon's threads.
    pub(super) fn compare(&self, tensor_path: &str, buffers: &[Tensor; 5]) {
        let buffers = buffers.each_ref().map(Tensor::shallow_clone);
        let (tensor_path, sender) = (tensor_path.to_owned(), self.sender.clone());
        let compare = move || {
            let result = view_of(&tensor_path, &buffers).and_then(|view| view.verify_checksum());
            // Whoever asked may have met another error and be gone.
            let _nobody_asks = sender.send(result);
        };
        // One of rayon's own threads might wait for itself.
        match rayon::current_thread_index() {
            None => rayon::spawn(compare),
            Some(_) => compare(),
        }
    }

    /// Waits for all comparisons.
    ///
    /// # Errors
    /// `Corrupt` for a tensor that fails its checksum.
    pub(crate) fn finish(self) -> Result<()> {
        drop(self.sender);
        self.results.into_iter().collect()
    }
}
