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
    /// The rate after warm-up.
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
        for (setting, rate) in [("base", self.base), ("final_rate", self.final_rate)] {
            if !(rate.is_finite() && rate >= 0.0) {
                let expected = "a finite learning rate of at least 0";
                return Err(ConfigError::new(setting, expected, rate));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cosine(base: f64, warmup_steps: u64, total_steps: u64, final_rate: f64) -> Cosine {
        Cosine {
            base,
            warmup_steps,
            total_steps,
            final_rate,
        }
    }

    fn close(got: f64, expected: f64) {
        assert!((got - expected).abs() < 1e-12, "{got} is not {expected}");
    }

    #[test]
    fn falls_from_base_to_final_by_half_a_cosine() {
        let cosine = cosine(2.0, 0, 4, 1.0);
        close(cosine.rate(0), 2.0);
        close(cosine.rate(1), 1.5 + 0.5 * std::f64::consts::FRAC_1_SQRT_2);
        close(cosine.rate(2), 1.5);
        close(cosine.rate(4), 1.0);
        close(cosine.rate(1_000), 1.0);
    }

    #[test]
    fn warms_up_linearly_and_reaches_base_before_it_falls() {
        let cosine = cosine(1.0, 4, 8, 0.0);
        close(cosine.rate(0), 0.25);
        close(cosine.rate(3), 1.0);
        close(cosine.rate(4), 1.0);
        close(cosine.rate(6), 0.5);
    }

    #[test]
    fn a_warm_up_longer_than_the_whole_still_warms_up() {
        let cosine = cosine(1.0, 10, 5, 0.0);
        close(cosine.rate(9), 1.0);
        close(cosine.rate(10), 0.0);
    }

    #[test]
    fn a_negative_or_infinite_rate_is_refused_by_name() {
        let error = cosine(-1.0, 0, 4, 0.0).check().unwrap_err();
        assert_eq!(
            error.to_string(),
            "base: expected a finite learning rate of at least 0, got -1"
        );
        assert!(cosine(1.0, 0, 4, f64::INFINITY).check().is_err());
    }
}
