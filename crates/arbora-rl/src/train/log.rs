//! The run folder's line-by-line logs.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::TrainError;
use super::checkpoint::write_through;

/// One line of a log. Training numbers are single precision and print as such.
struct Line<'a, T> {
    step: u64,
    split: &'static str,
    learning_rate: Option<f64>,
    numbers: &'a [(String, T)],
}

impl<T: Serialize> Serialize for Line<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("step", &self.step)?;
        map.serialize_entry("split", self.split)?;
        // JSON has no NaN: serde_json writes null for it.
        for (name, value) in self.numbers {
            map.serialize_entry(name, value)?;
        }
        if let Some(rate) = self.learning_rate {
            map.serialize_entry("learning_rate", &rate)?;
        }
        map.end()
    }
}

#[derive(Deserialize)]
struct StepOnly {
    step: u64,
}

/// A file of lines, written through line by line.
pub(crate) struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Opens `path` with its lines up to `step` and nothing after them.
    ///
    /// Lines after `step`, and a last line that a kill tore, are dropped by writing the rest beside
    /// and renaming. Without a file an empty one is made.
    pub(crate) fn open(path: &Path, step: u64) -> Result<Self, TrainError> {
        let old = read(path)?;
        let kept = kept_length(&old, step).0;
        if kept < old.len() {
            let beside = path.with_extension("jsonl.tmp");
            write_through(&beside, &old[..kept])?;
            fs::rename(&beside, path).map_err(TrainError::io(path))?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path);
        Ok(Self {
            path: path.into(),
            file: file.map_err(TrainError::io(path))?,
        })
    }

    /// Checks that the lines of a log reach `step`, before anything of it is dropped.
    pub(crate) fn expect_step(path: &Path, step: u64) -> Result<(), TrainError> {
        match kept_length(&read(path)?, step).1 {
            found if found < step => Err(TrainError::ShortLog {
                path: path.into(),
                found,
                step,
            }),
            _ => Ok(()),
        }
    }

    /// Appends a line. It has reached the operating system when this returns, so a killed process
    /// loses nothing.
    pub(crate) fn append(
        &mut self,
        step: u64,
        split: &'static str,
        numbers: &[(String, impl Serialize)],
        learning_rate: Option<f64>,
    ) -> Result<(), TrainError> {
        let line = Line {
            step,
            split,
            learning_rate,
            numbers,
        };
        let mut text = serde_json::to_vec(&line).map_err(TrainError::other_io(&self.path))?;
        text.push(b'\n');
        self.file
            .write_all(&text)
            .map_err(TrainError::io(&self.path))
    }

    /// Waits until all lines are on the disk.
    pub(crate) fn sync(&self) -> Result<(), TrainError> {
        self.file.sync_data().map_err(TrainError::io(&self.path))
    }
}

/// The bytes of a log, none where there is no file.
fn read(path: &Path) -> Result<Vec<u8>, TrainError> {
    match fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        read => read.map_err(TrainError::io(path)),
    }
}

/// The length of the whole lines whose step is at most `step`, up to the first that is not, and the
/// step of the last of them (0 without lines).
fn kept_length(bytes: &[u8], step: u64) -> (usize, u64) {
    let (mut kept, mut last) = (0, 0);
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let whole = line.ends_with(b"\n");
        match serde_json::from_slice::<StepOnly>(line) {
            Ok(parsed) if whole && parsed.step <= step => {
                kept += line.len();
                last = parsed.step;
            }
            _ => break,
        }
    }
    (kept, last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_after_the_step_and_torn_lines_are_dropped() {
        let text = b"{\"step\":1,\"loss\":0.5}\n{\"step\":2,\"loss\":0.25}\n{\"step\":3,\"lo";
        let first = b"{\"step\":1,\"loss\":0.5}\n".len();
        let second = first + b"{\"step\":2,\"loss\":0.25}\n".len();
        assert_eq!(kept_length(text, 0).0, 0);
        assert_eq!(kept_length(text, 1), (first, 1));
        assert_eq!(kept_length(text, 2), (second, 2));
        assert_eq!(kept_length(text, 9), (second, 2));
        // A line without its end is torn even where it parses.
        assert_eq!(kept_length(b"{\"step\":1}", 9), (0, 0));
    }

    #[test]
    fn numbers_print_in_their_own_precision_and_in_order() {
        let numbers = [("loss".to_string(), 0.1f32), ("a".to_string(), f32::NAN)];
        let line = Line {
            step: 7,
            split: "train",
            learning_rate: Some(5e-4),
            numbers: &numbers,
        };
        assert_eq!(
            serde_json::to_string(&line).unwrap(),
            r#"{"step":7,"split":"train","loss":0.1,"a":null,"learning_rate":0.0005}"#
        );
    }
}
