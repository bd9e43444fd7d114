//! Run folders: how a run begins, goes on, and is found again.

use crate::backend;
use crate::families::{About, AnyTask, Family};
use crate::message::tell;
use crate::progress::Bar;
use crate::{atomic_file, remote, settings};
use anyhow::{Context as _, Error, Result, bail};
use arbora::rl::train::{Checkpoint, Claim, TrainError, Trainer, has_any, is_folder, measure};
use arbora::tasks::TaskError;
use burn::tensor::Device;
use burn::train::Interrupter;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The settings of a run, in its folder.
pub const CONFIG: &str = "config.json";

/// What trained a run, in its folder.
const MADE: &str = "made.json";

/// What the numbers of a run depend on beside its settings and its data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// Of the family's numbers.
    pub version: u32,
    /// The name of the backend that it was trained on.
    pub backend: String,
}

/// What trained the run in a folder: more than one where it was resumed by another version or on another backend, none
/// where it was begun before there were such files.
pub fn made(folder: &Path) -> Result<Vec<Made>> {
    let made = settings::read_json(&folder.join(MADE), "does not say what trained the run")?;
    Ok(made.unwrap_or_default())
}

/// A run: its settings, and where it lies or will lie.
#[derive(Clone, Debug)]
pub struct Run<F> {
    pub config: F,
    pub folder: PathBuf,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It has not begun.
    Absent,
    /// It has steps left.
    Unfinished,
    Finished,
}

/// A training that ended.
pub struct Trained<M> {
    /// The model, in validation mode.
    pub model: M,
    /// Steps that it was trained for.
    pub step: u64,
    /// Wall clock of this process's part.
    pub seconds: f64,
    interrupted: bool,
    /// Where it was trained by this process: Ctrl-C goes on being told to it while the model is measured.
    interrupter: Option<Interrupter>,
}

impl<M> Trained<M> {
    /// A model that was trained before.
    pub fn before(model: M, step: u64) -> Self {
        Self {
            model,
            step,
            seconds: 0.0,
            interrupted: false,
            interrupter: None,
        }
    }

    /// Whether someone has asked to stop, before the last step or since.
    pub fn is_stopped(&self) -> bool {
        let interrupter = self.interrupter.as_ref();
        self.interrupted || interrupter.is_some_and(Interrupter::should_stop)
    }
}

impl<F: Family> Run<F> {
    /// How far the run is. A folder is refused that holds something else: another run, one with other settings or on
    /// other data, or one that cannot be continued.
    pub fn state(&self, about: &About) -> Result<State> {
        if !has_any(&self.folder, &[CONFIG])? {
            refuse_taken(&self.folder)?;
            return Ok(State::Absent);
        }
        let [wanted, found] = self.wanted_and_found()?;
        if let Some((key, wanted, found)) = settings::difference_but_places(&wanted, &found) {
            bail!(
                "{}: holds a run with other settings: {key} is {found}, asked for {wanted}",
                self.folder.display()
            );
        }
        about.expect_kept(&self.folder, wanted != found)?;
        match Checkpoint::newest(&self.folder) {
            Ok((checkpoint, _)) => {
                checkpoint.expect_fingerprint(&about.fingerprint)?;
                let last = self.config.common().trainer.steps;
                let is_last = checkpoint.state().step == last;
                Ok(if is_last {
                    State::Finished
                } else {
                    State::Unfinished
                })
            }
            // It ended before its first checkpoint.
            Err(TrainError::Missing { .. }) => Ok(State::Unfinished),
            Err(error) => Err(error.into()),
        }
    }

    /// The settings asked for, and those in the folder.
    fn wanted_and_found(&self) -> Result<[Value; 2]> {
        let found: F = settings::read(&self.folder.join(CONFIG))?;
        // Through text like what was found: numbers of many digits need not survive it unchanged.
        let wanted: F = serde_json::from_str(&serde_json::to_string(&self.config)?)?;
        Ok([serde_json::to_value(wanted)?, serde_json::to_value(found)?])
    }

    /// The model that the run begins with, or that the weights of its newest checkpoint will be loaded into.
    pub fn model(&self, data: &F::Data, device: &Device) -> Result<F::Model> {
        match Checkpoint::newest(&self.folder) {
            Ok(_) => Ok(self.config.untrained(data, device)),
            Err(_) => self.config.init(data, device),
        }
    }

    /// A trainer of the run, whose folder is claimed then and has its settings and what trains it. Refused where another
    /// process trains in the folder or has begun a run there since.
    ///
    /// - state: how far the run is
    pub fn trainer(&self, about: &About, backend: &str, state: State) -> Result<Trainer> {
        let (common, folder) = (self.config.common(), &self.folder);
        // Paths that are no text cannot be written: a refusal leaves nothing.
        let settings = serde_json::to_string_pretty(&self.config)? + "\n";
        let write_settings = || atomic_file::write(&folder.join(CONFIG), &settings);
        let write_made =
            |by: &[Made]| atomic_file::write(&folder.join(MADE), serde_json::to_string(by)? + "\n");
        let is_new = state == State::Absent;
        let claim = if is_new {
            settings::refuse_within_data(&self.config, folder, "--out")?;
            let mut kept = about.kept.iter();
            kept.try_for_each(|kept| kept.refuse_another(folder))?;
            Claim::begin(folder)?
        } else {
            Claim::resume(folder)?
        };
        let trainer = Trainer::new(common.trainer.clone(), folder, &about.fingerprint)
            .claimed(claim)
            .resume(!is_new)
            .progress(Bar::new(common.model, common.trainer.steps));
        trainer.stop_on_ctrl_c()?;
        remote::saved(Some(format!(
            "the run's checkpoints are in {}; continue with --resume",
            folder.display()
        )));
        let now = Made {
            version: F::VERSION,
            backend: backend.into(),
        };
        if is_new {
            refuse_taken(folder)?;
            about.kept.iter().try_for_each(|kept| kept.write(folder))?;
            write_made(&[now])?;
            // Last: a folder with settings is a run.
            write_settings()?;
            return Ok(trainer);
        }
        let [wanted, found] = self.wanted_and_found()?;
        if wanted != found {
            // Its data have moved. It is as old as it was: comparisons ask when a run began.
            let path = folder.join(CONFIG);
            let begun = std::fs::metadata(&path)?.modified()?;
            write_settings()?;
            let file = File::options().append(true).open(&path)?;
            file.set_modified(begun)?;
        }
        if state == State::Unfinished {
            let mut by = made(folder)?;
            // Of what trained a run of before nothing is known.
            if by.last().is_some_and(|last| *last != now) {
                by.push(now);
                write_made(&by)?;
            }
        }
        Ok(trainer)
    }

    /// Trains what is left of the run. Where that fails, the folder keeps its checkpoints.
    pub fn train(
        &self,
        trainer: Trainer,
        model: F::Model,
        data: &F::Data,
        device: &Device,
    ) -> Result<Trained<F::Model>> {
        let interrupter = trainer.interrupter();
        let batches = self
            .config
            .evaluation(data, self.config.common().eval_items, device)?;
        let count = batches.len() as u64;
        let evaluation =
            move |index: u64, _: &Device| Ok::<_, TaskError>(batches[index as usize].clone());
        let training = self.config.training(data);
        let report = trainer.fit(model, training, (count, evaluation), device)?;
        Ok(Trained {
            model: report.model,
            step: report.step,
            seconds: report.seconds,
            interrupted: report.interrupted,
            interrupter: Some(interrupter),
        })
    }
}

/// Means of all measurements of a model over items of the evaluation set, by name.
///
/// - items: how many, in whole batches; 0 means all of a finite set
pub fn measured<F: Family>(
    config: &F,
    model: &F::Model,
    items: usize,
    data: &F::Data,
    device: &Device,
) -> Result<BTreeMap<String, f64>> {
    let batches = config.evaluation(data, items, device)?;
    let seed = config.common().trainer.seed;
    Ok(measure(model, batches, seed).into_iter().collect())
}

/// Refuses a path that cannot become a new run's folder: it is no folder, or has a run in it.
pub fn refuse_taken(folder: &Path) -> Result<(), TrainError> {
    is_folder(folder)?;
    if has_any(folder, &[CONFIG, "metrics.jsonl", "checkpoints"])? {
        return Err(TrainError::RunExists {
            path: folder.into(),
        });
    }
    Ok(())
}

/// A folder for a new run: the first of its name that is not there.
pub fn first_free(task: &str, what: &str) -> PathBuf {
    (1..u64::MAX)
        .map(|number| PathBuf::from(format!("runs/{task}-{what}-{number}")))
        .find(|path| !path.try_exists().unwrap_or(false))
        .expect("fewer runs than numbers")
}

/// Makes a folder, and what is above it. Whether it was not there.
pub fn make_new(folder: &Path) -> Result<bool> {
    let above = folder.parent().map_or(Ok(()), std::fs::create_dir_all);
    match above.and_then(|()| std::fs::create_dir(folder)) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        made => made
            .map(|()| true)
            .with_context(|| format!("cannot make {}", folder.display())),
    }
}

/// Whether a folder could not be claimed because another process has it, or has begun a run in it.
pub fn is_taken(error: &Error) -> bool {
    use TrainError::{InUse, RunExists};
    matches!(error.downcast_ref(), Some(InUse { .. } | RunExists { .. }))
}

/// A run folder's newest whole checkpoint with all that its model needs.
pub struct TrainedRun<F: Family> {
    pub config: F,
    pub data: F::Data,
    pub about: About,
    pub model: F::Model,
    /// Steps that the model was trained for.
    pub step: u64,
    /// The name of the backend that the model is on.
    pub backend: String,
    pub device: Device,
}

impl<F: Family> TrainedRun<F> {
    /// Loads the run in a folder.
    ///
    /// - moved: where its data lie now, as `data.path=FOLDER`
    pub fn load(folder: &Path, backend: Option<&str>, moved: &[String]) -> Result<Self> {
        let found = config_of::<F>(folder)?;
        let config = settings::layered(&found, None, moved)?;
        let [now, before] = [&config, &found].map(serde_json::to_value);
        if let Some((key, ..)) = settings::difference_but_places(&now?, &before?) {
            bail!("--set {key}: only the paths of the data of a saved run can be changed");
        }
        let (checkpoint, passed_over) = Checkpoint::newest(folder)?;
        let step = checkpoint.state().step;
        for error in passed_over {
            tell!("{error}; using step {step}");
        }
        let data = config.load(Some(folder))?;
        let about = config.about(&data)?;
        about.expect_kept(folder, config != found)?;
        checkpoint.expect_fingerprint(&about.fingerprint)?;
        let (backend, device) = backend::open(backend)?;
        let model = checkpoint.load_model(config.untrained(&data, &device))?;
        Ok(Self {
            config,
            data,
            about,
            model,
            step,
            backend,
            device,
        })
    }

    /// Items that are measured in the end.
    pub fn test_items(&self) -> usize {
        let common = self.config.common();
        common.measured(common.test_items, self.about.count)
    }
}

/// The settings of the run in a folder.
pub fn config_of<F: Family>(folder: &Path) -> Result<F> {
    if !is_folder(folder)? {
        bail!("{}: expected a run folder", folder.display());
    }
    settings::read(&folder.join(CONFIG))
}

/// The task of the run in a folder. Settings that name none are those of retrieval: reading them whole says what is
/// wrong with them.
pub fn task_of(folder: &Path) -> AnyTask {
    use crate::families::retrieval::RetrievalTask;
    AnyTask::of_run(folder).unwrap_or(AnyTask::Retrieval(RetrievalTask::Images))
}

/// Refuses a run of another family than retrieval, for a command that shows or uses what is retrieved.
pub fn refuse_others(command: &str, folder: &Path) -> Result<()> {
    match AnyTask::of_run(folder) {
        None | Some(AnyTask::Retrieval(_)) => Ok(()),
        Some(task) => bail!(
            "{}: a run of task {}; {command} needs a run of retrieval",
            folder.display(),
            task.name()
        ),
    }
}
