//! What the machine can do at best, measured in the same run: the denominators of floors.

use crate::THREADS;
use crate::backends::{Opened, set_libtorch_threads};
use crate::numbers::Peak;
use crate::problem::random;
use rayon::prelude::*;
use std::hint::black_box;
use std::time::Instant;

/// Peaks with one thread and with all.
pub fn measure(backends: &[Opened], quick: bool) -> Vec<Peak> {
    let one = single_threaded(|| peak(1, backends, quick));
    let all = peak(THREADS, backends, quick);
    for peak in [one, all] {
        eprintln!(
            "   {} thread(s): {:.0} GFLOP/s, {:.1} GB/s",
            peak.threads,
            peak.flops_per_second / 1e9,
            peak.bytes_per_second / 1e9
        );
    }
    vec![one, all]
}

/// Runs work with one thread of rayon's and of libtorch's.
pub fn single_threaded<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .expect("a thread starts");
    let result = pool.install(|| {
        set_libtorch_threads(1);
        work()
    });
    set_libtorch_threads(THREADS);
    result
}

fn peak(threads: usize, backends: &[Opened], quick: bool) -> Peak {
    let runs = if quick { 3 } else { 8 };
    let side = 2048;
    let product = backends.iter().map(|backend| {
        let left = random([side, side], 1, &backend.device);
        let right = random([side, side], 2, &backend.device);
        fastest(runs, || {
            black_box(left.clone().matmul(right.clone()));
        })
    });
    let product = product.fold(f64::INFINITY, f64::min);
    let elements = 1 << 25;
    let (b, c) = (vec![1.0_f32; elements], vec![2.0_f32; elements]);
    let mut a = vec![0.0_f32; elements];
    let triad = fastest(runs, || {
        let block = 1 << 16;
        a.par_chunks_mut(block)
            .zip(b.par_chunks(block).zip(c.par_chunks(block)))
            .for_each(|(a, (b, c))| {
                for (a, (b, c)) in a.iter_mut().zip(b.iter().zip(c)) {
                    *a = b + c * 0.5;
                }
            });
        black_box(&mut a);
    });
    Peak {
        threads,
        flops_per_second: 2.0 * (side as f64).powi(3) / product,
        bytes_per_second: 12.0 * elements as f64 / triad,
    }
}

fn fastest(runs: usize, mut work: impl FnMut()) -> f64 {
    (0..=runs)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}
