//! Curves of runs: which numbers of their logs are drawn, and how.

use super::{Family, Finished};
use crate::picture::curves::{self, Panel, Series};
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::path::Path;

/// A number of a log as a panel of curves.
#[derive(Clone, Copy, Debug)]
pub struct Curve {
    title: &'static str,
    /// What its axis says, and what the number is multiplied by for that.
    unit: (&'static str, f64),
    /// `train` or `valid`.
    split: &'static str,
    key: &'static str,
}

/// A share, drawn in per cent.
pub const PERCENT: (&str, f64) = ("%", 100.0);

/// A curve of a number, by its name in the log.
pub const fn curve(
    title: &'static str,
    unit: (&'static str, f64),
    split: &'static str,
    key: &'static str,
) -> Curve {
    Curve {
        title,
        unit,
        split,
        key,
    }
}

/// The lines of a run's log.
///
/// # Errors
/// If it cannot be read.
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

/// The name and the log of each run.
///
/// # Errors
/// If one cannot be read.
pub fn logs<'a, F: Family>(runs: &[Finished<'a, F>]) -> Result<Vec<(&'a str, Vec<Value>)>> {
    let logs = runs.iter().map(|run| Ok((run.name, read_log(run.folder)?)));
    logs.collect()
}

/// A panel for each number, with a curve for each run that logged it. What no run logged has no panel; there is
/// always the first.
pub fn panels(logs: &[(&str, Vec<Value>)], curves: &[Curve]) -> Vec<Panel> {
    let panel = |curve: &Curve| {
        let (y_label, scale) = curve.unit;
        let series = logs.iter().map(|(name, log)| Series {
            name: (*name).into(),
            points: points(log, curve.split, curve.key, scale),
            ..Series::default()
        });
        Panel {
            title: curve.title.into(),
            y_label: y_label.into(),
            series: series.filter(|one| !one.points.is_empty()).collect(),
            ..Panel::default()
        }
    };
    let panels = curves.iter().map(panel).enumerate();
    let shown = panels.filter(|(at, panel)| *at == 0 || !panel.series.is_empty());
    shown.map(|(_, panel)| panel).collect()
}

/// Draws panels as `curves.png` and `curves.svg` in a folder.
///
/// # Errors
/// If a picture cannot be written.
pub fn draw(panels: &[Panel], folder: &Path) -> Result<()> {
    curves::draw(panels, &folder.join("curves"))
}
