//! Processes of the `arbora` command that die, or whose system calls fail, at any moment.
//!
//! Every command is run once undisturbed. Then it is disturbed again and again, and run to its end: its logs must be those
//! of the undisturbed one, bit for bit. What it has left in between must be read as whole or be refused in one line.

pub mod faults;
pub mod kill;

use crate::frame::{Target, Tries};
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The variable that names the `arbora` command that is tried.
const ARBORA: &str = "ARBORA";

/// A command, and what it must leave.
#[derive(Clone, Copy)]
struct Job {
    /// Of the command and its task.
    name: &'static str,
    words: &'static [&'static str],
    /// Settings, where the command takes some.
    settings: Option<fn() -> Value>,
    /// The folders of the runs that it trains, within `out`.
    runs: &'static [&'static str],
    /// Pictures that it draws into `out`.
    pictures: &'static [&'static str],
    /// What it needs to be there.
    before: Option<&'static Job>,
}

/// A training, of one run.
const TRAINING: Job = Job {
    name: "",
    words: &[],
    settings: None,
    runs: &[""],
    pictures: &["curves"],
    before: None,
};

/// A training of each family, a comparison, and what draws into the folder of a run.
const JOBS: [Job; 5] = [
    Job {
        name: "train-retrieval",
        words: &["train", "copy"],
        settings: Some(copy),
        ..TRAINING
    },
    Job {
        name: "train-sequence",
        words: &["train", "recall"],
        settings: Some(recall),
        ..TRAINING
    },
    Job {
        name: "train-language",
        words: &["train", "lm"],
        settings: Some(language),
        ..TRAINING
    },
    Job {
        name: "compare",
        words: &["compare", "copy", "--models", "retreever,cross-attention"],
        settings: Some(copy),
        runs: &["retreever-seed0", "cross-attention-seed0"],
        ..TRAINING
    },
    Job {
        name: "grow",
        words: &["grow", "bandit", "--rounds", "20", "--repeats", "2"],
        runs: &[],
        pictures: &["grow-bandit"],
        before: Some(&BANDIT),
        ..TRAINING
    },
];

const BANDIT: Job = Job {
    name: "bandit",
    words: &["train", "bandit"],
    settings: Some(bandit),
    pictures: &[],
    ..TRAINING
};

/// Tries of every job, each in a folder in which it was done undisturbed.
fn targets_of(tries: fn(Yard) -> Result<Tries>) -> Vec<Target> {
    let target = |job: Job| Target::new(job.name, move |folder| tries(Yard::new(folder, job)?));
    JOBS.map(target).into()
}

/// A training of sequences.
pub fn copy() -> Value {
    json!({
        "data": {"kind": "copy", "length": 8},
        "batch_size": 2, "eval_batch_size": 2, "eval_items": 2, "test_items": 4,
        "architecture": {"d_model": 8, "d_ff": 8, "n_heads": 2, "encoder_layers": 1},
        "trainer": trainer(),
    })
}

fn bandit() -> Value {
    let mut settings = copy();
    settings["data"] = json!({"kind": "bandit"});
    settings
}

fn recall() -> Value {
    json!({
        "data": {"kind": "recall", "length": 16, "pairs": 4, "keys": 6, "values": 3, "curriculum": []},
        "batch_size": 2, "eval_batch_size": 2, "eval_items": 2, "test_items": 4,
        "architecture": {"d_model": 8, "n_heads": 2, "n_kv_heads": 2, "layers": 2, "d_ff": 8},
        "trainer": trainer(),
    })
}

fn language() -> Value {
    json!({
        "data": {"source": "text.txt", "tokenizer": {"kind": "bpe", "vocabulary": 270}, "window": 16, "validation": 0.25},
        "batch_size": 2, "eval_batch_size": 2, "eval_items": 4, "test_items": 4,
        "architecture": {
            "d_model": 8, "n_heads": 2, "n_kv_heads": 2, "branching": 2, "height": 2, "blocks": [1], "d_ff": [8],
            "route_on": {"kind": "first-n", "tokens": 4},
        },
        "trainer": trainer(),
    })
}

/// Many checkpoints and evaluations in few steps.
fn trainer() -> Value {
    json!({"steps": 12, "eval_every": 4, "checkpoint_every": 2, "warmup_steps": 0})
}

/// A folder in which a job is done, with what it came to undisturbed.
struct Yard {
    folder: PathBuf,
    job: Job,
    /// Of each run.
    logs: Vec<Vec<u8>>,
    /// How long it took.
    length: Duration,
}

impl Yard {
    /// Does the job undisturbed.
    fn new(folder: &Path, job: Job) -> Result<Self> {
        let mut yard = Self {
            folder: folder.into(),
            job,
            logs: Vec::new(),
            length: Duration::ZERO,
        };
        fs::write(
            yard.path("text.txt"),
            "Call me Ishmael, some years ago. ".repeat(60),
        )?;
        for job in [job.before, Some(&job)].into_iter().flatten() {
            if let Some(settings) = job.settings {
                fs::write(yard.path("settings.json"), settings().to_string())?;
            }
            let begun = Instant::now();
            let mut command = command_of(job, &yard.folder);
            // What others need has the name that they call it by.
            let is_own = job.name == yard.job.name;
            command.args(["--out", if is_own { "out" } else { job.name }]);
            let output = command.output().context("cannot start arbora")?;
            ensure!(output.status.success(), "{}: {}", job.name, said(&output));
            yard.length = begun.elapsed();
        }
        let runs = yard.job.runs.iter();
        let logs = runs.map(|run| fs::read(yard.path("out").join(run).join("metrics.jsonl")));
        yard.logs = logs.collect::<Result<_, _>>()?;
        Ok(yard)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Forgets what was done.
    fn clear(&self) -> Result<()> {
        let out = self.path("out");
        if out.try_exists().unwrap_or(false) {
            fs::remove_dir_all(out)?;
        }
        Ok(())
    }

    /// The command that begins the job or goes on with it.
    fn command(&self) -> Command {
        let mut command = command_of(&self.job, &self.folder);
        command.args(["--out", "out"]);
        if self.job.words[0] == "train"
            && self.path("out/config.json").try_exists().unwrap_or(false)
        {
            command.arg("--resume");
        }
        command
    }

    /// Does the rest of the job undisturbed. All is as if nothing had happened.
    fn finish(&self) -> Result<()> {
        let output = self.command().output()?;
        ensure!(output.status.success(), "cannot go on: {}", said(&output));
        for (run, whole) in self.job.runs.iter().zip(&self.logs) {
            let path = self.path("out").join(run).join("metrics.jsonl");
            let log = fs::read(&path).with_context(|| path.display().to_string())?;
            ensure!(log == *whole, "{}: another log", path.display());
        }
        self.pictures_are_whole(false)
    }

    /// What a disturbed job has left is read as whole, or refused in one line.
    fn look(&self) -> Result<()> {
        for run in self.job.runs {
            let mut eval = arbora(&self.folder);
            eval.arg("eval")
                .arg(Path::new("out").join(run))
                .arg("--json");
            let output = eval.output()?;
            match output.status.code() {
                Some(0) if serde_json::from_slice::<Value>(&output.stdout).is_ok() => {}
                Some(2) if is_one_line(&output) => {}
                _ => bail!("eval of {run}: {}", said(&output)),
            }
        }
        self.pictures_are_whole(true)
    }

    /// Whether each picture of the job has its end.
    ///
    /// - may_lack: it may not be there at all
    fn pictures_are_whole(&self, may_lack: bool) -> Result<()> {
        for picture in self.job.pictures {
            for ending in ["svg", "png"] {
                let path = self.path("out").join(picture).with_extension(ending);
                if may_lack && !path.try_exists().unwrap_or(false) {
                    continue;
                }
                let is_whole = match ending {
                    "svg" => fs::read_to_string(&path)
                        .is_ok_and(|svg| svg.trim_end().ends_with("</svg>")),
                    _ => image::open(&path).is_ok(),
                };
                ensure!(is_whole, "{} is not whole", path.display());
            }
        }
        Ok(())
    }
}

/// The command, in a folder.
pub fn arbora(folder: &Path) -> Command {
    let mut command = Command::new(std::env::var_os(ARBORA).unwrap_or_else(|| "arbora".into()));
    command
        .current_dir(folder)
        .env_remove("BURN_DEVICE")
        .env("RAYON_NUM_THREADS", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn command_of(job: &Job, folder: &Path) -> Command {
    let mut command = arbora(folder);
    command.args(job.words).arg("--json");
    if job.settings.is_some() {
        command.args(["--config", "settings.json"]);
    }
    command
}

/// Whether a command that failed said why in its last line, and in no other.
pub fn is_one_line(output: &Output) -> bool {
    let text = String::from_utf8_lossy(&output.stderr);
    let is_error = |line: &str| line.starts_with("error: ");
    text.lines().filter(|line| is_error(line)).count() == 1
        && text.lines().last().is_some_and(is_error)
}

/// The memory that a running process has, in kilobytes.
pub fn resident(process: &Child) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id())).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().split(' ').next()?.parse().ok()
}

/// How a command ended and the last that it said.
pub fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(3)..];
    format!("{}: {}", output.status, last.join(" | "))
}
