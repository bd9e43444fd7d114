//! Tasks as sources of problems: one file per task, one trait for all.

mod generated;
pub mod images;
mod series;

pub use images::ImageTask;

use crate::config::{RunConfig, Source};
use crate::problem::Problem;
use crate::run::RunSettings as _;
use anyhow::{Result, anyhow};
use arbora::models::{EmbeddingKind, HeadKind};
use arbora::tasks::TaskError;
use burn::tensor::Device;
use std::sync::Arc;

/// Evaluation asks the same questions in every run, whatever its seed.
pub const EVALUATION_SEED: u64 = 0;

/// What a network has to fit: the part of its configuration that the data decide.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    /// Features of a context token.
    pub d_context: usize,
    /// Features of a query.
    pub d_query: usize,
    /// Coordinates of a token's position.
    pub d_position: usize,
    /// What is predicted.
    pub head: HeadKind,
    /// Whether tokens are points or a sequence.
    pub embedding: EmbeddingKind,
    /// The most context tokens that a problem has.
    pub most_tokens: usize,
}

/// Training and evaluation problems of one task.
pub trait TaskData: Send + Sync {
    /// What a network has to fit.
    fn features(&self) -> Features;

    /// The problem of a training step: a pure function of seed and step.
    ///
    /// # Errors
    /// If the data cannot give it.
    fn training(
        &self,
        seed: u64,
        step: u64,
        batch_size: usize,
        device: &Device,
    ) -> Result<Problem, TaskError>;

    /// The fixed evaluation problems.
    ///
    /// - items: how many images, functions or sequences to ask about; 0 means all of a finite set.
    ///   Rounded up to whole batches.
    ///
    /// # Errors
    /// If `batch_size` is 0.
    fn evaluation(
        &self,
        items: usize,
        batch_size: usize,
        device: &Device,
    ) -> Result<Vec<Problem>, TaskError>;

    /// What an item is, in the plural.
    fn items(&self) -> &'static str;

    /// Items in the evaluation set, `None` where they are generated without end.
    fn count(&self) -> Option<usize>;

    /// Whether a problem says which token answers a query.
    fn knows_answers(&self) -> bool {
        false
    }

    /// The images behind the task, if it has any.
    fn images(&self) -> Option<&ImageTask> {
        None
    }
}

/// Loads the data that a configuration names.
///
/// # Errors
/// If they cannot be read or do not fit the configuration.
pub fn load(config: &RunConfig) -> Result<Arc<dyn TaskData>> {
    let task: Arc<dyn TaskData> = match &config.data {
        Source::Sample | Source::Idx { .. } | Source::Folder { .. } => {
            Arc::new(ImageTask::load(config)?)
        }
        Source::Copy(copy) => Arc::new(generated::CopyTask::new(*copy)?),
        Source::Gp(gp) => Arc::new(generated::GpTask::new(*gp, config.architecture.std)?),
        Source::SeriesSample(_) | Source::Series { .. } => {
            Arc::new(series::SeriesTask::load(&config.data)?)
        }
        Source::Bandit(bandit) => Arc::new(generated::BanditTask::new(
            *bandit,
            config.architecture.std,
        )?),
    };
    config.check_data(&task)?;
    Ok(task)
}

/// A refused setting by its path in the configuration, as `--set` takes it.
fn with_path(section: &str, error: TaskError) -> anyhow::Error {
    match error {
        TaskError::Config { .. } => anyhow!("{section}.{error}"),
        _ => error.into(),
    }
}
