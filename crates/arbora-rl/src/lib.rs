//! Policy gradients for discrete decisions inside burn models.
//!
//! A model that chooses (a child of a tree node, an arm, a token to keep) has no derivative at the
//! choice. This crate supplies one by the score function: sample the choice, see how good the
//! outcome was, and move the log-probability of what was chosen. The estimator is a function of
//! tensors. It knows no model and no tree, and it adds to any loss of an ordinary burn program.
//!
//! Use it directly as a library of functions, or use the trainer of feature `train` for a model
//! that yields rollouts.
//!
//! - [`Rollout`]: what the sampled decisions of a batch look like to the estimator
//! - [`reward`]: how good an outcome was; rewards need no gradient
//! - [`Baseline`]: what is subtracted from the reward to lower the variance
//! - [`PolicyGradient`]: the surrogate loss whose gradient is the estimate
//! - [`sample`]: drawing choices from given uniform numbers, the same on every backend
//! - [`seed`]: random numbers as a function of (seed, step) alone
//! - [`clip_global_norm`]: one norm over all parameters, unlike burn's clipping per parameter
//! - [`schedule`]: the learning rate as a pure function of the step
#![cfg_attr(
    feature = "train",
    doc = "- [`train`]: the trainer: exact resume, checkpoints, metrics log"
)]
//!
//! # Example
//!
//! ```
//! use arbora_rl::{BaselineConfig, PolicyGradientConfig, Rollout};
//! use burn::tensor::{Int, Tensor};
//! # fn example(log_probs: Tensor<2>, choices: Tensor<2, Int>, reward: Tensor<2>, task_loss: Tensor<1>) {
//! let config = PolicyGradientConfig::default().with_baseline(BaselineConfig::LeaveOneOut);
//! let mut policy_gradient = config.init();
//! // One decision per sample, four samples per row.
//! let rollout = Rollout::from_choices(log_probs, choices);
//! let output = policy_gradient.loss(rollout, reward, None);
//! let gradients = (task_loss + output.loss).backward();
//! # }
//! ```
//!
//! # Feature flags
//!
//! - `train`: the trainer, on burn-train. It links burn's flex backend, because burn-train does.
//! - `flex`, `ndarray`, `tch`, `wgpu`, `vulkan`, `webgpu`, `metal`, `cuda`, `rocm`, `cpu`, `fusion`:
//!   burn's features of the same names. None is on by default.

mod baseline;
mod check;
mod clip;
mod policy_gradient;
pub mod reward;
mod rollout;
pub mod sample;
pub mod schedule;
pub mod seed;
#[cfg(feature = "train")]
pub mod train;

pub use baseline::{Baseline, BaselineConfig, BaselineState};
pub use clip::{clip_global_norm, global_norm};
pub use policy_gradient::{PolicyGradient, PolicyGradientConfig, PolicyGradientOutput};
/// Of the version whose generators [`seed`] returns and [`sample`] takes.
pub use rand;
pub use rollout::Rollout;

/// A setting that is out of its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: expected {expected}, got {got}")]
pub struct ConfigError {
    /// The setting, as it is written in a configuration; parts of a path are separated by dots.
    pub setting: String,
    /// Expected values.
    pub expected: String,
    /// The given value.
    pub got: String,
}

impl ConfigError {
    /// The error of a setting with a value that it may not have.
    pub fn new(setting: &str, expected: &str, got: impl ToString) -> Self {
        Self {
            setting: setting.into(),
            expected: expected.into(),
            got: got.to_string(),
        }
    }

    /// What `check` of a part says, with the name of the section before its setting.
    pub(crate) fn in_section(section: &str, checked: Result<(), Self>) -> Result<(), Self> {
        checked.map_err(|error| Self {
            setting: format!("{section}.{}", error.setting),
            ..error
        })
    }

    /// Refuses a setting unless `holds`.
    pub(crate) fn unless(
        holds: bool,
        setting: &str,
        expected: &str,
        got: impl ToString,
    ) -> Result<(), Self> {
        let refused = || Self::new(setting, expected, got);
        holds.then_some(()).ok_or_else(refused)
    }

    /// Refuses a number that is negative, infinite or NaN.
    pub(crate) fn unless_at_least_0<T>(setting: &str, got: T) -> Result<(), Self>
    where
        T: Into<f64> + Copy + ToString,
    {
        let number: f64 = got.into();
        let holds = number.is_finite() && number >= 0.0;
        Self::unless(holds, setting, "a number of at least 0", got)
    }
}
