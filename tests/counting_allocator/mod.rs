//! An allocator that knows what the thread in front of it has asked for.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

pub struct Counting;

fn count(bytes: isize) {
    // A thread that is ending has no counters any more.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + bytes);
        PEAK.set(PEAK.get().max(live.get()));
        LARGEST.set(LARGEST.get().max(usize::try_from(bytes).unwrap_or_default()));
    });
}

// SAFETY: every request goes to the system's allocator as it came, and what that answers is returned; counting allocates nothing
// (the counters are plain cells, initialized at compile time, without destructors).
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise about `layout` is the one asked for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: `pointer` came from the system's allocator with this layout, through the functions above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // Both blocks may be there at once while one is copied.
        count(new_size as isize);
        count(-(layout.size() as isize));
        // SAFETY: as in `dealloc`; the caller's promise about `new_size` is the one asked for.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

/// What a piece of work asked for on this thread, bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked {
    /// The largest single block.
    pub largest: usize,
    /// The most at one time.
    pub peak: usize,
}

/// Runs `work` and tells what it asked for.
pub fn asked<T>(work: impl FnOnce() -> T) -> (T, Asked) {
    let before = LIVE.get();
    PEAK.set(before);
    LARGEST.set(0);
    let result = work();
    (result, Asked { largest: LARGEST.get(), peak: (PEAK.get() - before).max(0) as usize })
}
