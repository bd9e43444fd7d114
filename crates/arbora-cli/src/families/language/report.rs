//! What people see of runs on language: curves, and how leaves were used.

use super::LanguageConfig;
use super::model::{BITS_PER_BYTE, ENTROPY, LEAF_SHARE};
use crate::families::Finished;
use crate::families::curves::{self, Curve, curve};
use crate::picture::curves::{Panel, Series};
use anyhow::Result;
use arbora::tree::shape::CompleteTree;
use std::path::Path;

const FAIR: (&str, f64) = ("of its fair share", 1.0);

/// Loss, bits per byte, and for trees the smallest and the largest leaf.
const CURVES: &[Curve] = &[
    curve("Training loss", ("nats", 1.0), "train", "loss"),
    curve("Loss, held out", ("nats per token", 1.0), "valid", "loss"),
    curve(
        "Bits per byte, held out",
        ("bits", 1.0),
        "valid",
        BITS_PER_BYTE,
    ),
    curve("Smallest leaf, held out", FAIR, "valid", "leaf_share_min"),
    curve("Largest leaf, held out", FAIR, "valid", "leaf_share_max"),
    curve("Balance loss", ("weighted", 1.0), "train", "balance"),
];

/// Draws `curves.png` and `curves.svg`.
///
/// # Errors
/// If a log cannot be read or a picture cannot be written.
pub fn draw(runs: &[Finished<'_, LanguageConfig>], folder: &Path) -> Result<()> {
    curves::draw(&panels(runs)?, folder)
}

/// The panels of [`draw`].
///
/// # Errors
/// If a log cannot be read.
pub fn panels(runs: &[Finished<'_, LanguageConfig>]) -> Result<Vec<Panel>> {
    Ok(curves::panels(&curves::logs(runs)?, CURVES))
}

/// How the leaves of a run were used while it was trained: one panel for training, one for held-out text, and
/// one for the entropies of its selectors. A line for each leaf or depth; what was not logged has no panel.
///
/// # Errors
/// If the run's `metrics.jsonl` cannot be read.
pub fn routes(run: &Path, tree: &CompleteTree) -> Result<Vec<Panel>> {
    let log = curves::read_log(run)?;
    let lines = |prefix: &str, split: &str, name: &dyn Fn(usize) -> String, count: usize| {
        let series = (0..count).map(|number| Series {
            name: name(number),
            points: curves::points(&log, split, &format!("{prefix}{number}"), 1.0),
            ..Series::default()
        });
        series
            .filter(|series| !series.points.is_empty())
            .collect::<Vec<_>>()
    };
    // More names would cover the lines.
    let named = tree.leaves() <= NAMED_LEAVES;
    let leaf = |leaf: usize| {
        if named {
            leaf_name(tree, leaf)
        } else {
            String::new()
        }
    };
    let depth = |depth: usize| format!("depth {depth}");
    let mut panels = Vec::new();
    for (split, of) in [("train", "training"), ("valid", "held out")] {
        panels.push(Panel {
            title: format!("Use of leaves, {of}"),
            y_label: "of a fair share".into(),
            series: lines(LEAF_SHARE, split, &leaf, tree.leaves()),
            ..Panel::default()
        });
        panels.push(Panel {
            title: format!("Entropy of selectors, {of}"),
            y_label: "nats".into(),
            series: lines(ENTROPY, split, &depth, tree.height()),
            ..Panel::default()
        });
    }
    panels.retain(|panel| !panel.series.is_empty());
    Ok(panels)
}

/// Leaves up to which lines have names.
const NAMED_LEAVES: usize = 9;

/// The name of a leaf for people: its path of child numbers.
pub fn leaf_name(tree: &CompleteTree, leaf: usize) -> String {
    let path = tree.path(leaf);
    if path.is_empty() {
        "root".into()
    } else {
        path.iter()
            .map(usize::to_string)
            .collect::<Vec<_>>()
            .join(".")
    }
}
