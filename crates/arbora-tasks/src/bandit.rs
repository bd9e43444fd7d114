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
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use derive_setters::Setters;
use serde::{Deserialize, Serialize};

use crate::{
    RegressionBatch, TaskError,
    batch::{HostBatch, HostPoints},
    draws::{Purpose, generator},
    error::check_batch,
};

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
    /// [`TaskError::Number`] outside [0, 1].
    pub fn new(delta: f32) -> Result<Self, TaskError> {
        if (0.0..=1.0).contains(&delta) {
            Ok(Self { delta })
        } else {
            Err(TaskError::Number {
                key: "delta",
                expected: "0 to 1, the radius of the disk".into(),
                got: delta.to_string(),
            })
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
    pub fn optimal(&self, context: [f32; 2]) -> [f32; ARMS] {
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
        self.optimal(context)[arm] + Self::NOISE * rng.sample::<f32, _>(StandardNormal)
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
        if self.min_context == 0 {
            return Err(TaskError::empty_context("min_context"));
        }
        if self.target_contexts == 0 {
            return Err(TaskError::no_targets("target_contexts"));
        }
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
        check_batch(batch_size)?;
        let mut rng = generator(seed, Purpose::Training, step);
        Ok(self.draw(&mut rng, batch_size).upload(device))
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
        check_batch(batch_size)?;
        let (task, device) = (*self, device.clone());
        Ok((0..batches).map(move |index| {
            let mut rng = generator(seed, Purpose::Evaluation, index as u64);
            task.draw(&mut rng, batch_size).upload(&device)
        }))
    }

    fn draw(&self, rng: &mut ChaCha8Rng, batch_size: usize) -> HostBatch {
        let context = rng.random_range(self.config.min_context..=self.config.max_context);
        let targets = ARMS * self.config.target_contexts;
        let mut batch = HostBatch {
            context: HostPoints::new(vec![context; batch_size], X_DIM, 1),
            target: HostPoints::new(vec![targets; batch_size], X_DIM, 1),
            indices: (0..batch_size).collect(),
        };
        for example in 0..batch_size {
            let wheel = WheelBandit {
                delta: rng.random_range(0.0..1.0),
            };
            let (x, y) = batch.context.example_mut(example);
            for (x, y) in x.chunks_exact_mut(X_DIM).zip(y) {
                let (place, arm) = (wheel.context(rng), rng.random_range(0..ARMS));
                x.copy_from_slice(&WheelBandit::point(place, arm));
                *y = wheel.reward(place, arm, rng) / REWARD_SCALE;
            }
            let (x, y) = batch.target.example_mut(example);
            for (x, y) in x
                .chunks_exact_mut(ARMS * X_DIM)
                .zip(y.chunks_exact_mut(ARMS))
            {
                let place = wheel.context(rng);
                for (arm, (x, y)) in x.chunks_exact_mut(X_DIM).zip(y).enumerate() {
                    x.copy_from_slice(&WheelBandit::point(place, arm));
                    *y = wheel.reward(place, arm, rng) / REWARD_SCALE;
                }
            }
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;

    fn rng() -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(5)
    }

    fn task(min_context: usize, max_context: usize) -> BanditRegression {
        BanditRegression::new(BanditConfig {
            min_context,
            max_context,
            target_contexts: 3,
        })
        .unwrap()
    }

    fn train(task: BanditRegression, seed: u64, step: u64) -> HostBatch {
        task.draw(&mut generator(seed, Purpose::Training, step), 2)
    }

    #[test]
    fn each_quadrant_outside_the_core_has_an_arm_that_pays() {
        let wheel = WheelBandit::new(0.5).unwrap();
        let cases = [
            ([0.1, 0.2], [1.2, 1.0, 1.0, 1.0, 1.0]),
            ([0.5, 0.0], [1.2, 1.0, 1.0, 1.0, 1.0]),
            ([0.6, 0.3], [1.2, 50.0, 1.0, 1.0, 1.0]),
            ([0.6, -0.3], [1.2, 1.0, 50.0, 1.0, 1.0]),
            ([-0.6, 0.3], [1.2, 1.0, 1.0, 50.0, 1.0]),
            ([-0.6, -0.3], [1.2, 1.0, 1.0, 1.0, 50.0]),
        ];
        for (context, means) in cases {
            assert_eq!(wheel.optimal(context), means, "at {context:?}");
        }
    }

    #[test]
    fn places_are_uniform_over_the_disk() {
        let (wheel, mut rng) = (WheelBandit::new(0.5).unwrap(), rng());
        let places: Vec<_> = (0..10_000).map(|_| wheel.context(&mut rng)).collect();
        assert!(places.iter().all(|&place| norm(place) <= 1.0));
        // A quarter of the area is within half the radius; five standard errors of 0.0043.
        let share = |inside: &dyn Fn([f32; 2]) -> bool| {
            places.iter().filter(|&&place| inside(place)).count() as f64 / 1e4
        };
        assert!((share(&|place| norm(place) <= 0.5) - 0.25).abs() < 0.022);
        assert!((share(&|place| place[0] > 0.0 && place[1] < 0.0) - 0.25).abs() < 0.022);
    }

    #[test]
    fn rewards_have_the_stated_mean_and_deviation() {
        let (wheel, mut rng) = (WheelBandit::new(0.3).unwrap(), rng());
        let place = [0.4, 0.4];
        for arm in 0..ARMS {
            let rewards: Vec<f64> = (0..4_000)
                .map(|_| f64::from(wheel.reward(place, arm, &mut rng)))
                .collect();
            let mean = rewards.iter().sum::<f64>() / 4e3;
            let variance = rewards.iter().map(|one| (one - mean).powi(2)).sum::<f64>() / 4e3;
            // Five standard errors: of a mean 0.01 / sqrt(4000), of a deviation that over sqrt(2).
            let expected = f64::from(wheel.optimal(place)[arm]);
            assert!((mean - expected).abs() < 8e-4, "{mean} for {expected}");
            assert!((variance.sqrt() - 0.01).abs() < 6e-4, "{}", variance.sqrt());
        }
    }

    #[test]
    fn wheels_without_core_and_without_rim_exist_and_others_are_refused() {
        assert_eq!(
            WheelBandit::new(0.0).unwrap().optimal([1e-3, 1e-3])[1],
            50.0
        );
        assert_eq!(WheelBandit::new(1.0).unwrap().optimal([1.0, 0.0])[2], 1.0);
        for (delta, text) in [(-0.5, "-0.5"), (1.5, "1.5"), (f32::NAN, "NaN")] {
            assert_eq!(
                WheelBandit::new(delta).unwrap_err().to_string(),
                format!("delta: expected 0 to 1, the radius of the disk, got {text}")
            );
        }
    }

    #[test]
    #[should_panic(expected = "WheelBandit::reward: arm: expected below 5, got 5")]
    fn an_arm_that_is_not_there_is_the_callers_bug() {
        let wheel = WheelBandit::new(0.5).unwrap();
        wheel.reward([0.0, 0.0], 5, &mut rng());
    }

    proptest! {
        #[test]
        fn every_batch_shows_rewards_of_one_wheel_and_asks_for_all_arms(seed: u64, step: u64) {
            let batch = train(task(2, 30), seed, step);
            prop_assert!((2..=30).contains(&batch.context.counts[0]));
            prop_assert_eq!(batch.context.counts[0], batch.context.counts[1]);
            prop_assert_eq!(&batch.target.counts, &[15, 15]);
            for example in 0..2 {
                // Some core explains all high and low rewards of an example.
                let (mut core, mut rim) = (0f32, 1f32);
                for points in [&batch.context, &batch.target] {
                    let (x, y) = points.example(example);
                    for (at, (x, y)) in x.chunks(X_DIM).zip(y).enumerate() {
                        let arm = x[2..].iter().position(|&one| one == 1.0).unwrap();
                        let place = [x[0], x[1]];
                        prop_assert_eq!(x, &WheelBandit::point(place, arm));
                        if points.counts[0] == 15 && points == &batch.target {
                            prop_assert_eq!(arm, at % ARMS);
                        }
                        let outside = WheelBandit { delta: 0.0 }.optimal(place)[arm];
                        let high = *y > 0.5;
                        prop_assert!(!high || outside == 50.0);
                        if outside == 50.0 {
                            if high { rim = rim.min(norm(place)) } else { core = core.max(norm(place)) }
                        }
                        let mean = if high { 1.0 } else if arm == 0 { 0.024 } else { 0.02 };
                        prop_assert!((y - mean).abs() < 2e-3);
                    }
                }
                prop_assert!(core <= rim, "a core of {core} and a rim of {rim}");
            }
            prop_assert_eq!(train(task(2, 30), seed, step), batch);
        }
    }

    #[test]
    fn seeds_steps_and_examples_have_wheels_of_their_own() {
        let first = train(task(20, 20), 3, 17);
        assert_ne!(train(task(20, 20), 3, 18), first);
        assert_ne!(train(task(20, 20), 4, 17), first);
        assert_ne!(first.context.example(0), first.context.example(1));
        let evaluation = task(20, 20).draw(&mut generator(3, Purpose::Evaluation, 17), 2);
        assert_ne!(evaluation, first);
    }

    #[test]
    fn configurations_that_show_or_ask_nothing_are_refused() {
        let error = |min_context, max_context, target_contexts| {
            let config = BanditConfig {
                min_context,
                max_context,
                target_contexts,
            };
            BanditRegression::new(config).unwrap_err().to_string()
        };
        let expected = [
            "min_context = 0: the context is empty; at least one point is needed",
            "target_contexts = 0: there are no targets; at least one point is needed",
            "max_context: expected at least min_context = 5, got 4",
        ];
        assert_eq!([error(0, 4, 1), error(1, 4, 0), error(5, 4, 1)], expected);
    }
}
