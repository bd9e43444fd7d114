//! Counting of work: what kinds of attention cost.
//!
//! [`CostShape`] says by formula how many floating-point operations each kind of self-attention takes, from sizes
//! alone or with measured leaves, and [`RunCost`] adds them up over a run. The example `published_flops` compares the
//! formulas with the numbers that the Treeformer paper printed.

mod cost;
mod projections;
mod run;

pub use cost::{AttentionCost, CostShape};
pub(crate) use projections::record;
#[cfg(feature = "count-projections")]
pub use projections::{Projections, count};
pub use run::{LayerCost, RunCost};
