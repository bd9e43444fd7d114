//! Batches of functions drawn from Gaussian processes.

use arbora_tasks::gp::{GpConfig, GpRegression, Kernel};
use arbora_testing::{device, values};

#[test]
fn training_batches_have_the_stated_shapes_and_no_padding() {
    for kernel in [Kernel::Rbf, Kernel::Matern52, Kernel::Periodic] {
        let task = GpRegression::new(GpConfig::default())
            .unwrap()
            .with_kernel(kernel);
        let batch = task.batch(1, 2, 4, &device()).unwrap();
        let (context, targets) = (batch.context_counts[0], batch.target_counts[0]);
        assert_eq!(batch.context_counts, [context; 4]);
        assert_eq!(batch.context_x.dims(), [4, context, 1]);
        assert_eq!(batch.context_y.dims(), [4, context, 1]);
        assert_eq!(batch.target_x.dims(), [4, targets, 1]);
        assert_eq!(batch.target_y.dims(), [4, targets, 1]);
        for mask in [batch.context_mask, batch.target_mask] {
            assert!(mask.into_data().iter::<bool>().all(|masked| !masked));
        }
        for x in values(batch.context_x).chunks(context) {
            assert!(x.is_sorted());
        }
    }
}

#[test]
fn the_same_seed_and_step_give_the_same_tensors() {
    let task = GpRegression::new(GpConfig::default()).unwrap();
    let batch = |step| values(task.batch(9, step, 3, &device()).unwrap().target_y);
    assert_eq!(batch(4), batch(4));
    assert_ne!(batch(4), batch(5));
}

#[test]
fn evaluation_repeats_itself_batch_by_batch() {
    let task = GpRegression::new(GpConfig::default()).unwrap();
    let batches = || {
        let batches = task.eval_batches(0, 3, 2, &device()).unwrap();
        assert_eq!(batches.len(), 3);
        batches
            .map(|batch| values(batch.target_y))
            .collect::<Vec<_>>()
    };
    assert_eq!(batches(), batches());
    assert_ne!(batches()[0], batches()[1]);
}
