//! The loss of a policy whose rewards are known.

use burn::config::Config;
use burn::tensor::Tensor;
use derive_setters::Setters;
use serde::{Deserialize, Serialize};

use crate::{Baseline, BaselineConfig, ConfigError, Rollout, check};

/// Configuration of a [`PolicyGradient`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, Setters)]
#[serde(default, deny_unknown_fields)]
#[setters(prefix = "with_")]
pub struct PolicyGradientConfig {
    /// What is subtracted from the reward.
    pub baseline: BaselineConfig,
    /// Weight of the entropy bonus, at least 0. The published value for Tree Cross Attention is
    /// 0.01.
    pub entropy_weight: f64,
}

impl Default for PolicyGradientConfig {
    fn default() -> Self {
        Self {
            baseline: BaselineConfig::None,
            entropy_weight: 0.01,
        }
    }
}

impl Config for PolicyGradientConfig {}

impl PolicyGradientConfig {
    /// An estimator that has seen no batch.
    ///
    /// # Panics
    /// If a setting is out of range: see [`check`](Self::check).
    #[track_caller]
    pub fn init(&self) -> PolicyGradient {
        if let Err(error) = self.check() {
            panic!("PolicyGradientConfig::init: {error}");
        }
        PolicyGradient {
            config: *self,
            baseline: self.baseline.init(),
        }
    }

    /// Whether every setting is in its range.
    ///
    /// # Errors
    /// With the first setting that is not.
    pub fn check(&self) -> Result<(), ConfigError> {
        ConfigError::unless_at_least_0("entropy_weight", self.entropy_weight)?;
        ConfigError::in_section("baseline", self.baseline.check())
    }
}

/// What [`PolicyGradient::loss`] computes.
#[derive(Clone, Debug)]
pub struct PolicyGradientOutput {
    /// The surrogate to minimise, entropy bonus included, `[1]`. Its value is no measure of
    /// quality; its gradient is the estimate.
    pub loss: Tensor<1>,
    /// Mean reward over the unmasked entries, `[1]`, detached.
    pub reward: Tensor<1>,
    /// Mean entropy over the unmasked entries that decided something, `[1]`, detached.
    pub entropy: Tensor<1>,
    /// Reward minus baseline, 0 where masked, `[rows, samples]`, detached.
    pub advantage: Tensor<2>,
}

/// The score-function estimator
/// ([Williams 1992](https://doi.org/10.1007/BF00992696)) as a loss.
#[derive(Clone, Debug)]
pub struct PolicyGradient {
    config: PolicyGradientConfig,
    baseline: Baseline,
}

impl PolicyGradient {
    /// The configuration that it was made from.
    pub fn config(&self) -> &PolicyGradientConfig {
        &self.config
    }

    /// The baseline, for saving what it remembers.
    pub fn baseline(&self) -> &Baseline {
        &self.baseline
    }

    /// The baseline, for restoring what it remembered.
    pub fn baseline_mut(&mut self) -> &mut Baseline {
        &mut self.baseline
    }

    /// `-mean(advantage * log_prob) - entropy_weight * mean(entropy)`.
    ///
    /// The first mean is over the unmasked entries, the second over those that also decided
    /// something. A mean over nothing is 0, so a batch that is masked entirely gives a loss of 0 and
    /// no gradient. Add the result to the task loss and call `backward` once.
    ///
    /// Rewards and masks may come from any device, and rewards in any type. What is returned is of the type of
    /// the log-probabilities; half precision is computed in single.
    ///
    /// - `reward`: `[rows, samples]`; its history, if any, is ignored
    /// - `greedy_reward`: `[rows, 1]`, needed by the self-critical baseline alone
    ///
    /// # Panics
    /// If shapes disagree, or as [`Baseline::advantage`] does.
    #[track_caller]
    pub fn loss(
        &mut self,
        rollout: Rollout,
        reward: Tensor<2>,
        greedy_reward: Option<Tensor<2>>,
    ) -> PolicyGradientOutput {
        let dims = rollout.dims();
        check::same_shape("PolicyGradient::loss", "reward", reward.dims(), dims);
        let Rollout {
            log_prob,
            entropy,
            decisions,
            mask,
        } = rollout;
        let dtype = log_prob.dtype();
        let log_prob = check::at_least_single(log_prob);
        let entropy = entropy.cast(log_prob.dtype());
        let reward = check::constant_like(reward, &log_prob);
        let mask = check::mask_like(mask, &reward);

        let advantage = self
            .baseline
            .advantage(reward.clone(), greedy_reward, Some(mask.clone()));
        let keep = reward.ones_like().mask_fill(mask.clone(), 0.0);
        let count = keep.clone().sum().clamp_min(1.0);
        let log_prob = log_prob.mask_fill(mask.clone(), 0.0);
        let surrogate = (advantage.clone() * log_prob).sum() / count.clone();
        let mean_reward = reward.mask_fill(mask.clone(), 0.0).sum() / count;

        let decisions = check::constant_like(decisions, &keep).lower_equal_elem(0.0);
        let silent = decisions.bool_or(mask.clone());
        let decided = entropy.ones_like().detach().mask_fill(silent.clone(), 0.0);
        let decided = decided.sum().clamp_min(1.0);
        let entropy = entropy.mask_fill(silent, 0.0).sum() / decided;

        PolicyGradientOutput {
            loss: (surrogate.neg() - entropy.clone() * self.config.entropy_weight).cast(dtype),
            reward: mean_reward.detach().cast(dtype),
            entropy: entropy.detach().cast(dtype),
            advantage: advantage.cast(dtype),
        }
    }
}
