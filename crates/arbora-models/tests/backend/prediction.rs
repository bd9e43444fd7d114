//! What models predict, its loss and its reward.

use arbora_models::prediction::masked_average;
use arbora_models::{HeadKind, Prediction, RewardKind, StdKind, Target};
use arbora_testing::gradient::assert_matches_finite_differences;
use arbora_testing::{allowed, assert_close, device, exact, random, random_data, values};
use burn::tensor::{Int, Tensor};

const EXP: HeadKind = HeadKind::Gaussian {
    dim: 2,
    std: StdKind::Exp,
};
const BOUNDED: HeadKind = HeadKind::Gaussian {
    dim: 2,
    std: StdKind::Bounded,
};

#[test]
fn the_log_likelihood_of_values_is_the_normal_density_summed_over_dimensions() {
    for (head, read_std) in [
        (EXP, (|raw: f64| raw.exp()) as fn(f64) -> f64),
        (BOUNDED, |raw| 0.05 + 0.95 * raw.exp().ln_1p()),
    ] {
        let raw = random([2, 3, 4], 1, &device());
        let truth = random([2, 3, 2], 2, &device());
        let (raw_values, truth_values) = (values(raw.clone()), values(truth.clone()));
        let expected: Vec<f32> = (0..6)
            .map(|query| {
                let density = |dim: usize| {
                    let mean = f64::from(raw_values[4 * query + dim]);
                    let std = read_std(f64::from(raw_values[4 * query + 2 + dim]));
                    let error = (f64::from(truth_values[2 * query + dim]) - mean) / std;
                    let tau = std::f64::consts::TAU;
                    -0.5 * error * error - std.ln() - 0.5 * tau.ln()
                };
                (density(0) + density(1)) as f32
            })
            .collect();
        let expected = Tensor::<1>::from_data(&expected[..], &device()).reshape([2, 3]);
        let (prediction, target) = (head.read(raw), Target::Values(truth));
        let likelihood = prediction.log_likelihood(&target);
        assert_close(likelihood, expected.clone(), 1e-5, 1e-5);
        assert_close(
            prediction.reward(&target, RewardKind::Published),
            expected,
            1e-5,
            1e-5,
        );
    }
}

#[test]
fn a_bounded_standard_deviation_never_falls_below_its_bound() {
    let raw = Tensor::<1>::from_data([-1e4, -100.0, -1.0, 0.0, 1.0, 80.0], &device());
    let raw = Tensor::cat(vec![raw.zeros_like(), raw], 0).reshape([1, 1, 12]);
    let head = HeadKind::Gaussian {
        dim: 6,
        std: StdKind::Bounded,
    };
    let Prediction::Gaussian { std, .. } = head.read(raw) else {
        panic!("expected a Gaussian");
    };
    let std = values(std);
    assert!(std.iter().all(|std| *std >= exact(0.05) && std.is_finite()));
    assert!((std[0] - 0.05).abs() < allowed(1e-6) && (std[5] / 76.05 - 1.0).abs() < allowed(1e-4));
}

#[test]
fn the_gradient_of_the_loss_of_raw_outputs_is_that_of_finite_differences() {
    let mask = Tensor::<2>::from_data([[0.0, 1.0, 0.0]], &device()).greater_elem(0.5);
    for (head, target) in [
        (EXP, Target::Values(random([1, 3, 2], 2, &device()))),
        (BOUNDED, Target::Values(random([1, 3, 2], 2, &device()))),
        (HeadKind::Classes { count: 4 }, classes([2, 0, 3])),
    ] {
        let raw = random_data([1, 3, 4], 1);
        assert_matches_finite_differences::<3>(raw, &device(), 1e-2, 5e-3, |raw| {
            head.read(raw).loss(&target, Some(&mask))
        });
    }
}

#[test]
fn classes_are_rewarded_for_being_right_and_scored_by_cross_entropy() {
    let logits = Tensor::<2>::from_data([[2.0, 0.0, -1.0], [0.0, 1.0, 3.0]], &device());
    let prediction = HeadKind::Classes { count: 3 }.read(logits.reshape([1, 2, 3]));
    let target = Target::Classes(Tensor::<2, Int>::from_data([[0, 1]], &device()));
    assert_eq!(
        values(prediction.reward(&target, RewardKind::Published)),
        [1.0, 0.0]
    );
    let log_sum = |logits: [f32; 3]| logits.iter().map(|x| x.exp()).sum::<f32>().ln();
    let expected = [
        2.0 - log_sum([2.0, 0.0, -1.0]),
        1.0 - log_sum([0.0, 1.0, 3.0]),
    ];
    let expected = Tensor::<1>::from_data(expected, &device()).reshape([1, 2]);
    assert_close(prediction.log_likelihood(&target), expected, 1e-5, 1e-5);
}

#[test]
fn an_average_over_nothing_is_zero() {
    let all = Tensor::<2>::ones([2, 3], &device()).bool();
    let average = masked_average(random([2, 3], 1, &device()), Some(&all));
    assert_eq!(values(average), [0.0]);
}

#[test]
#[should_panic(expected = "log_likelihood: expected values for a Gaussian and classes for logits")]
fn classes_are_no_truth_for_a_gaussian() {
    EXP.read(random([1, 3, 4], 1, &device()))
        .log_likelihood(&classes([0, 1, 2]));
}

fn classes(of: [i64; 3]) -> Target {
    Target::Classes(Tensor::<1, Int>::from_data(of, &device()).reshape([1, 3]))
}
