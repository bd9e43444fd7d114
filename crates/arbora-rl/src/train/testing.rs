//! Readers of a run's files, for `cargo xtask torture`, which damages the files.

use std::path::Path;

use burn::module::Module;
use burn::optim::ModuleOptimizer;

use super::log::Log;
use super::{Checkpoint, CheckpointState, TrainError, checkpoint};

/// Saves a checkpoint, as a trainer does.
///
/// # Errors
/// If it cannot be written.
pub fn save<M: Module>(
    run: &Path,
    state: &CheckpointState,
    model: &M,
    optimizer: &ModuleOptimizer,
) -> Result<(), TrainError> {
    checkpoint::save(run, state, model, optimizer)
}

/// `optimizer` with a checkpoint's state.
///
/// # Errors
/// If the state cannot be read.
pub fn load_optimizer(
    checkpoint: &Checkpoint,
    optimizer: ModuleOptimizer,
) -> Result<ModuleOptimizer, TrainError> {
    checkpoint.load_optimizer(optimizer)
}

/// Opens a log that must reach `step`, and drops what is after it.
///
/// # Errors
/// If it does not reach it, or cannot be read or written.
pub fn open_log(path: &Path, step: u64) -> Result<(), TrainError> {
    Log::expect_step(path, step)?;
    Log::open(path, step).map(drop)
}
