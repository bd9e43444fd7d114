//! Memory that is counted, with an end.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// What a process exits with that wanted more memory than it may have.
pub const OVER: i32 = 86;

/// What one try may take, beside what its process has before the first.
const MOST: usize = 1 << 30;

/// The system's allocator, which counts.
pub struct Counted;

static HELD: AtomicUsize = AtomicUsize::new(0);
static ALLOWED: AtomicUsize = AtomicUsize::new(usize::MAX);

/// From now on the process ends when it holds a gibibyte more than it does now.
pub fn limit() {
    ALLOWED.store(HELD.load(Relaxed) + MOST, Relaxed);
}

fn grow(size: usize) {
    if HELD.fetch_add(size, Relaxed) + size > ALLOWED.load(Relaxed) {
        // SAFETY: the call ends the process and touches no memory of it. Nothing else can be done where memory is asked
        // for: a panic asks for more.
        unsafe { libc::_exit(OVER) };
    }
}

// SAFETY: every call is handed to the system's allocator with what it was given, and what that returns is returned. Nothing in
// between asks for memory or panics: what is held and one more layout do not overflow together.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller keeps the contract of `GlobalAlloc`, which is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller keeps the contract of `GlobalAlloc`, which is the system allocator's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract of `GlobalAlloc`, which is the system allocator's.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        grow(size);
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract of `GlobalAlloc`, which is the system allocator's.
        unsafe { System.realloc(memory, layout, size) }
    }
}
