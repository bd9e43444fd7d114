//! What a finished run on language leaves to look at.

use super::{Results, panel, read_log, with_curves};
use crate::learner::language::{BITS_PER_BYTE, ENTROPY, LEAF_SHARE};
use crate::picture::curves::{self, Panel, Series};
use anyhow::Result;
use arbora::tree::shape::CompleteTree;
use std::collections::BTreeMap;
use std::path::Path;

/// Draws the curves of one or more runs as `curves.png` and `curves.svg` in a folder: loss, bits per byte, and
/// for trees the smallest and the largest leaf.
///
/// - runs: name and run folder of each
///
/// # Errors
/// If a run's `metrics.jsonl` cannot be read, or a picture cannot be written.
pub fn draw_curves(runs: &[(&str, &Path)], folder: &Path) -> Result<()> {
    let panels = panels(runs)?;
    curves::draw(&panels, &folder.join("curves"))
}

/// The panels of [`draw_curves`].
///
/// # Errors
/// If a run's `metrics.jsonl` cannot be read.
pub fn panels(runs: &[(&str, &Path)]) -> Result<Vec<Panel>> {
    let logs = runs
        .iter()
        .map(|(name, run)| Ok((*name, read_log(&run.join("metrics.jsonl"))?)))
        .collect::<Result<Vec<_>>>()?;
    let panel = |title, unit, split, key| panel(&logs, title, unit, split, key);
    let per_token = ("nats per token", 1.0);
    let fair = ("of its fair share", 1.0);
    Ok(with_curves(vec![
        panel("Training loss", ("nats", 1.0), "train", "loss"),
        panel("Loss, held out", per_token, "valid", "loss"),
        panel(
            "Bits per byte, held out",
            ("bits", 1.0),
            "valid",
            BITS_PER_BYTE,
        ),
        panel("Smallest leaf, held out", fair, "valid", "leaf_share_min"),
        panel("Largest leaf, held out", fair, "valid", "leaf_share_max"),
        panel("Balance loss", ("weighted", 1.0), "train", "balance"),
    ]))
}

/// How the leaves of a run were used while it was trained: one panel for training, one for held-out text, and
/// one for the entropies of its selectors. A line for each leaf or depth; what was not logged has no panel.
///
/// # Errors
/// If the run's `metrics.jsonl` cannot be read.
pub fn routes(run: &Path, tree: &CompleteTree) -> Result<Vec<Panel>> {
    let log = read_log(&run.join("metrics.jsonl"))?;
    let lines = |prefix: &str, split: &str, name: &dyn Fn(usize) -> String, count: usize| {
        let series = (0..count).map(|number| Series {
            name: name(number),
            points: super::points(&log, split, &format!("{prefix}{number}"), 1.0),
            ..Series::default()
        });
        series
            .filter(|series| !series.points.is_empty())
            .collect::<Vec<_>>()
    };
    // More names would cover the lines.
    let named = tree.leaves() <= NAMED_LEAVES;
    let leaf = |leaf: usize| match named {
        true => leaf_name(tree, leaf),
        false => String::new(),
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
    match path.is_empty() {
        true => "root".into(),
        false => path
            .iter()
            .map(usize::to_string)
            .collect::<Vec<_>>()
            .join("."),
    }
}

/// The final numbers of language models, one line each.
pub fn table(results: &[Results]) -> String {
    let mut text = format!(
        "{:<16} {:>8} {:>11} {:>14} {:>24} {:>20} {:>9}",
        "model",
        "loss",
        "perplexity",
        "bits per byte",
        "leaves, of a fair share",
        "parameters, active",
        "seconds"
    );
    for (model, numbers, seconds) in results {
        let number = |name: &str| numbers.get(name).copied().unwrap_or(f64::NAN);
        text += &format!(
            "\n{:<16} {:>8.4} {:>11.3} {:>14.4} {:>24} {:>20} {:>9.0}",
            model,
            number("loss"),
            number("perplexity"),
            number(BITS_PER_BYTE),
            leaves(numbers),
            format!(
                "{:.0}, {:.0}",
                number("total_parameters"),
                number("active_parameters")
            ),
            seconds
        );
    }
    text
}

fn leaves(numbers: &BTreeMap<String, f64>) -> String {
    match (numbers.get("leaf_share_min"), numbers.get("leaf_share_max")) {
        (Some(least), Some(most)) => format!("{least:.2} to {most:.2}"),
        _ => "-".into(),
    }
}
