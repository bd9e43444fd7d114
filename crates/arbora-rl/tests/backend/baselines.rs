//! Each baseline's advantages against numbers worked out by hand.

use arbora_rl::{BaselineConfig, BaselineState};
use arbora_testing::{allowed, assert_close, autodiff_device, device};
use burn::tensor::{Bool, Tensor};

const NAN: f32 = f32::NAN;

fn reward() -> Tensor<2> {
    Tensor::from_data([[1.0, 2.0, 6.0], [4.0, 0.0, 5.0]], &device())
}

fn mask(entries: [[bool; 3]; 2]) -> Option<Tensor<2, Bool>> {
    Some(Tensor::from_data(entries, &device()))
}

fn assert_advantage(config: BaselineConfig, expected: [[f32; 3]; 2]) {
    let got = config.init().advantage(reward(), None, None);
    assert_close(got, Tensor::from_data(expected, &device()), 1e-5, 1e-5);
}

#[test]
fn none_leaves_the_reward() {
    assert_advantage(BaselineConfig::None, [[1.0, 2.0, 6.0], [4.0, 0.0, 5.0]]);
}

#[test]
fn constant_is_subtracted() {
    let config = BaselineConfig::Constant { value: -1.5 };
    assert_advantage(config, [[2.5, 3.5, 7.5], [5.5, 1.5, 6.5]]);
}

#[test]
fn batch_mean_excludes_the_own_reward() {
    // The six rewards sum to 18; without its own 6, the third compares with 12 / 5.
    let expected = [
        [1.0 - 3.4, 2.0 - 3.2, 6.0 - 2.4],
        [4.0 - 2.8, 0.0 - 3.6, 5.0 - 2.6],
    ];
    assert_advantage(BaselineConfig::BatchMean, expected);
}

#[test]
fn leave_one_out_compares_within_the_row() {
    let expected = [
        [1.0 - 4.0, 2.0 - 3.5, 6.0 - 1.5],
        [4.0 - 2.5, 0.0 - 4.5, 5.0 - 2.0],
    ];
    assert_advantage(BaselineConfig::LeaveOneOut, expected);
}

#[test]
fn self_critical_compares_with_the_greedy_reward_of_the_row() {
    let greedy = Tensor::from_data([[2.0], [-1.0]], &device());
    let got = BaselineConfig::SelfCritical
        .init()
        .advantage(reward(), Some(greedy), None);
    let expected = Tensor::from_data([[-1.0, 0.0, 4.0], [5.0, 1.0, 6.0]], &device());
    assert_close(got, expected, 1e-5, 1e-5);
}

#[test]
fn masked_rewards_touch_no_baseline_even_when_they_are_not_finite() {
    let device = device();
    let reward = Tensor::from_data([[1.0, NAN, 6.0], [f32::INFINITY, NAN, 5.0]], &device);
    let hidden = || mask([[false, true, false], [true, true, false]]);
    let cases = [
        (BaselineConfig::None, [[1.0, 0.0, 6.0], [0.0, 0.0, 5.0]]),
        (
            BaselineConfig::BatchMean,
            [[1.0 - 5.5, 0.0, 6.0 - 3.0], [0.0, 0.0, 5.0 - 3.5]],
        ),
        // The second row has one reward left: its baseline is 0.
        (
            BaselineConfig::LeaveOneOut,
            [[1.0 - 6.0, 0.0, 6.0 - 1.0], [0.0, 0.0, 5.0]],
        ),
        (
            BaselineConfig::Constant { value: 1.0 },
            [[0.0, 0.0, 5.0], [0.0, 0.0, 4.0]],
        ),
    ];
    for (config, expected) in cases {
        let got = config.init().advantage(reward.clone(), None, hidden());
        assert_close(got, Tensor::from_data(expected, &device), 1e-5, 1e-5);
    }
}

#[test]
fn a_lone_reward_has_the_baseline_zero() {
    let reward = Tensor::<2>::from_data([[3.0]], &device());
    let got = BaselineConfig::BatchMean
        .init()
        .advantage(reward.clone(), None, None);
    assert_close(got, reward, 1e-6, 0.0);
}

#[test]
fn moving_average_uses_the_batches_before_this_one() {
    let device = device();
    let mut baseline = BaselineConfig::MovingAverage { decay: 0.5 }.init();
    let batch = |value: f32| Tensor::<2>::full([2, 3], value, &device);
    let mut advantage =
        |reward: Tensor<2>, mask| arbora_testing::values(baseline.advantage(reward, None, mask))[5];
    let close = |got: f32, expected: f32| {
        assert!(
            (got - expected).abs() < allowed(1e-5),
            "{got} is not {expected}"
        );
    };
    close(advantage(batch(4.0), None), 4.0);
    close(advantage(batch(4.0), None), 0.0);
    close(advantage(batch(7.0), None), 3.0);
    // Weights 1/8, 1/4, 1/2 over 4, 4, 7.
    close(
        advantage(batch(0.0), None),
        -(0.125 * 4.0 + 0.25 * 4.0 + 0.5 * 7.0) / 0.875,
    );
}

#[test]
fn a_batch_that_is_masked_entirely_does_not_age_the_moving_average() {
    let device = device();
    let config = BaselineConfig::MovingAverage { decay: 0.9 };
    let (mut with, mut without) = (config.init(), config.init());
    for baseline in [&mut with, &mut without] {
        baseline.advantage(reward(), None, None);
    }
    let nothing = Tensor::<2>::full([2, 3], NAN, &device);
    let advantage = with.advantage(nothing, None, mask([[true; 3]; 2]));
    assert_close(advantage, Tensor::zeros([2, 3], &device), 0.0, 0.0);
    assert_eq!(with.state(), without.state());
}

#[test]
fn a_restored_moving_average_continues_bit_by_bit() {
    let mut original = BaselineConfig::MovingAverage { decay: 0.99 }.init();
    for scale in [0.1, 0.3, 0.7] {
        original.advantage(reward() * scale, None, None);
    }
    let text = serde_json_text(original.state());
    let mut restored = original.config().init();
    restored.load_state(text);
    let bits = |tensor: Tensor<2>| -> Vec<u32> {
        arbora_testing::values(tensor)
            .into_iter()
            .map(f32::to_bits)
            .collect()
    };
    for _ in 0..3 {
        let continued = bits(original.advantage(reward(), None, None));
        assert_eq!(bits(restored.advantage(reward(), None, None)), continued);
    }
}

/// Through text, as a checkpoint does it.
fn serde_json_text(state: BaselineState) -> BaselineState {
    let text = serde_json::to_string(&state).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn advantages_carry_no_history() {
    let tracked = Tensor::<2>::ones([2, 3], &autodiff_device()).require_grad();
    let advantage = BaselineConfig::LeaveOneOut
        .init()
        .advantage(tracked.clone() * 2.0, None, None);
    let gradients = (advantage.sum() + tracked.clone().sum()).backward();
    // Only the second term reaches the leaf.
    let gradient = tracked.grad(&gradients).unwrap();
    assert_close(gradient, Tensor::ones([2, 3], &device()), 0.0, 0.0);
}

#[test]
#[should_panic(expected = "leave_one_out: axis 1 (samples): expected at least 2, got 1")]
fn leave_one_out_refuses_a_single_sample() {
    let reward = Tensor::<2>::ones([3, 1], &device());
    BaselineConfig::LeaveOneOut
        .init()
        .advantage(reward, None, None);
}

#[test]
#[should_panic(expected = "self_critical: expected greedy_reward [rows, 1], got none")]
fn self_critical_refuses_to_run_without_greedy_rewards() {
    BaselineConfig::SelfCritical
        .init()
        .advantage(reward(), None, None);
}

#[test]
#[should_panic(expected = "greedy_reward: axis 0 (rows): expected 2, got 1")]
fn self_critical_refuses_greedy_rewards_of_other_rows() {
    let greedy = Tensor::<2>::ones([1, 1], &device());
    BaselineConfig::SelfCritical
        .init()
        .advantage(reward(), Some(greedy), None);
}

#[test]
#[should_panic(expected = "decay: expected a number in 0.0..1.0, got 1")]
fn a_decay_of_one_is_refused() {
    BaselineConfig::MovingAverage { decay: 1.0 }.init();
}
