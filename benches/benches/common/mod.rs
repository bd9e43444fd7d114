//! What the benchmarks of one thing each share.

use std::time::Instant;

/// Calls whose median is taken.
const CALLS: usize = 9;

/// The median seconds of a call.
pub fn median_seconds(mut call: impl FnMut()) -> f64 {
    let mut seconds = [0.0; CALLS].map(|_: f64| {
        let start = Instant::now();
        call();
        start.elapsed().as_secs_f64()
    });
    seconds.sort_by(f64::total_cmp);
    seconds[CALLS / 2]
}
