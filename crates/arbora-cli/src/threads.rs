//! The threads of the process.

use crate::message::tell;
use anyhow::{Context as _, Result, ensure};
use std::sync::RwLock;
use std::thread::{self, available_parallelism};
use std::time::Duration;

/// Threads beside those that compute: the trainer's, those that wait for signals, a device's own.
const OTHERS: usize = 8;

/// Starts the threads that compute: as many as `RAYON_NUM_THREADS` or the machine says, or fewer where the system gives no
/// more. The library that starts them otherwise panics then.
pub fn start() -> Result<()> {
    let asked = std::env::var("RAYON_NUM_THREADS").ok();
    let asked = asked.and_then(|count| count.parse::<usize>().ok());
    let wanted = asked
        .filter(|count| *count > 0)
        .unwrap_or_else(|| available_parallelism().map_or(1, usize::from));
    let had = to_be_had(wanted + OTHERS);
    ensure!(
        had > OTHERS,
        "cannot start threads: the system gives {had}, and {} are needed",
        OTHERS + 1
    );
    let count = wanted.min(had - OTHERS);
    if count < wanted {
        tell!("{count} threads compute, not {wanted}: the system gives no more");
        // Those that were tried are counted a little longer than they live.
        thread::sleep(Duration::from_millis(50));
    }
    rayon::ThreadPoolBuilder::new()
        .num_threads(count)
        .build_global()
        .with_context(|| format!("cannot start {count} threads"))
}

/// How many more threads the system gives, at most `most`.
fn to_be_had(most: usize) -> usize {
    let gate = RwLock::new(());
    thread::scope(|scope| {
        let closed = gate.write();
        let waiting = (0..most).map_while(|_| {
            let wait = || drop(gate.read());
            thread::Builder::new().spawn_scoped(scope, wait).ok()
        });
        let count = waiting.count();
        drop(closed);
        count
    })
}
