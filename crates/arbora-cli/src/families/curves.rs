//! Curves of runs: which numbers of their logs are drawn, and how.

use super::{Family, Finished};
use crate::picture::curves::{self, Panel, Series};
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::path::Path;

/// A number of a log as a panel of curves: its title, what its axis says and what the number is multiplied by for that,
/// `train` or `valid`, and its name in the log.
#[derive(Clone, Copy, Debug)]
pub struct Curve(
    pub &'static str,
    pub (&'static str, f64),
    pub &'static str,
    pub &'static str,
);

/// A share, drawn in per cent.
pub const PERCENT: (&str, f64) = ("%", 100.0);

/// The lines of a run's log.
pub fn read_log(run: &Path) -> Result<Vec<Value>> {
    read_lines(&run.join("metrics.jsonl"))
}

/// The lines of a log of any kind.
///
/// # Errors
/// If it cannot be read.
pub fn read_lines(path: &Path) -> Result<Vec<Value>> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    // A killed run may leave half a line at the end.
    let lines = text.lines();
    Ok(lines
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect())
}

/// Steps and numbers of a log.
pub fn points(log: &[Value], split: &str, key: &str, scale: f64) -> Vec<(f64, f64)> {
    log.iter()
        .filter(|line| line["split"] == split)
        .filter_map(|line| Some((line["step"].as_f64()?, scale * line[key].as_f64()?)))
        .collect()
}

/// A panel for each number of a family, with a curve for each run that logged it. What no run logged has no panel; there
/// is always the first.
pub fn panels<F: Family>(runs: &[Finished<'_, F>]) -> Result<Vec<Panel>> {
    let logs = runs.iter().map(|run| read_log(run.folder));
    let logs = logs.collect::<Result<Vec<_>>>()?;
    let Some(last) = runs.last() else {
        return Ok(Vec::new());
    };
    let mut lines = logs.iter().flatten();
    let has_classes = lines.any(|line| line.get("accuracy").is_some());
    let panel = |Curve(title, (y_label, scale), split, key)| {
        let series = runs.iter().zip(&logs).map(|(run, log)| Series {
            name: run.name.into(),
            points: points(log, split, key, scale),
            ..Series::default()
        });
        Panel {
            title: title.into(),
            y_label: y_label.into(),
            series: series.filter(|one| !one.points.is_empty()).collect(),
            ..Panel::default()
        }
    };
    let curves = last.config.curves(has_classes).into_iter();
    let panels = curves.map(panel).enumerate();
    let shown = panels.filter(|(at, panel)| *at == 0 || !panel.series.is_empty());
    Ok(shown.map(|(_, panel)| panel).collect())
}

/// Draws panels as `curves.png` and `curves.svg` in a folder.
pub fn draw(panels: &[Panel], folder: &Path) -> Result<()> {
    curves::draw(panels, &folder.join("curves"))
}
