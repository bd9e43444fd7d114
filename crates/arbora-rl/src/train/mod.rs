//! The trainer of models that yield rollouts (feature `train`).
//!
//! - [`TrainableModel`]: what a model must do
//! - [`TrainerConfig`], [`Trainer`]: one run
//! - [`Checkpoint`], [`load_model`]: what a run leaves behind; [`Claim`]: who may write it
//! - [`Progress`]: watching a run
//!
//! # The run folder
//!
//! | file | holds |
//! |---|---|
//! | `metrics.jsonl` | one line per step (`"split":"train"`) and per evaluation (`"split":"valid"`) |
//! | `timing.jsonl` | wall-clock seconds of each step and evaluation |
//! | `checkpoints/step-00001000/` | `model.bpk`, `optimizer.bpk`, `state.json`, `SHA256SUMS` |
//! | `lock` | nothing: who trains holds the system's lock of it |
//!
//! `metrics.jsonl` has no wall-clock value, so two runs with one seed write the same bytes where the
//! backend computes the same numbers (flex does, for a fixed number of threads). Lines reach the
//! operating system one by one: killing the process loses nothing that was reported.
//!
//! # Exact resume
//!
//! The batch and the random numbers of step `t` derive from (seed, `t`) alone ([`crate::seed`]), and
//! the learning rate is a function of `t`. So a checkpoint needs the parameters, Adam's state, what
//! the baseline remembers, and `t`. A resumed run drops the log's lines after the checkpoint and
//! writes them again, bit for bit. A checkpoint at step 0 keeps the initial parameters, so this holds
//! even for a model whose initialisation is not seeded.
//!
//! A checkpoint is written to a folder beside, put on the disk, and renamed. One that is damaged is
//! passed over for the next older one, with a notice. If every one is damaged, resuming is an error.
//!
//! # How it uses burn-train
//!
//! [`Trainer::fit`] wraps the model in one that implements burn-train's `TrainStep` and
//! `InferenceStep`, the sources in its `DataLoader`, and runs `SupervisedTraining` with
//! `TrainingStrategy::Custom`. burn's own loop saves per epoch only, and its learner keeps the
//! optimizer to itself, so the strategy holds optimizer, schedule and checkpoints. burn-train's
//! file logger and experiment log are replaced by ones that write nothing: the run folder holds
//! only what is listed above. Its interrupter stops a run, and any of its renderers
//! shows one ([`Trainer::renderer`]).

mod checkpoint;
mod claim;
mod config;
mod error;
mod log;
mod measure;
mod memory;
mod model;
mod silent;
mod strategy;
#[doc(hidden)]
pub mod testing;
mod trainer;

/// The log of numbers, in a run folder.
const METRICS: &str = "metrics.jsonl";
/// The log of times, in a run folder.
const TIMING: &str = "timing.jsonl";

pub use checkpoint::{Checkpoint, CheckpointState, FORMAT_VERSION, load_model};
pub use claim::{Claim, has_any, is_folder};
pub use config::{OptimizerConfig, TrainerConfig};
pub use error::TrainError;
pub use measure::measure;
pub use memory::keep_freed_blocks;
pub use model::{
    Decisions, EvaluationReport, Measurement, ParameterGroup, Progress, StepOutput, StepReport,
    TrainableModel, no_evaluation,
};
pub use trainer::{TrainReport, Trainer};
