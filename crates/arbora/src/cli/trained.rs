//! A finished or unfinished run, ready to be asked.

use crate::backend;
use crate::config::RunConfig;
use crate::learner::TaskModel;
use crate::task::{self, TaskData};
use anyhow::{Result, bail};
use arbora_rl::train::Checkpoint;
use burn::tensor::Device;
use std::path::Path;
use std::sync::Arc;

/// A run folder's newest whole checkpoint with all that its model needs.
pub struct TrainedRun {
    pub config: RunConfig,
    pub task: Arc<dyn TaskData>,
    pub model: TaskModel,
    /// Steps that the model was trained for.
    pub step: u64,
    /// The name of the backend that the model is on.
    pub backend: &'static str,
    pub device: Device,
}

impl TrainedRun {
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
        let task = task::load(&config)?;
        let features = task.features();
        checkpoint.expect_fingerprint(&config.fingerprint(&features)?)?;
        let (backend, device) = backend::open(backend)?;
        let model = checkpoint.load_model(TaskModel::new(&config, &features, &device))?;
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
    pub fn config(run: &Path) -> Result<RunConfig> {
        if !run.is_dir() {
            bail!("{}: expected a run folder", run.display());
        }
        RunConfig::read(&run.join("config.json"))
    }

    /// Items in the test set of the run, or as many as it asks to measure where they are generated
    /// without end.
    pub fn test_items(&self) -> usize {
        match self.config.test_items {
            0 => self.task.count().unwrap_or(0),
            items => items,
        }
    }
}
