//! Settings of a trainer.

use burn::config::Config;
use burn::optim::decay::WeightDecayConfig;
use burn::optim::{AdamConfig, AdamWConfig, ModuleOptimizer};
use derive_setters::Setters;
use serde::{Deserialize, Serialize};

use super::ParameterGroup;
use crate::schedule::Cosine;
use crate::{ConfigError, PolicyGradientConfig};

/// Settings of a training run.
///
/// The defaults are the published ones of Tree Cross Attention, with the global-norm clipping of
/// its smaller tasks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Setters)]
#[serde(default, deny_unknown_fields)]
#[setters(prefix = "with_")]
pub struct TrainerConfig {
    /// Number of steps of the whole run. The learning rate falls over exactly these.
    pub steps: u64,
    /// Steps between evaluations; 0 evaluates at the end alone. The last step always evaluates.
    pub eval_every: u64,
    /// Steps between checkpoints; 0 saves at the end alone. Stopping always saves.
    pub checkpoint_every: u64,
    /// How many of the newest checkpoints are kept, at least 1.
    pub keep_checkpoints: usize,
    /// The one seed of the run: data, decisions and evaluation derive their own from it.
    pub seed: u64,
    /// Learning rate after warm-up.
    pub learning_rate: f64,
    /// Learning rate at the end of the cosine.
    pub final_learning_rate: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// Adam's settings.
    pub optimizer: OptimizerConfig,
    /// Bound on the global gradient norm; `None` does not clip.
    pub clip_norm: Option<f32>,
    /// Weight of the policy-gradient loss.
    pub lambda_rl: f64,
    /// The policy-gradient estimator.
    pub policy_gradient: PolicyGradientConfig,
}

impl Default for TrainerConfig {
    fn default() -> Self {
        Self {
            steps: 100_000,
            eval_every: 5_000,
            checkpoint_every: 1_000,
            keep_checkpoints: 2,
            seed: 0,
            learning_rate: 5e-4,
            final_learning_rate: 0.0,
            warmup_steps: 0,
            optimizer: OptimizerConfig::default(),
            clip_norm: Some(1.0),
            lambda_rl: 1.0,
            policy_gradient: PolicyGradientConfig::default(),
        }
    }
}

impl Config for TrainerConfig {}

/// Settings of Adam ([Kingma and Ba 2015](https://arxiv.org/abs/1412.6980)), or of AdamW
/// ([Loshchilov and Hutter 2019](https://arxiv.org/abs/1711.05101)) where `weight_decay` is
/// positive.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, Setters)]
#[serde(default, deny_unknown_fields)]
#[setters(prefix = "with_")]
pub struct OptimizerConfig {
    /// Decay of the first moment.
    pub beta_1: f32,
    /// Decay of the second moment.
    pub beta_2: f32,
    /// Added to the root of the second moment. PyTorch's default, not burn's 1e-5.
    pub epsilon: f32,
    /// Decoupled weight decay; 0 is Adam.
    pub weight_decay: f32,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            beta_1: 0.9,
            beta_2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
        }
    }
}

impl Config for OptimizerConfig {}

impl OptimizerConfig {
    /// The optimizer, without state.
    ///
    /// # Panics
    /// With a setting that [`check`](Self::check) refuses.
    pub fn init(&self) -> ModuleOptimizer {
        if let Err(error) = self.check() {
            panic!("OptimizerConfig::init: {error}");
        }
        if self.weight_decay > 0.0 {
            self.with_decay(self.weight_decay).init()
        } else {
            AdamConfig::new()
                .with_beta_1(self.beta_1)
                .with_beta_2(self.beta_2)
                .with_epsilon(self.epsilon)
                .with_weight_decay(None::<WeightDecayConfig>)
                .init()
        }
    }

    /// The optimizer, without state, for a model with these groups of parameters.
    pub(crate) fn init_for(&self, groups: &[ParameterGroup]) -> ModuleOptimizer {
        // Without decay all groups are treated alike here: their rates are the schedule's concern.
        if self.weight_decay == 0.0 {
            return self.init();
        }
        groups.iter().fold(self.init(), |optimizer, group| {
            let decay = if group.decays { self.weight_decay } else { 0.0 };
            optimizer.with_group(
                group.parameters.clone(),
                self.with_decay(decay).build(),
                None,
            )
        })
    }

    /// Whether every setting is in its range.
    ///
    /// # Errors
    /// With the first setting that is not.
    pub fn check(&self) -> Result<(), ConfigError> {
        let (epsilon, weight_decay) = (self.epsilon, self.weight_decay);
        for (setting, beta) in [("beta_1", self.beta_1), ("beta_2", self.beta_2)] {
            let holds = (0.0..1.0).contains(&beta);
            ConfigError::unless(holds, setting, "a number in 0.0..1.0", beta)?;
        }
        let holds = epsilon.is_finite() && epsilon > 0.0;
        ConfigError::unless(holds, "epsilon", "a positive number", epsilon)?;
        ConfigError::unless_at_least_0("weight_decay", weight_decay)
    }

    fn with_decay(&self, weight_decay: f32) -> AdamWConfig {
        AdamWConfig::new()
            .with_beta_1(self.beta_1)
            .with_beta_2(self.beta_2)
            .with_epsilon(self.epsilon)
            .with_weight_decay(weight_decay)
    }
}

impl TrainerConfig {
    /// The learning rate by step.
    pub fn schedule(&self) -> Cosine {
        Cosine {
            base: self.learning_rate,
            warmup_steps: self.warmup_steps,
            total_steps: self.steps,
            final_rate: self.final_learning_rate,
        }
    }

    /// Whether every setting is in its range.
    ///
    /// # Errors
    /// With the first setting that is not.
    pub fn check(&self) -> Result<(), ConfigError> {
        ConfigError::unless_at_least_0("learning_rate", self.learning_rate)?;
        ConfigError::unless_at_least_0("final_learning_rate", self.final_learning_rate)?;
        ConfigError::unless_at_least_0("lambda_rl", self.lambda_rl)?;
        ConfigError::in_section("optimizer", self.optimizer.check())?;
        if let Some(norm) = self.clip_norm {
            let holds = norm.is_finite() && norm > 0.0;
            ConfigError::unless(holds, "clip_norm", "a positive number or none", norm)?;
        }
        let keeps = self.keep_checkpoints > 0;
        ConfigError::unless(keeps, "keep_checkpoints", "at least 1", 0)?;
        self.policy_gradient.check()
    }
}
