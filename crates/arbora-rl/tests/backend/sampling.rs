//! Sampling by inversion.

use arbora_rl::{BaselineConfig, Rollout, sample};
use arbora_testing::{assert_refuses_nothing, autodiff_device, device, uniforms, values};
use burn::tensor::activation::log_softmax;
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

#[test]
#[should_panic(
    expected = "sample::categorical: probabilities: row 1, choice 2: expected a finite number that is not negative, got NaN"
)]
fn a_policy_that_became_nan_is_refused() {
    let probabilities = Tensor::from_data([[0.5, 0.25, 0.25], [0.5, 0.5, f32::NAN]], &device());
    sample::categorical(probabilities, Tensor::zeros([2, 1], &device()));
}

#[test]
fn probabilities_that_are_none_are_refused() {
    for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.5] {
        let refused = std::panic::catch_unwind(|| {
            let probabilities = Tensor::from_data([[0.5, wrong, 0.5]], &device());
            sample::categorical(probabilities, Tensor::zeros([1, 1], &device()))
        });
        assert!(refused.is_err(), "{wrong}");
    }
}

#[test]
fn choices_without_replacement_are_distinct_and_possible() {
    let rows = 200;
    let probabilities = Tensor::<2>::from_data([[0.4, 0.0, 0.3, 0.2, 0.1]], &device());
    let probabilities = probabilities.repeat_dim(0, rows);
    let drawn = sample::without_replacement(probabilities, 3, uniforms([rows, 5], 1, &device()));
    for row in indices(drawn).chunks(3) {
        let mut sorted = row.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        assert!(sorted.len() == 3 && !sorted.contains(&1), "{row:?}");
    }
}

#[test]
fn frequencies_without_replacement_are_those_of_their_log_probability() {
    let rows = 4096;
    let probabilities = Tensor::<2>::from_data([[0.5, 0.3, 0.2]], &device());
    let all = probabilities.clone().repeat_dim(0, rows);
    let drawn = sample::without_replacement(all, 2, uniforms([rows, 3], 2, &device()));
    let drawn = indices(drawn);
    let mut sum = 0.0;
    for pair in [[0, 1], [0, 2], [1, 0], [1, 2], [2, 0], [2, 1]] {
        let choices = Tensor::from_data([pair], &device());
        let log_prob = sample::log_prob_without_replacement(probabilities.clone().log(), choices);
        let expected = values(log_prob)[0].exp();
        let found = drawn.chunks(2).filter(|row| **row == pair).count() as f32 / rows as f32;
        // Four standard deviations of 4,096 draws.
        let allowed = 4.0 * (expected * (1.0 - expected) / rows as f32).sqrt();
        assert!(
            (found - expected).abs() < allowed + arbora_testing::allowed(1e-6),
            "{pair:?}: {found}, {expected}"
        );
        sum += expected;
    }
    assert!((sum - 1.0).abs() < arbora_testing::allowed(1e-5), "{sum}");
}

#[test]
#[should_panic(
    expected = "sample::without_replacement: k: expected 1 to 2, the fewest choices of positive probability in a row, got 3"
)]
fn more_draws_than_possible_choices_are_refused() {
    let probabilities = Tensor::from_data([[0.5, 0.5, 0.0], [0.3, 0.3, 0.4]], &device());
    sample::without_replacement(probabilities, 3, Tensor::zeros([2, 3], &device()));
}

#[test]
fn a_rollout_of_choices_has_their_log_probability_and_the_entropy_of_the_policy() {
    let device = autodiff_device();
    let logits = [[1.0, 0.0, f32::NEG_INFINITY], [0.0, 0.0, 0.0]];
    let logits = Tensor::<2>::from_data(logits, &device).require_grad();
    let log_probs = log_softmax(logits.clone(), 1);
    let choices = Tensor::<2, Int>::from_data([[0, 1], [2, 2]], &device);
    let rollout = Rollout::from_choices(log_probs.clone(), choices);
    let log_probs = values(log_probs);
    assert_eq!(
        values(rollout.log_prob.clone()),
        [log_probs[0], log_probs[1], log_probs[5], log_probs[5]]
    );
    let p = log_probs[0].exp();
    let of_two = -(p * log_probs[0] + (1.0 - p) * log_probs[1]);
    let expected = [of_two, of_two, 3f32.ln(), 3f32.ln()];
    for (got, expected) in values(rollout.entropy.clone()).iter().zip(expected) {
        assert!(
            (got - expected).abs() < arbora_testing::allowed(1e-5),
            "{got} {expected}"
        );
    }
    assert_eq!(values(rollout.decisions), [1.0; 4]);
    let gradients = (rollout.log_prob + rollout.entropy).sum().backward();
    let gradient = values(logits.grad(&gradients).unwrap());
    assert!(gradient.iter().all(|x| x.is_finite()), "{gradient:?}");
    assert!(gradient[0] != 0.0 && gradient[2] == 0.0, "{gradient:?}");
}

#[test]
fn a_batch_of_nothing_is_refused() {
    let none = |shape: [usize; 2]| Tensor::<2>::zeros(shape, &device());
    let chosen = || Tensor::<2, Int>::zeros([0, 1], &device());
    assert_refuses_nothing("categorical", || {
        drop(sample::categorical(none([0, 3]), none([0, 1])));
    });
    assert_refuses_nothing("without_replacement", || {
        drop(sample::without_replacement(none([0, 3]), 1, none([0, 3])));
    });
    assert_refuses_nothing("from_choices", || {
        drop(Rollout::from_choices(none([0, 3]), chosen()));
    });
    assert_refuses_nothing("advantage", || {
        let mut baseline = BaselineConfig::BatchMean.init();
        drop(baseline.advantage(none([0, 2]), None, None));
    });
}
