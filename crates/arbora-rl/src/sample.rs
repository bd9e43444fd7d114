//! Drawing choices from given uniform numbers.
//!
//! The uniform numbers are an input, drawn on the host, so one seed makes every backend draw the
//! same choices (up to probabilities that differ in their last bits).

use crate::check;
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::Rng;

/// Independent draws from U(0, 1), 1 excluded, `shape`. The numbers come from the host.
pub fn uniform<const D: usize>(
    rng: &mut impl Rng,
    shape: [usize; D],
    device: &Device,
) -> Tensor<D> {
    let count = shape.iter().product();
    let numbers: Vec<f32> = (0..count).map(|_| rng.random::<f32>()).collect();
    Tensor::from_data(TensorData::new(numbers, shape), device)
}

/// Draws choices by inverting the cumulative distribution.
///
/// - `probabilities`: `[rows, choices]`, not negative; a row need not sum to 1 exactly, its sum is
///   taken as the whole. A choice of probability 0 is never drawn, as long as the row has a
///   positive one.
/// - `uniform`: `[rows, samples]`, each in `0.0..1.0`
///
/// Returns the index of each drawn choice, `[rows, samples]`. Carries no gradient.
///
/// # Panics
/// If the numbers of rows differ or there is no choice.
#[track_caller]
pub fn categorical(probabilities: Tensor<2>, uniform: Tensor<2>) -> Tensor<2, Int> {
    let [rows, choices] = probabilities.dims();
    let [uniform_rows, _] = uniform.dims();
    let operation = "sample::categorical";
    check::same_axes(operation, "uniform", ["rows"], &[uniform_rows], &[rows]);
    assert!(
        choices > 0,
        "sample::categorical: probabilities: axis 1 (choices): expected at least 1, got 0"
    );
    let cumulative = probabilities.without_autodiff().cumsum(1);
    let whole = cumulative.clone().slice([0..rows, choices - 1..choices]);
    let cut = uniform.without_autodiff() * whole.clone();
    let passed = cumulative
        .clone()
        .unsqueeze_dim::<3>(1)
        .lower_equal(cut.unsqueeze_dim::<3>(2));
    let index = passed.int().sum_dim(2).squeeze_dim::<2>(2);
    // Rounding can lift the cut to the whole, which would pass every choice.
    let last = cumulative.lower(whole).int().sum_dim(1);
    index.min_pair(last)
}
