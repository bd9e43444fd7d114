//! Sampling by inversion.

use arbora_rl::sample;
use arbora_testing::{device, uniforms};
use burn::tensor::{Int, Tensor};

fn indices(tensor: Tensor<2, Int>) -> Vec<i64> {
    tensor.into_data().iter::<i64>().collect()
}

#[test]
fn a_uniform_number_picks_the_choice_whose_interval_holds_it() {
    let device = device();
    let probabilities = Tensor::from_data([[0.25, 0.25, 0.5], [0.5, 0.0, 0.5]], &device);
    let uniform = Tensor::from_data([[0.0, 0.3, 0.9], [0.49, 0.5, 0.999]], &device);
    let drawn = indices(sample::categorical(probabilities, uniform));
    assert_eq!(drawn, [0, 1, 2, 0, 2, 2]);
}

#[test]
fn a_choice_without_probability_is_never_drawn() {
    let device = device();
    let edge = 1.0 - f32::EPSILON / 2.0;
    let uniform = || Tensor::<2>::from_data([[0.0, 0.5, edge]], &device);
    let first = Tensor::from_data([[1.0, 0.0, 0.0]], &device);
    assert_eq!(indices(sample::categorical(first, uniform())), [0, 0, 0]);
    let last = Tensor::from_data([[0.0, 0.0, 0.3]], &device);
    assert_eq!(indices(sample::categorical(last, uniform())), [2, 2, 2]);
    let middle = Tensor::from_data([[0.0, 0.7, 0.0]], &device);
    assert_eq!(indices(sample::categorical(middle, uniform())), [1, 1, 1]);
}

#[test]
fn frequencies_follow_the_probabilities() {
    let device = device();
    let draws = 4096;
    let probabilities = Tensor::<2>::from_data([[0.1, 0.2, 0.7]], &device);
    let drawn = indices(sample::categorical(
        probabilities,
        uniforms([1, draws], 5, &device),
    ));
    for (choice, probability) in [0.1, 0.2, 0.7].into_iter().enumerate() {
        let count = drawn
            .iter()
            .filter(|drawn| **drawn == choice as i64)
            .count();
        let frequency = count as f64 / draws as f64;
        let error = (probability * (1.0 - probability) / draws as f64).sqrt();
        assert!(
            (frequency - probability).abs() < 4.0 * error,
            "choice {choice}: {frequency}"
        );
    }
}

#[test]
fn uniform_numbers_are_those_of_the_seed() {
    use arbora_rl::seed::{Purpose, rng};
    let draw = |step| {
        let mut rng = rng(3, Purpose::Policy, step);
        arbora_testing::values(sample::uniform(&mut rng, [4, 4], &device()))
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
    assert!(draw(1).iter().all(|number| (0.0..1.0).contains(number)));
}

#[test]
#[should_panic(expected = "sample::categorical: uniform: axis 0 (rows): expected 2, got 1")]
fn uniform_numbers_of_other_rows_are_refused() {
    let device = device();
    sample::categorical(
        Tensor::ones([2, 3], &device),
        Tensor::zeros([1, 1], &device),
    );
}
