//! Checkpoints: one folder each, written beside and renamed.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::optim::{ModuleOptimizer, OptimizerRecord};
use burn::store::{ModuleRecord, RecordError};
use burn::tensor::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::claim::{has_any, is_folder};
use super::{TrainError, TrainerConfig};
use crate::BaselineState;

/// The newest format that this version reads and the one it writes.
pub const FORMAT_VERSION: u64 = 1;

const MODEL: &str = "model.bpk";
const OPTIMIZER: &str = "optimizer.bpk";
const STATE: &str = "state.json";
/// In the format of `sha256sum`, so that a person can check a checkpoint without this crate.
const SUMS: &str = "SHA256SUMS";
const FOLDER: &str = "checkpoints";

/// Everything of a checkpoint that is not a tensor: the contents of `state.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckpointState {
    /// Format of the checkpoint.
    pub format_version: u64,
    /// Steps done.
    pub step: u64,
    /// Seed of the run. There is no other random state: everything derives from seed and step.
    pub seed: u64,
    /// The caller's name for the model's architecture.
    pub fingerprint: String,
    /// What the baseline remembers.
    pub baseline: BaselineState,
    /// The run's settings, the learning-rate schedule among them.
    pub config: TrainerConfig,
}

/// A checkpoint on disk whose files agree with their checksums.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    state: CheckpointState,
    /// `state.json` before its numbers were rounded by parsing, for comparing settings.
    config_text: serde_json::Value,
    model: Vec<u8>,
    optimizer: Vec<u8>,
}

impl Checkpoint {
    /// Reads and checks a checkpoint folder.
    ///
    /// # Errors
    /// [`TrainError::Missing`] without the folder, [`TrainError::NewerFormat`], or
    /// [`TrainError::Corrupt`] where a file is missing or differs from its checksum.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, TrainError> {
        #[derive(Deserialize)]
        struct VersionOnly {
            format_version: u64,
        }

        let path = path.as_ref();
        if !is_folder(path)? {
            return Err(TrainError::Missing {
                path: path.into(),
                what: "checkpoint",
            });
        }
        let corrupt = |reason: String| TrainError::Corrupt {
            path: path.into(),
            reason,
        };
        let read = |name: &str| match fs::read(path.join(name)) {
            Ok(bytes) => Ok(bytes),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Err(corrupt(format!("{name} is missing")))
            }
            Err(error) => Err(TrainError::io(path.join(name))(error)),
        };

        let unreadable = |error| corrupt(format!("{STATE} cannot be read: {error}"));
        let state = read(STATE)?;
        // The version comes first: another format may have other files and other sums.
        let version: VersionOnly = serde_json::from_slice(&state).map_err(unreadable)?;
        if version.format_version > FORMAT_VERSION {
            return Err(TrainError::NewerFormat {
                path: path.into(),
                found: version.format_version,
                supported: FORMAT_VERSION,
            });
        }

        let sums = read(SUMS)?;
        let sums = String::from_utf8_lossy(&sums);
        let verified = |name: &str, bytes: Vec<u8>| {
            let recorded = sums
                .lines()
                .find_map(|line| line.strip_suffix(&format!("  {name}")));
            match recorded {
                None => Err(corrupt(format!("{SUMS} has no line for {name}"))),
                Some(sum) if sum != sha256(&bytes) => Err(corrupt(format!(
                    "{name} ({} bytes) differs from its checksum",
                    bytes.len()
                ))),
                Some(_) => Ok(bytes),
            }
        };
        let state = verified(STATE, state)?;
        let model = verified(MODEL, read(MODEL)?)?;
        let optimizer = verified(OPTIMIZER, read(OPTIMIZER)?)?;

        let mut text: serde_json::Value = serde_json::from_slice(&state).map_err(unreadable)?;
        let state: CheckpointState = serde_json::from_slice(&state).map_err(unreadable)?;
        Ok(Self {
            path: path.into(),
            state,
            config_text: text["config"].take(),
            model,
            optimizer,
        })
    }

    /// The newest checkpoint of a run folder that is whole, and what is wrong with the newer ones.
    ///
    /// # Errors
    /// [`TrainError::Missing`] if there is none at all; the newest one's error if all are corrupt.
    /// A checkpoint of a newer format is an error and not passed over: continuing from an older one
    /// would throw the newer away.
    pub fn newest(run: impl AsRef<Path>) -> Result<(Self, Vec<TrainError>), TrainError> {
        let run = run.as_ref();
        let mut listed = list(run)?;
        loop {
            let found = Self::newest_of(run, &listed);
            if matches!(&found, Ok((_, passed_over)) if passed_over.is_empty()) {
                return found;
            }
            // Where the run goes on meanwhile, what was listed may have made room for a newer one.
            let now = list(run)?;
            if now == listed {
                return found;
            }
            listed = now;
        }
    }

    /// The newest of some checkpoints that is whole.
    fn newest_of(
        run: &Path,
        listed: &[(u64, PathBuf)],
    ) -> Result<(Self, Vec<TrainError>), TrainError> {
        let mut passed_over = Vec::new();
        for (_, path) in listed.iter().rev() {
            match Self::open(path) {
                Ok(checkpoint) => return Ok((checkpoint, passed_over)),
                Err(error @ TrainError::Corrupt { .. }) => passed_over.push(error),
                Err(error) => return Err(error),
            }
        }
        if passed_over.is_empty() {
            return Err(TrainError::Missing {
                path: run.into(),
                what: "checkpoint",
            });
        }
        Err(passed_over.swap_remove(0))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Everything but the tensors.
    pub fn state(&self) -> &CheckpointState {
        &self.state
    }

    /// SHA-256 of the file of the parameters, in hexadecimal: it tells these weights from all others.
    pub fn model_digest(&self) -> String {
        sha256(&self.model)
    }

    /// Refuses a checkpoint of a model with another fingerprint.
    ///
    /// # Errors
    /// [`TrainError::OtherModel`], naming both.
    pub fn expect_fingerprint(&self, fingerprint: &str) -> Result<(), TrainError> {
        if self.state.fingerprint == fingerprint {
            return Ok(());
        }
        Err(TrainError::OtherModel {
            path: self.path.clone(),
            saved: self.state.fingerprint.clone(),
            expected: fingerprint.into(),
        })
    }

    /// Refuses settings that would change the run's numbers. How often to evaluate and to save, and
    /// how much to keep, may change.
    pub(crate) fn expect_settings(&self, config: &TrainerConfig) -> Result<(), TrainError> {
        // Both sides go through text, because reading a decimal number back may round it.
        let asked = serde_json::to_string(config)
            .and_then(|text| serde_json::from_str::<serde_json::Value>(&text))
            .map_err(TrainError::other_io(&self.path))?;
        let free = ["eval_every", "checkpoint_every", "keep_checkpoints"];
        let settings = asked.as_object().into_iter().flatten();
        for (setting, asked) in settings.filter(|(name, _)| !free.contains(&name.as_str())) {
            let saved = &self.config_text[setting];
            if saved != asked {
                return Err(TrainError::OtherSettings {
                    path: self.path.clone(),
                    setting: setting.clone(),
                    saved: saved.to_string(),
                    asked: asked.to_string(),
                });
            }
        }
        Ok(())
    }

    /// `model` with the checkpoint's parameters, on the devices that it is on.
    ///
    /// # Errors
    /// [`TrainError::Incompatible`] where parameters are missing, left over or of another shape.
    pub fn load_model<M: Module>(&self, model: M) -> Result<M, TrainError> {
        let bytes = Bytes::from_bytes_vec(self.model.clone());
        self.loaded(|| model.try_load_record(ModuleRecord::from_bytes(bytes)?))
    }

    /// `optimizer` with the checkpoint's state.
    pub(crate) fn load_optimizer(
        &self,
        optimizer: ModuleOptimizer,
    ) -> Result<ModuleOptimizer, TrainError> {
        let bytes = Bytes::from_bytes_vec(self.optimizer.clone());
        self.loaded(|| Ok(optimizer.load_record(OptimizerRecord::from_bytes(bytes)?)))
    }

    /// What burn reads from a record. It panics over some that are whole and not as it writes them.
    fn loaded<T>(&self, read: impl FnOnce() -> Result<T, RecordError>) -> Result<T, TrainError> {
        let reason = match catch_unwind(AssertUnwindSafe(read)) {
            Ok(Ok(loaded)) => return Ok(loaded),
            Ok(Err(error)) => error.to_string(),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
                let text = text.unwrap_or("without a reason");
                format!("its library fails: {text}")
            }
        };
        Err(TrainError::Incompatible {
            path: self.path.clone(),
            reason,
        })
    }
}

/// Loads a trained model's parameters from a run folder (its newest whole checkpoint) or from one
/// checkpoint folder.
///
/// # Errors
/// As [`Checkpoint::open`] and [`Checkpoint::newest`]; [`TrainError::OtherModel`] if the fingerprint
/// differs; [`TrainError::NotAFolder`] if the path is a file.
pub fn load_model<M: Module>(
    path: impl AsRef<Path>,
    model: M,
    fingerprint: &str,
) -> Result<M, TrainError> {
    let path = path.as_ref();
    is_folder(path)?;
    let checkpoint = if has_any(path, &[STATE])? {
        Checkpoint::open(path)?
    } else {
        Checkpoint::newest(path)?.0
    };
    checkpoint.expect_fingerprint(fingerprint)?;
    checkpoint.load_model(model)
}

/// The checkpoints of a run folder by step, oldest first, whole or not.
fn list(run: &Path) -> Result<Vec<(u64, PathBuf)>, TrainError> {
    let folder = run.join(FOLDER);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(TrainError::io(folder)(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(TrainError::io(&folder))?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let step = name
            .strip_prefix("step-")
            .and_then(|step| step.parse().ok());
        let Some(step) = step else { continue };
        match is_folder(&path) {
            Ok(true) => found.push((step, path)),
            Ok(false) | Err(TrainError::NotAFolder { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Whether a run folder has checkpoints, whole or not.
pub(crate) fn any(run: &Path) -> Result<bool, TrainError> {
    Ok(!list(run)?.is_empty())
}

/// Writes a checkpoint so that it is there whole or not at all, then deletes the oldest beyond
/// `config.keep_checkpoints`.
pub(crate) fn save<M: Module>(
    run: &Path,
    state: &CheckpointState,
    model: &M,
    optimizer: &ModuleOptimizer,
) -> Result<(), TrainError> {
    let folder = run.join(FOLDER);
    match fs::create_dir(&folder) {
        // With the names of the logs, which are there by now.
        Ok(()) => sync_folder(run)?,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(TrainError::io(folder)(error)),
    }
    let path = folder.join(format!("step-{:08}", state.step));
    let beside = folder.join(format!("unfinished-{:08}", state.step));
    // What a killed process left.
    remove(&beside)?;
    fs::create_dir(&beside).map_err(TrainError::io(&beside))?;

    let record =
        |error: RecordError| TrainError::io(&beside)(std::io::Error::other(error.to_string()));
    let model = model.clone().into_record().into_bytes().map_err(record)?;
    let optimizer = optimizer.to_record().into_bytes().map_err(record)?;
    let text = serde_json::to_vec_pretty(state).map_err(TrainError::other_io(&beside))?;

    let files: [(&str, &[u8]); 3] = [(MODEL, &model), (OPTIMIZER, &optimizer), (STATE, &text)];
    let mut sums = String::new();
    for (name, bytes) in files {
        write_through(&beside.join(name), bytes)?;
        sums += &format!("{}  {name}\n", sha256(bytes));
    }
    write_through(&beside.join(SUMS), sums.as_bytes())?;
    sync_folder(&beside)?;

    // Only a damaged checkpoint can stand there: a resumed run passed it over.
    remove(&path)?;
    fs::rename(&beside, &path).map_err(TrainError::io(&path))?;
    sync_folder(&folder)?;

    let mut older = list(run)?;
    older.retain(|(step, _)| *step <= state.step);
    let extra = older.len().saturating_sub(state.config.keep_checkpoints);
    for (_, path) in older.drain(..extra) {
        remove(&path)?;
    }
    Ok(())
}

fn remove(folder: &Path) -> Result<(), TrainError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(TrainError::io(folder)(error)),
        _ => Ok(()),
    }
}

pub(super) fn write_through(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    let mut file = File::create(path).map_err(TrainError::io(path))?;
    file.write_all(bytes).map_err(TrainError::io(path))?;
    file.sync_all().map_err(TrainError::io(path))
}

/// Puts a folder's entries on the disk. Where a folder cannot be opened (Windows), renaming is as
/// durable as it gets.
pub(super) fn sync_folder(path: &Path) -> Result<(), TrainError> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    if cfg!(unix) {
        let folder = File::open(path).map_err(TrainError::io(path))?;
        folder.sync_all().map_err(TrainError::io(path))?;
    }
    Ok(())
}

fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}
