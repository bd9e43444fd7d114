//! Proof of the estimator on a small tree: two decisions among three children each.
//!
//! Every path is enumerated, so the gradient of the expected reward is known exactly. The
//! estimator's mean over many samples must agree with it within four standard errors, computed from
//! the samples, for every baseline. Every row of a batch has its own copy of the logits, so one
//! backward pass gives one independent estimate per row. A baseline that includes the sample's own
//! reward must *fail* the same comparison: the test can tell.
#![cfg(feature = "flex")]

use arbora_rl::seed::{Purpose, rng};
use arbora_rl::{BaselineConfig, PolicyGradient, PolicyGradientConfig, Rollout, sample};
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Int, Tensor};

const BRANCHING: usize = 3;
/// The root's logits, then those of its three children.
const LOGITS: [f32; 12] = [
    0.4, -0.3, 0.1, 1.0, 0.0, -0.5, -0.2, 0.3, 0.8, 0.0, -1.0, 0.6,
];
/// The reward of each path. Far from zero, so that the baselines have work to do.
const REWARDS: [f32; 9] = [3.0, 3.5, 2.0, 4.0, 5.0, 3.2, 2.5, 4.4, 3.9];

fn device() -> Device {
    Device::flex().autodiff()
}

/// Log-probabilities of the choices at the root, `[rows, 3]`, and below each child, `[rows, 9]`.
fn log_policy(logits: &Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let [rows, _] = logits.dims();
    let root = log_softmax(logits.clone().slice([0..rows, 0..BRANCHING]), 1);
    let below = logits
        .clone()
        .slice([0..rows, BRANCHING..12])
        .reshape([rows, 3, 3]);
    (root, log_softmax(below, 2).reshape([rows, 9]))
}

/// The gradient of minus the expected reward, by enumerating every path.
fn exact_gradient() -> Vec<f64> {
    let logits = Tensor::<2>::from_data([LOGITS], &device()).require_grad();
    let (root, below) = log_policy(&logits);
    // Path 3 * a + b starts with child a.
    let root = root.reshape([3, 1]).repeat_dim(1, 3).reshape([1, 9]);
    let probability = (root + below).exp();
    let rewards = Tensor::<2>::from_data([REWARDS], &device());
    let gradients = (probability * rewards).sum().neg().backward();
    logits
        .grad(&gradients)
        .unwrap()
        .into_data()
        .iter::<f32>()
        .map(f64::from)
        .collect()
}

struct Draw {
    rollout: Rollout,
    /// `[rows, samples]`
    reward: Tensor<2>,
    /// `[rows, 1]`
    greedy: Tensor<2>,
}

fn reward_of(path: Tensor<2, Int>) -> Tensor<2> {
    let [rows, samples] = path.dims();
    let table = Tensor::<1>::from_data(REWARDS, &path.device());
    table
        .select(0, path.reshape([rows * samples]))
        .reshape([rows, samples])
}

/// Samples paths for rows that each have their own copy of the logits.
fn draw(logits: &Tensor<2>, samples: usize, step: u64) -> Draw {
    let [rows, _] = logits.dims();
    let mut rng = rng(11, Purpose::Policy, step);
    let (root, below) = log_policy(logits);
    let plain = Device::flex();
    let uniform = sample::uniform(&mut rng, [rows, samples], &plain);
    let first = sample::categorical(root.clone().exp(), uniform);
    // The distribution below the chosen child differs from sample to sample: one row each.
    let below_chosen = {
        let table = below.clone().inner().exp().reshape([rows, 3, 3]);
        let index = first.clone().unsqueeze_dim::<3>(2).repeat_dim(2, 3);
        table.gather(1, index).reshape([rows * samples, 3])
    };
    let uniform = sample::uniform(&mut rng, [rows * samples, 1], &plain);
    let second = sample::categorical(below_chosen, uniform).reshape([rows, samples]);
    let path = first.clone() * 3 + second;

    let tracked = |index: Tensor<2, Int>| index.autodiff();
    let log_prob = root.clone().gather(1, tracked(first)) + below.gather(1, tracked(path.clone()));
    let shape = [rows, samples];
    let best_first = root.inner().argmax(1);
    let greedy_table = log_policy(&logits.clone().inner())
        .1
        .reshape([rows, 3, 3])
        .argmax(2);
    let best_second = greedy_table
        .reshape([rows, 3])
        .gather(1, best_first.clone());
    Draw {
        rollout: Rollout {
            log_prob,
            entropy: Tensor::zeros(shape, &device()),
            decisions: Tensor::full(shape, 2.0, &device()),
            mask: None,
        },
        reward: reward_of(path),
        greedy: reward_of(best_first * 3 + best_second),
    }
}

/// One estimate of the gradient per row, over several batches.
fn estimates(
    estimator: &mut PolicyGradient,
    batches: u64,
    [rows, samples]: [usize; 2],
    prepare: impl Fn(Tensor<2>) -> Tensor<2>,
) -> Vec<[f64; 12]> {
    let mut all = Vec::with_capacity(batches as usize * rows);
    for batch in 0..batches {
        let logits = Tensor::<2>::from_data([LOGITS], &device()).repeat_dim(0, rows);
        let logits = logits.detach().require_grad();
        let Draw {
            rollout,
            reward,
            greedy,
        } = draw(&logits, samples, batch);
        let output = estimator.loss(rollout, prepare(reward), Some(greedy));
        let gradients = output.loss.backward();
        // The loss is a mean over rows, and each row has logits of its own.
        let scaled = logits.grad(&gradients).unwrap() * rows as f32;
        let numbers: Vec<f32> = scaled.into_data().iter::<f32>().collect();
        for row in numbers.chunks_exact(12) {
            all.push(std::array::from_fn(|at| f64::from(row[at])));
        }
    }
    all
}

/// Mean, and variance of one estimate, per logit.
fn moments(estimates: &[[f64; 12]]) -> ([f64; 12], [f64; 12]) {
    let count = estimates.len() as f64;
    let mean: [f64; 12] =
        std::array::from_fn(|at| estimates.iter().map(|e| e[at]).sum::<f64>() / count);
    let variance = std::array::from_fn(|at| {
        estimates
            .iter()
            .map(|e| (e[at] - mean[at]).powi(2))
            .sum::<f64>()
            / (count - 1.0)
    });
    (mean, variance)
}

/// The largest distance between mean and exact gradient, in standard errors of the mean.
fn worst_distance(estimates: &[[f64; 12]]) -> f64 {
    let (mean, variance) = moments(estimates);
    let count = estimates.len() as f64;
    exact_gradient()
        .into_iter()
        .enumerate()
        .map(|(at, exact)| (mean[at] - exact).abs() / (variance[at] / count).sqrt())
        .fold(0.0, f64::max)
}

fn estimator(baseline: BaselineConfig) -> PolicyGradient {
    PolicyGradientConfig {
        baseline,
        entropy_weight: 0.0,
    }
    .init()
}

fn assert_unbiased(baseline: BaselineConfig, batches: u64, dims: [usize; 2]) {
    let all = estimates(&mut estimator(baseline), batches, dims, |reward| reward);
    let distance = worst_distance(&all);
    assert!(
        distance < 4.0,
        "{baseline:?}: {distance:.2} standard errors from the exact gradient"
    );
}

#[test]
fn the_exact_gradient_is_that_of_the_enumerated_expectation() {
    // Central differences of the expectation, computed on the host.
    let expectation = |logits: &[f64]| -> f64 {
        let softmax = |logits: &[f64]| -> Vec<f64> {
            let total: f64 = logits.iter().map(|l| l.exp()).sum();
            logits.iter().map(|l| l.exp() / total).collect()
        };
        let root = softmax(&logits[0..3]);
        (0..9)
            .map(|path| {
                let below = softmax(&logits[3 + 3 * (path / 3)..6 + 3 * (path / 3)]);
                root[path / 3] * below[path % 3] * f64::from(REWARDS[path])
            })
            .sum()
    };
    let logits: Vec<f64> = LOGITS.iter().map(|l| f64::from(*l)).collect();
    for (at, exact) in exact_gradient().into_iter().enumerate() {
        let moved = |delta: f64| {
            let mut logits = logits.clone();
            logits[at] += delta;
            expectation(&logits)
        };
        let numeric = -(moved(1e-5) - moved(-1e-5)) / 2e-5;
        assert!(
            (exact - numeric).abs() < 1e-5,
            "logit {at}: {exact} is not {numeric}"
        );
    }
}

#[test]
fn mean_converges_to_the_exact_gradient_without_a_baseline() {
    assert_unbiased(BaselineConfig::None, 2, [50_000, 4]);
}

#[test]
fn mean_converges_to_the_exact_gradient_with_a_constant() {
    assert_unbiased(BaselineConfig::Constant { value: 3.5 }, 2, [50_000, 4]);
}

#[test]
fn mean_converges_to_the_exact_gradient_with_the_moving_average() {
    // Small batches, so that the average moves.
    assert_unbiased(BaselineConfig::MovingAverage { decay: 0.7 }, 2_000, [8, 4]);
}

#[test]
fn mean_converges_to_the_exact_gradient_with_the_batch_mean() {
    // Small batches, so that a sample's own reward would show.
    assert_unbiased(BaselineConfig::BatchMean, 4_000, [4, 1]);
    assert_unbiased(BaselineConfig::BatchMean, 2, [50_000, 4]);
}

#[test]
fn mean_converges_to_the_exact_gradient_with_leave_one_out() {
    assert_unbiased(BaselineConfig::LeaveOneOut, 2, [50_000, 4]);
}

#[test]
fn mean_converges_to_the_exact_gradient_with_the_self_critical_baseline() {
    assert_unbiased(BaselineConfig::SelfCritical, 2, [50_000, 4]);
}

#[test]
fn a_row_mean_that_includes_the_own_reward_is_detected_as_biased() {
    let own_included = |reward: Tensor<2>| reward.clone() - reward.mean_dim(1);
    let all = estimates(
        &mut estimator(BaselineConfig::None),
        2,
        [50_000, 4],
        own_included,
    );
    let distance = worst_distance(&all);
    assert!(
        distance > 8.0,
        "only {distance:.2} standard errors: the comparison is too weak"
    );
}

#[test]
fn a_batch_mean_that_includes_the_own_reward_is_detected_as_biased() {
    let own_included = |reward: Tensor<2>| reward.clone() - reward.mean().unsqueeze::<2>();
    let all = estimates(
        &mut estimator(BaselineConfig::None),
        4_000,
        [4, 1],
        own_included,
    );
    let distance = worst_distance(&all);
    assert!(
        distance > 8.0,
        "only {distance:.2} standard errors: the comparison is too weak"
    );
}

#[test]
fn leave_one_out_has_lower_variance_than_no_baseline_at_four_samples() {
    let total = |baseline| {
        let all = estimates(&mut estimator(baseline), 1, [20_000, 4], |reward| reward);
        moments(&all).1.iter().sum::<f64>()
    };
    let (none, leave_one_out) = (
        total(BaselineConfig::None),
        total(BaselineConfig::LeaveOneOut),
    );
    assert!(
        leave_one_out < 0.5 * none,
        "leave-one-out {leave_one_out:.4}, none {none:.4}: expected less than half"
    );
}
