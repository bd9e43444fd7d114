//! Processes that write into one folder, one after the other.

use anyhow::Result;
use std::fs::File;
use std::path::Path;

/// Changes what is in a folder while no other process that asks likewise does; the others wait. Where a folder cannot be
/// locked (Windows, some networks) nothing is waited for.
///
/// # Errors
/// As the work.
pub(crate) fn alone<T>(folder: &Path, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let lock = File::open(folder).and_then(|opened| opened.lock().map(|()| opened));
    let done = work();
    drop(lock);
    done
}
