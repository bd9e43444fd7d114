//! The wheel bandit, and regression on its rewards.

use arbora_tasks::bandit::{ARMS, BanditConfig, BanditRegression, WheelBandit, X_DIM};
use burn::tensor::Device;
use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::points::{HostBatch, host};

fn norm([first, second]: [f32; 2]) -> f32 {
    first.hypot(second)
}

fn rng() -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(5)
}

fn task(min_context: usize, max_context: usize) -> BanditRegression {
    BanditRegression::new(BanditConfig {
        min_context,
        max_context,
        target_contexts: 3,
    })
    .unwrap()
}

fn train(task: BanditRegression, seed: u64, step: u64) -> HostBatch {
    host(task.batch(seed, step, 2, &Device::flex()).unwrap())
}

#[test]
fn each_quadrant_outside_the_core_has_an_arm_that_pays() {
    let wheel = WheelBandit::new(0.5).unwrap();
    let cases = [
        ([0.1, 0.2], [1.2, 1.0, 1.0, 1.0, 1.0]),
        ([0.5, 0.0], [1.2, 1.0, 1.0, 1.0, 1.0]),
        ([0.6, 0.3], [1.2, 50.0, 1.0, 1.0, 1.0]),
        ([0.6, -0.3], [1.2, 1.0, 50.0, 1.0, 1.0]),
        ([-0.6, 0.3], [1.2, 1.0, 1.0, 50.0, 1.0]),
        ([-0.6, -0.3], [1.2, 1.0, 1.0, 1.0, 50.0]),
    ];
    for (context, means) in cases {
        assert_eq!(wheel.mean_rewards(context), means, "at {context:?}");
    }
}

#[test]
fn places_are_uniform_over_the_disk() {
    let (wheel, mut rng) = (WheelBandit::new(0.5).unwrap(), rng());
    let places: Vec<_> = (0..10_000).map(|_| wheel.context(&mut rng)).collect();
    assert!(places.iter().all(|&place| norm(place) <= 1.0));
    // A quarter of the area is within half the radius; five standard errors of 0.0043.
    let share = |inside: &dyn Fn([f32; 2]) -> bool| {
        places.iter().filter(|&&place| inside(place)).count() as f64 / 1e4
    };
    assert!((share(&|place| norm(place) <= 0.5) - 0.25).abs() < 0.022);
    assert!((share(&|place| place[0] > 0.0 && place[1] < 0.0) - 0.25).abs() < 0.022);
}

#[test]
fn rewards_have_the_stated_mean_and_deviation() {
    let (wheel, mut rng) = (WheelBandit::new(0.3).unwrap(), rng());
    let place = [0.4, 0.4];
    for arm in 0..ARMS {
        let rewards: Vec<f64> = (0..4_000)
            .map(|_| f64::from(wheel.reward(place, arm, &mut rng)))
            .collect();
        let mean = rewards.iter().sum::<f64>() / 4e3;
        let variance = rewards.iter().map(|one| (one - mean).powi(2)).sum::<f64>() / 4e3;
        // Five standard errors: of a mean 0.01 / sqrt(4000), of a deviation that over sqrt(2).
        let expected = f64::from(wheel.mean_rewards(place)[arm]);
        assert!((mean - expected).abs() < 8e-4, "{mean} for {expected}");
        assert!((variance.sqrt() - 0.01).abs() < 6e-4, "{}", variance.sqrt());
    }
}

#[test]
fn wheels_without_core_and_without_rim_exist_and_others_are_refused() {
    assert_eq!(
        WheelBandit::new(0.0).unwrap().mean_rewards([1e-3, 1e-3])[1],
        50.0
    );
    assert_eq!(
        WheelBandit::new(1.0).unwrap().mean_rewards([1.0, 0.0])[2],
        1.0
    );
    for (delta, text) in [(-0.5, "-0.5"), (1.5, "1.5"), (f32::NAN, "NaN")] {
        assert_eq!(
            WheelBandit::new(delta).unwrap_err().to_string(),
            format!("delta: expected 0 to 1, the radius of the disk, got {text}")
        );
    }
}

#[test]
#[should_panic(expected = "WheelBandit::reward: arm: expected below 5, got 5")]
fn an_arm_that_is_not_there_is_the_callers_bug() {
    let wheel = WheelBandit::new(0.5).unwrap();
    wheel.reward([0.0, 0.0], 5, &mut rng());
}

proptest! {
    #[test]
    fn every_batch_shows_rewards_of_one_wheel_and_asks_for_all_arms(seed: u64, step: u64) {
        let batch = train(task(2, 30), seed, step);
        prop_assert!((2..=30).contains(&batch.context.counts[0]));
        prop_assert_eq!(batch.context.counts[0], batch.context.counts[1]);
        prop_assert_eq!(&batch.target.counts, &[15, 15]);
        for example in 0..2 {
            // Some core explains all high and low rewards of an example.
            let (mut core, mut rim) = (0f32, 1f32);
            for points in [&batch.context, &batch.target] {
                let (x, y) = points.example(example);
                for (at, (x, y)) in x.chunks(X_DIM).zip(y).enumerate() {
                    let arm = x[2..].iter().position(|&one| one == 1.0).unwrap();
                    let place = [x[0], x[1]];
                    prop_assert_eq!(x, &WheelBandit::point(place, arm));
                    if points.counts[0] == 15 && points == &batch.target {
                        prop_assert_eq!(arm, at % ARMS);
                    }
                    let outside = WheelBandit::new(0.0).unwrap().mean_rewards(place)[arm];
                    let high = *y > 0.5;
                    prop_assert!(!high || outside == 50.0);
                    if outside == 50.0 {
                        if high { rim = rim.min(norm(place)) } else { core = core.max(norm(place)) }
                    }
                    let mean = if high { 1.0 } else if arm == 0 { 0.024 } else { 0.02 };
                    prop_assert!((y - mean).abs() < 2e-3);
                }
            }
            prop_assert!(core <= rim, "a core of {core} and a rim of {rim}");
        }
        prop_assert_eq!(train(task(2, 30), seed, step), batch);
    }
}

#[test]
fn seeds_steps_and_examples_have_wheels_of_their_own() {
    let first = train(task(20, 20), 3, 17);
    assert_ne!(train(task(20, 20), 3, 18), first);
    assert_ne!(train(task(20, 20), 4, 17), first);
    assert_ne!(first.context.example(0), first.context.example(1));
    let task = task(20, 20);
    for evaluation in task.eval_batches(3, 18, 2, &Device::flex()).unwrap() {
        assert_ne!(host(evaluation), first);
    }
}

#[test]
fn configurations_that_show_or_ask_nothing_are_refused() {
    let error = |min_context, max_context, target_contexts| {
        let config = BanditConfig {
            min_context,
            max_context,
            target_contexts,
        };
        BanditRegression::new(config).unwrap_err().to_string()
    };
    let expected = [
        "min_context = 0: the context is empty; at least one point is needed",
        "target_contexts = 0: there are no targets; at least one point is needed",
        "max_context: expected at least min_context = 5, got 4",
    ];
    assert_eq!([error(0, 4, 1), error(1, 4, 0), error(5, 4, 1)], expected);
}
