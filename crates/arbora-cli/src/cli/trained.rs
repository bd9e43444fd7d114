//! A finished or unfinished run, ready to be asked.

use crate::backend;
use crate::config::{AnyTask, RunConfig};
use crate::run::{CONFIG, RunSettings};
use anyhow::{Result, bail};
use arbora::rl::train::Checkpoint;
use burn::tensor::Device;
use std::path::Path;

/// A run folder's newest whole checkpoint with all that its model needs.
pub struct TrainedRun<C: RunSettings = RunConfig> {
    pub config: C,
    pub task: C::Data,
    pub model: C::Model,
    /// Steps that the model was trained for.
    pub step: u64,
    /// The name of the backend that the model is on.
    pub backend: String,
    pub device: Device,
}

impl<C: RunSettings> TrainedRun<C> {
    /// Loads the run in a folder.
    ///
    /// # Errors
    /// If the folder holds no run of this version, its data cannot be read, or the backend cannot run.
    pub fn load(run: &Path, backend: Option<&str>) -> Result<Self> {
        let config = Self::config(run)?;
        let (checkpoint, passed_over) = Checkpoint::newest(run)?;
        let step = checkpoint.state().step;
        for error in passed_over {
            eprintln!("{error}; using step {step}");
        }
        let task = config.load_run(run)?;
        checkpoint.expect_fingerprint(&config.fingerprint(&task)?)?;
        let (backend, device) = backend::open(backend)?;
        let model = checkpoint.load_model(config.blank(&task, &device))?;
        Ok(Self {
            config,
            task,
            model,
            step,
            backend,
            device,
        })
    }

    /// The settings of the run in a folder.
    ///
    /// # Errors
    /// If there is no such folder, or no settings of this version in it.
    pub fn config(run: &Path) -> Result<C> {
        if !run.is_dir() {
            bail!("{}: expected a run folder", run.display());
        }
        C::read(&run.join(CONFIG))
    }

    /// Items that are measured in the end.
    pub fn test_items(&self) -> usize {
        let sizes = self.config.sizes();
        sizes.measured(sizes.test_items, C::count(&self.task))
    }
}

/// Refuses a run whose model retrieves nothing, for a command that shows or uses what is retrieved.
///
/// # Errors
/// If the run is of a task of another family.
pub fn refuse_others(command: &str, run: &Path) -> Result<()> {
    match AnyTask::of_run(run) {
        None | Some(AnyTask::Retrieval(_)) => Ok(()),
        Some(task) => bail!(
            "{}: a run of task {}, whose model retrieves nothing; {command} is for retrieval",
            run.display(),
            task.name()
        ),
    }
}
