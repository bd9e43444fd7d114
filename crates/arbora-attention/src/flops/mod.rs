//! Counting of work: how many rows the layers of this crate project, and what kinds of attention cost.
//!
//! Keys and values are meant to be projected once per tree and queries once per search. [`count`]
//! shows whether that holds in a program.
//!
//! [`CostShape`] says by formula how many floating-point operations each kind of self-attention takes, from sizes
//! alone or with measured leaves, and [`RunCost`] adds them up over a run. [`published`] compares the formulas
//! with the numbers that the Treeformer paper printed.

mod cost;
pub mod published;
mod run;

pub use cost::{AttentionCost, CostShape};
pub use run::{LayerCost, RunCost};

use std::cell::Cell;

/// Rows (tokens, nodes or queries) that went through each projection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Projections {
    /// Query rows.
    pub query: usize,
    /// Key rows.
    pub key: usize,
    /// Value rows.
    pub value: usize,
    /// Output rows.
    pub output: usize,
}

thread_local! {
    static TOTAL: Cell<Projections> = Cell::default();
}

/// Runs `work` and returns its result with the rows that this crate's layers projected meanwhile on
/// this thread.
pub fn count<T>(work: impl FnOnce() -> T) -> (T, Projections) {
    let before = TOTAL.get();
    let result = work();
    let after = TOTAL.get();
    let projections = Projections {
        query: after.query - before.query,
        key: after.key - before.key,
        value: after.value - before.value,
        output: after.output - before.output,
    };
    (result, projections)
}

pub(crate) fn record(add: impl FnOnce(&mut Projections)) {
    let mut total = TOTAL.get();
    add(&mut total);
    TOTAL.set(total);
}
