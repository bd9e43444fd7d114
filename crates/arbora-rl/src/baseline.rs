//! Baselines that are subtracted from rewards.

use burn::config::Config;
use burn::tensor::{Bool, DType, FloatDType, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::{ConfigError, check};

/// What is subtracted from a reward before it weighs the log-probability of what was chosen.
///
/// Every one of them leaves the expectation of the gradient unchanged, because none depends on the
/// decision that it is subtracted from. They differ in variance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum BaselineConfig {
    /// Nothing. The published choice for log-likelihood and accuracy rewards.
    #[default]
    None,
    /// One number. For [`negative_cross_entropy`](crate::reward::negative_cross_entropy) rewards the
    /// published choice is `-ln(classes)`.
    Constant {
        /// The number, in the unit of the reward.
        value: f64,
    },
    /// The average reward of the batches *before* this one, weighted by `decay^age` and divided by
    /// the sum of the weights. The first batch has none: its baseline is 0.
    MovingAverage {
        /// Weight of the past, in `0.0..1.0`.
        decay: f64,
    },
    /// The mean of all *other* rewards of the batch, over rows and samples. Where there is no other,
    /// the baseline is 0.
    BatchMean,
    /// The mean of the *other* samples of the same row; needs at least two samples per row. A row
    /// with one sample left by the mask has no other, and its baseline is 0: the estimate stays
    /// unbiased, with the variance of no baseline.
    LeaveOneOut,
    /// The reward of the row's greedy sequence
    /// ([Rennie et al. 2017](https://arxiv.org/abs/1612.00563), section 3.1).
    SelfCritical,
}

impl Config for BaselineConfig {}

impl BaselineConfig {
    /// A baseline that has seen no batch.
    ///
    /// # Panics
    /// If a setting is out of range: see [`check`](Self::check).
    #[track_caller]
    pub fn init(&self) -> Baseline {
        if let Err(error) = self.check() {
            panic!("BaselineConfig::init: {error}");
        }
        Baseline {
            config: *self,
            average: Average::Host([0.0, 0.0]),
        }
    }

    /// Whether every setting is in its range.
    ///
    /// # Errors
    /// With the first setting that is not.
    pub fn check(&self) -> Result<(), ConfigError> {
        match *self {
            Self::Constant { value } => {
                let holds = value.is_finite();
                ConfigError::unless(holds, "value", "a finite number", value)
            }
            Self::MovingAverage { decay } => {
                let holds = (0.0..1.0).contains(&decay);
                ConfigError::unless(holds, "decay", "a number in 0.0..1.0", decay)
            }
            _ => Ok(()),
        }
    }

    /// Whether [`Baseline::advantage`] needs the greedy sequence's reward.
    pub fn needs_greedy_reward(&self) -> bool {
        matches!(self, Self::SelfCritical)
    }
}

/// What a [`Baseline`] remembers between batches, exactly: the bits of its single-precision
/// numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaselineState {
    /// Bits of the weighted sum of past batch means.
    pub weighted_sum_bits: u32,
    /// Bits of the sum of their weights; 0 before the first batch.
    pub weight_bits: u32,
}

/// A baseline and what it remembers between batches.
#[derive(Clone, Debug)]
pub struct Baseline {
    config: BaselineConfig,
    average: Average,
}

/// Weighted sum and weight of the moving average. It stays on the device between steps, so that
/// a training step does not wait for it.
#[derive(Clone, Debug)]
enum Average {
    Host([f32; 2]),
    Device(Box<Tensor<1>>),
}

impl Baseline {
    /// The configuration that it was made from.
    pub fn config(&self) -> &BaselineConfig {
        &self.config
    }

    /// Reward minus baseline, without history; 0 where masked. `[rows, samples]`
    ///
    /// - `reward`: `[rows, samples]`
    /// - `greedy_reward`: `[rows, 1]`, the reward of each row's greedy sequence; only the
    ///   self-critical baseline reads it
    /// - `mask`: `[rows, samples]`, `true` = masked out; the reward there may be anything, NaN
    ///   included
    ///
    /// # Panics
    /// If shapes disagree, if the self-critical baseline gets no `greedy_reward`, or if leave-one-out
    /// gets fewer than two samples per row.
    #[track_caller]
    pub fn advantage(
        &mut self,
        reward: Tensor<2>,
        greedy_reward: Option<Tensor<2>>,
        mask: Option<Tensor<2, Bool>>,
    ) -> Tensor<2> {
        let [rows, samples] = reward.dims();
        check::some_samples("Baseline::advantage", "reward", [rows, samples]);
        if let Some(mask) = &mask {
            check::same_shape("Baseline::advantage", "mask", mask.dims(), [rows, samples]);
        }
        let reward = reward.detach();
        let mask = check::mask_like(mask, &reward);
        let keep = reward.ones_like().mask_fill(mask.clone(), 0.0);
        // Filled, not multiplied: 0 * NaN is NaN.
        let reward = reward.mask_fill(mask, 0.0);

        let advantage = match self.config {
            BaselineConfig::None => reward,
            BaselineConfig::Constant { value } => reward - value,
            BaselineConfig::MovingAverage { decay } => {
                let baseline = self.advance_average(reward.clone(), keep.clone(), decay);
                let baseline = baseline.cast(reward.dtype());
                reward - baseline.unsqueeze::<2>()
            }
            BaselineConfig::BatchMean => {
                let total = reward.clone().sum().unsqueeze::<2>();
                less_others(reward, total, keep.clone().sum().unsqueeze::<2>())
            }
            BaselineConfig::LeaveOneOut => {
                assert!(
                    samples >= 2,
                    "Baseline::advantage: leave_one_out: axis 1 (samples): expected at least 2, \
                     got {samples}"
                );
                let total = reward.clone().sum_dim(1);
                less_others(reward, total, keep.clone().sum_dim(1))
            }
            BaselineConfig::SelfCritical => {
                let greedy = greedy_reward.unwrap_or_else(|| {
                    panic!(
                        "Baseline::advantage: self_critical: expected greedy_reward \
                         [rows, 1], got none"
                    )
                });
                let operation = "Baseline::advantage";
                check::same_shape(operation, "greedy_reward", greedy.dims(), [rows, 1]);
                let greedy = check::constant_like(greedy, &reward);
                reward - greedy
            }
        };
        // A row whose every entry is masked may have any greedy reward, NaN included.
        advantage.mask_fill(keep.equal_elem(0.0), 0.0)
    }

    /// The average before this batch, `[1]`; then takes the batch in. Both in single precision, as the state is.
    fn advance_average(&mut self, reward: Tensor<2>, keep: Tensor<2>, decay: f64) -> Tensor<1> {
        let (reward, keep) = (reward.cast(DType::F32), keep.cast(DType::F32));
        let single = (&reward.device(), DType::F32);
        let state = match &self.average {
            Average::Host(numbers) => Tensor::from_data(TensorData::from(*numbers), single),
            Average::Device(state) => check::constant_like(state.as_ref().clone(), &keep),
        };
        let (sum, weight) = (state.clone().narrow(0, 0, 1), state.narrow(0, 1, 1));
        // Before the first batch both are 0, and 0 / tiny is the 0 that is promised.
        let baseline = sum.clone() / weight.clone().clamp_min(f32::MIN_POSITIVE);

        let count = keep.sum();
        let mean = reward.sum() / count.clone().clamp_min(1.0);
        // A batch with nothing in it must not age the average.
        let fresh = count.greater_elem(0.5).cast(FloatDType::F32) * (1.0 - decay);
        let kept = fresh.clone().neg() + 1.0;
        let sum = sum * kept.clone() + mean * fresh.clone();
        let weight = weight * kept + fresh;
        self.average = Average::Device(Box::new(Tensor::cat(vec![sum, weight], 0)));
        baseline
    }

    /// What it remembers, for a checkpoint. Waits for the device.
    pub fn state(&self) -> BaselineState {
        let numbers = match &self.average {
            Average::Host(numbers) => *numbers,
            Average::Device(state) => {
                let mut numbers = [0.0; 2];
                let data = state.as_ref().clone().into_data();
                for (number, read) in numbers.iter_mut().zip(data.iter::<f32>()) {
                    *number = read;
                }
                numbers
            }
        };
        BaselineState {
            weighted_sum_bits: numbers[0].to_bits(),
            weight_bits: numbers[1].to_bits(),
        }
    }

    /// Continues from what another baseline remembered.
    pub fn load_state(&mut self, state: BaselineState) {
        let numbers = [state.weighted_sum_bits, state.weight_bits];
        self.average = Average::Host(numbers.map(f32::from_bits));
    }
}

/// Each reward less the mean of the others, given the sum and the count of all.
fn less_others(reward: Tensor<2>, total: Tensor<2>, count: Tensor<2>) -> Tensor<2> {
    let others = (total - reward.clone()) / (count - 1.0).clamp_min(1.0);
    reward - others
}
