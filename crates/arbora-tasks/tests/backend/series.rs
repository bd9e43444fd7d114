//! Batches of time series.

use arbora_tasks::{
    TaskError,
    series::{Series, SeriesClassification, SeriesConfig, SeriesSet},
};
use arbora_testing::{device, values};

fn set(lengths: &[usize]) -> SeriesSet {
    let series = lengths.iter().enumerate().map(|(at, &steps)| Series {
        values: (0..steps * 3).map(|value| (value % 11) as f32).collect(),
        class: at % 2,
    });
    SeriesSet::from_series(series.collect(), 3, vec!["a".into(), "b".into()]).unwrap()
}

fn task(whole: bool) -> SeriesClassification {
    let config = SeriesConfig {
        window: 6,
        stride: 3,
        whole,
    };
    SeriesClassification::new(&set(&[12, 8, 7]), &set(&[9, 6, 7]), config).unwrap()
}

#[test]
fn windows_have_the_stated_shapes_and_no_padding() {
    let batch = task(false).batch(1, 0, 4, &device()).unwrap();
    assert_eq!(batch.features.dims(), [4, 6, 3]);
    assert_eq!(batch.mask.dims(), [4, 6]);
    assert_eq!(batch.classes.dims(), [4, 1]);
    assert_eq!(batch.counts, [6; 4]);
    assert!(batch.mask.into_data().iter::<bool>().all(|masked| !masked));
}

#[test]
fn whole_series_mask_exactly_their_padding() {
    let batch = task(true).batch(1, 0, 3, &device()).unwrap();
    assert_eq!(batch.features.dims(), [3, 12, 3]);
    let mask: Vec<bool> = batch.mask.into_data().iter::<bool>().collect();
    for (row, &count) in mask.chunks(12).zip(&batch.counts) {
        assert!(
            row.iter()
                .enumerate()
                .all(|(at, &masked)| masked == (at >= count))
        );
    }
    let mut counts = batch.counts;
    counts.sort_unstable();
    assert_eq!(counts, [7, 8, 12]);
}

#[test]
fn the_same_seed_and_step_give_the_same_tensors_and_an_epoch_every_window() {
    let task = task(false);
    assert_eq!(task.train_windows(), 5);
    let batch = |step| task.batch(9, step, 5, &device()).unwrap();
    assert_eq!(values(batch(4).features), values(batch(4).features));
    for step in 0..3 {
        let mut indices = batch(step).indices;
        indices.sort_unstable();
        assert_eq!(indices, [0, 1, 2, 3, 4]);
    }
    assert_ne!(batch(0).indices, batch(1).indices);
    assert!(matches!(
        task.batch(9, 0, 0, &device()),
        Err(TaskError::EmptyBatch)
    ));
}

#[test]
fn evaluation_covers_the_test_windows_once_in_order() {
    let task = task(false);
    let batches = task.eval_batches(3, &device()).unwrap();
    assert_eq!(batches.len(), 2);
    let batches: Vec<_> = batches.collect();
    let indices: Vec<_> = batches.iter().flat_map(|one| one.indices.clone()).collect();
    assert_eq!(indices, [0, 1, 2, 3]);
    let classes = batches
        .into_iter()
        .flat_map(|one| one.classes.into_data().iter::<i64>().collect::<Vec<_>>());
    assert_eq!(classes.collect::<Vec<_>>(), [0, 0, 1, 0]);
}

#[cfg(feature = "sample")]
#[test]
fn the_bundled_series_make_three_windows_each() {
    let (train, test) = SeriesSet::bundled();
    let task = SeriesClassification::new(&train, &test, SeriesConfig::default()).unwrap();
    assert_eq!((task.train_windows(), task.test_windows()), (120, 120));
    let batch = task.batch(0, 0, 16, &device()).unwrap();
    assert_eq!(batch.features.dims(), [16, 50, 6]);
}
