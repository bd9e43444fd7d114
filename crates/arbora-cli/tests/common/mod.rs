//! The real binary in a folder of its own, with images and a model so small that a run takes about
//! a second.
#![allow(dead_code, reason = "every test binary uses a part of this")]

use assert_cmd::assert::OutputAssertExt as _;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// Images in the training and the test file of [`Place`].
pub const IMAGES: [u32; 2] = [12, 8];
/// Height and width of these images.
pub const SIZE: [u32; 2] = [6, 5];

/// A temporary folder that every command runs in, with `train.idx`, `test.idx` and `tiny.json`.
pub struct Place {
    folder: TempDir,
}

impl Place {
    pub fn new() -> Self {
        let place = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        for (name, count) in ["train.idx", "test.idx"].iter().zip(IMAGES) {
            fs::write(place.path(name), idx([count, SIZE[0], SIZE[1]])).unwrap();
        }
        fs::write(place.path("tiny.json"), tiny().to_string()).unwrap();
        place
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A command of the binary on flex, whatever backend the test suite runs on.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("arbora"));
        command
            .args(args)
            .current_dir(self.folder.path())
            .env_remove("BURN_DEVICE")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs a command to its end; it must not panic.
    pub fn run(&self, args: &[&str]) -> Output {
        let output = self.command(args).output().unwrap();
        let stderr = stderr(&output);
        assert!(!stderr.contains("panicked"), "{args:?}\n{stderr}");
        output
    }

    /// Runs a command that must succeed; its standard output.
    pub fn succeed(&self, args: &[&str]) -> String {
        let succeeded = self.run(args).assert().success();
        String::from_utf8(succeeded.get_output().stdout.clone()).unwrap()
    }

    /// Trains the tiny model; standard output.
    pub fn train(&self, args: &[&str]) -> String {
        self.succeed(&[&["train", "images", "--config", "tiny.json"], args].concat())
    }

    /// Runs a command that must be refused; what it says after `error: `.
    ///
    /// One line, exit code 2, and every file and folder is as before.
    pub fn refuse(&self, args: &[&str]) -> String {
        let before = snapshot(self.folder.path());
        let refused = self.run(args).assert().code(2).stdout("");
        let stderr = stderr(refused.get_output());
        assert_eq!(stderr.lines().count(), 1, "{args:?}\n{stderr}");
        let after = snapshot(self.folder.path());
        assert!(
            before == after,
            "{args:?} changed files: {:?} became {:?}",
            before.keys(),
            after.keys()
        );
        match stderr.trim_end().strip_prefix("error: ") {
            Some(message) => message.to_owned(),
            None => panic!("{args:?}: not an error line: {stderr}"),
        }
    }

    /// The refusal of training the tiny model into the new folder `out`.
    pub fn refuse_training(&self, args: &[&str]) -> String {
        let whole = [
            &["train", "images", "--config", "tiny.json", "--out", "out"],
            args,
        ];
        self.refuse(&whole.concat())
    }

    /// `eval --json` with more arguments.
    pub fn eval(&self, run: &str, args: &[&str]) -> Value {
        parse(&self.succeed(&[&["eval", run, "--json"], args].concat()))
    }

    pub fn json(&self, name: impl AsRef<Path>) -> Value {
        parse(&fs::read_to_string(self.path(name)).unwrap())
    }

    pub fn metrics(&self, run: &str) -> String {
        fs::read_to_string(self.path(run).join("metrics.jsonl")).unwrap()
    }

    /// The names of the checkpoints of a run, oldest first.
    pub fn checkpoints(&self, run: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(run).join("checkpoints")).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

/// Settings of a run of six steps.
pub fn tiny() -> Value {
    json!({
        "data": { "kind": "idx", "train": "train.idx", "test": "test.idx" },
        "points": { "max_points": 12, "min_context": 3, "min_targets": 3 },
        "batch_size": 2,
        "eval_batch_size": 4,
        "eval_items": 4,
        "architecture": {
            "d_model": 8, "d_ff": 8, "n_heads": 2, "embedding_depth": 1, "encoder_layers": 0,
        },
        "trainer": { "steps": 6, "eval_every": 3, "checkpoint_every": 2, "warmup_steps": 0 },
    })
}

/// An IDX file of images, `[count, height, width]`, with a smooth pattern.
pub fn idx(axes: [u32; 3]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, 3];
    axes.iter()
        .for_each(|axis| bytes.extend_from_slice(&axis.to_be_bytes()));
    let [count, height, width] = axes;
    for image in 0..count {
        for row in 0..height {
            bytes.extend((0..width).map(|column| (image * 20 + row * 15 + column * 9) as u8));
        }
    }
    bytes
}

pub fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Every file below a folder with its contents, and every folder with none.
pub fn snapshot(folder: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.append(&mut snapshot(&path));
            found.insert(path, None);
        } else {
            let bytes = fs::read(&path).unwrap();
            found.insert(path, Some(bytes));
        }
    }
    found
}
