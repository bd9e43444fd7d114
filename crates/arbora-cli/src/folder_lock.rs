//! Processes that write into one folder, one after the other.

use anyhow::Result;
use std::fs::File;
use std::path::Path;

/// Changes what is in a folder while no other process that asks likewise does; the others wait. Where a folder cannot be
/// locked (Windows, some networks) nothing is waited for.
pub(crate) fn with_folder_lock<T>(folder: &Path, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let lock = File::open(folder).and_then(|opened| opened.lock().map(|()| opened));
    let done = work();
    drop(lock);
    done
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    use std::time::Duration;

    #[test]
    fn work_waits_for_who_has_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        // To the system, one that is opened apart is as one of another process.
        let other = File::open(folder.path()).unwrap();
        other.lock().unwrap();
        let is_free = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let work = || with_folder_lock(folder.path(), || Ok(is_free.load(SeqCst)));
            let waits = scope.spawn(work);
            std::thread::sleep(Duration::from_millis(100));
            is_free.store(true, SeqCst);
            drop(other);
            assert!(waits.join().unwrap().unwrap());
        });
    }
}
