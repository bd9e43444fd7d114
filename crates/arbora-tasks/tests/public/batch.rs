//! Batches of a caller's own values.

use arbora_tasks::{RegressionBatch, RegressionExample};
use arbora_testing::values;
use burn::tensor::Device;

use crate::points::host;

fn example(context: usize, targets: usize) -> RegressionExample {
    let list = |len: usize| (0..len).map(|at| at as f32 + 1.0).collect();
    RegressionExample {
        context_x: list(context * 2),
        context_y: list(context),
        target_x: list(targets * 2),
        target_y: list(targets),
    }
}

fn error(examples: &[RegressionExample]) -> String {
    RegressionBatch::from_values(examples, 2, 1, &Device::flex())
        .unwrap_err()
        .to_string()
}

#[test]
fn shorter_examples_are_padded_with_masked_zeros() {
    let examples = [example(3, 1), example(1, 2)];
    let batch = RegressionBatch::from_values(&examples, 2, 1, &Device::flex()).unwrap();
    assert_eq!(
        values(batch.context_y.clone()),
        [1.0, 2.0, 3.0, 1.0, 0.0, 0.0]
    );
    assert_eq!(
        values(batch.context_x.clone())[6..],
        [1.0, 2.0, 0.0, 0.0, 0.0, 0.0]
    );
    let batch = host(batch);
    assert_eq!(batch.context.counts, [3, 1]);
    assert_eq!(batch.context.mask, [false, false, false, false, true, true]);
    assert_eq!(batch.target.mask, [false, true, false, false]);
    assert_eq!(
        batch.target.example(1),
        (&[1.0, 2.0, 3.0, 4.0][..], &[1.0, 2.0][..])
    );
}

#[test]
fn empty_contexts_and_missing_targets_are_refused() {
    assert_eq!(error(&[]), "a batch needs at least one example, got 0");
    assert_eq!(
        error(&[example(1, 1), example(0, 1)]),
        "example 1: the context is empty; at least one point is needed"
    );
    assert_eq!(
        error(&[example(1, 0)]),
        "example 0: there are no targets; at least one point is needed"
    );
}

#[test]
fn dimension_mismatches_are_refused() {
    let mut odd = example(2, 1);
    odd.context_x.pop();
    assert_eq!(
        error(&[odd]),
        "example 0: context_x: expected a multiple of 2 values, got 3"
    );
    let mut short = example(1, 3);
    short.target_y.pop();
    assert_eq!(
        error(&[short]),
        "example 0: target_y: expected 3 points of 1: 3 values, got 2"
    );
}

#[test]
fn non_finite_values_are_refused_in_every_list() {
    let lists: [fn(&mut RegressionExample) -> &mut Vec<f32>; 4] = [
        |example| &mut example.context_x,
        |example| &mut example.context_y,
        |example| &mut example.target_x,
        |example| &mut example.target_y,
    ];
    let names = ["context_x", "context_y", "target_x", "target_y"];
    for (list, name) in lists.into_iter().zip(names) {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut bad = example(2, 2);
            list(&mut bad)[1] = value;
            assert_eq!(
                error(&[bad]),
                format!("example 0: {name}[1] is {value}; every value must be finite")
            );
        }
    }
}
