//! Why data are refused.

use std::path::{Path, PathBuf};

/// A setting that is out of its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: expected {expected}, got {got}")]
pub struct ConfigError {
    /// The setting, as it is written in a configuration; parts of a path are separated by dots.
    pub setting: String,
    /// Expected values.
    pub expected: String,
    /// The given value.
    pub got: String,
}

/// Why data were refused. Each message names the file, setting or example, what was expected and what
/// came.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// A file or folder is missing or cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file or folder does not hold what it should: it is damaged, empty or of another format, or does
    /// not fit those read before it.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What was expected and what came.
        problem: String,
    },
    /// A line of a `.ts` file is not what it should be.
    #[error("{}:{line}: {problem}", path.display())]
    SeriesFile {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What was expected and what came. Channels and steps count from 0.
        problem: String,
    },
    /// Text is too short, or a tokenizer is invalid or refuses it.
    #[error("{0}")]
    Text(String),
    /// A setting, or another number that is given, is out of its range.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A set of images or of series contradicts itself or the set beside it, is empty or too short.
    #[error("{set} set: {what}: expected {expected}, got {got}")]
    Set {
        /// `image` or `series`.
        set: &'static str,
        /// What was looked at.
        what: String,
        /// What it should be.
        expected: String,
        /// The given value.
        got: String,
    },
    /// There is no image at this position.
    #[error("image {index}: expected an index below {count}")]
    NoSuchImage {
        /// The index asked for.
        index: usize,
        /// The number of images in the set.
        count: usize,
    },
    /// There is no example in a batch.
    #[error("a batch needs at least one example, got 0")]
    EmptyBatch,
    /// An example, or what a configuration asks for, has no context points.
    #[error("{place}: the context is empty; at least one point is needed")]
    EmptyContext {
        /// The example or the setting.
        place: String,
    },
    /// An example, or what a configuration asks for, has no target points.
    #[error("{place}: there are no targets; at least one point is needed")]
    NoTargets {
        /// The example or the setting.
        place: String,
    },
    /// The lists of an example do not fit together, or hold a value that is NaN or infinite.
    #[error("example {example}: {problem}")]
    Example {
        /// The example's position in the batch.
        example: usize,
        /// The list, what was expected of it and what came.
        problem: String,
    },
}

impl TaskError {
    /// What a file or folder cannot be read for.
    pub(crate) fn read(path: &Path) -> impl Fn(std::io::Error) -> Self + '_ {
        move |source| Self::Read {
            path: path.into(),
            source,
        }
    }

    pub(crate) fn file(path: &Path, problem: impl Into<String>) -> Self {
        Self::File {
            path: path.into(),
            problem: problem.into(),
        }
    }

    pub(crate) fn config(
        setting: impl Into<String>,
        expected: impl Into<String>,
        got: impl ToString,
    ) -> Self {
        Self::Config(ConfigError {
            setting: setting.into(),
            expected: expected.into(),
            got: got.to_string(),
        })
    }

    pub(crate) fn set(
        set: &'static str,
        what: impl Into<String>,
        expected: impl Into<String>,
        got: impl ToString,
    ) -> Self {
        Self::Set {
            set,
            what: what.into(),
            expected: expected.into(),
            got: got.to_string(),
        }
    }
}

/// Refuses a batch without examples.
pub(crate) fn check_batch(batch_size: usize) -> Result<(), TaskError> {
    match batch_size {
        0 => Err(TaskError::EmptyBatch),
        _ => Ok(()),
    }
}

/// Refuses settings without context points, or without targets.
///
/// - context, targets: the setting that says how many there are, and how many
pub(crate) fn check_points(
    context: (&str, usize),
    targets: (&str, usize),
) -> Result<(), TaskError> {
    let place = |setting: &str| format!("{setting} = 0");
    match (context, targets) {
        ((setting, 0), _) => Err(TaskError::EmptyContext {
            place: place(setting),
        }),
        (_, (setting, 0)) => Err(TaskError::NoTargets {
            place: place(setting),
        }),
        _ => Ok(()),
    }
}
