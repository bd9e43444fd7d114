//! What a finished run leaves to look at.

pub mod language;

use crate::config::RunConfig;
use crate::picture::curves::{self, Panel, Series};
use crate::run::RunSettings as _;
use anyhow::{Context as _, Result};
use arbora::models::RewardKind;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Draws the curves of one or more runs as `curves.png` and `curves.svg` in a folder.
///
/// - runs: name and run folder of each
///
/// # Errors
/// If a run's `metrics.jsonl` or settings cannot be read, or a picture cannot be written.
pub fn draw_curves(runs: &[(&str, &Path)], folder: &Path) -> Result<()> {
    let panels = panels(runs)?;
    curves::draw(&panels, &folder.join("curves"))
}

/// The curves of one or more runs of a task: loss, quality (where there are classes with their
/// accuracy), share of tokens, entropy and reward. What no run logged has no panel; there is always
/// the first.
///
/// - runs: name and run folder of each
///
/// # Errors
/// If a run's `metrics.jsonl` or settings cannot be read.
pub fn panels<P: AsRef<Path>>(runs: &[(&str, P)]) -> Result<Vec<Panel>> {
    let logs = runs
        .iter()
        .map(|(name, run)| Ok((*name, read_log(&run.as_ref().join("metrics.jsonl"))?)))
        .collect::<Result<Vec<_>>>()?;
    let has_classes = logs
        .iter()
        .flat_map(|(_, log)| log)
        .any(|line| line.get("accuracy").is_some());
    let mut reward = ("", 1.0);
    for (_, run) in runs {
        let config = RunConfig::read(&run.as_ref().join(crate::run::CONFIG))?;
        reward = reward_unit(config.reward, has_classes);
    }
    let panel = |title, unit, split, key| panel(&logs, title, unit, split, key);
    let per_query = ("nats per query", 1.0);
    Ok(with_curves(vec![
        panel("Training loss", ("nats", 1.0), "train", "loss"),
        panel(
            "Share of tokens selected",
            ("%", 1.0),
            "train",
            "tokens_percent",
        ),
        panel(
            "Log-likelihood, training",
            per_query,
            "train",
            "log_likelihood",
        ),
        panel(
            "Log-likelihood, held out",
            per_query,
            "valid",
            "log_likelihood",
        ),
        panel("Accuracy, training", PERCENT, "train", "accuracy"),
        panel("Accuracy, held out", PERCENT, "valid", "accuracy"),
        panel(
            "Entropy of the policy",
            ("nats per decision", 1.0),
            "train",
            "entropy",
        ),
        panel("Reward", reward, "train", "reward"),
    ]))
}

/// The curves of a number, one for each run that logged it.
///
/// - unit: its name and what the number is multiplied by
fn panel(
    logs: &[(&str, Vec<Value>)],
    title: &str,
    unit: (&str, f64),
    split: &str,
    key: &str,
) -> Panel {
    let (y_label, scale) = unit;
    Panel {
        title: title.into(),
        y_label: y_label.into(),
        series: logs
            .iter()
            .map(|(name, log)| Series {
                name: (*name).into(),
                points: points(log, split, key, scale),
                ..Series::default()
            })
            .filter(|series| !series.points.is_empty())
            .collect(),
        ..Panel::default()
    }
}

/// The first panel, and all others that have a curve.
fn with_curves(mut panels: Vec<Panel>) -> Vec<Panel> {
    let mut first = true;
    panels.retain(|panel| std::mem::take(&mut first) || !panel.series.is_empty());
    panels
}

/// A share, drawn in per cent.
const PERCENT: (&str, f64) = ("%", 100.0);

/// Name and scale of the rewards of a task, with classes or without.
fn reward_unit(kind: RewardKind, has_classes: bool) -> (&'static str, f64) {
    match kind {
        RewardKind::Published if has_classes => ("% of answers right", 100.0),
        RewardKind::Accuracy => ("% of answers right", 100.0),
        RewardKind::Published | RewardKind::LogLikelihood => ("nats per query", 1.0),
        RewardKind::NegativeMse => ("negative squared error", 1.0),
    }
}

fn read_log(path: &Path) -> Result<Vec<Value>> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    // A killed run may leave half a line at the end.
    Ok(text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect())
}

fn points(log: &[Value], split: &str, key: &str, scale: f64) -> Vec<(f64, f64)> {
    log.iter()
        .filter(|line| line["split"] == split)
        .filter_map(|line| Some((line["step"].as_f64()?, scale * line[key].as_f64()?)))
        .collect()
}

/// What a finished run came to: its model, the means of its measurements, seconds of training.
pub type Results = (&'static str, BTreeMap<String, f64>, f64);

/// The final numbers of retrieval models, one line each.
pub fn table(results: &[Results]) -> String {
    let classes = results
        .iter()
        .any(|(_, numbers, _)| numbers.contains_key("accuracy"));
    let accuracy = |text: &str| match classes {
        true => format!(" {text:>10}"),
        false => String::new(),
    };
    let mut text = format!(
        "{:<16}{} {:>18} {:>10} {:>12} {:>9}",
        "model",
        accuracy("accuracy"),
        "held-out log-lik",
        "% tokens",
        "nodes read",
        "seconds"
    );
    for (model, numbers, seconds) in results {
        let number = |name: &str| numbers.get(name).copied().unwrap_or(f64::NAN);
        text += &format!(
            "\n{:<16}{} {:>18.4} {:>10.1} {:>12.1} {:>9.0}",
            model,
            accuracy(&format!("{:.2}", 100.0 * number("accuracy"))),
            number("log_likelihood"),
            number("tokens_percent"),
            number("nodes_read"),
            seconds
        );
    }
    text
}

/// Draws the curves of runs on sequences as `curves.png` and `curves.svg` in a folder: loss, accuracy, and
/// what attention costs and its trees cost to learn where a run logged that.
///
/// - runs: name and run folder of each
///
/// # Errors
/// If a run's `metrics.jsonl` cannot be read, or a picture cannot be written.
pub fn draw_sequence_curves(runs: &[(&str, &Path)], folder: &Path) -> Result<()> {
    let logs = runs
        .iter()
        .map(|(name, run)| Ok((*name, read_log(&run.join("metrics.jsonl"))?)))
        .collect::<Result<Vec<_>>>()?;
    let panel = |title, unit, split, key| panel(&logs, title, unit, split, key);
    let panels = with_curves(vec![
        panel("Training loss", ("nats", 1.0), "train", "loss"),
        panel("Accuracy, training", PERCENT, "train", "accuracy"),
        panel("Accuracy, held out", PERCENT, "valid", "accuracy"),
        panel(
            "Core FLOPs, held out",
            ("% of dense", 1.0),
            "valid",
            "core_flops_percent",
        ),
        panel(
            "Effective leaves, held out",
            ("leaves", 1.0),
            "valid",
            "effective_leaves",
        ),
        panel("Balance loss", ("1 at balance", 1.0), "train", "balance"),
        panel("Alignment loss", ("nats", 1.0), "train", "alignment"),
    ]);
    curves::draw(&panels, &folder.join("curves"))
}

/// The final numbers of models on sequences, one line each.
pub fn sequence_table(results: &[Results]) -> String {
    let mut text = format!(
        "{:<16} {:>10} {:>18} {:>13} {:>17} {:>9}",
        "model", "accuracy", "held-out log-lik", "core FLOPs %", "effective leaves", "seconds"
    );
    for (model, numbers, seconds) in results {
        let number = |name: &str| numbers.get(name).copied().unwrap_or(f64::NAN);
        let leaves = numbers
            .get("effective_leaves")
            .map_or("-".into(), |leaves| format!("{leaves:.2}"));
        text += &format!(
            "\n{:<16} {:>10.2} {:>18.4} {:>13.1} {:>17} {:>9.0}",
            model,
            100.0 * number("accuracy"),
            number("log_likelihood"),
            number("core_flops_percent"),
            leaves,
            seconds
        );
    }
    text
}
