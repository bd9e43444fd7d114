//! What can be wrong with data.

use std::path::{Path, PathBuf};

use crate::series::SeriesProblem;
use crate::text::TextError;

/// A setting that is out of its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: expected {expected}, got {got}")]
pub struct ConfigError {
    /// The setting, as it is written in a configuration.
    pub setting: &'static str,
    /// What it may be.
    pub expected: String,
    /// What it is.
    pub got: String,
}

/// Why data was refused. Each message names the file, key or example, what was expected and what
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
    /// A gzip stream is truncated or corrupt.
    #[error("{}: the gzip stream is damaged: {source}", path.display())]
    Gzip {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        source: std::io::Error,
    },
    /// A gzip stream unpacks to much more than its own size.
    #[error("{}: the gzip stream unpacks to more than {most} bytes; unpack the file by hand if that is meant", path.display())]
    GzipSize {
        /// The file.
        path: PathBuf,
        /// The most bytes for a stream of this size.
        most: u64,
    },
    /// A file does not begin as an IDX file does.
    #[error("{}: not an IDX file: expected it to begin with the bytes 00 00, got {got}", path.display())]
    Magic {
        /// The file.
        path: PathBuf,
        /// The first bytes, in hexadecimal.
        got: String,
    },
    /// An IDX file holds elements other than unsigned bytes.
    #[error(
        "{}: expected IDX element type 0x08 (unsigned byte), got 0x{got:02x}", path.display()
    )]
    ElementType {
        /// The file.
        path: PathBuf,
        /// The type byte of the header.
        got: u8,
    },
    /// An IDX file has another number of axes: labels given as images, or the reverse.
    #[error("{}: expected {expected} axes ({axes}), got {got}", path.display())]
    Rank {
        /// The file.
        path: PathBuf,
        /// How many axes the reader wants.
        expected: usize,
        /// Their names.
        axes: &'static str,
        /// How many the header announces.
        got: usize,
    },
    /// An axis of a file of images has length 0: there are no images, or no pixels in them.
    #[error("{}: the axis {axis} has length 0", path.display())]
    EmptyAxis {
        /// The file.
        path: PathBuf,
        /// `count`, `height` or `width`.
        axis: &'static str,
    },
    /// A file is longer or shorter than its header says, or ends inside the header.
    #[error("{}: expected {expected} bytes, got {got}", path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// Bytes that the header promises, after decompression.
        expected: u128,
        /// Bytes found.
        got: usize,
    },
    /// There are not as many labels as images.
    #[error("{}: expected {expected} labels, one for each image, got {got}", path.display())]
    LabelCount {
        /// The file of labels.
        path: PathBuf,
        /// The number of images.
        expected: usize,
        /// The number of labels.
        got: usize,
    },
    /// An image file is truncated, corrupt or of another type than its name says.
    #[error("{}: not a readable PNG or JPEG image: {source}", path.display())]
    ImageFile {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        source: image::ImageError,
    },
    /// An image has more pixels than are read.
    #[error(
        "{}: expected an image of at most {most} bytes, got {}x{} pixels (height x width), {bytes} bytes",
        path.display(), got[0], got[1]
    )]
    ImageTooLarge {
        /// The file.
        path: PathBuf,
        /// Height and width.
        got: [usize; 2],
        /// Bytes of its pixels.
        bytes: u64,
        /// The most that are read.
        most: u64,
    },
    /// A folder holds no PNG or JPEG file.
    #[error("{}: expected PNG or JPEG files in this folder, found none", path.display())]
    NoImages {
        /// The folder.
        path: PathBuf,
    },
    /// An image of a folder has another size than the first one.
    #[error(
        "{}: expected {}x{} pixels (height x width) as in the first file, got {}x{}; give a size to resize to",
        path.display(), expected[0], expected[1], got[0], got[1]
    )]
    ImageSize {
        /// The file.
        path: PathBuf,
        /// Height and width of the first file.
        expected: [usize; 2],
        /// Height and width of this one.
        got: [usize; 2],
    },
    /// A set of images contradicts itself or the set beside it, or is empty.
    #[error("image set: {what}: expected {expected}, got {got}")]
    ImageSet {
        /// What was looked at.
        what: &'static str,
        /// What it should be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// A setting is out of its range.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A number that is given is out of its range.
    #[error("{key}: expected {expected}, got {got}")]
    Number {
        /// What it is for.
        key: &'static str,
        /// The range it should be in.
        expected: String,
        /// Its value.
        got: String,
    },
    /// An example, or what a configuration asks for, has no context points.
    #[error("{place}: the context is empty; at least one point is needed")]
    EmptyContext {
        /// The example or the configuration key.
        place: String,
    },
    /// An example, or what a configuration asks for, has no target points.
    #[error("{place}: there are no targets; at least one point is needed")]
    NoTargets {
        /// The example or the configuration key.
        place: String,
    },
    /// There is no example in a batch.
    #[error("a batch needs at least one example, got 0")]
    EmptyBatch,
    /// A value is NaN or infinite.
    #[error("example {example}: {part}[{position}] is {value}; every value must be finite")]
    NonFinite {
        /// The example's position in the batch.
        example: usize,
        /// `context_x`, `context_y`, `target_x` or `target_y`.
        part: &'static str,
        /// The position in that list.
        position: usize,
        /// The value.
        value: f32,
    },
    /// The lengths of an example's lists do not fit together.
    #[error("example {example}: {part}: expected {expected} values, got {got}")]
    DimensionMismatch {
        /// The example's position in the batch.
        example: usize,
        /// `context_x`, `context_y`, `target_x` or `target_y`.
        part: &'static str,
        /// How many values there should be.
        expected: String,
        /// How many there are.
        got: usize,
    },
    /// There is no image at this position.
    #[error("image {index}: expected an index below {count}")]
    NoSuchImage {
        /// The index asked for.
        index: usize,
        /// The number of images in the set.
        count: usize,
    },
    /// A line of a `.ts` file is not what it should be.
    #[error("{}:{line}: {problem}", path.display())]
    SeriesFile {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        problem: SeriesProblem,
    },
    /// A set of series contradicts itself or the set beside it, or is empty.
    #[error("series set: {what}: expected {expected}, got {got}")]
    SeriesSet {
        /// What was looked at.
        what: String,
        /// What it should be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// A series is too short to cut a window from.
    #[error(
        "series {index} of the {set} set: expected at least {window} steps, the window, got {steps}"
    )]
    ShortSeries {
        /// `training` or `test`.
        set: &'static str,
        /// The series, from 0.
        index: usize,
        /// Its steps.
        steps: usize,
        /// The steps of a window.
        window: usize,
    },
    /// Text or a tokenizer is not what it should be.
    #[error(transparent)]
    Text(#[from] TextError),
}

impl TaskError {
    /// What a file or folder cannot be read for.
    pub(crate) fn read(path: &Path) -> impl Fn(std::io::Error) -> Self + '_ {
        move |source| Self::Read {
            path: path.into(),
            source,
        }
    }

    pub(crate) fn config(key: &'static str, expected: impl Into<String>, got: usize) -> Self {
        Self::Config(ConfigError {
            setting: key,
            expected: expected.into(),
            got: got.to_string(),
        })
    }

    pub(crate) fn series_set(what: impl Into<String>, expected: String, got: String) -> Self {
        Self::SeriesSet {
            what: what.into(),
            expected,
            got,
        }
    }

    /// - key: of the number of context points, which is 0
    pub(crate) fn empty_context(key: &str) -> Self {
        let place = format!("{key} = 0");
        Self::EmptyContext { place }
    }

    /// - key: of the number of targets, which is 0
    pub(crate) fn no_targets(key: &str) -> Self {
        let place = format!("{key} = 0");
        Self::NoTargets { place }
    }
}

/// Refuses a batch without examples.
pub(crate) fn check_batch(batch_size: usize) -> Result<(), TaskError> {
    match batch_size {
        0 => Err(TaskError::EmptyBatch),
        _ => Ok(()),
    }
}
