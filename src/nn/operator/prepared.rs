//! What was prepared for the weights that operators were called with, for as long as their buffers live.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use tch::Tensor;

use super::storage::{address_of, WeakStorage};
use crate::nn::compressed::PreparedSlot;

#[derive(Debug)]
struct Entry {
    buffers: [WeakStorage; 5],
    /// Shared by all calls on the same buffers.
    slot: Arc<PreparedSlot>,
}

/// By the addresses of the buffers' storages.
type Entries = HashMap<[usize; 5], Entry>;

fn entries() -> &'static RwLock<Entries> {
    static ENTRIES: OnceLock<RwLock<Entries>> = OnceLock::new();
    ENTRIES.get_or_init(RwLock::default)
}

/// The slot of `buffers`. Where they are new, forgets what is left of buffers that are gone.
pub(super) fn slot_of(buffers: &[Tensor; 5]) -> Arc<PreparedSlot> {
    let key = buffers.each_ref().map(address_of);
    let known =
        entries().read().unwrap_or_else(PoisonError::into_inner).get(&key).map(|entry| entry.slot.clone());
    known.unwrap_or_else(|| {
        let mut entries = entries().write().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|_, entry| !entry.buffers.iter().any(WeakStorage::is_expired));
        let new = || Entry { buffers: buffers.each_ref().map(WeakStorage::of), slot: Arc::default() };
        entries.entry(key).or_insert_with(new).slot.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffers(byte: u8) -> [Tensor; 5] {
        std::array::from_fn(|_| Tensor::from_slice(&[byte]))
    }

    #[test]
    fn a_slot_is_shared_while_the_buffers_live_and_forgotten_afterwards() {
        let (first, second) = (buffers(1), buffers(2));
        let slot = slot_of(&first);
        assert!(Arc::ptr_eq(&slot, &slot_of(&first)));
        assert!(!Arc::ptr_eq(&slot, &slot_of(&second)));
        let key = first.each_ref().map(address_of);
        drop(first);
        let third = buffers(3);
        slot_of(&third);
        assert!(!entries().read().unwrap().contains_key(&key));
        // An entry keeps the addresses of its storages from being used again.
        assert_ne!(third.each_ref().map(address_of), key);
    }
}
