//! Rewards against formulas on the host.

use arbora_rl::reward;
use arbora_testing::{allowed, assert_close, autodiff_device, device, random, single, values};
use burn::tensor::Tensor;

#[test]
fn log_likelihood_is_the_normal_log_density_summed_over_dimensions() {
    let device = device();
    let mean = random([2, 3, 2], 1, &device);
    let std = random([2, 3, 2], 2, &device) + 1.5;
    let value = random([2, 3, 2], 3, &device);
    let got = values(reward::log_likelihood(
        mean.clone(),
        std.clone(),
        value.clone(),
    ));
    let (mean, std, value) = (values(mean), values(std), values(value));
    for (query, got) in got.into_iter().enumerate() {
        let expected: f64 = (2 * query..2 * query + 2)
            .map(|at| {
                let (mean, std) = (f64::from(mean[at]), f64::from(std[at]));
                let distance = (f64::from(value[at]) - mean) / std;
                -0.5 * distance * distance - std.ln() - 0.5 * (2.0 * std::f64::consts::PI).ln()
            })
            .sum();
        assert!(
            (got - expected as f32).abs() < allowed(1e-4),
            "query {query}: {got} is not {expected}"
        );
    }
}

#[test]
fn accuracy_is_one_where_the_largest_logit_is_the_class() {
    let device = device();
    let logits = [
        [[0.1, 0.9, 0.0], [2.0, 1.0, 0.0]],
        [[0.0, 0.0, 1.0], [-3.0, -1.0, -2.0]],
    ];
    let logits = Tensor::<3>::from_data(logits, &device);
    let class = Tensor::from_data([[1, 2], [2, 1]], &device);
    let expected = Tensor::from_data([[1.0, 0.0], [1.0, 1.0]], &device);
    assert_close(reward::accuracy(logits, class), expected, 0.0, 0.0);
}

#[test]
fn negative_cross_entropy_of_equal_logits_is_minus_the_log_of_the_classes() {
    let device = device();
    let logits = Tensor::<3>::full([2, 2, 12], 7.0, &device);
    let class = Tensor::from_data([[1, 2], [0, 11]], &device);
    let got = reward::negative_cross_entropy(logits, class);
    assert_close(got, Tensor::full([2, 2], -(12f32.ln()), &device), 1e-5, 0.0);
}

#[test]
fn negative_cross_entropy_picks_the_true_class() {
    let device = device();
    let logits = Tensor::<3>::from_data([[[0.0, 3f32.ln()]]], &device);
    for (class, probability) in [(0, 0.25f32), (1, 0.75)] {
        let class = Tensor::from_data([[class]], &device);
        let got = reward::negative_cross_entropy(logits.clone(), class);
        assert_close(
            got,
            Tensor::full([1, 1], probability.ln(), &device),
            1e-5,
            0.0,
        );
    }
}

#[test]
fn negative_mse_averages_over_dimensions_per_query() {
    let device = device();
    let prediction = Tensor::<3>::from_data([[[1.0, 2.0], [0.0, 0.0]]], &device);
    let value = Tensor::<3>::from_data([[[0.0, 0.0], [0.0, 3.0]]], &device);
    let got = reward::negative_mse(prediction, value);
    assert_close(got, Tensor::from_data([[-2.5, -4.5]], &device), 1e-6, 0.0);
}

#[test]
fn rewards_of_tracked_predictions_carry_no_history() {
    let device = autodiff_device();
    let leaf = Tensor::<3>::ones([1, 2, 3], &device).require_grad();
    let class = || Tensor::from_data([[0, 2]], &device);
    let total = reward::accuracy(leaf.clone(), class())
        + reward::negative_cross_entropy(leaf.clone(), class())
        + reward::negative_mse(leaf.clone(), leaf.clone() * 2.0)
        + reward::log_likelihood(leaf.clone(), leaf.clone(), leaf.clone());
    let gradients = (single(total).sum() + single(leaf.clone()).sum()).backward();
    let gradient = leaf.grad(&gradients).unwrap();
    assert_close(
        gradient,
        Tensor::ones([1, 2, 3], &crate::rewards::device()),
        0.0,
        0.0,
    );
}

#[test]
#[should_panic(expected = "negative_mse: value: axis 2 (dim): expected 2, got 3")]
fn a_value_of_another_shape_is_refused() {
    let device = device();
    reward::negative_mse(
        Tensor::zeros([1, 1, 2], &device),
        Tensor::zeros([1, 1, 3], &device),
    );
}

#[test]
#[should_panic(expected = "accuracy: class: axis 1 (queries): expected 3, got 2")]
fn classes_of_other_queries_are_refused() {
    let device = device();
    reward::accuracy(
        Tensor::zeros([1, 3, 2], &device),
        Tensor::zeros([1, 2], &device),
    );
}
