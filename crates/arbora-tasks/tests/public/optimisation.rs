//! Functions whose maximum is to be found.

use arbora_tasks::gp::Kernel;
use arbora_tasks::optimisation::GpObjective;

/// The function on its grid, 0.01 apart.
fn grid(objective: &GpObjective) -> Vec<f64> {
    (0..=400)
        .map(|at| objective.value(-2.0 + 4.0 * f64::from(at) / 400.0))
        .collect()
}

#[test]
fn the_maximum_is_reached_and_never_exceeded() {
    for (seed, kernel) in [Kernel::Rbf, Kernel::Matern52, Kernel::Periodic]
        .into_iter()
        .enumerate()
    {
        let objective = GpObjective::new(kernel, seed as u64);
        let (x, most) = objective.maximum();
        assert!((objective.value(x) - most).abs() < 1e-9);
        for at in 0..=5_000 {
            let value = objective.value(-2.0 + 4.0 * f64::from(at) / 5e3);
            assert!(value <= most + 1e-9, "{value} above {most}");
        }
    }
}

#[test]
fn a_smooth_function_changes_little_from_point_to_point() {
    let objective = GpObjective::new(Kernel::Rbf, 4);
    // A slope has the deviation s / l, at most 1 / 0.1 for what is drawn; six of them over 0.01.
    let hyper = objective.hyperparameters();
    let slope = hyper.scale / hyper.length;
    for pair in grid(&objective).windows(2) {
        assert!((pair[1] - pair[0]).abs() < 6.0 * slope * 0.01);
    }
}

#[test]
fn a_seed_gives_one_function_and_another_seed_another() {
    let first = GpObjective::new(Kernel::Matern52, 7);
    assert_eq!(GpObjective::new(Kernel::Matern52, 7), first);
    assert_ne!(grid(&GpObjective::new(Kernel::Matern52, 8)), grid(&first));
    assert_eq!(first.hyperparameters().noise, 0.0);
}

#[test]
#[should_panic(expected = "GpObjective::value: x: expected -2 to 2, got 2.5")]
fn looking_outside_is_the_callers_bug() {
    GpObjective::new(Kernel::Rbf, 0).value(2.5);
}
