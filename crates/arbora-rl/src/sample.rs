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
/// - `probabilities`: `[rows, choices]`, finite and not negative; a row need not sum to 1 exactly, its sum is
///   taken as the whole. A choice of probability 0 is never drawn, as long as the row has a
///   positive one.
/// - `uniform`: `[rows, samples]`, each in `0.0..1.0`
///
/// Returns the index of each drawn choice, `[rows, samples]`. Carries no gradient. It waits for the
/// device, to look at the probabilities.
///
/// # Panics
/// If the numbers of rows differ, there is no choice, or a probability is NaN, infinite or negative.
#[track_caller]
pub fn categorical(probabilities: Tensor<2>, uniform: Tensor<2>) -> Tensor<2, Int> {
    let [rows, choices] = probabilities.dims();
    let [uniform_rows, samples] = uniform.dims();
    let operation = "sample::categorical";
    check::some_samples(operation, "uniform", [uniform_rows, samples]);
    check::same_axes(operation, "uniform", ["rows"], &[uniform_rows], &[rows]);
    assert!(
        choices > 0,
        "sample::categorical: probabilities: axis 1 (choices): expected at least 1, got 0"
    );
    let probabilities = check::at_least_single(probabilities.without_autodiff());
    check_probabilities(operation, &probabilities);
    let cumulative = probabilities.cumsum(1);
    let whole = cumulative.clone().slice([0..rows, choices - 1..choices]);
    let cut = uniform.without_autodiff().cast(whole.dtype()) * whole.clone();
    let passed = cumulative
        .clone()
        .unsqueeze_dim::<3>(1)
        .lower_equal(cut.unsqueeze_dim::<3>(2));
    let index = passed.int().sum_dim(2).squeeze_dim::<2>(2);
    // Rounding can lift the cut to the whole, which would pass every choice.
    let last = cumulative.lower(whole).int().sum_dim(1);
    index.min_pair(last)
}

/// Draws distinct choices one after another, each by its share of the probability that is left.
///
/// The `k` first arrivals of a race, in which choice `i` takes the time `-ln(u_i) / p_i`: one uniform number for each choice,
/// and no renormalisation between draws (Efraimidis and Spirakis,
/// [2006](https://doi.org/10.1016/j.ipl.2005.11.003)).
///
/// - `probabilities`: as [`categorical`] takes them
/// - `uniform`: `[rows, choices]`, each in `0.0..1.0`
///
/// Returns `[rows, k]`, in the order in which they are drawn; their log-probability is
/// [`log_prob_without_replacement`]. Carries no gradient. It waits for the device, to look at the probabilities.
///
/// # Panics
/// If the shapes differ, `k` is 0, a row has fewer than `k` choices of positive probability, or a probability is NaN,
/// infinite or negative.
#[track_caller]
pub fn without_replacement(
    probabilities: Tensor<2>,
    k: usize,
    uniform: Tensor<2>,
) -> Tensor<2, Int> {
    let [rows, choices] = probabilities.dims();
    let operation = "sample::without_replacement";
    check::some_samples(operation, "probabilities", [rows, choices]);
    let (got, names) = (uniform.dims(), ["rows", "choices"]);
    check::same_axes(operation, "uniform", names, &got, &[rows, choices]);
    let probabilities = check::at_least_single(probabilities.without_autodiff());
    check_probabilities(operation, &probabilities);
    let positive = probabilities.clone().greater_elem(0.0);
    let most = positive.clone().int().sum_dim(1).min().into_scalar::<i64>();
    assert!(
        k >= 1 && k as i64 <= most,
        "{operation}: k: expected 1 to {most}, the fewest choices of positive probability in a row, got {k}"
    );
    let uniform = uniform.without_autodiff().cast(probabilities.dtype());
    let places = Tensor::<1, Int>::arange(0..choices as i64, &uniform.device());
    let places = places.reshape([1, choices]).expand([rows, choices]);
    // The winner has the largest negative time; 0 would never arrive.
    let speed =
        uniform.clamp_min(f32::MIN_POSITIVE).log() / probabilities.clamp_min(f32::MIN_POSITIVE);
    let mut speed = speed.mask_fill(positive.bool_not(), f32::MIN);
    let drawn = (0..k).map(|_| {
        let best = speed.clone().max_dim(1).expand([rows, choices]);
        // The first of several: which one burn's own takes depends on the backend.
        let behind = speed.clone().lower(best);
        let first = places
            .clone()
            .mask_fill(behind, choices as i64 - 1)
            .min_dim(1);
        let taken = places.clone().equal(first.clone().expand([rows, choices]));
        speed = speed.clone().mask_fill(taken, f32::MIN);
        first
    });
    Tensor::cat(drawn.collect(), 1)
}

/// The log-probability of drawing choices one after another [without replacement](without_replacement), in their order
/// (Plackett and Luce): `Σ_j log p_j - log(1 - Σ_(i<j) p_i)`.
///
/// - `log_probs`: `[rows, choices]`, normalised over the choices
/// - `choices`: `[rows, k]`, distinct in each row, which is not checked
///
/// Returns `[rows, 1]`, in nats, with the gradient of `log_probs`.
///
/// # Panics
/// If the numbers of rows differ or there are no choices.
#[track_caller]
pub fn log_prob_without_replacement(log_probs: Tensor<2>, choices: Tensor<2, Int>) -> Tensor<2> {
    let ([rows, _], [drawn_rows, k]) = (log_probs.dims(), choices.dims());
    let operation = "sample::log_prob_without_replacement";
    check::some_samples(operation, "choices", [drawn_rows, k]);
    check::same_axes(operation, "choices", ["rows"], &[drawn_rows], &[rows]);
    let picked = log_probs.gather(1, choices.without_autodiff());
    let probability = picked.clone().exp();
    let before = probability.clone().cumsum(1) - probability;
    let left = (before.neg() + 1.0).clamp_min(f32::EPSILON);
    (picked - left.log()).sum_dim(1)
}

/// Panics if a probability is none.
#[track_caller]
fn check_probabilities(operation: &str, probabilities: &Tensor<2>) {
    // NaN compares as false.
    let sound = probabilities.clone().greater_equal_elem(0.0);
    let sound = sound.bool_and(probabilities.clone().lower_equal_elem(f32::MAX));
    if sound.all().into_scalar::<bool>() {
        return;
    }
    let choices = probabilities.dims()[1];
    let numbers: Vec<f32> = probabilities.clone().into_data().iter::<f32>().collect();
    let is_none = |p: &f32| !(*p >= 0.0 && p.is_finite());
    let at = numbers.iter().position(is_none).unwrap_or_default();
    panic!(
        "{operation}: probabilities: row {}, choice {}: expected a finite number that is not negative, got {}",
        at / choices,
        at % choices,
        numbers[at]
    );
}
