//! Time series in memory.

use std::path::Path;

use super::ts;
use crate::{TaskError, files};

/// One series and its class.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// `[steps, channels]`, row-major: all channels of the first step, then of the second.
    pub values: Vec<f32>,
    /// The position of its class in [`SeriesSet::classes`].
    pub class: usize,
}

/// Time series of the same channels, each with a class, in memory. Lengths may differ.
#[derive(Clone, Debug, PartialEq)]
pub struct SeriesSet {
    series: Vec<Series>,
    channels: usize,
    classes: Vec<String>,
}

impl SeriesSet {
    /// Reads a `.ts` file, the text format of the UEA and UCR archives. It may be gzip-compressed;
    /// its first bytes tell, not its name.
    ///
    /// Header lines begin with `@`, without regard to case, and end with `@data`; lines that begin
    /// with `#` or `%` are comments. Of the header, `@classLabel`, `@dimensions`, `@univariate` and
    /// `@timeStamps` are looked at; `@missing`, `@equalLength` and `@seriesLength` are not, because
    /// the rows themselves tell. Then every row is a series: `channel:channel:...:class` with the
    /// values of a channel separated by commas.
    ///
    /// # Errors
    /// - [`TaskError::Read`] and [`TaskError::File`] for files that cannot be read, are damaged or are
    ///   UTF-16
    /// - [`TaskError::SeriesFile`], with file and line, for missing and non-finite values, channels of
    ///   different lengths within a row, another number of channels than the header or the first row
    ///   has, classes that the header does not name, sets without classes (regression), series with
    ///   time stamps and files without series
    pub fn from_ts(path: impl AsRef<Path>) -> Result<Self, TaskError> {
        ts::parse(path.as_ref(), &files::read(path.as_ref())?)
    }

    /// A set of one's own series.
    ///
    /// # Errors
    /// [`TaskError::Set`] without series, classes or channels, for a series that is empty or no
    /// whole number of steps, for a class out of range and for values that are not finite.
    pub fn from_series(
        series: Vec<Series>,
        channels: usize,
        classes: Vec<String>,
    ) -> Result<Self, TaskError> {
        let refuse = |what: String, expected: String, got: &dyn ToString| {
            Err(TaskError::set("series", what, expected, got.to_string()))
        };
        for (what, count) in [
            ("series", series.len()),
            ("channels", channels),
            ("classes", classes.len()),
        ] {
            if count == 0 {
                return refuse(what.into(), "at least 1".into(), &0);
            }
        }
        for (at, one) in series.iter().enumerate() {
            let values = one.values.len();
            if values == 0 || !values.is_multiple_of(channels) {
                let expected = format!("a multiple of {channels}, at least one step");
                return refuse(format!("values of series {at}"), expected, &values);
            }
            if one.class >= classes.len() {
                let expected = format!("below {}", classes.len());
                return refuse(format!("class of series {at}"), expected, &one.class);
            }
            if let Some(position) = one.values.iter().position(|value| !value.is_finite()) {
                let (step, channel) = (position / channels, position % channels);
                let what = format!("series {at}, step {step}, channel {channel}");
                return refuse(what, "a finite value".into(), &one.values[position]);
            }
        }
        Ok(Self {
            series,
            channels,
            classes,
        })
    }

    /// The training and the test series of the bundled sample. See [`sample`](super::sample).
    #[cfg(feature = "sample")]
    pub fn bundled() -> (Self, Self) {
        super::sample::load()
    }

    /// The series, in the order of the file.
    pub fn series(&self) -> &[Series] {
        &self.series
    }

    /// How many series there are, at least 1.
    #[expect(clippy::len_without_is_empty, reason = "a set is never empty")]
    pub fn len(&self) -> usize {
        self.series.len()
    }

    /// Values per step.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// The names of the classes.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Steps of the series at `index`.
    ///
    /// # Panics
    /// If there is no such series.
    #[track_caller]
    pub fn steps(&self, index: usize) -> usize {
        self.series[index].values.len() / self.channels
    }
}
