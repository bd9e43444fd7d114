//! What a finished run leaves to look at.

use crate::config::ModelKind;
use crate::picture::curves::{self, Panel, Series};
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Draws the curves of one or more runs as `curves.png` and `curves.svg` in a folder.
///
/// - runs: name and run folder of each
///
/// # Errors
/// If a run's `metrics.jsonl` cannot be read or a picture cannot be written.
pub fn draw_curves(runs: &[(&str, &Path)], folder: &Path) -> Result<()> {
    let logs = runs
        .iter()
        .map(|(name, run)| Ok((*name, read_log(&run.join("metrics.jsonl"))?)))
        .collect::<Result<Vec<_>>>()?;
    let panel = |title: &str, y_label: &str, split: &str, key: &str| Panel {
        title: title.into(),
        y_label: y_label.into(),
        series: logs
            .iter()
            .map(|(name, log)| Series {
                name: (*name).into(),
                points: points(log, split, key),
                ..Series::default()
            })
            .filter(|series| !series.points.is_empty())
            .collect(),
        ..Panel::default()
    };
    let panels = [
        panel("Training loss", "nats", "train", "loss"),
        panel(
            "Log-likelihood, training",
            "nats per query",
            "train",
            "log_likelihood",
        ),
        panel(
            "Log-likelihood, held out",
            "nats per query",
            "valid",
            "log_likelihood",
        ),
        panel("Share of tokens selected", "%", "train", "tokens_percent"),
        panel(
            "Entropy of the policy",
            "nats per decision",
            "train",
            "entropy",
        ),
        panel("Reward", "nats", "train", "reward"),
    ];
    for file in ["curves.png", "curves.svg"] {
        curves::draw(&panels, &folder.join(file))?;
    }
    Ok(())
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

fn points(log: &[Value], split: &str, key: &str) -> Vec<(f64, f64)> {
    log.iter()
        .filter(|line| line["split"] == split)
        .filter_map(|line| Some((line["step"].as_f64()?, line[key].as_f64()?)))
        .collect()
}

/// The final numbers of models, one line each.
pub fn table(results: &[(ModelKind, BTreeMap<String, f64>, f64)]) -> String {
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
            model.name(),
            accuracy(&format!("{:.2}", 100.0 * number("accuracy"))),
            number("log_likelihood"),
            number("tokens_percent"),
            number("nodes_read"),
            seconds
        );
    }
    text
}
