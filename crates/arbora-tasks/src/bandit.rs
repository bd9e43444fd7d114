//! The wheel bandit: which arm to pull in which place of a disk, learned while it pays.
//!
//! A loop over [`WheelBandit`] is what growing contexts are for: predict the reward of every arm from
//! the interactions so far, choose, observe, append. [`BanditRegression`] makes the problems on which a
//! model learns to predict so.
//!
//! Source: Riquelme, Tucker and Snoek,
//! [Deep Bayesian Bandits Showdown](https://arxiv.org/abs/1802.09127), 2018, section 5.4. As a test of
//! predictions from context: Garnelo and others, [Neural Processes](https://arxiv.org/abs/1807.01622),
//! 2018.

use burn::config::Config;
use burn::tensor::Device;
use derive_setters::Setters;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use serde::{Deserialize, Serialize};

use crate::draws;
use crate::error::check_points;
use crate::{RegressionBatch, RegressionExample, TaskError};

/// How many arms there are.
pub const ARMS: usize = 5;

/// Numbers of a point of [`BanditRegression`]: two of the context, one for each arm.
pub const X_DIM: usize = 2 + ARMS;

/// Rewards are divided by this in [`BanditRegression`], which takes the largest mean to 1.
pub const REWARD_SCALE: f32 = 50.0;

/// The disk has five regions: a core within the radius `delta`, and outside of it one region for each
/// quadrant.
///
/// Arm 0 pays 1.2 everywhere. In the core the other arms pay 1. Outside of it, one of them pays 50: arm
/// 1 where both coordinates are above 0, arm 2 where only the first is, arm 3 where only the second
/// is, arm 4 where none is; the other three pay 1. These are means; each reward has normal noise of
/// standard deviation 0.01.
///
/// The greater `delta` is, the rarer is the high reward and the more exploring is needed to find it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WheelBandit {
    delta: f32,
}

impl WheelBandit {
    /// The standard deviation of a reward.
    pub const NOISE: f32 = 0.01;
    const SAFE: f32 = 1.2;
    const LOW: f32 = 1.0;
    const HIGH: f32 = 50.0;

    /// A wheel whose core has the radius `delta`, from 0 (no core) to 1 (nothing but core).
    ///
    /// # Errors
    /// [`TaskError::Config`] outside [0, 1].
    pub fn new(delta: f32) -> Result<Self, TaskError> {
        if (0.0..=1.0).contains(&delta) {
            Ok(Self { delta })
        } else {
            let expected = "0 to 1, the radius of the disk";
            Err(TaskError::config("delta", expected, delta))
        }
    }

    /// The radius of the core.
    pub fn delta(&self) -> f32 {
        self.delta
    }

    /// Draws a place, uniform over the unit disk.
    pub fn context(&self, rng: &mut impl Rng) -> [f32; 2] {
        // Of the square around it, the disk covers pi / 4: 1.3 draws are enough on average.
        loop {
            let place = [rng.random_range(-1.0..1.0), rng.random_range(-1.0..1.0)];
            if norm(place) <= 1.0 {
                return place;
            }
        }
    }

    /// The mean reward of every arm at `context`.
    pub fn mean_rewards(&self, context: [f32; 2]) -> [f32; ARMS] {
        let mut means = [Self::LOW; ARMS];
        means[0] = Self::SAFE;
        if norm(context) > self.delta {
            let [first, second] = context.map(|coordinate| coordinate > 0.0);
            means[1 + 2 * usize::from(!first) + usize::from(!second)] = Self::HIGH;
        }
        means
    }

    /// Draws the reward of pulling `arm` at `context`.
    ///
    /// # Panics
    /// If there is no such arm.
    #[track_caller]
    pub fn reward(&self, context: [f32; 2], arm: usize, rng: &mut impl Rng) -> f32 {
        assert_arm("WheelBandit::reward", arm);
        self.mean_rewards(context)[arm] + Self::NOISE * rng.sample::<f32, _>(StandardNormal)
    }

    /// What a model is told of an interaction: the context and the arm, one-hot.
    ///
    /// # Panics
    /// If there is no such arm.
    #[track_caller]
    pub fn point(context: [f32; 2], arm: usize) -> [f32; X_DIM] {
        assert_arm("WheelBandit::point", arm);
        let mut point = [0.0; X_DIM];
        point[..2].copy_from_slice(&context);
        point[2 + arm] = 1.0;
        point
    }
}

fn norm([first, second]: [f32; 2]) -> f32 {
    first.hypot(second)
}

#[track_caller]
fn assert_arm(operation: &str, arm: usize) {
    assert!(
        arm < ARMS,
        "{operation}: arm: expected below {ARMS}, got {arm}"
    );
}

/// How many interactions are shown and how many contexts are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Setters)]
#[serde(default, deny_unknown_fields)]
#[setters(prefix = "with_")]
pub struct BanditConfig {
    /// The least number of interactions in the context. Default 1: a loop begins with one.
    pub min_context: usize,
    /// The greatest number, which a loop should not exceed by much. Default 512. The number is
    /// uniform over the range and the same for a whole batch.
    pub max_context: usize,
    /// Fresh contexts, at each of which the rewards of all arms are targets. Default 10.
    pub target_contexts: usize,
}

impl Default for BanditConfig {
    fn default() -> Self {
        Self {
            min_context: 1,
            max_context: 512,
            target_contexts: 10,
        }
    }
}

impl Config for BanditConfig {}

impl BanditConfig {
    /// Checks that there is something to show and something to ask for.
    ///
    /// # Errors
    /// [`TaskError::EmptyContext`] and [`TaskError::NoTargets`] where `min_context` or
    /// `target_contexts` is 0, [`TaskError::Config`] where `max_context` is below `min_context`.
    pub fn check(&self) -> Result<(), TaskError> {
        check_points(
            ("min_context", self.min_context),
            ("target_contexts", self.target_contexts),
        )?;
        if self.max_context < self.min_context {
            let expected = format!("at least min_context = {}", self.min_context);
            return Err(TaskError::config("max_context", expected, self.max_context));
        }
        Ok(())
    }
}

/// Predicting rewards of wheel bandits as a regression problem, with `x_dim` = [`X_DIM`] (7) and
/// `y_dim` = 1.
///
/// Each example is a wheel of its own, `delta` uniform over [0, 1). Its context are interactions at
/// random places with random arms, its targets are all arms at fresh places: the targets of a place
/// come one after the other, by arm. Points are those of [`WheelBandit::point`], values are rewards
/// divided by [`REWARD_SCALE`].
#[derive(Clone, Copy, Debug)]
pub struct BanditRegression {
    config: BanditConfig,
}

impl BanditRegression {
    /// The task of a configuration.
    ///
    /// # Errors
    /// As [`BanditConfig::check`].
    pub fn new(config: BanditConfig) -> Result<Self, TaskError> {
        config.check()?;
        Ok(Self { config })
    }

    /// The configuration.
    pub fn config(&self) -> &BanditConfig {
        &self.config
    }

    /// The training batch of `step`: a pure function of its arguments.
    ///
    /// Shapes as in [`RegressionBatch`], with `5 * target_contexts` targets and nothing masked.
    ///
    /// # Errors
    /// [`TaskError::EmptyBatch`] if `batch_size` is 0.
    pub fn batch(
        &self,
        seed: u64,
        step: u64,
        batch_size: usize,
        device: &Device,
    ) -> Result<RegressionBatch, TaskError> {
        let mut rng = draws::training(seed, step, batch_size)?;
        Ok(self.draw(&mut rng, batch_size, device))
    }

    /// `batches` fixed batches for evaluation, each a pure function of `seed`, its index and
    /// `batch_size`. The draws differ from those of training with the same seed.
    ///
    /// # Errors
    /// [`TaskError::EmptyBatch`] if `batch_size` is 0.
    pub fn eval_batches(
        &self,
        seed: u64,
        batches: usize,
        batch_size: usize,
        device: &Device,
    ) -> Result<impl ExactSizeIterator<Item = RegressionBatch> + use<>, TaskError> {
        let (task, device) = (*self, device.clone());
        let streams = draws::evaluation(seed, batches, batch_size)?;
        Ok(streams.map(move |mut rng| task.draw(&mut rng, batch_size, &device)))
    }

    fn draw(&self, rng: &mut ChaCha8Rng, batch_size: usize, device: &Device) -> RegressionBatch {
        let context = rng.random_range(self.config.min_context..=self.config.max_context);
        let examples: Vec<_> = (0..batch_size)
            .map(|_| {
                let wheel = WheelBandit {
                    delta: rng.random_range(0.0..1.0),
                };
                let mut example = RegressionExample::default();
                for _ in 0..context {
                    let (place, arm) = (wheel.context(rng), rng.random_range(0..ARMS));
                    let reward = wheel.reward(place, arm, rng) / REWARD_SCALE;
                    example.context_x.extend(WheelBandit::point(place, arm));
                    example.context_y.push(reward);
                }
                for _ in 0..self.config.target_contexts {
                    let place = wheel.context(rng);
                    for arm in 0..ARMS {
                        let reward = wheel.reward(place, arm, rng) / REWARD_SCALE;
                        example.target_x.extend(WheelBandit::point(place, arm));
                        example.target_y.push(reward);
                    }
                }
                example
            })
            .collect();
        RegressionBatch::padded(&examples, [X_DIM, 1], (0..batch_size).collect(), device)
    }
}
