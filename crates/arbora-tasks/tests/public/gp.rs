//! Regression on functions of Gaussian processes.

use arbora_tasks::TaskError;
use arbora_tasks::gp::{GpConfig, GpRegression, Hyperparameters, Kernel, sample_function};
use burn::tensor::Device;
use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::points::{HostBatch, host};

const KERNELS: [Kernel; 3] = [Kernel::Rbf, Kernel::Matern52, Kernel::Periodic];

fn task(max_points: usize) -> GpRegression {
    GpRegression::new(GpConfig::default().with_max_points(max_points)).unwrap()
}

fn train(task: &GpRegression, seed: u64, step: u64, batch_size: usize) -> HostBatch {
    let batch = task.batch(seed, step, batch_size, &Device::flex());
    host(batch.unwrap())
}

#[test]
fn empirical_covariance_matches_the_kernel() {
    // The standard error of a covariance over n draws is at most variance * sqrt(2 / n) = 0.016
    // variances for n = 8,000; 5 of them are allowed.
    const DRAWS: usize = 8_000;
    let xs = [-1.9, -0.4, -0.35, 0.0, 0.2, 1.7];
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    for kernel in KERNELS {
        for noise in [0.0, 0.3] {
            let hyper = Hyperparameters {
                noise,
                ..Hyperparameters::draw(&mut rng)
            };
            let mut sums = [[0.0; 6]; 6];
            for _ in 0..DRAWS {
                let ys = sample_function(kernel, &hyper, &xs, &mut rng);
                for (row, a) in sums.iter_mut().zip(&ys) {
                    for (sum, b) in row.iter_mut().zip(&ys) {
                        *sum += a * b / DRAWS as f64;
                    }
                }
            }
            let variance = hyper.scale.powi(2) + noise * noise;
            let tolerance = 5.0 * variance * (2.0 / DRAWS as f64).sqrt();
            for row in 0..6 {
                for column in 0..6 {
                    let mut expected = kernel.covariance(&hyper, xs[row] - xs[column]);
                    if row == column {
                        expected += noise * noise;
                    }
                    let got = sums[row][column];
                    assert!(
                        (got - expected).abs() < tolerance,
                        "{kernel:?} {hyper:?} at {row}, {column}: {got} for {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn kernels_have_the_stated_values() {
    let hyper = Hyperparameters {
        length: 0.5,
        scale: 2.0,
        period: 0.4,
        noise: 0.0,
    };
    // 4 exp(-1/2); 4 (1 + r + r^2 / 3) exp(-r) at r = sqrt 5; half a period: 4 exp(-2 / 0.25).
    let close = |got: f64, expected: f64| assert!((got - expected).abs() < 1e-6, "{got}");
    close(Kernel::Rbf.covariance(&hyper, 0.5), 2.426_122_6);
    close(Kernel::Matern52.covariance(&hyper, -0.5), 2.095_976_5);
    close(
        Kernel::Periodic.covariance(&hyper, 0.2),
        4.0 * (-8f64).exp(),
    );
    close(Kernel::Periodic.covariance(&hyper, 1.2), 4.0);
    for kernel in KERNELS {
        close(kernel.covariance(&hyper, 0.0), 4.0);
    }
}

proptest! {
    #[test]
    fn every_batch_is_sorted_and_within_the_published_ranges(
        seed: u64,
        step: u64,
        kernel in prop::sample::select(KERNELS.to_vec()),
    ) {
        let task = task(50).with_kernel(kernel);
        let batch = train(&task, seed, step, 2);
        let (context, targets) = (batch.context.counts[0], batch.target.counts[0]);
        prop_assert!((3..=46).contains(&context));
        prop_assert!((3..=49 - context).contains(&targets));
        for points in [&batch.context, &batch.target] {
            prop_assert_eq!(points.counts[1], points.counts[0]);
            for example in 0..2 {
                let (x, y) = points.example(example);
                prop_assert!(x.is_sorted() && x[0] >= -2.0 && x[x.len() - 1] <= 2.0);
                prop_assert!(y.iter().all(|y| y.is_finite() && y.abs() < 10.0));
            }
        }
        prop_assert_eq!(train(&task, seed, step, 2), batch);
    }
}

#[test]
fn seeds_and_steps_have_batches_of_their_own_and_evaluation_repeats_no_training() {
    let task = task(50);
    let first = train(&task, 3, 17, 4);
    assert_ne!(train(&task, 3, 18, 4), first);
    assert_ne!(train(&task, 4, 17, 4), first);
    for evaluation in task.eval_batches(3, 18, 4, &Device::flex()).unwrap() {
        assert_ne!(host(evaluation), first);
    }
    assert_ne!(first.context.example(0), first.context.example(1));
}

#[test]
fn both_ends_of_the_numbers_of_points_are_drawn() {
    // max_points = 8: context in 3..=4; targets in 3..=4 and 3..=3.
    let mut drawn: Vec<_> = (0..200)
        .map(|step| train(&task(8), 0, step, 1))
        .map(|batch| (batch.context.counts[0], batch.target.counts[0]))
        .collect();
    drawn.sort_unstable();
    drawn.dedup();
    assert_eq!(drawn, [(3, 3), (3, 4), (4, 3)]);
}

#[test]
fn another_kernel_keeps_the_points_and_changes_the_values() {
    let rbf = train(&task(50), 1, 2, 2);
    let rough = train(&task(50).with_kernel(Kernel::Matern52), 1, 2, 2);
    assert_eq!(rbf.target.example(1).0, rough.target.example(1).0);
    assert_ne!(rbf.target.example(1).1, rough.target.example(1).1);
}

#[test]
fn close_and_repeated_points_without_noise_have_finite_and_like_values() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let mut xs: Vec<f64> = (0..100).map(|at| f64::from(at) * 1e-4).collect();
    xs.push(0.0);
    for kernel in KERNELS {
        let hyper = Hyperparameters {
            noise: 0.0,
            ..Hyperparameters::draw(&mut rng)
        };
        let ys = sample_function(kernel, &hyper, &xs, &mut rng);
        assert!(ys.iter().all(|y| y.is_finite()));
        assert!((ys[0] - ys[100]).abs() < 1e-3, "{} and {}", ys[0], ys[100]);
    }
    let hyper = Hyperparameters::draw(&mut rng);
    assert!(sample_function(Kernel::Rbf, &hyper, &[], &mut rng).is_empty());
}

#[test]
#[should_panic(expected = "sample_function: length: expected a finite number above 0, got 0")]
fn a_length_of_zero_is_the_callers_bug() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let hyper = Hyperparameters {
        length: 0.0,
        ..Hyperparameters::draw(&mut rng)
    };
    sample_function(Kernel::Rbf, &hyper, &[0.0], &mut rng);
}

#[test]
#[should_panic(expected = "sample_function: xs[1]: expected a finite number, got NaN")]
fn a_point_that_is_no_number_is_the_callers_bug() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let hyper = Hyperparameters::draw(&mut rng);
    sample_function(Kernel::Rbf, &hyper, &[0.0, f64::NAN], &mut rng);
}

#[test]
fn configurations_out_of_range_are_refused() {
    let refused = |change: fn(&mut GpConfig)| {
        let mut config = GpConfig::default();
        change(&mut config);
        GpRegression::new(config).unwrap_err().to_string()
    };
    let messages = [
        refused(|config| config.min_context = 0),
        refused(|config| config.min_targets = 0),
        refused(|config| config.max_points = 6),
        refused(|config| config.max_points = 5000),
    ];
    let expected = [
        "min_context = 0: the context is empty; at least one point is needed",
        "min_targets = 0: there are no targets; at least one point is needed",
        "max_points: expected more than min_context + min_targets = 6, got 6",
        "max_points: expected at most 4096, got 5000",
    ];
    assert_eq!(messages, expected);
    assert!(matches!(
        task(50).batch(0, 0, 0, &Device::flex()),
        Err(TaskError::EmptyBatch)
    ));
}
