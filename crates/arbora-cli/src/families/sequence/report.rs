//! What people see of runs on sequences: curves.

use super::SequenceConfig;
use crate::families::Finished;
use crate::families::curves::{self, Curve, PERCENT, curve};
use anyhow::Result;
use std::path::Path;

/// Loss, accuracy, and what attention costs and its trees cost to learn where a run logged that.
const CURVES: &[Curve] = &[
    curve("Training loss", ("nats", 1.0), "train", "loss"),
    curve("Accuracy, training", PERCENT, "train", "accuracy"),
    curve("Accuracy, held out", PERCENT, "valid", "accuracy"),
    curve(
        "Core FLOPs, held out",
        ("% of dense", 1.0),
        "valid",
        "core_flops_percent",
    ),
    curve(
        "Effective leaves, held out",
        ("leaves", 1.0),
        "valid",
        "effective_leaves",
    ),
    curve("Balance loss", ("1 at balance", 1.0), "train", "balance"),
    curve("Alignment loss", ("nats", 1.0), "train", "alignment"),
];

/// Draws `curves.png` and `curves.svg`.
///
/// # Errors
/// If a log cannot be read or a picture cannot be written.
pub fn draw(runs: &[Finished<'_, SequenceConfig>], folder: &Path) -> Result<()> {
    curves::draw(&curves::panels(&curves::logs(runs)?, CURVES), folder)
}
