//! Windows of time series and their classes.

use arbora_tasks::series::{Series, SeriesBatch, SeriesClassification, SeriesConfig, SeriesSet};
use arbora_testing::values;
use burn::tensor::{Device, Int, Tensor};

/// Series of two channels: the number of the series and of the step, and a constant.
fn set(lengths: &[usize]) -> SeriesSet {
    let series = lengths.iter().enumerate().map(|(at, &steps)| Series {
        values: (0..steps)
            .flat_map(|step| [(100 * at + step) as f32, 7.5])
            .collect(),
        class: at % 2,
    });
    SeriesSet::from_series(series.collect(), 2, vec!["a".into(), "b".into()]).unwrap()
}

fn config(window: usize, stride: usize) -> SeriesConfig {
    SeriesConfig::default()
        .with_window(window)
        .with_stride(stride)
}

/// All windows of the test set.
fn test_batch(task: &SeriesClassification) -> SeriesBatch {
    let batches = task.eval_batches(task.test_windows(), &Device::flex());
    batches.unwrap().next().unwrap()
}

/// The first channel of a batch as it was before standardising.
fn numbers(task: &SeriesClassification, batch: &SeriesBatch) -> Vec<i64> {
    let back = |step: &[f32]| step[0] * task.deviations()[0] + task.means()[0];
    values(batch.features.clone())
        .chunks(2)
        .map(|step| back(step).round() as i64)
        .collect()
}

fn classes(batch: &SeriesBatch) -> Vec<i64> {
    let classes: Tensor<2, Int> = batch.classes.clone();
    classes.into_data().iter::<i64>().collect()
}

fn mask(batch: &SeriesBatch) -> Vec<bool> {
    batch.mask.clone().into_data().iter::<bool>().collect()
}

#[test]
fn windows_cover_each_series_in_order_and_keep_its_class() {
    let sets = set(&[7, 4, 5]);
    let task = SeriesClassification::new(&sets, &sets, config(4, 2)).unwrap();
    assert_eq!((task.train_windows(), task.test_windows()), (4, 4));
    let batch = test_batch(&task);
    assert_eq!(batch.features.dims(), [4, 4, 2]);
    assert_eq!(
        numbers(&task, &batch),
        [
            0, 1, 2, 3, 2, 3, 4, 5, 100, 101, 102, 103, 200, 201, 202, 203
        ]
    );
    assert_eq!(classes(&batch), [0, 0, 1, 0]);
    assert!(mask(&batch).iter().all(|masked| !masked));
}

#[test]
fn whole_series_are_padded_with_masked_zeros() {
    let whole = SeriesConfig::default().with_whole(true);
    let task = SeriesClassification::new(&set(&[2]), &set(&[3, 1]), whole).unwrap();
    let batch = test_batch(&task);
    assert_eq!(batch.features.dims(), [2, 3, 2]);
    assert_eq!(batch.counts, [3, 1]);
    assert_eq!(mask(&batch), [false, false, false, false, true, true]);
    assert_eq!(values(batch.features.clone())[8..], [0.0; 4]);
    assert_eq!(numbers(&task, &batch)[..4], [0, 1, 2, 100]);
}

#[test]
fn channels_are_standardised_by_the_training_set_alone() {
    let train = set(&[5, 9]);
    // A stride of one step: the windows are all values of the set.
    let same = SeriesClassification::new(&train, &train, config(1, 1)).unwrap();
    let all = values(test_batch(&same).features);
    let channel = |channel: usize| all.chunks(2).map(move |step| step[channel]);
    let count = channel(0).count() as f32;
    let mean = channel(0).sum::<f32>() / count;
    let variance = channel(0).map(|value| (value - mean).powi(2)).sum::<f32>() / count;
    assert!(mean.abs() < 1e-5 && (variance - 1.0).abs() < 1e-5);
    // The constant channel is centred and not blown up.
    assert!(channel(1).all(|value| value.abs() < 1e-6));
    let task = SeriesClassification::new(&train, &set(&[4, 4]), config(4, 1)).unwrap();
    assert_eq!((task.means()[1], task.deviations()[1]), (7.5, 1.0));
    assert_eq!(numbers(&task, &test_batch(&task))[..4], [0, 1, 2, 3]);
}

#[test]
fn classes_are_matched_by_name() {
    let train = set(&[4, 4]);
    let test = |classes: &[&str], of: &[usize]| {
        let series = of.iter().map(|&class| Series {
            values: vec![1.0; 8],
            class,
        });
        let classes = classes.iter().map(ToString::to_string).collect();
        SeriesSet::from_series(series.collect(), 2, classes).unwrap()
    };
    for (test, expected) in [
        (test(&["a", "b"], &[0, 1]), vec![0, 1]),
        (test(&["b", "a"], &[0, 1, 0]), vec![1, 0, 1]),
        (test(&["b"], &[0]), vec![1]),
        (test(&["c", "b", "d"], &[1]), vec![1]),
    ] {
        let task = SeriesClassification::new(&train, &test, config(4, 4)).unwrap();
        assert_eq!(task.classes(), ["a", "b"]);
        assert_eq!(classes(&test_batch(&task)), expected);
    }
}

#[test]
fn sets_that_differ_and_short_series_are_refused() {
    let error = |test: &SeriesSet, config| {
        SeriesClassification::new(&set(&[5, 5]), test, config)
            .unwrap_err()
            .to_string()
    };
    let one = |channels, classes: &[&str]| {
        let series = Series {
            values: vec![0.0; channels],
            class: 0,
        };
        let classes = classes.iter().map(ToString::to_string).collect();
        SeriesSet::from_series(vec![series], channels, classes).unwrap()
    };
    let errors = [
        error(&one(3, &["a", "b"]), config(1, 1)),
        error(&one(2, &["c", "b"]), config(1, 1)),
        error(&set(&[5, 4]), config(5, 1)),
        error(&set(&[5]), config(0, 1)),
        error(&set(&[5]), config(1, 0)),
    ];
    let expected = [
        "series set: channels of the test set: expected 2 as in the training set, got 3",
        "series set: classes of the test set: expected those of training, a, b, got c",
        "series set: series 1 of the test set: expected at least 5 steps, the window, got 4",
        "window: expected at least 1, got 0",
        "stride: expected at least 1, got 0",
    ];
    assert_eq!(errors, expected);
}
