//! Batches of a caller's own values.

use arbora_tasks::{RegressionBatch, RegressionExample};
use arbora_testing::{device, values};

fn example(context: usize, targets: usize) -> RegressionExample {
    let list = |len: usize| (0..len).map(|at| at as f32 + 0.5).collect();
    RegressionExample {
        context_x: list(context),
        context_y: list(context * 2),
        target_x: list(targets),
        target_y: list(targets * 2),
    }
}

#[test]
fn values_of_ones_own_become_padded_tensors() {
    let examples = [example(1, 2), example(3, 1)];
    let batch = RegressionBatch::from_values(&examples, 1, 2, &device()).unwrap();
    assert_eq!(batch.batch_size(), 2);
    assert_eq!(batch.context_x.dims(), [2, 3, 1]);
    assert_eq!(batch.context_y.dims(), [2, 3, 2]);
    assert_eq!(batch.target_x.dims(), [2, 2, 1]);
    assert_eq!(batch.target_y.dims(), [2, 2, 2]);
    assert_eq!(values(batch.context_x), [0.5, 0.0, 0.0, 0.5, 1.5, 2.5]);
    assert_eq!(
        values(batch.target_y),
        [0.5, 1.5, 2.5, 3.5, 0.5, 1.5, 0.0, 0.0]
    );
    let mask: Vec<bool> = batch.context_mask.into_data().iter::<bool>().collect();
    assert_eq!(mask, [false, true, true, false, false, false]);
    let mask: Vec<bool> = batch.target_mask.into_data().iter::<bool>().collect();
    assert_eq!(mask, [false, false, false, true]);
    assert_eq!(
        (batch.context_counts, batch.target_counts),
        (vec![1, 3], vec![2, 1])
    );
}

#[test]
fn non_finite_values_never_reach_the_device() {
    let mut bad = example(2, 1);
    bad.context_y[3] = f32::NAN;
    let error = RegressionBatch::from_values(&[example(1, 1), bad], 1, 2, &device()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "example 1: context_y[3] is NaN; every value must be finite"
    );
}
