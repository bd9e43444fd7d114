//! Why a run cannot begin or go on.

use std::path::PathBuf;

use crate::ConfigError;

/// What can stop a training run or the reading of one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A setting is out of its range.
    #[error(transparent)]
    Config(#[from] ConfigError),

    /// The run folder's path is taken by something that is not a folder.
    #[error("{path}: expected a folder for the run, found a file")]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },

    /// A new run would overwrite an earlier one.
    #[error("{path}: already holds a run; resume it or choose another folder")]
    RunExists {
        /// The run folder.
        path: PathBuf,
    },

    /// Another process trains in the run folder.
    #[error("{path}: another process trains this run")]
    InUse {
        /// The run folder.
        path: PathBuf,
    },

    /// The run folder, or its file `lock`, is not the one that was claimed when the training began.
    #[error(
        "{path}: the run folder or its file lock was moved or replaced during training; the last checkpoint is intact"
    )]
    Replaced {
        /// The run folder.
        path: PathBuf,
    },

    /// There is no run or no checkpoint where one is asked for.
    #[error("{path}: no {what} here")]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },

    /// A checkpoint is damaged: truncated, altered or incomplete.
    #[error("{path}: corrupt checkpoint: {reason}")]
    Corrupt {
        /// The checkpoint folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// The log of a run ends before the step that is resumed: going on would leave a gap in
    /// the log.
    #[error(
        "{path}: its last complete line is of step {found}, before step {step} of the checkpoint"
    )]
    ShortLog {
        /// The log.
        path: PathBuf,
        /// The step of its last whole line.
        found: u64,
        /// The step of the checkpoint.
        step: u64,
    },

    /// A checkpoint is of a model with another architecture.
    #[error("{path}: checkpoint of another model: saved from {saved}, asked for {expected}")]
    OtherModel {
        /// The checkpoint folder.
        path: PathBuf,
        /// The architecture fingerprint in the checkpoint.
        saved: String,
        /// The architecture fingerprint of the model at hand.
        expected: String,
    },

    /// The architecture fingerprints agree and yet the parameters do not fit.
    #[error("{path}: the checkpoint does not fit the model: {reason}")]
    Incompatible {
        /// The checkpoint folder.
        path: PathBuf,
        /// burn's account of what does not fit.
        reason: String,
    },

    /// A run is resumed with a setting that would change its numbers.
    #[error("{path}: resumed with another {setting}: the run has {saved}, asked for {asked}")]
    OtherSettings {
        /// The checkpoint folder.
        path: PathBuf,
        /// The setting.
        setting: String,
        /// Its value in the checkpoint.
        saved: String,
        /// Its value in the configuration at hand.
        asked: String,
    },

    /// A checkpoint was written by a newer version of this crate.
    #[error("{path}: checkpoint format {found} is newer than {supported}, the newest known here")]
    NewerFormat {
        /// The checkpoint folder.
        path: PathBuf,
        /// The format of the checkpoint.
        found: u64,
        /// The newest format that this version reads.
        supported: u64,
    },

    /// The loss, that of an evaluation, the gradient norm or a parameter that was to be saved is NaN or infinite. The
    /// newest checkpoint is from before that.
    #[error("step {step}: {what} is {value}")]
    NonFinite {
        /// The step, the first being 1.
        step: u64,
        /// What is not finite.
        what: &'static str,
        /// Its value.
        value: f32,
    },

    /// A batch could not be made.
    #[error("cannot make {batch}: {source}")]
    Source {
        /// Which batch.
        batch: String,
        /// The source's own error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// A file or folder could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },

    /// The handler of Ctrl-C could not be installed.
    #[error("cannot watch for Ctrl-C: {0}")]
    Signal(#[from] ctrlc::Error),

    /// burn's trainer or the device failed.
    #[error("training failed: {0}")]
    Device(String),
}

impl TrainError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// [`io`](Self::io) for errors of other libraries.
    pub(crate) fn other_io<E: std::error::Error + Send + Sync + 'static>(
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        let io = Self::io(path);
        |error| io(std::io::Error::other(error))
    }
}
