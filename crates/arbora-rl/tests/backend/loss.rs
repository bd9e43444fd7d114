//! The surrogate loss: value, gradient, masks and edges.

use arbora_rl::{BaselineConfig, PolicyGradientConfig, Rollout};
use arbora_testing::gradient::assert_matches_finite_differences;
use arbora_testing::{assert_close, autodiff_device, device, random_data, values};
use burn::tensor::{Bool, DType, Device, FloatDType, Tensor};

fn config(baseline: BaselineConfig, entropy_weight: f64) -> PolicyGradientConfig {
    PolicyGradientConfig {
        baseline,
        entropy_weight,
    }
}

fn rollout(log_prob: [[f32; 2]; 2], entropy: [[f32; 2]; 2], device: &Device) -> Rollout {
    Rollout {
        log_prob: Tensor::from_data(log_prob, device),
        entropy: Tensor::from_data(entropy, device),
        decisions: Tensor::ones([2, 2], device),
        mask: None,
    }
}

fn scalar(tensor: Tensor<1>) -> f32 {
    tensor.into_scalar::<f32>()
}

#[test]
fn loss_is_minus_the_mean_of_advantage_times_log_prob_minus_weighted_entropy() {
    let device = device();
    let rollout = rollout(
        [[-1.0, -2.0], [-3.0, -4.0]],
        [[0.5, 1.0], [1.5, 2.0]],
        &device,
    );
    let reward = Tensor::from_data([[1.0, 0.0], [2.0, -1.0]], &device);
    let output = config(BaselineConfig::None, 0.1)
        .init()
        .loss(rollout, reward, None);
    // (-1 + 0 - 6 + 4) / 4 = -0.75; mean entropy 1.25.
    assert!((scalar(output.loss) - (0.75 - 0.125)).abs() < 1e-6);
    assert!((scalar(output.entropy) - 1.25).abs() < 1e-6);
    assert!((scalar(output.reward) - 0.5).abs() < 1e-6);
}

#[test]
fn masked_entries_change_neither_the_value_nor_any_gradient() {
    let device = autodiff_device();
    let nan = f32::NAN;
    let mask = Tensor::<2, Bool>::from_data([[false, true], [true, false]], &device);
    let run = |junk: f32| {
        let log_prob = Tensor::<2>::from_data([[-1.0, junk], [junk, -4.0]], &device).require_grad();
        let entropy = Tensor::<2>::from_data([[0.5, junk], [junk, 2.0]], &device).require_grad();
        let rollout = Rollout {
            log_prob: log_prob.clone(),
            entropy: entropy.clone(),
            decisions: Tensor::from_data([[1.0, junk], [junk, 1.0]], &device),
            mask: Some(mask.clone()),
        };
        let reward = Tensor::from_data([[1.0, junk], [junk, 3.0]], &device);
        let output = config(BaselineConfig::BatchMean, 0.1)
            .init()
            .loss(rollout, reward, None);
        let value = scalar(output.loss.clone());
        let gradients = output.loss.backward();
        (
            value,
            log_prob.grad(&gradients).unwrap(),
            entropy.grad(&gradients).unwrap(),
        )
    };
    for junk in [0.0, 1e30, nan, f32::NEG_INFINITY] {
        let (value, log_prob, entropy) = run(junk);
        // Advantages -2 and 2 over two entries: -(2 - 8) / 2; entropy mean 1.25.
        assert!((value - (3.0 - 0.125)).abs() < 1e-5, "junk {junk}: {value}");
        let plain = crate::loss::device();
        let expected = Tensor::from_data([[1.0, 0.0], [0.0, -1.0]], &plain);
        assert_close(log_prob, expected, 1e-6, 0.0);
        let expected = Tensor::from_data([[-0.05, 0.0], [0.0, -0.05]], &plain);
        assert_close(entropy, expected, 1e-6, 0.0);
    }
}

#[test]
fn a_batch_that_is_masked_entirely_has_loss_zero_and_no_gradient() {
    let device = autodiff_device();
    let baselines = [
        BaselineConfig::None,
        BaselineConfig::Constant { value: 2.0 },
        BaselineConfig::MovingAverage { decay: 0.9 },
        BaselineConfig::BatchMean,
        BaselineConfig::LeaveOneOut,
        BaselineConfig::SelfCritical,
    ];
    for baseline in baselines {
        let log_prob = Tensor::<2>::full([2, 2], -1.0, &device).require_grad();
        let rollout = Rollout {
            log_prob: log_prob.clone(),
            entropy: log_prob.clone().neg(),
            decisions: Tensor::ones([2, 2], &device),
            mask: Some(Tensor::<2, Bool>::from_data([[true; 2]; 2], &device)),
        };
        let reward = Tensor::full([2, 2], f32::NAN, &device);
        let greedy = Some(Tensor::full([2, 1], f32::NAN, &device));
        let output = config(baseline, 0.5).init().loss(rollout, reward, greedy);
        assert_eq!(scalar(output.loss.clone()), 0.0, "{baseline:?}");
        assert_eq!(scalar(output.reward), 0.0, "{baseline:?}");
        assert_eq!(scalar(output.entropy), 0.0, "{baseline:?}");
        let gradients = output.loss.backward();
        let gradient = log_prob.grad(&gradients).unwrap();
        assert!(values(gradient).iter().all(|g| *g == 0.0), "{baseline:?}");
    }
}

#[test]
fn sequences_without_decisions_enter_no_entropy_mean() {
    let device = device();
    let mut rollout = rollout(
        [[0.0, -2.0], [0.0, -4.0]],
        [[f32::NAN, 1.0], [9.0, 2.0]],
        &device,
    );
    rollout.decisions = Tensor::from_data([[0.0, 1.0], [0.0, 3.0]], &device);
    let reward = Tensor::zeros([2, 2], &device);
    let output = config(BaselineConfig::None, 1.0)
        .init()
        .loss(rollout, reward, None);
    assert!((scalar(output.entropy) - 1.5).abs() < 1e-6);
    assert!((scalar(output.loss) + 1.5).abs() < 1e-6);
}

#[test]
fn without_any_decision_the_loss_is_zero() {
    let device = device();
    let mut rollout = rollout([[0.0; 2]; 2], [[f32::NAN; 2]; 2], &device);
    rollout.decisions = Tensor::zeros([2, 2], &device);
    let reward = Tensor::ones([2, 2], &device);
    let output = config(BaselineConfig::BatchMean, 1.0)
        .init()
        .loss(rollout, reward, None);
    assert_eq!(scalar(output.loss), 0.0);
}

#[test]
fn one_row_and_one_sample_is_enough_for_every_baseline_but_leave_one_out() {
    let device = device();
    for baseline in [
        BaselineConfig::None,
        BaselineConfig::Constant { value: 0.0 },
        BaselineConfig::MovingAverage { decay: 0.9 },
        BaselineConfig::BatchMean,
        BaselineConfig::SelfCritical,
    ] {
        let rollout = Rollout {
            log_prob: Tensor::from_data([[-2.0]], &device),
            entropy: Tensor::from_data([[1.0]], &device),
            decisions: Tensor::from_data([[1.0]], &device),
            mask: None,
        };
        let reward = Tensor::from_data([[3.0]], &device);
        let greedy = Some(Tensor::from_data([[0.0]], &device));
        let output = config(baseline, 0.0).init().loss(rollout, reward, greedy);
        assert!((scalar(output.loss) - 6.0).abs() < 1e-5, "{baseline:?}");
    }
}

#[test]
fn gradient_by_log_prob_matches_finite_differences() {
    for baseline in [
        BaselineConfig::None,
        BaselineConfig::LeaveOneOut,
        BaselineConfig::BatchMean,
    ] {
        let data = random_data([3, 4], 1);
        assert_matches_finite_differences::<2>(data, &device(), 1e-2, 1e-3, |log_prob| {
            let device = log_prob.device();
            let mask = Tensor::<2, Bool>::from_data(
                [[false, false, true, false], [false; 4], [true; 4]],
                &device,
            );
            let rollout = Rollout {
                entropy: log_prob.clone().square(),
                decisions: Tensor::ones([3, 4], &device),
                log_prob,
                mask: Some(mask),
            };
            let reward = arbora_testing::random([3, 4], 2, &device);
            config(baseline, 0.3)
                .init()
                .loss(rollout, reward, None)
                .loss
        });
    }
}

#[test]
fn rewards_that_left_the_graph_are_taken_as_they_are() {
    let log_prob = Tensor::<2>::full([2, 2], -1.0, &autodiff_device()).require_grad();
    let rollout = Rollout {
        log_prob: log_prob.clone(),
        entropy: Tensor::ones([2, 2], &device()),
        decisions: Tensor::ones([2, 2], &device()),
        mask: Some(Tensor::<2, Bool>::from_data(
            [[false, true], [false, false]],
            &device(),
        )),
    };
    let reward = Tensor::ones([2, 2], &device());
    let greedy = Some(Tensor::zeros([2, 1], &device()));
    let output = config(BaselineConfig::SelfCritical, 0.1)
        .init()
        .loss(rollout, reward, greedy);
    let gradients = output.loss.backward();
    let third = -1.0 / 3.0;
    let expected = Tensor::from_data([[third, 0.0], [third, third]], &device());
    assert_close(log_prob.grad(&gradients).unwrap(), expected, 1e-6, 0.0);
}

#[test]
#[should_panic(expected = "PolicyGradient::loss: reward: axis 1 (samples): expected 2, got 3")]
fn a_reward_of_another_shape_is_refused() {
    let device = device();
    let reward = Tensor::zeros([2, 3], &device);
    let rollout = rollout([[0.0; 2]; 2], [[0.0; 2]; 2], &device);
    config(BaselineConfig::None, 0.0)
        .init()
        .loss(rollout, reward, None);
}

#[test]
fn plain_rewards_and_masks_meet_checkpointed_log_probabilities_of_another_precision() {
    let device = device();
    let recording = device.clone().autodiff().gradient_checkpointing();
    let reward = || Tensor::<2>::from_data([[1.0, -2.0], [3.0, 0.5]], &device);
    let single = [FloatDType::F32].into_iter();
    for dtype in single.chain(arbora_testing::other_floats(&device)) {
        for baseline in [
            BaselineConfig::None,
            BaselineConfig::MovingAverage { decay: 0.9 },
            BaselineConfig::BatchMean,
            BaselineConfig::SelfCritical,
        ] {
            let log_prob = [[-1.0, -2.0], [-3.0, -4.0]];
            let options = (&recording, DType::from(dtype));
            let log_prob = Tensor::<2>::from_data(log_prob, options).require_grad();
            let rollout = Rollout {
                log_prob: log_prob.clone(),
                entropy: reward().ones_like(),
                decisions: reward().ones_like(),
                mask: Some(reward().lower_elem(-1.0)),
            };
            let mut estimator = config(baseline, 0.01).init();
            // The second batch meets what the first one left.
            estimator.loss(rollout.clone(), reward(), Some(reward().sum_dim(1)));
            let found = estimator.loss(rollout, reward(), Some(reward().sum_dim(1)));
            assert_eq!(found.loss.dtype(), DType::from(dtype), "{baseline:?}");
            let gradient = values(log_prob.grad(&found.loss.backward()).unwrap());
            let masked = gradient[1] == 0.0;
            assert!(
                masked && gradient[0].is_finite() && gradient[2] != 0.0,
                "{baseline:?}"
            );
        }
    }
}
