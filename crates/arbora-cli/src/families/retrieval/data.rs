//! From settings to problems: one file per kind of data, one trait for all.

mod generated;
mod images;
mod problem;
mod series;

pub use images::ImageTask;
pub use problem::Problem;

use super::RetrievalConfig;
use anyhow::{Result, anyhow};
use arbora::models::{EmbeddingKind, HeadKind};
use arbora::tasks::TaskError;
use arbora::tasks::bandit::BanditConfig;
use arbora::tasks::copy::CopyConfig;
use arbora::tasks::gp::GpConfig;
use arbora::tasks::series::SeriesConfig;
use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::sync::Arc;

/// Where the data of a task come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Source {
    /// The bundled sample of Fashion-MNIST.
    Sample,
    /// IDX files, gzipped or not.
    Idx {
        /// Training images.
        train: PathBuf,
        /// Test images.
        test: PathBuf,
    },
    /// A folder of PNG or JPEG files.
    Folder {
        /// The folder.
        path: PathBuf,
        /// Height and width that all images are resized to; they must agree without it.
        #[serde(default)]
        size: Option<[usize; 2]>,
        /// Images kept back for testing.
        held_out: usize,
    },
    /// Sequences of the copy task, drawn.
    Copy(CopyConfig),
    /// Functions drawn from Gaussian processes.
    Gp(GpConfig),
    /// Windows of the bundled time series, BasicMotions.
    SeriesSample(SeriesConfig),
    /// Windows of the time series in `.ts` files, gzipped or not.
    Series {
        /// Training series.
        train: PathBuf,
        /// Test series.
        test: PathBuf,
        /// Steps of a window.
        #[serde(default = "default_window")]
        window: usize,
        /// Steps from the start of one window to the start of the next.
        #[serde(default = "default_stride")]
        stride: usize,
        /// Whether every series is one window, whatever its length.
        #[serde(default)]
        whole: bool,
    },
    /// Interactions with wheel bandits, drawn.
    Bandit(BanditConfig),
}

fn default_window() -> usize {
    SeriesConfig::default().window
}

fn default_stride() -> usize {
    SeriesConfig::default().stride
}

impl Source {
    /// The same source by absolute paths, so that a run can be resumed and measured from anywhere.
    ///
    /// # Errors
    /// If the working directory cannot be read.
    pub fn absolute(self) -> std::io::Result<Self> {
        Ok(match self {
            Self::Sample
            | Self::Copy(_)
            | Self::Gp(_)
            | Self::SeriesSample(_)
            | Self::Bandit(_) => self,
            Self::Series {
                train,
                test,
                window,
                stride,
                whole,
            } => Self::Series {
                train: std::path::absolute(train)?,
                test: std::path::absolute(test)?,
                window,
                stride,
                whole,
            },
            Self::Idx { train, test } => Self::Idx {
                train: std::path::absolute(train)?,
                test: std::path::absolute(test)?,
            },
            Self::Folder {
                path,
                size,
                held_out,
            } => Self::Folder {
                path: std::path::absolute(path)?,
                size,
                held_out,
            },
        })
    }

    /// How time series are cut into windows, if these are time series.
    pub fn windows(&self) -> Option<SeriesConfig> {
        match *self {
            Self::SeriesSample(config) => Some(config),
            Self::Series {
                window,
                stride,
                whole,
                ..
            } => Some(SeriesConfig {
                window,
                stride,
                whole,
            }),
            _ => None,
        }
    }
}

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

    /// Tells the data from others; `None` where they are drawn as the settings say.
    fn digest(&self) -> Option<String> {
        None
    }

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
pub fn load(config: &RetrievalConfig) -> Result<Arc<dyn TaskData>> {
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
    Ok(task)
}

/// SHA-256 in hexadecimal of parts, each with its length.
fn sha256<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// A refused setting by its path in the configuration, as `--set` takes it.
fn with_path(section: &str, error: TaskError) -> anyhow::Error {
    match error {
        TaskError::Config { .. } => anyhow!("{section}.{error}"),
        _ => error.into(),
    }
}
