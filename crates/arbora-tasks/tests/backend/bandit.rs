//! Batches of the wheel bandit.

use arbora_tasks::{
    TaskError,
    bandit::{ARMS, BanditConfig, BanditRegression, X_DIM},
};
use arbora_testing::{device, values};

fn task() -> BanditRegression {
    BanditRegression::new(BanditConfig {
        max_context: 40,
        ..Default::default()
    })
    .unwrap()
}

#[test]
fn training_batches_have_the_stated_shapes_and_no_padding() {
    let batch = task().batch(1, 2, 4, &device()).unwrap();
    let context = batch.context_counts[0];
    assert_eq!(batch.context_x.dims(), [4, context, X_DIM]);
    assert_eq!(batch.context_y.dims(), [4, context, 1]);
    assert_eq!(batch.target_x.dims(), [4, 10 * ARMS, X_DIM]);
    assert_eq!(batch.target_y.dims(), [4, 10 * ARMS, 1]);
    for mask in [batch.context_mask, batch.target_mask] {
        assert!(mask.into_data().iter::<bool>().all(|masked| !masked));
    }
    assert!(
        values(batch.target_y)
            .iter()
            .all(|y| (0.01..=1.01).contains(y))
    );
}

#[test]
fn the_same_seed_and_step_give_the_same_tensors() {
    let batch = |step| values(task().batch(9, step, 3, &device()).unwrap().target_x);
    assert_eq!(batch(4), batch(4));
    assert_ne!(batch(4), batch(5));
    assert!(matches!(
        task().batch(9, 0, 0, &device()),
        Err(TaskError::EmptyBatch)
    ));
}

#[test]
fn evaluation_repeats_itself_batch_by_batch() {
    let batches = || {
        let batches = task().eval_batches(0, 3, 2, &device()).unwrap();
        assert_eq!(batches.len(), 3);
        batches
            .map(|batch| values(batch.target_y))
            .collect::<Vec<_>>()
    };
    assert_eq!(batches(), batches());
    assert_ne!(batches()[0], batches()[1]);
}
