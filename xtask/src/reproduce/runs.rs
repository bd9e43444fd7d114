//! The run folders of an experiment.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::Args;
use super::experiments::{Experiment, Row};

/// Where the runs of all experiments lie, below the root of the workspace.
const RUNS: &str = "runs/reproduce";

/// A run that a table needs.
pub struct Run {
    pub row: &'static Row,
    pub seed: u64,
    /// Relative to the root of the workspace.
    pub folder: PathBuf,
    /// The folder of the run it starts from, relative likewise.
    from: Option<PathBuf>,
    /// What its configuration must say, by dotted key; of a key given twice the last value.
    pub settings: Vec<(String, Value)>,
    /// What `arbora train` is called with, but for the folder.
    arguments: Vec<String>,
}

/// A run of some row with settings and nothing else.
#[cfg(test)]
pub fn example(folder: &str, settings: Vec<(String, Value)>) -> Run {
    Run {
        row: &super::experiments::Name::Orders.experiment().rows[0],
        seed: 1,
        folder: folder.into(),
        from: None,
        settings,
        arguments: Vec::new(),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Absent,
    Unfinished,
    Finished,
}

impl State {
    pub fn told(self) -> &'static str {
        match self {
            Self::Absent => "not begun",
            Self::Unfinished => "not finished",
            Self::Finished => "finished",
        }
    }

    pub fn plan(self) -> &'static str {
        match self {
            Self::Absent => "training",
            Self::Unfinished => "resuming",
            Self::Finished => "finished before",
        }
    }
}

impl Run {
    /// The run of a row with a seed.
    ///
    /// # Errors
    /// When a setting is none.
    pub fn new(experiment: &Experiment, row: &'static Row, seed: u64, args: &Args) -> Result<Self> {
        let steps = args.steps.map(|steps| format!("trainer.steps={steps}"));
        let given = experiment.alone.iter().copied();
        let given = given.chain(experiment.settings.iter().copied());
        let given = given.chain(row.settings.iter().copied());
        let given = given.chain(steps.as_deref());
        let given: Vec<&str> = given
            .chain(args.settings.iter().map(String::as_str))
            .collect();

        let mut arguments = vec!["train".to_string(), experiment.task.to_string()];
        let mut settings = vec![
            ("task".to_string(), Value::from(experiment.task)),
            ("model".to_string(), Value::from(row.model)),
            ("trainer.seed".to_string(), Value::from(seed)),
        ];
        if let Some(preset) = row.preset {
            arguments.extend(["--preset".into(), preset.into()]);
            // A configuration does not say what it started from. This tells the presets apart.
            if preset == "published" {
                settings.push(("architecture.layout".into(), Value::from("published")));
            }
        }
        arguments.extend(["--model".into(), row.model.into()]);
        arguments.extend(["--seed".into(), seed.to_string()]);
        let folder = |row: &str| {
            let name = format!("{row}-seed{seed}");
            Path::new(RUNS).join(experiment.name).join(name)
        };
        let from = row.from.map(folder);
        if let Some(from) = &from {
            arguments.extend(["--from".into(), from.to_string_lossy().into_owned()]);
        }
        for text in given {
            arguments.extend(["--set".into(), text.into()]);
            let (key, value) = setting(text)?;
            settings.retain(|(other, _)| *other != key);
            settings.push((key, value));
        }
        Ok(Self {
            row,
            seed,
            folder: folder(row.name),
            from,
            settings,
            arguments,
        })
    }

    /// How far the run is.
    ///
    /// # Errors
    /// When the folder holds a run with other settings or from other weights, or something else.
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
        self.check_start(&config, root)?;
        // A checkpoint is written beside and renamed, after the last evaluation: where the last
        // step's is, the run is done.
        let last = format!("checkpoints/step-{:08}", self.steps(root)?);
        Ok(match folder.join(last).is_dir() {
            true => State::Finished,
            false => State::Unfinished,
        })
    }

    /// Whether the run there started from the weights that its row names, as they are now.
    fn check_start(&self, config: &Value, root: &Path) -> Result<()> {
        let found = at(config, "from").as_str().map(Path::new);
        let fits = match (&self.from, found) {
            (Some(wanted), Some(found)) => found.ends_with(wanted),
            (None, None) => true,
            _ => false,
        };
        if !fits {
            let told =
                |from: Option<&Path>| from.map_or("none".into(), |from| from.display().to_string());
            bail!(
                "{}: from: expected {}, the run there has {}; move it away to train anew",
                self.folder.display(),
                told(self.from.as_deref()),
                told(found)
            );
        }
        let Some(from) = &self.from else {
            return Ok(());
        };
        // A run writes its settings once, when it begins. Without any, the source is trained again, and then
        // this is asked again.
        let begun = |folder: &Path| -> Result<Option<SystemTime>> {
            let path = root.join(folder).join("config.json");
            if !path.exists() {
                return Ok(None);
            }
            let time = fs::metadata(&path).and_then(|file| file.modified());
            Ok(Some(time.with_context(|| {
                format!("cannot read {}", path.display())
            })?))
        };
        ensure!(
            begun(from)? <= begun(&self.folder)?,
            "{}: from: {} was trained anew after this run began; move it away to train anew",
            self.folder.display(),
            from.display()
        );
        Ok(())
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
    pub fn training(&self, program: &Path, state: State, root: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(root);
        match state {
            State::Unfinished => command.args(&self.arguments[..2]).arg("--resume"),
            _ => command.args(&self.arguments),
        };
        command.arg("--out").arg(&self.folder);
        command
    }

    /// Wall-clock seconds of all training steps, without evaluations and checkpoints.
    pub fn training_seconds(&self, root: &Path) -> Result<f64> {
        let (steps, seconds) = training_time(&self.log("timing.jsonl", root)?, u64::MAX);
        let expected = self.steps(root)?;
        ensure!(
            steps == expected,
            "{}: expected the times of {expected} steps, got {steps}",
            self.folder.join("timing.jsonl").display()
        );
        Ok(seconds)
    }

    /// The step of the first evaluation during training whose accuracy was at least `accuracy`, and
    /// the seconds of all training steps up to it. `None` if there was no such evaluation.
    pub fn reached(&self, accuracy: f64, root: &Path) -> Result<Option<(u64, f64)>> {
        let Some(step) = first_reached(&self.log("metrics.jsonl", root)?, accuracy) else {
            return Ok(None);
        };
        let (_, seconds) = training_time(&self.log("timing.jsonl", root)?, step);
        Ok(Some((step, seconds)))
    }

    fn log(&self, name: &str, root: &Path) -> Result<String> {
        let path = root.join(&self.folder).join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }
}

/// The step of the first evaluation in a log with at least this accuracy.
fn first_reached(log: &str, accuracy: f64) -> Option<u64> {
    log.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["split"] == "valid")
        .find(|line| {
            line["accuracy"]
                .as_f64()
                .is_some_and(|found| found >= accuracy)
        })
        .and_then(|line| line["step"].as_u64())
}

/// Number of training steps up to `last` in a timing log, and the sum of their seconds.
fn training_time(log: &str, last: u64) -> (u64, f64) {
    log.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["split"] == "train")
        .filter(|line| line["step"].as_u64().is_some_and(|step| step <= last))
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
pub fn at<'a>(config: &'a Value, key: &str) -> &'a Value {
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
        let settings = settings.iter();
        let settings = settings.map(|(key, value)| (key.to_string(), value.clone()));
        example("run", settings.collect())
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
    fn a_run_from_other_weights_than_its_source_has_now_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let run = Run {
            from: Some("runs/dense-seed1".into()),
            ..run(&[])
        };
        fs::create_dir_all(root.path().join("run/checkpoints/step-00000020")).unwrap();
        let path = root.path().join("run/config.json");
        let write = |from: Value| {
            let config = json!({"trainer": {"steps": 20}, "from": from});
            fs::write(&path, config.to_string()).unwrap();
        };
        let refused = |run: &Run| run.state(root.path()).unwrap_err().to_string();
        for other in [json!("/elsewhere/runs/dense-seed2"), json!(null)] {
            write(other);
            let text = refused(&run);
            assert!(text.contains("from: expected runs/dense-seed1"), "{text}");
        }
        write(json!("/elsewhere/runs/dense-seed1"));
        let text = refused(&example("run", Vec::new()));
        assert!(text.contains("from: expected none"), "{text}");
        // The source is not there, then older than the run, then trained anew.
        assert_eq!(run.state(root.path()).unwrap(), State::Finished);
        let source = root.path().join("runs/dense-seed1");
        fs::create_dir_all(&source).unwrap();
        let begun = fs::metadata(&path).unwrap().modified().unwrap();
        let hour = std::time::Duration::from_secs(3600);
        let begin_source = |time| {
            let file = fs::File::create(source.join("config.json")).unwrap();
            file.set_modified(time).unwrap();
        };
        begin_source(begun - hour);
        assert_eq!(run.state(root.path()).unwrap(), State::Finished);
        begin_source(begun + hour);
        let text = refused(&run);
        assert!(
            text.contains("was trained anew after this run began"),
            "{text}"
        );
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
        assert_eq!(training_time(log, u64::MAX), (2, 0.75));
        assert_eq!(training_time(log, 1), (1, 0.5));
    }

    #[test]
    fn an_accuracy_is_reached_at_the_first_evaluation_that_measured_it() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("run");
        fs::create_dir(&folder).unwrap();
        let metrics = [
            r#"{"step":1,"split":"train","accuracy":1.0}"#,
            r#"{"step":1,"split":"valid","accuracy":0.5}"#,
            r#"{"step":2,"split":"valid","accuracy":0.995}"#,
            r#"{"step":3,"split":"valid","accuracy":0.9}"#,
            r#"{"step":4,"split":"valid","accuracy":0.997}"#,
        ];
        fs::write(folder.join("metrics.jsonl"), metrics.join("\n")).unwrap();
        let timing: String = (1..=4)
            .map(|step| format!("{{\"step\":{step},\"split\":\"train\",\"seconds\":2.0}}\n"))
            .collect();
        fs::write(folder.join("timing.jsonl"), timing).unwrap();
        let run = run(&[]);
        assert_eq!(run.reached(0.99, root.path()).unwrap(), Some((2, 4.0)));
        assert_eq!(run.reached(0.4, root.path()).unwrap(), Some((1, 2.0)));
        assert_eq!(run.reached(0.999, root.path()).unwrap(), None);
    }

    #[test]
    fn later_settings_win_and_a_resumed_run_gets_none() {
        let experiment = super::super::experiments::Name::CopyAblation.experiment();
        let row = experiment.rows.iter().find(|row| row.name == "guide");
        let args = Args {
            steps: Some(7),
            ..Args::of(super::super::experiments::Name::CopyAblation)
        };
        let run = Run::new(experiment, row.unwrap(), 3, &args).unwrap();
        assert_eq!(
            run.folder,
            Path::new("runs/reproduce/copy-ablation/guide-seed3")
        );
        for (key, value) in [("lambda_guide", json!(1)), ("trainer.steps", json!(7))] {
            let found: Vec<&Value> = run
                .settings
                .iter()
                .filter_map(|(name, value)| (name == key).then_some(value))
                .collect();
            assert_eq!(found, [&value], "{key}");
        }
        let shown = |state| {
            let command = run.training(Path::new("arbora"), state, Path::new("."));
            crate::shell::shown(&command)
        };
        assert!(shown(State::Absent).ends_with(
            "--set lambda_guide=1 --set trainer.steps=7 --out runs/reproduce/copy-ablation/guide-seed3"
        ));
        assert_eq!(
            shown(State::Unfinished),
            "arbora train copy --resume --out runs/reproduce/copy-ablation/guide-seed3"
        );
    }
}
