//! From settings to problems: one function per kind of data, one result for all.

mod generated;
mod images;
mod problem;
mod series;

pub use images::ImageTask;
pub use problem::Problem;

use super::{RetrievalConfig, RetrievalTask};
use crate::families::kept::Provenance;
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

/// Where the data of a task come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Source {
    /// The bundled sample of Fashion-MNIST.
    Sample,
    /// IDX files, gzipped or not.
    Idx { train: PathBuf, test: PathBuf },
    /// A folder of PNG or JPEG files.
    Folder {
        path: PathBuf,
        /// Height and width that all images are resized to; they must agree without it.
        #[serde(default)]
        size: Option<[usize; 2]>,
        /// 1 (grey) or 3 (red, green and blue); without it, as many as the first image has.
        #[serde(default)]
        channels: Option<usize>,
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
        train: PathBuf,
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
    /// What is learned from it.
    pub fn task(&self) -> RetrievalTask {
        match self {
            Self::Sample | Self::Idx { .. } | Self::Folder { .. } => RetrievalTask::Images,
            Self::Copy(_) => RetrievalTask::Copy,
            Self::Gp(_) => RetrievalTask::Gp,
            Self::SeriesSample(_) | Self::Series { .. } => RetrievalTask::Series,
            Self::Bandit(_) => RetrievalTask::Bandit,
        }
    }

    /// Checks what can be checked without reading anything.
    pub fn check(&self) -> Result<(), TaskError> {
        match self {
            Self::Copy(copy) => copy.check(),
            Self::Gp(gp) => gp.check(),
            Self::Bandit(bandit) => bandit.check(),
            other => other.windows().map_or(Ok(()), |windows| windows.check()),
        }
    }

    /// The same source by absolute paths.
    pub fn absolute(mut self) -> std::io::Result<Self> {
        let paths = match &mut self {
            Self::Series { train, test, .. } | Self::Idx { train, test } => vec![train, test],
            Self::Folder { path, .. } => vec![path],
            _ => Vec::new(),
        };
        for path in paths {
            *path = std::path::absolute(&*path)?;
        }
        Ok(self)
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
    pub head: HeadKind,
    pub embedding: EmbeddingKind,
    /// The most context tokens that a problem has.
    pub most_tokens: usize,
}

/// Training and evaluation problems of one task.
pub struct TaskData {
    pub features: Features,
    /// What an item is, in the plural.
    pub items: &'static str,
    /// Items in the evaluation set, `None` where they are generated without end.
    pub count: Option<usize>,
    /// Tells the data from others; `None` where they are drawn as the settings say.
    pub provenance: Option<DataProvenance>,
    /// What was done to the data on their way here, where that is not plain from the settings.
    pub data_summary: Option<String>,
    /// Whether a problem says which token answers a query.
    pub knows_answers: bool,
    pub images: Option<ImageTask>,
    /// The problem of a training step, a pure function of seed and step: seed, step, batch size, device.
    pub training: Training,
    /// The fixed evaluation problems: batches, batch size, device.
    pub evaluation: Evaluation,
}

impl TaskData {
    /// Those of points that are drawn without end.
    fn new(
        items: &'static str,
        features: Features,
        training: Training,
        evaluation: Evaluation,
    ) -> Self {
        Self {
            features,
            items,
            count: None,
            provenance: None,
            data_summary: None,
            knows_answers: false,
            images: None,
            training,
            evaluation,
        }
    }
}

/// Data of files, told from others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataProvenance {
    /// Of all that is read of them.
    pub sha256: String,
    pub training: usize,
    pub test: usize,
}

impl std::fmt::Display for DataProvenance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (training, test) = (self.training, self.test);
        write!(f, "{training} items to train on and {test} to measure on ")?;
        write!(f, "with SHA-256 {:.12}…", self.sha256)
    }
}

impl Provenance for DataProvenance {
    const FILE: &'static str = "data.json";
    const WHAT: &'static str = "data";

    fn change(&self, now: &Self) -> Option<String> {
        (self != now).then(|| format!("data have changed: had {self}, now {now}"))
    }
}

/// See [`TaskData::training`].
pub type Training =
    Box<dyn Fn(u64, u64, usize, &Device) -> Result<Problem, TaskError> + Send + Sync>;
/// See [`TaskData::evaluation`].
pub type Evaluation =
    Box<dyn Fn(usize, usize, &Device) -> Result<Vec<Problem>, TaskError> + Send + Sync>;

/// Loads the data that a configuration names.
pub fn load(config: &RetrievalConfig) -> Result<TaskData> {
    let std = config.architecture.std;
    match &config.data {
        Source::Sample | Source::Idx { .. } | Source::Folder { .. } => {
            Ok(ImageTask::load(config)?.into_data(std))
        }
        Source::Copy(copy) => generated::copy(*copy),
        Source::Gp(gp) => generated::gp(*gp, std),
        Source::SeriesSample(_) | Source::Series { .. } => series::load(&config.data),
        Source::Bandit(bandit) => generated::bandit(*bandit, std),
    }
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
        TaskError::Config(_) => anyhow!("{section}.{error}"),
        _ => error.into(),
    }
}
