//! The learning rate as a pure function of the step.

use burn::config::Config;
use derive_setters::Setters;
use serde::{Deserialize, Serialize};

use crate::ConfigError;

/// Linear warm-up, then half a cosine from `base` to `final_rate`
/// ([Loshchilov and Hutter 2017](https://arxiv.org/abs/1608.03983), without restarts).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, Setters)]
#[serde(default, deny_unknown_fields)]
#[setters(prefix = "with_")]
pub struct Cosine {
    /// The rate after warm-up, at least 0.
    pub base: f64,
    /// Steps of warm-up. Step `t` of them takes `base * (t + 1) / warmup_steps`.
    pub warmup_steps: u64,
    /// The step at which `final_rate` is reached; it stays there afterwards.
    pub total_steps: u64,
    /// The rate at the end.
    pub final_rate: f64,
}

impl Default for Cosine {
    /// The published schedule of Tree Cross Attention: 5e-4 to 0 over 100,000 steps, no warm-up.
    fn default() -> Self {
        Self {
            base: 5e-4,
            warmup_steps: 0,
            total_steps: 100_000,
            final_rate: 0.0,
        }
    }
}

impl Config for Cosine {}

impl Cosine {
    /// The rate of step `step`, the first being 0.
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.base * (step + 1) as f64 / self.warmup_steps as f64;
        }
        if step >= self.total_steps {
            return self.final_rate;
        }
        let done = (step - self.warmup_steps) as f64;
        let whole = (self.total_steps - self.warmup_steps) as f64;
        let fall = 0.5 * (1.0 + (std::f64::consts::PI * done / whole).cos());
        self.final_rate + (self.base - self.final_rate) * fall
    }

    /// Whether every setting is in its range.
    ///
    /// # Errors
    /// With the first setting that is not.
    pub fn check(&self) -> Result<(), ConfigError> {
        ConfigError::unless_at_least_0("base", self.base)?;
        ConfigError::unless_at_least_0("final_rate", self.final_rate)
    }
}
