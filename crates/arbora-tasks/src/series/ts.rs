//! The `.ts` text format of the UEA and UCR archives. See [`SeriesSet::from_ts`].

use std::path::Path;

use super::{Series, SeriesSet};
use crate::{TaskError, files};

/// The set in the bytes of a file. `path` is for messages.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<SeriesSet, TaskError> {
    let refuse = |line, problem| TaskError::SeriesFile {
        path: path.into(),
        line,
        problem,
    };
    let bytes = files::without_mark(path, bytes)?;
    let mut reader = Reader::default();
    let mut last = 1;
    for (line, text) in (1..).zip(bytes.split(|&byte| byte == b'\n')) {
        if !text.is_empty() {
            last = line;
        }
        reader.line(text).map_err(|problem| refuse(line, problem))?;
    }
    if reader.series.is_empty() {
        let problem = "there are no series: expected `@data` and at least one row";
        return Err(refuse(last, problem.into()));
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
    /// Takes in a line, or says what is wrong with it.
    fn line(&mut self, bytes: &[u8]) -> Result<(), String> {
        // Comments come in whatever encoding their author had.
        let bytes = bytes.trim_ascii();
        if bytes.is_empty() || bytes[0] == b'#' || bytes[0] == b'%' {
            return Ok(());
        }
        let text = str::from_utf8(bytes).map_err(|_| "not text: the line is not UTF-8")?;
        match text.strip_prefix('@') {
            Some(header) if !self.in_data => self.header(header),
            Some(_) => Err(format!(
                "expected a series after `@data`, got the header line `{text}`"
            )),
            None if self.in_data => self.row(text),
            None => Err("expected `@data` before the first series".into()),
        }
    }

    fn header(&mut self, header: &str) -> Result<(), String> {
        let mut words = header.split_whitespace();
        let key = words.next().unwrap_or_default().to_ascii_lowercase();
        let value = words.next().unwrap_or_default();
        let refuse =
            |key, expected, got: &str| Err(format!("{key}: expected {expected}, got `{got}`"));
        let truth = value.to_ascii_lowercase();
        match (key.as_str(), truth.as_str()) {
            ("data", _) if self.classes.is_empty() => {
                return Err(
                    "there are no classes: expected a header line `@classLabel true` and their names"
                        .into(),
                );
            }
            ("data", _) => self.in_data = true,
            ("timestamps", "false") | ("univariate", "false") | ("classlabel", "false") => {}
            ("timestamps", _) => {
                return refuse("@timeStamps", "false: values without time stamps", value);
            }
            ("univariate", "true") => self.channels = Some(1),
            ("univariate", _) => return refuse("@univariate", "true or false", value),
            ("dimensions" | "dimension", _) => match value.parse() {
                Ok(channels) if channels > 0 => self.channels = Some(channels),
                _ => return refuse("@dimensions", "a number above 0", value),
            },
            ("classlabel", "true") => {
                self.classes = words.map(str::to_string).collect();
                for (at, class) in self.classes.iter().enumerate() {
                    if self.classes[..at].contains(class) {
                        return refuse("@classLabel", "each class once", class);
                    }
                }
            }
            ("classlabel", _) => return refuse("@classLabel", "true or false", value),
            _ => {}
        }
        Ok(())
    }

    fn row(&mut self, text: &str) -> Result<(), String> {
        let (channels, class) = text.rsplit_once(':').unwrap_or(("", text));
        let count = match channels {
            "" => 0,
            _ => channels.split(':').count(),
        };
        let expected = self.channels.unwrap_or(count.max(1));
        if count != expected {
            return Err(format!(
                "expected {expected} channels and a class, got {count} channels"
            ));
        }
        self.channels = Some(expected);

        let steps_of = |channel: &str| channel.split(',').count();
        let steps = channels.split(':').next().map_or(0, steps_of);
        let mut values = vec![0.0; steps * count];
        for (channel, list) in channels.split(':').enumerate() {
            let got = steps_of(list);
            if got != steps {
                return Err(format!(
                    "channel {channel}: expected {steps} steps as in channel 0, got {got}"
                ));
            }
            for (step, text) in list.split(',').enumerate() {
                let value = number(text.trim());
                values[step * count + channel] = value
                    .map_err(|problem| format!("channel {channel}, step {step}: {problem}"))?;
            }
        }
        let class = class.trim();
        let Some(class) = self.classes.iter().position(|known| known == class) else {
            let classes = self.classes.join(", ");
            return Err(format!(
                "expected one of the classes {classes}, got `{class}`"
            ));
        };
        self.series.push(Series { values, class });
        Ok(())
    }
}

fn number(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if value.is_finite() => Ok(value),
        Ok(value) if !value.is_nan() => Err(format!("`{text}` is not finite in 32 bits")),
        Err(_) if text != "?" => Err(format!("expected a number, got `{text}`")),
        _ => Err(format!("the value is missing (`{text}`)")),
    }
}
