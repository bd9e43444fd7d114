//! What people see of runs on language beside curves: how leaves were used.

use super::model::{ENTROPY, LEAF_SHARE};
use crate::families::curves;
use crate::picture::curves::{Panel, Series};
use anyhow::Result;
use arbora::tree::shape::CompleteTree;
use std::path::Path;

/// How the leaves of a run were used while it was trained: one panel for training, one for held-out text, and
/// one for the entropies of its selectors. A line for each leaf or depth; what was not logged has no panel.
pub fn routes(run: &Path, tree: &CompleteTree) -> Result<Vec<Panel>> {
    let log = curves::read_log(run)?;
    let panel =
        |title: &str, unit: &str, (split, of): (&str, &str), prefix: &str, names: &[String]| {
            let series = names.iter().enumerate().map(|(number, name)| Series {
                name: name.clone(),
                points: curves::points(&log, split, &format!("{prefix}{number}"), 1.0),
                ..Series::default()
            });
            Panel {
                title: format!("{title}, {of}"),
                y_label: unit.into(),
                series: series.filter(|one| !one.points.is_empty()).collect(),
                ..Panel::default()
            }
        };
    // More names would cover the lines.
    let named = tree.leaves() <= NAMED_LEAVES;
    let leaf = |leaf| {
        if named {
            leaf_name(tree, leaf)
        } else {
            String::new()
        }
    };
    let leaves: Vec<String> = (0..tree.leaves()).map(leaf).collect();
    let depths: Vec<String> = (0..tree.height())
        .map(|depth| format!("depth {depth}"))
        .collect();
    let splits = [("train", "training"), ("valid", "held out")];
    let panels = splits.into_iter().flat_map(|split| {
        let entropy = "Entropy of selectors";
        [
            panel(
                "Use of leaves",
                "of a fair share",
                split,
                LEAF_SHARE,
                &leaves,
            ),
            panel(entropy, "nats", split, ENTROPY, &depths),
        ]
    });
    Ok(panels.filter(|panel| !panel.series.is_empty()).collect())
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
