//! The `.ts` text format of the UEA and UCR archives. See [`SeriesSet::from_ts`].

use std::path::Path;

use super::{Series, SeriesSet};
use crate::{TaskError, files};

/// What is wrong with a line of a `.ts` file. Channels and steps count from 0.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SeriesProblem {
    /// The line is not UTF-8.
    #[error("not text: the line is not UTF-8")]
    NotText,
    /// There is a row before the line `@data`.
    #[error("expected `@data` before the first series")]
    RowBeforeData,
    /// There is a header line after the line `@data`.
    #[error("expected a series after `@data`, got the header line `{text}`")]
    HeaderInData {
        /// The line.
        text: String,
    },
    /// A header line has a value that it cannot have.
    #[error("{key}: expected {expected}, got `{got}`")]
    Header {
        /// The key, as in the archives' own files.
        key: &'static str,
        /// What the reader takes.
        expected: &'static str,
        /// The text found.
        got: String,
    },
    /// No header line names classes: a set for regression or clustering.
    #[error("there are no classes: expected a header line `@classLabel true` and their names")]
    NoClasses,
    /// The file ends without a series.
    #[error("there are no series: expected `@data` and at least one row")]
    NoSeries,
    /// A value is missing: `?` or `NaN`.
    #[error("channel {channel}, step {step}: the value is missing (`{text}`)")]
    MissingValue {
        /// The channel.
        channel: usize,
        /// The step.
        step: usize,
        /// The text found.
        text: String,
    },
    /// A value is infinite, or so in 32 bits.
    #[error("channel {channel}, step {step}: `{text}` is not finite in 32 bits")]
    NonFinite {
        /// The channel.
        channel: usize,
        /// The step.
        step: usize,
        /// The text found.
        text: String,
    },
    /// A value is no number.
    #[error("channel {channel}, step {step}: expected a number, got `{text}`")]
    NotANumber {
        /// The channel.
        channel: usize,
        /// The step.
        step: usize,
        /// The text found.
        text: String,
    },
    /// A channel is longer or shorter than the first one of its row.
    #[error("channel {channel}: expected {expected} steps as in channel 0, got {got}")]
    RaggedChannels {
        /// The channel.
        channel: usize,
        /// Steps of channel 0.
        expected: usize,
        /// Steps of this channel.
        got: usize,
    },
    /// A row has another number of channels than the header or the first row says.
    #[error("expected {expected} channels and a class, got {got} channels")]
    ChannelCount {
        /// Channels of the header or the first row, at least 1.
        expected: usize,
        /// Channels of this row.
        got: usize,
    },
    /// The header does not name the class of a row.
    #[error("expected one of the classes {}, got `{got}`", expected.join(", "))]
    UnknownClass {
        /// The classes of the header.
        expected: Vec<String>,
        /// The class of the row.
        got: String,
    },
}

/// The set in the bytes of a file. `path` is for messages.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<SeriesSet, TaskError> {
    let bytes = files::without_mark(path, bytes)?;
    let mut reader = Reader::default();
    let mut last = 1;
    for (line, text) in (1..).zip(bytes.split(|&byte| byte == b'\n')) {
        if !text.is_empty() {
            last = line;
        }
        reader.line(text).map_err(|problem| TaskError::SeriesFile {
            path: path.into(),
            line,
            problem,
        })?;
    }
    if reader.series.is_empty() {
        return Err(TaskError::SeriesFile {
            path: path.into(),
            line: last,
            problem: SeriesProblem::NoSeries,
        });
    }
    SeriesSet::from_series(reader.series, reader.channels.unwrap_or(0), reader.classes)
}

#[derive(Default)]
struct Reader {
    in_data: bool,
    channels: Option<usize>,
    classes: Vec<String>,
    series: Vec<Series>,
}

impl Reader {
    fn line(&mut self, bytes: &[u8]) -> Result<(), SeriesProblem> {
        // Comments come in whatever encoding their author had.
        let bytes = bytes.trim_ascii();
        if bytes.is_empty() || bytes[0] == b'#' || bytes[0] == b'%' {
            return Ok(());
        }
        let text = str::from_utf8(bytes).map_err(|_| SeriesProblem::NotText)?;
        match text.strip_prefix('@') {
            Some(header) if !self.in_data => self.header(header),
            Some(_) => Err(SeriesProblem::HeaderInData { text: text.into() }),
            None if self.in_data => self.row(text),
            None => Err(SeriesProblem::RowBeforeData),
        }
    }

    fn header(&mut self, header: &str) -> Result<(), SeriesProblem> {
        let mut words = header.split_whitespace();
        let key = words.next().unwrap_or_default().to_ascii_lowercase();
        let value = words.next().unwrap_or_default();
        let refuse = |key, expected| {
            Err(SeriesProblem::Header {
                key,
                expected,
                got: value.into(),
            })
        };
        let truth = value.to_ascii_lowercase();
        match (key.as_str(), truth.as_str()) {
            ("data", _) if self.classes.is_empty() => return Err(SeriesProblem::NoClasses),
            ("data", _) => self.in_data = true,
            ("timestamps", "false") | ("univariate", "false") | ("classlabel", "false") => {}
            ("timestamps", _) => return refuse("@timeStamps", "false: values without time stamps"),
            ("univariate", "true") => self.channels = Some(1),
            ("univariate", _) => return refuse("@univariate", "true or false"),
            ("dimensions" | "dimension", _) => match value.parse() {
                Ok(channels) if channels > 0 => self.channels = Some(channels),
                _ => return refuse("@dimensions", "a number above 0"),
            },
            ("classlabel", "true") => {
                self.classes = words.map(str::to_string).collect();
                for (at, class) in self.classes.iter().enumerate() {
                    if self.classes[..at].contains(class) {
                        return Err(SeriesProblem::Header {
                            key: "@classLabel",
                            expected: "each class once",
                            got: class.clone(),
                        });
                    }
                }
            }
            ("classlabel", _) => return refuse("@classLabel", "true or false"),
            _ => {}
        }
        Ok(())
    }

    fn row(&mut self, text: &str) -> Result<(), SeriesProblem> {
        let (channels, class) = text.rsplit_once(':').unwrap_or(("", text));
        let count = match channels {
            "" => 0,
            _ => channels.split(':').count(),
        };
        let expected = self.channels.unwrap_or(count.max(1));
        if count != expected {
            return Err(SeriesProblem::ChannelCount {
                expected,
                got: count,
            });
        }
        self.channels = Some(expected);

        let steps_of = |channel: &str| channel.split(',').count();
        let steps = channels.split(':').next().map_or(0, steps_of);
        let mut values = vec![0.0; steps * count];
        for (channel, list) in channels.split(':').enumerate() {
            let got = steps_of(list);
            if got != steps {
                return Err(SeriesProblem::RaggedChannels {
                    channel,
                    expected: steps,
                    got,
                });
            }
            for (step, text) in list.split(',').enumerate() {
                values[step * count + channel] = number(text.trim(), channel, step)?;
            }
        }
        let class = class.trim();
        let Some(class) = self.classes.iter().position(|known| known == class) else {
            return Err(SeriesProblem::UnknownClass {
                expected: self.classes.clone(),
                got: class.into(),
            });
        };
        self.series.push(Series { values, class });
        Ok(())
    }
}

fn number(text: &str, channel: usize, step: usize) -> Result<f32, SeriesProblem> {
    let parsed = text.parse::<f32>();
    if let Ok(value) = parsed
        && value.is_finite()
    {
        return Ok(value);
    }
    let got = text;
    let text = got.to_string();
    Err(match parsed {
        Ok(value) if !value.is_nan() => SeriesProblem::NonFinite {
            channel,
            step,
            text,
        },
        Err(_) if got != "?" => SeriesProblem::NotANumber {
            channel,
            step,
            text,
        },
        _ => SeriesProblem::MissingValue {
            channel,
            step,
            text,
        },
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const HEADER: &str = "# a comment\n@problemName Toy\n@timestamps false\n@missing false\n\
                          @univariate false\n@dimensions 2\n@equalLength false\n\
                          @classLabel true left right\n@data\n";

    fn read(text: &[u8]) -> Result<SeriesSet, TaskError> {
        parse(Path::new("toy.ts"), text)
    }

    fn rows(rows: &str) -> Result<SeriesSet, TaskError> {
        read(format!("{HEADER}{rows}").as_bytes())
    }

    fn message(result: Result<SeriesSet, TaskError>) -> String {
        result.unwrap_err().to_string()
    }

    /// What is read and what is said of it, a line each.
    fn table(cases: &str) -> impl Iterator<Item = (&str, &str)> {
        cases
            .lines()
            .map(|case| case.trim().split_once(" => ").unwrap())
    }

    #[test]
    fn series_of_different_lengths_are_read_step_by_step() {
        let set = rows("1, 2,3:4,5,-6.5e-1:right\r\n\n7:8: left \n").unwrap();
        assert_eq!((set.len(), set.channels()), (2, 2));
        assert_eq!(set.classes(), ["left", "right"]);
        assert_eq!(set.series()[0].values, [1.0, 4.0, 2.0, 5.0, 3.0, -0.65]);
        assert_eq!(set.series()[0].class, 1);
        assert_eq!(set.series()[1].values, [7.0, 8.0]);
        assert_eq!(set.series()[1].class, 0);
        assert_eq!((set.steps(0), set.steps(1)), (3, 1));
    }

    #[test]
    fn files_with_and_without_gzip_read_alike_and_missing_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let text = format!("{HEADER}1,2:3,4:left\n");
        let (plain, packed) = (folder.path().join("a.ts"), folder.path().join("a.ts.gz"));
        std::fs::write(&plain, &text).unwrap();
        let file = std::fs::File::create(&packed).unwrap();
        let mut encoder = flate2::write::GzEncoder::new(file, flate2::Compression::default());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap();
        let set = SeriesSet::from_ts(&plain).unwrap();
        assert_eq!(set, SeriesSet::from_ts(&packed).unwrap());
        let absent = folder.path().join("absent.ts");
        assert!(matches!(
            SeriesSet::from_ts(&absent).unwrap_err(),
            TaskError::Read { path, .. } if path == absent
        ));
    }

    #[test]
    fn comments_need_not_be_text_but_rows_do() {
        let header = HEADER.replace("a comment", "caf");
        let text = |row: &[u8]| [b"#caf\xe9\n", header.as_bytes(), row].concat();
        assert_eq!(read(&text(b"1:2:left")).unwrap().len(), 1);
        assert_eq!(
            message(read(&text(b"1:2:lef\xe9"))),
            "toy.ts:11: not text: the line is not UTF-8"
        );
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_header() {
        let text = "@classLabel true left\n@data\n1:2:left\n";
        let marked = format!("\u{feff}{text}");
        assert_eq!(
            read(marked.as_bytes()).unwrap(),
            read(text.as_bytes()).unwrap()
        );
        assert_eq!(
            message(read("\u{feff}1:2:left".as_bytes())),
            "toy.ts:1: expected `@data` before the first series"
        );
        assert!(message(read(b"\xff\xfe@\0")).contains("toy.ts: expected UTF-8 text, got UTF-16"));
    }

    #[test]
    fn a_header_without_dimensions_takes_them_from_the_first_row() {
        let header = "@classLabel true a\n@data\n";
        let set = read(format!("{header}1:2:3:a").as_bytes()).unwrap();
        assert_eq!(set.channels(), 3);
        assert_eq!(
            message(read(format!("{header}1:2:3:a\n1:2:a").as_bytes())),
            "toy.ts:4: expected 3 channels and a class, got 2 channels"
        );
        assert_eq!(
            message(read(format!("@univariate true\n{header}1:2:a").as_bytes())),
            "toy.ts:4: expected 1 channels and a class, got 2 channels"
        );
    }

    #[test]
    fn damaged_rows_are_refused_with_their_line() {
        let good = "1,2:3,4:left\n";
        let cases = "\
            1,?:3,4:left => channel 0, step 1: the value is missing (`?`)
            1,2:NaN,4:left => channel 1, step 0: the value is missing (`NaN`)
            1,inf:3,4:left => channel 0, step 1: `inf` is not finite in 32 bits
            1,2:3,1e39:left => channel 1, step 1: `1e39` is not finite in 32 bits
            1,two:3,4:left => channel 0, step 1: expected a number, got `two`
            1,:3,4:left => channel 0, step 1: expected a number, got ``
            1,2:3:left => channel 1: expected 2 steps as in channel 0, got 1
            1,2:left => expected 2 channels and a class, got 1 channels
            1,2:3,4:5,6:left => expected 2 channels and a class, got 3 channels
            left => expected 2 channels and a class, got 0 channels
            1,2:3,4:up => expected one of the classes left, right, got `up`
            1,2:3,4: => expected one of the classes left, right, got ``
            @data => expected a series after `@data`, got the header line `@data`";
        for (row, expected) in table(cases) {
            assert_eq!(
                message(rows(&format!("{good}{row}\n{good}"))),
                format!("toy.ts:11: {expected}"),
            );
        }
    }

    #[test]
    fn sets_without_classes_or_series_are_refused() {
        let none =
            "there are no classes: expected a header line `@classLabel true` and their names";
        for header in ["@targetlabel true", "@classLabel false", "@classLabel true"] {
            assert_eq!(
                message(read(format!("{header}\n@data\n1:2\n").as_bytes())),
                format!("toy.ts:2: {none}")
            );
        }
        let empty = "there are no series: expected `@data` and at least one row";
        assert_eq!(message(read(b"")), format!("toy.ts:1: {empty}"));
        assert_eq!(message(rows("")), format!("toy.ts:9: {empty}"));
        assert_eq!(
            message(read(b"@classLabel true a\n1:a\n")),
            "toy.ts:2: expected `@data` before the first series"
        );
    }

    #[test]
    fn headers_that_mean_something_else_are_refused() {
        let cases = "\
            @timeStamps true => @timeStamps: expected false: values without time stamps, got `true`
            @dimensions 0 => @dimensions: expected a number above 0, got `0`
            @univariate maybe => @univariate: expected true or false, got `maybe`
            @classLabel true a b a => @classLabel: expected each class once, got `a`";
        for (header, expected) in table(cases) {
            let got = message(read(header.as_bytes()));
            assert_eq!(got, format!("toy.ts:1: {expected}"));
        }
    }
}
