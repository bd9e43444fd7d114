//! Where settings start: in the files of the folder `presets`, one for each family.

use super::{Family, Preset};
use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Layers of settings, each over those before it. `why` in a file is for people.
#[derive(Deserialize)]
struct Layers {
    /// Of all tasks.
    all: Value,
    tasks: BTreeMap<String, TaskLayers>,
    /// Of runs that start from the weights of another; `None` where no run does.
    started: Option<Value>,
}

#[derive(Deserialize)]
struct TaskLayers {
    /// `None` where nothing is published.
    published: Option<Value>,
    small: Value,
}

/// The settings that a task starts from.
///
/// - from: the run whose weights a run starts from
///
/// # Errors
/// If the task has no such preset, or starts from fresh weights.
pub fn read<F: Family>(task: &str, preset: Preset, from: Option<&Path>) -> Result<F> {
    let layers: Layers = serde_json::from_str(F::PRESETS)?;
    let own = layers.tasks.get(task);
    let own = own.with_context(|| format!("{task}: no task of {}", F::NAME))?;
    if from.is_some() && layers.started.is_none() {
        bail!("--from: {task} starts from fresh weights");
    }
    let mut settings = layers.all;
    settings["task"] = task.into();
    match (&own.published, preset) {
        (Some(published), _) => put(&mut settings, published),
        (None, Preset::Small) => {}
        (None, Preset::Published) => bail!(
            "--preset published: {task} has no published settings for these models; use small"
        ),
    }
    if preset == Preset::Small {
        put(&mut settings, &own.small);
    }
    if let (Some(from), Some(started)) = (from, &layers.started) {
        put(&mut settings, started);
        settings["from"] = serde_json::to_value(from)?;
    }
    Ok(serde_json::from_value(settings)?)
}

/// Puts a layer over settings: objects one setting after the other, all else whole.
fn put(settings: &mut Value, layer: &Value) {
    match (settings, layer) {
        (Value::Object(settings), Value::Object(layer)) => {
            for (key, value) in layer {
                put(settings.entry(key).or_insert(Value::Null), value);
            }
        }
        (settings, layer) => *settings = layer.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::families::{AnyTask, of_family};
    use crate::settings::layered;
    use clap::ValueEnum as _;

    fn check<F: Family>(task: &str) {
        for preset in [Preset::Small, Preset::Published] {
            match F::preset(task, preset, None) {
                Ok(config) => {
                    assert_eq!(config.common().task, task);
                    assert!(layered(&config, None, &[]).unwrap() == config, "{task}");
                }
                Err(refused) => {
                    let is_none = refused.to_string().contains("no published settings");
                    assert!(is_none && preset == Preset::Published, "{refused:#}");
                }
            }
        }
    }

    #[test]
    fn presets_are_valid_and_survive_json() {
        for task in AnyTask::value_variants() {
            of_family!(*task, check(task.name()));
        }
    }
}
