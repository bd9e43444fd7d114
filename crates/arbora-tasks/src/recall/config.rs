//! Settings of lookups.

use crate::TaskError;
use burn::config::Config;
use derive_setters::Setters;
use serde::{Deserialize, Serialize};

/// Most tokens of a sequence, and most symbols of each sort.
const MOST: usize = 1 << 20;

/// Training on shorter sequences first: attention finds out what to look up many times sooner among few pairs.
///
/// A stage has as many tokens per step as the whole task: a quarter of the length means four times the
/// examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Tokens of a sequence.
    pub length: usize,
    /// Training steps, at least 1.
    pub steps: u64,
}

/// Configuration of [`Lookup::recall`](super::Lookup::recall), multi-query associative recall.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Setters)]
#[serde(default, deny_unknown_fields)]
#[setters(prefix = "with_")]
pub struct RecallConfig {
    /// Tokens of a sequence: two for each pair, and the rest are queries.
    pub length: usize,
    /// Pairs of a key and a value.
    pub pairs: usize,
    /// Different keys, at least as many as pairs: no key comes twice.
    pub keys: usize,
    /// Different values.
    pub values: usize,
    /// Shorter sequences first, in training alone, with fewer pairs in proportion (rounded down, at least
    /// one).
    pub curriculum: Vec<Stage>,
}

impl Default for RecallConfig {
    fn default() -> Self {
        Self {
            length: 512,
            pairs: 64,
            keys: 192,
            values: 64,
            curriculum: Vec::new(),
        }
    }
}

impl Config for RecallConfig {}

impl RecallConfig {
    /// Whether every setting is in its range.
    ///
    /// # Errors
    /// With the first setting that is not.
    pub fn check(&self) -> Result<(), TaskError> {
        check_symbols("pairs", self.pairs, self.keys, self.values)?;
        check_stages(&self.curriculum, 3, self.length)?;
        // At most `MOST` pairs are left, so the product is small.
        let least = 2 * self.pairs + 1;
        let holds = ": two tokens for each pair, and a query";
        in_range("length", self.length, least, holds)
    }
}

/// Configuration of [`Lookup::needle`](super::Lookup::needle), needles in a haystack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Setters)]
#[serde(default, deny_unknown_fields)]
#[setters(prefix = "with_")]
pub struct NeedleConfig {
    /// Tokens of a sequence.
    pub length: usize,
    /// Needles: pairs of a key and a value.
    pub needles: usize,
    /// Different keys, at least as many as needles: no key comes twice.
    pub keys: usize,
    /// Different values.
    pub values: usize,
    /// Different tokens that mean nothing.
    pub fillers: usize,
    /// Queries, the last tokens of the sequence.
    pub queries: usize,
    /// Shorter haystacks first, in training alone, with as many needles and queries.
    pub curriculum: Vec<Stage>,
}

impl Default for NeedleConfig {
    fn default() -> Self {
        Self {
            length: 512,
            needles: 8,
            keys: 64,
            values: 64,
            fillers: 128,
            queries: 16,
            curriculum: Vec::new(),
        }
    }
}

impl Config for NeedleConfig {}

impl NeedleConfig {
    /// Whether every setting is in its range.
    ///
    /// # Errors
    /// With the first setting that is not.
    pub fn check(&self) -> Result<(), TaskError> {
        check_symbols("needles", self.needles, self.keys, self.values)?;
        in_range("fillers", self.fillers, 1, "")?;
        in_range("queries", self.queries, 1, "")?;
        let least = 2 * self.needles + self.queries;
        check_stages(&self.curriculum, least, self.length)?;
        let holds = ": two tokens for each needle, and the queries";
        in_range("length", self.length, least, holds)
    }
}

fn check_stages(stages: &[Stage], least: usize, length: usize) -> Result<(), TaskError> {
    for stage in stages {
        if !(least..=length).contains(&stage.length) {
            let expected = format!("lengths from {least} to {length}");
            return Err(TaskError::config("curriculum", expected, stage.length));
        }
        if stage.steps == 0 {
            let expected = "at least 1 step in every stage";
            return Err(TaskError::config("curriculum", expected, 0));
        }
    }
    Ok(())
}

fn check_symbols(
    pairs_setting: &'static str,
    pairs: usize,
    keys: usize,
    values: usize,
) -> Result<(), TaskError> {
    in_range(pairs_setting, pairs, 1, "")?;
    in_range("values", values, 2, "")?;
    in_range("keys", keys, pairs, "")
}

/// - why: the limits, for the message
fn in_range(setting: &'static str, got: usize, least: usize, why: &str) -> Result<(), TaskError> {
    if (least..=MOST).contains(&got) {
        return Ok(());
    }
    let expected = format!("{least} to {MOST}{why}");
    Err(TaskError::config(setting, expected, got))
}
