//! The numbers of a run: what the benchmark writes and `cargo xtask bench` reads, which compiles this very file.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// Everything that was measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub quick: bool,
    pub threads: usize,
    /// Wall clock of the whole run.
    pub seconds: f64,
    /// What floors are computed from.
    pub peaks: Vec<Peak>,
    pub targets: Vec<Target>,
    pub rows: Vec<Row>,
    pub break_even: Vec<BreakEven>,
    /// What was left out, and why.
    pub left_out: Vec<String>,
}

/// Highest rates seen with a number of threads.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Peak {
    pub threads: usize,
    /// Of a large product of single-precision matrices, the fastest backend.
    pub flops_per_second: f64,
    /// Of `a = b + c * s` over arrays larger than the caches, 12 bytes an element.
    pub bytes_per_second: f64,
}

/// One measurement beside its alternatives.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Row {
    /// Rows of one section belong to one table.
    pub section: Cow<'static, str>,
    /// What is done, in words.
    pub what: String,
    pub shape: String,
    pub tokens: usize,
    pub routes: Cow<'static, str>,
    pub backend: String,
    pub threads: usize,
    pub ours: Measured,
    /// What it is compared with, measured in turns with it.
    pub others: Vec<Measured>,
    /// The fastest of the others.
    pub best: Option<String>,
    /// Time of the fastest other by ours: above 1 where we are faster.
    pub ratio: Option<f64>,
    pub microseconds_per_query: Option<f64>,
    pub cost: Option<Cost>,
    pub floor_seconds: Option<f64>,
    /// Our time by the floor.
    pub over_floor: Option<f64>,
}

/// What was measured of an entrant.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Measured {
    pub name: String,
    /// Median over the samples.
    pub seconds: f64,
    /// The fastest sample: far below the median where other programs disturbed.
    pub fastest: f64,
    pub samples: usize,
    /// Resident memory at its highest during one call, less that before the call. `None` where the
    /// system does not tell.
    pub peak_bytes: Option<u64>,
}

/// Floating-point operations of matrix products (a multiplication and an addition are two) and bytes
/// to and from memory. Exponentials, norms and additions of vectors are not counted.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Cost {
    pub flops: f64,
    pub bytes: f64,
}

/// From how many queries per tree on the tree pays.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BreakEven {
    pub backend: String,
    pub tokens: usize,
    /// Building the tree and projecting its nodes, per tree.
    pub build_seconds: f64,
    pub tree_seconds_per_query: f64,
    /// The fastest dense alternative: projecting keys and values, per context.
    pub dense_context_seconds: f64,
    pub dense_seconds_per_query: f64,
    /// `None` where dense attention costs no more per query.
    pub queries: Option<f64>,
}

/// A number that the library is to reach.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Target {
    pub number: u8,
    pub wanted: String,
    pub backend: String,
    pub measured: String,
    pub reached: bool,
}
