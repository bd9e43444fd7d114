//! What models predict, its loss and its reward.

use arbora_rl::reward;
use arbora_tree::tensors::at_least_single;
use burn::tensor::activation::{log_softmax, softplus};
use burn::tensor::{Bool, FloatDType, Int, Tensor};
use serde::{Deserialize, Serialize};

/// How the network's raw output becomes a standard deviation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StdKind {
    /// `exp(raw)`. Published for regression and RGB images.
    #[default]
    Exp,
    /// `0.05 + 0.95 · softplus(raw)`, never below 0.05. Published for grey images.
    Bounded,
}

/// What is predicted per query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeadKind {
    /// Independent normal distributions over `dim` values.
    Gaussian {
        /// Number of values.
        dim: usize,
        /// How the standard deviation is read.
        std: StdKind,
    },
    /// One of several classes.
    Classes {
        /// Number of classes.
        count: usize,
    },
}

impl HeadKind {
    /// Numbers the network outputs per query.
    pub fn width(&self) -> usize {
        match self {
            Self::Gaussian { dim, .. } => 2 * dim,
            Self::Classes { count } => *count,
        }
    }

    /// Reads raw outputs `[batch, queries, width]`: for a Gaussian the means first, then the raw
    /// standard deviations.
    pub fn read(&self, raw: Tensor<3>) -> Prediction {
        match *self {
            Self::Gaussian { dim, std } => {
                let [batch, queries, _] = raw.dims();
                let mean = raw.clone().slice([0..batch, 0..queries, 0..dim]);
                let raw = raw.slice([0..batch, 0..queries, dim..2 * dim]);
                let std = match std {
                    StdKind::Exp => raw.exp(),
                    StdKind::Bounded => {
                        let dtype = raw.dtype();
                        (softplus(at_least_single(raw), 1.0) * 0.95 + 0.05).cast(dtype)
                    }
                };
                Prediction::Gaussian { mean, std }
            }
            Self::Classes { .. } => Prediction::Classes { logits: raw },
        }
    }
}

/// A prediction per query.
#[derive(Clone, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "a few tensor handles per batch: a box would cost callers more than it saves"
)]
pub enum Prediction {
    /// Independent normal distributions.
    Gaussian {
        /// `[batch, queries, dim]`
        mean: Tensor<3>,
        /// `[batch, queries, dim]`, positive
        std: Tensor<3>,
    },
    /// Scores of classes.
    Classes {
        /// `[batch, queries, classes]`
        logits: Tensor<3>,
    },
}

/// What a policy is rewarded for. None of them needs a gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RewardKind {
    /// The published choice: the log-likelihood of values, the accuracy of classes.
    #[default]
    Published,
    /// The log-likelihood of the truth in nats; for classes the negative cross-entropy.
    LogLikelihood,
    /// 1 or 0 for a right or wrong class.
    Accuracy,
    /// The negative squared error of the predicted mean, averaged over dimensions.
    NegativeMse,
}

/// The truth per query.
#[derive(Clone, Debug)]
pub enum Target {
    /// `[batch, queries, dim]`
    Values(Tensor<3>),
    /// `[batch, queries]`
    Classes(Tensor<2, Int>),
}

impl Prediction {
    /// The log-likelihood of the truth in nats, summed over dimensions, `[batch, queries]`,
    /// differentiable, at least in single precision. For classes: the negative cross-entropy.
    ///
    /// # Panics
    /// If values are predicted for classes, or classes for values.
    #[track_caller]
    pub fn log_likelihood(&self, target: &Target) -> Tensor<2> {
        match (self, target) {
            (Self::Gaussian { mean, std }, Target::Values(value)) => {
                reward::log_density(mean.clone(), std.clone(), value.clone())
            }
            (Self::Classes { logits }, Target::Classes(class)) => {
                log_softmax(at_least_single(logits.clone()), 2)
                    .gather(2, class.clone().unsqueeze_dim(2))
                    .squeeze_dim(2)
            }
            _ => panic!("log_likelihood: expected values for a Gaussian and classes for logits"),
        }
    }

    /// The mean negative log-likelihood over unmasked queries, `[1]`.
    ///
    /// - mask: `[batch, queries]`, `true` = masked out
    ///
    /// # Panics
    /// As [`log_likelihood`](Self::log_likelihood).
    #[track_caller]
    pub fn loss(&self, target: &Target, mask: Option<&Tensor<2, Bool>>) -> Tensor<1> {
        -masked_average(self.log_likelihood(target), mask)
    }

    /// The reward of each query, without gradient, `[batch, queries]`.
    ///
    /// # Panics
    /// If values are predicted for classes or classes for values, or the reward is not one of
    /// them: accuracy of values, squared error of classes.
    #[track_caller]
    pub fn reward(&self, target: &Target, kind: RewardKind) -> Tensor<2> {
        use RewardKind::{Accuracy, LogLikelihood, NegativeMse, Published};
        match (self.clone(), target.clone()) {
            (Self::Gaussian { mean, std }, Target::Values(value)) => match kind {
                Published | LogLikelihood => reward::log_likelihood(mean, std, value),
                NegativeMse => reward::negative_mse(mean, value),
                Accuracy => panic!("reward: accuracy: expected classes, got values"),
            },
            (Self::Classes { logits }, Target::Classes(class)) => match kind {
                Published | Accuracy => reward::accuracy(logits, class),
                LogLikelihood => reward::negative_cross_entropy(logits, class),
                NegativeMse => {
                    panic!("reward: negative squared error: expected values, got classes")
                }
            },
            _ => panic!("reward: expected values for a Gaussian and classes for logits"),
        }
    }
}

/// The mean over unmasked entries of `[batch, queries]`, `[1]`; 0 where all are masked.
pub fn masked_average(values: Tensor<2>, mask: Option<&Tensor<2, Bool>>) -> Tensor<1> {
    match mask {
        None => values.mean(),
        Some(mask) => {
            let kept = mask
                .clone()
                .bool_not()
                .cast(FloatDType::from(values.dtype()));
            let count = kept.sum().clamp_min(1.0);
            values.mask_fill(mask.clone(), 0.0).sum() / count
        }
    }
}
