//! The least that a computation does, and how long that takes at the machine's best.

use crate::numbers::{Cost, Peak};
use std::ops::Add;

impl Cost {
    /// The larger of computing and moving, at the machine's peaks.
    pub fn seconds(&self, peak: &Peak) -> f64 {
        (self.flops / peak.flops_per_second).max(self.bytes / peak.bytes_per_second)
    }
}

impl Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            flops: self.flops + other.flops,
            bytes: self.bytes + other.bytes,
        }
    }
}

/// A linear layer on rows that lie in caches: operations alone.
pub fn linear(rows: usize, from: usize, to: usize) -> f64 {
    2.0 * rows as f64 * from as f64 * to as f64
}

/// Two products of attention among `keys` per query.
pub fn attention(queries: usize, keys: usize, d_model: usize) -> f64 {
    4.0 * queries as f64 * keys as f64 * d_model as f64
}
