//! How good an outcome was.
//!
//! A reward needs no gradient: any function of a prediction and a target will do, [`accuracy`]
//! among them. Everything returned here is detached, and in single precision where it is made of
//! half. The functions below give one reward per query, `[batch, queries]`; where several samples
//! are drawn, fold them into the batch axis and reshape the result to the `[rows, samples]` that
//! [`PolicyGradient`](crate::PolicyGradient) takes.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor};

use crate::check;

/// Log-density of `value` under independent normal distributions, summed over the last axis,
/// differentiable: the likelihood that a model is trained with.
///
/// - `mean`, `std`, `value`: `[batch, queries, dim]`; `std` must be positive
///
/// Returns `[batch, queries]`, in nats. It is a density: it can be positive and is not bounded.
///
/// # Panics
/// If the shapes differ.
pub fn log_density(mean: Tensor<3>, std: Tensor<3>, value: Tensor<3>) -> Tensor<2> {
    same_shape("log_density", "std", std.dims(), mean.dims());
    same_shape("log_density", "value", value.dims(), mean.dims());
    let [mean, std, value] = [mean, std, value].map(check::at_least_single);
    let half_log_two_pi = 0.5 * (2.0 * std::f64::consts::PI).ln();
    let standardised = (value - mean) / std.clone();
    let log_density = standardised.square().mul_scalar(-0.5) - std.log() - half_log_two_pi;
    log_density.sum_dim(2).squeeze_dim::<2>(2)
}

/// [`log_density`] as a reward, without history.
///
/// # Panics
/// If the shapes differ.
pub fn log_likelihood(mean: Tensor<3>, std: Tensor<3>, value: Tensor<3>) -> Tensor<2> {
    log_density(mean.detach(), std.detach(), value.detach())
}

/// 1 where the largest logit is the true class, else 0.
///
/// - `logits`: `[batch, queries, classes]`
/// - `class`: `[batch, queries]`, each in `0..classes`
///
/// Returns `[batch, queries]`. Which of several equal largest logits counts depends on the backend.
///
/// # Panics
/// If the shapes disagree.
pub fn accuracy(logits: Tensor<3>, class: Tensor<2, Int>) -> Tensor<2> {
    same_queries("accuracy", class.dims(), logits.dims());
    let chosen = logits.clone().detach().argmax(2).squeeze_dim::<2>(2);
    // The comparison of integers leaves the context of `logits`; come back to it.
    check::constant_like(chosen.equal(class).float(), &check::at_least_single(logits))
}

/// Log-probability of the true class under the softmax of the logits.
///
/// - `logits`: `[batch, queries, classes]`
/// - `class`: `[batch, queries]`, each in `0..classes`
///
/// Returns `[batch, queries]`, in nats, at most 0. The published constant baseline for it is
/// `-ln(classes)`, the value of a uniform guess.
///
/// # Panics
/// If the shapes disagree.
pub fn negative_cross_entropy(logits: Tensor<3>, class: Tensor<2, Int>) -> Tensor<2> {
    same_queries("negative_cross_entropy", class.dims(), logits.dims());
    let log_prob = log_softmax(check::at_least_single(logits.detach()), 2);
    log_prob
        .gather(2, class.unsqueeze_dim::<3>(2))
        .squeeze_dim::<2>(2)
}

/// Minus the squared error, averaged over the last axis.
///
/// - `prediction`, `value`: `[batch, queries, dim]`
///
/// Returns `[batch, queries]`, at most 0.
///
/// # Panics
/// If the shapes differ.
pub fn negative_mse(prediction: Tensor<3>, value: Tensor<3>) -> Tensor<2> {
    same_shape("negative_mse", "value", value.dims(), prediction.dims());
    let [prediction, value] = [prediction, value].map(check::at_least_single);
    (prediction.detach() - value.detach())
        .square()
        .mean_dim(2)
        .neg()
        .squeeze_dim::<2>(2)
}

#[track_caller]
fn same_shape(operation: &str, tensor: &str, got: [usize; 3], expected: [usize; 3]) {
    let names = ["batch", "queries", "dim"];
    check::same_axes(operation, tensor, names, &got, &expected);
}

#[track_caller]
fn same_queries(operation: &str, class: [usize; 2], logits: [usize; 3]) {
    check::same_axes(operation, "class", ["batch", "queries"], &class, &logits);
}
