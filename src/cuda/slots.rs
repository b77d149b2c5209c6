//! Values that are made once each, at the first need, however many threads need them at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::Result;

/// Values by name. Each has a lock of its own: one is made while others are taken or made, and none is made twice.
#[derive(Debug)]
pub(super) struct Slots<T>(Mutex<HashMap<&'static str, Slot<T>>>);

type Slot<T> = Arc<Mutex<Option<T>>>;

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Slots<T> {
    /// Whether the value is there, without waiting for a thread that is making it.
    pub(super) fn has(&self, name: &str) -> bool {
        let slot = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        slot.is_some_and(|slot| slot.try_lock().is_ok_and(|value| value.is_some()))
    }

    /// The value, or what `make` makes of it, which is then kept. Waits for a thread that is making it. After an error the next
    /// call makes it anew.
    pub(super) fn get_or_make(&self, name: &'static str, make: impl FnOnce() -> Result<T>) -> Result<T>
    where
        T: Copy,
    {
        let slot = Arc::clone(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default());
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = *slot {
            return Ok(value);
        }
        let value = make()?;
        *slot = Some(value);
        Ok(value)
    }

    /// All that were made.
    pub(super) fn into_values(self) -> Vec<(&'static str, T)> {
        let slots = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        let taken = |slot: Slot<T>| slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        slots.into_iter().filter_map(|(name, slot)| Some((name, taken(slot)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::Barrier;
    use std::time::Duration;

    use super::*;
    use crate::error::Error;

    #[test]
    fn a_value_is_made_once_however_many_threads_ask() {
        const NAMES: [&str; 3] = ["a", "b", "c"];
        let (slots, made, begin) = (Slots::default(), AtomicUsize::new(0), Barrier::new(8));
        let make = || {
            std::thread::sleep(Duration::from_millis(20));
            Ok(made.fetch_add(1, Ordering::Relaxed))
        };
        let ask = || {
            begin.wait();
            NAMES.map(|name| slots.get_or_make(name, make).unwrap())
        };
        let answers: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(made.into_inner(), NAMES.len());
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
        assert_eq!(slots.into_values().len(), NAMES.len());
    }

    #[test]
    fn a_value_is_there_only_when_it_is_made() {
        let slots = Slots::default();
        assert!(!slots.has("a"));
        let make = || {
            assert!(!slots.has("a"), "while it is made");
            Ok(7)
        };
        assert_eq!(slots.get_or_make("a", make).unwrap(), 7);
        assert!(slots.has("a") && !slots.has("b"));
    }

    #[test]
    fn an_error_is_told_and_not_kept() {
        let slots = Slots::default();
        let fail = || Err(Error::invalid("a", "fails"));
        assert_eq!(slots.get_or_make("a", fail).unwrap_err().subject(), "a");
        assert!(!slots.has("a"));
        assert_eq!(slots.get_or_make("a", || Ok(7)).unwrap(), 7);
        assert_eq!(slots.into_values(), [("a", 7)]);
    }
}
