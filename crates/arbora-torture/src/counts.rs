//! What was tried and what failed, as the program writes it and `cargo xtask torture` reads it.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What one target came to.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Counts {
    /// The part that the target is of.
    pub part: String,
    /// What was tried: an operator, a reader.
    pub target: String,
    /// How often.
    pub tried: u64,
    /// How often it did what it must not.
    pub failed: u64,
    /// How often a library panicked and the panic became an error, by its message. Numbers in messages are `N`.
    pub contained: BTreeMap<String, u64>,
    /// Wall clock.
    pub seconds: f64,
    /// The first failures.
    pub failures: Vec<Failure>,
}

/// A failure, and how it is seen again: `cargo xtask torture --only PART --target TARGET --seed SEED --index INDEX`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Failure {
    /// Of all random numbers.
    pub seed: u64,
    /// Which of them.
    pub index: u64,
    /// In one line.
    pub reason: String,
}
