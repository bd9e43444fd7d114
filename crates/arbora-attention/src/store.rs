//! Saving and loading weights of any module.
//!
//! burn's own stores load a file into a module that has other parameters without an error: a tree of height 4 into one of
//! height 2. [`load_weights`] refuses it.

use burn::module::Module;
use burn::store::{BurnpackStore, ModuleSnapshot, SafetensorsStore};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why weights could not be saved or loaded.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The file's ending names no known format.
    #[error("{}: expected a file ending in .bpk or .safetensors", path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be read or written, or is damaged.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the format's library says.
        reason: String,
    },
    /// The file holds the weights of another architecture.
    #[error("{}: weights of another model: {reason}", path.display())]
    OtherModel {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
}

/// Writes the parameters of a model, as burnpack (`.bpk`) or safetensors (`.safetensors`) by the
/// file's ending. Either loads on every backend.
///
/// # Errors
/// If the ending is unknown or the file cannot be written.
pub fn save_weights<M: Module>(model: &M, path: impl AsRef<Path>) -> Result<(), StoreError> {
    let path = path.as_ref();
    let saved = match ending(path) {
        "bpk" => model
            .save_into(&mut BurnpackStore::from_file(path).overwrite(true))
            .map_err(|error| error.to_string()),
        "safetensors" => model
            .save_into(&mut SafetensorsStore::from_file(path).overwrite(true))
            .map_err(|error| error.to_string()),
        _ => return Err(StoreError::UnknownFormat { path: path.into() }),
    };
    saved.map_err(failed(path))
}

/// Reads parameters that [`save_weights`] wrote into a model of the same architecture.
///
/// # Errors
/// If the ending is unknown, the file cannot be read, or it lacks a parameter of the model, or holds
/// one of another shape or one that the model does not have. The model, which was moved in, is then dropped.
pub fn load_weights<M: Module>(mut model: M, path: impl AsRef<Path>) -> Result<M, StoreError> {
    let path = path.as_ref();
    if !matches!(ending(path), "bpk" | "safetensors") {
        return Err(StoreError::UnknownFormat { path: path.into() });
    }
    // The stores report a missing file in their own words; this names it first.
    std::fs::metadata(path).map_err(|error| failed(path)(error.to_string()))?;
    // Without validation a parameter of another shape is reported below and not as a damaged file.
    let applied = match ending(path) {
        "bpk" => {
            let store = BurnpackStore::from_file(path).allow_partial(true);
            let applied = model.load_from(&mut store.validate(false));
            applied.map_err(|error| error.to_string())
        }
        _ => {
            let store = SafetensorsStore::from_file(path).allow_partial(true);
            let applied = model.load_from(&mut store.validate(false));
            applied.map_err(|error| error.to_string())
        }
    };
    let applied = applied.map_err(failed(path))?;
    if !applied.errors.is_empty() || !applied.missing.is_empty() || !applied.unused.is_empty() {
        let reason = format!(
            "{} parameters missing, {} unknown, {} of another shape",
            applied.missing.len(),
            applied.unused.len(),
            applied.errors.len()
        );
        let path = path.into();
        return Err(StoreError::OtherModel { path, reason });
    }
    Ok(model)
}

fn failed(path: &Path) -> impl FnOnce(String) -> StoreError {
    let path = path.into();
    |reason| StoreError::File { path, reason }
}

fn ending(path: &Path) -> &str {
    path.extension()
        .and_then(|ending| ending.to_str())
        .unwrap_or_default()
}
