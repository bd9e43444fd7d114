//! The run folders of an experiment.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::Args;

/// A run that a table needs.
pub struct Run {
    pub model: &'static str,
    pub seed: u64,
    /// Relative to the root of the workspace.
    pub folder: PathBuf,
    /// What its configuration must say, by dotted key.
    pub settings: Vec<(String, Value)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Absent,
    Unfinished,
    Finished,
}

impl State {
    pub fn plan(self) -> &'static str {
        match self {
            Self::Absent => "training",
            Self::Unfinished => "resuming",
            Self::Finished => "finished before",
        }
    }
}

impl Run {
    /// How far the run is.
    ///
    /// # Errors
    /// When the folder holds a run with other settings, or something else.
    pub fn state(&self, root: &Path) -> Result<State> {
        let folder = root.join(&self.folder);
        // A run killed before it wrote its settings has nothing to keep: `train` starts it anew.
        if !folder.join("config.json").exists() {
            return Ok(State::Absent);
        }
        let config = self.config(root)?;
        for (key, value) in &self.settings {
            let found = at(&config, key);
            if !includes(found, value) {
                bail!(
                    "{}: {key}: expected {value}, the run there has {found}; move it away to train anew",
                    self.folder.display()
                );
            }
        }
        // A checkpoint is written beside and renamed, after the last evaluation: where the last
        // step's is, the run is done.
        let last = format!("checkpoints/step-{:08}", self.steps(root)?);
        Ok(match folder.join(last).is_dir() {
            true => State::Finished,
            false => State::Unfinished,
        })
    }

    /// The run's configuration.
    pub fn config(&self, root: &Path) -> Result<Value> {
        let path = root.join(&self.folder).join("config.json");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))
    }

    /// Steps of the whole run.
    pub fn steps(&self, root: &Path) -> Result<u64> {
        self.config(root)?["trainer"]["steps"]
            .as_u64()
            .with_context(|| format!("{}: no trainer.steps", self.folder.display()))
    }

    /// The command that trains the run, or the rest of it.
    pub fn training(&self, program: &Path, state: &State, args: &Args, root: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(root).args(["train", "images", "--out"]);
        command.arg(&self.folder);
        if *state == State::Unfinished {
            command.arg("--resume");
            return command;
        }
        command.args(["--model", self.model, "--seed", &self.seed.to_string()]);
        command.args(["--set", "compare_with=null"]);
        if let Some(steps) = args.steps {
            command.args(["--set", &format!("trainer.steps={steps}")]);
        }
        for setting in &args.settings {
            command.args(["--set", setting]);
        }
        command
    }

    /// Wall-clock seconds of all training steps, without evaluations and checkpoints.
    pub fn training_seconds(&self, root: &Path) -> Result<f64> {
        let path = root.join(&self.folder).join("timing.jsonl");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let (steps, seconds) = training_time(&text);
        let expected = self.steps(root)?;
        ensure!(
            steps == expected,
            "{}: expected the times of {expected} steps, got {steps}",
            path.display()
        );
        Ok(seconds)
    }
}

/// Number of training steps in a timing log, and the sum of their seconds.
fn training_time(log: &str) -> (u64, f64) {
    log.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["split"] == "train")
        .filter_map(|line| line["seconds"].as_f64())
        .fold((0, 0.0), |(steps, sum), seconds| (steps + 1, sum + seconds))
}

/// Reads `key=value` as the command line does: JSON, or else a bare word.
///
/// # Errors
/// Without an equals sign.
pub fn setting(text: &str) -> Result<(String, Value)> {
    let (key, value) = text
        .split_once('=')
        .with_context(|| format!("--set {text}: expected KEY=VALUE"))?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
    Ok((key.to_string(), value))
}

/// The value at a dotted key; null where there is none.
fn at<'a>(config: &'a Value, key: &str) -> &'a Value {
    key.split('.').fold(config, |value, part| &value[part])
}

/// Whether `found` says what `wanted` says. An object may say more: settings that were left out have
/// their defaults written into a run's configuration.
fn includes(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::Object(found), Value::Object(wanted)) => wanted
            .iter()
            .all(|(key, value)| found.get(key).is_some_and(|found| includes(found, value))),
        // 1 and 1.0 are one number to a reader.
        (Value::Number(found), Value::Number(wanted)) => found.as_f64() == wanted.as_f64(),
        _ => found == wanted,
    }
}

/// The first dotted key in which two configurations differ.
pub fn difference(one: &Value, other: &Value, prefix: &str) -> Option<String> {
    let (Value::Object(first), Value::Object(second)) = (one, other) else {
        return (one != other).then(|| prefix.to_string());
    };
    let keys = first.keys().chain(second.keys());
    keys.into_iter().find_map(|key| {
        let path = match prefix {
            "" => key.clone(),
            _ => format!("{prefix}.{key}"),
        };
        match (first.get(key), second.get(key)) {
            (Some(one), Some(other)) => difference(one, other, &path),
            _ => Some(path),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run(settings: &[(&str, Value)]) -> Run {
        Run {
            model: "retreever",
            seed: 1,
            folder: "run".into(),
            settings: settings
                .iter()
                .map(|(key, value)| (key.to_string(), value.clone()))
                .collect(),
        }
    }

    #[test]
    fn a_run_is_finished_when_its_last_checkpoint_is_there() {
        let root = tempfile::tempdir().unwrap();
        let run = run(&[("trainer.steps", json!(20))]);
        assert_eq!(run.state(root.path()).unwrap(), State::Absent);
        let checkpoints = root.path().join("run/checkpoints");
        fs::create_dir_all(checkpoints.join("step-00000010")).unwrap();
        let config = r#"{"trainer": {"steps": 20}}"#;
        fs::write(root.path().join("run/config.json"), config).unwrap();
        assert_eq!(run.state(root.path()).unwrap(), State::Unfinished);
        fs::create_dir(checkpoints.join("step-00000020")).unwrap();
        assert_eq!(run.state(root.path()).unwrap(), State::Finished);
    }

    #[test]
    fn a_folder_with_other_settings_is_refused_by_key() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("run")).unwrap();
        let config = r#"{"trainer": {"steps": 20}}"#;
        fs::write(root.path().join("run/config.json"), config).unwrap();
        let error = run(&[("trainer.steps", json!(30))]).state(root.path());
        let text = error.unwrap_err().to_string();
        assert!(text.contains("trainer.steps: expected 30"), "{text}");
    }

    #[test]
    fn settings_are_read_as_json_or_as_words() {
        let read = |text| setting(text).unwrap();
        assert_eq!(read("trainer.steps=5"), ("trainer.steps".into(), json!(5)));
        assert_eq!(read("a=morton"), ("a".into(), json!("morton")));
        assert_eq!(read(r#"a={"b":1}"#), ("a".into(), json!({"b": 1})));
        assert!(setting("steps").is_err());
    }

    #[test]
    fn left_out_settings_and_number_forms_make_no_difference() {
        let found = json!({"kind": "folder", "size": null, "held_out": 3.0});
        assert!(includes(&found, &json!({"kind": "folder", "held_out": 3})));
        assert!(!includes(&found, &json!({"kind": "idx"})));
        assert!(!includes(&found, &json!({"path": "x"})));
    }

    #[test]
    fn the_first_difference_is_named_by_its_key() {
        let one = json!({"a": 1, "b": {"c": 2}});
        assert_eq!(difference(&one, &one, ""), None);
        let other = json!({"a": 1, "b": {"c": 3}});
        assert_eq!(difference(&one, &other, ""), Some("b.c".into()));
        let longer = json!({"a": 1, "b": {"c": 2, "d": 0}});
        assert_eq!(difference(&one, &longer, ""), Some("b.d".into()));
    }

    #[test]
    fn training_time_leaves_out_evaluations() {
        let log = "{\"step\":1,\"split\":\"train\",\"seconds\":0.5}\n\
                   {\"step\":1,\"split\":\"valid\",\"seconds\":9}\n\
                   {\"step\":2,\"split\":\"train\",\"seconds\":0.25}\n";
        assert_eq!(training_time(log), (2, 0.75));
    }
}
