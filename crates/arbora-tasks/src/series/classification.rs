//! Classification of windows.

use burn::config::Config;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use derive_setters::Setters;
use serde::{Deserialize, Serialize};

use super::SeriesSet;
use crate::{TaskError, error::check_batch, shuffle};

/// How series are cut into windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Setters)]
#[serde(default, deny_unknown_fields)]
#[setters(prefix = "with_")]
pub struct SeriesConfig {
    /// Steps of a window. Default 50.
    pub window: usize,
    /// Steps from the start of one window to the start of the next. Default 25. Steps after the last
    /// whole window of a series are left out.
    pub stride: usize,
    /// `true`: every series is one window, whatever its length; batches are padded and masked, and
    /// `window` and `stride` are ignored. Default `false`.
    pub whole: bool,
}

impl Default for SeriesConfig {
    fn default() -> Self {
        Self {
            window: 50,
            stride: 25,
            whole: false,
        }
    }
}

impl Config for SeriesConfig {}

impl SeriesConfig {
    /// Checks that windows have steps and that each starts after the one before.
    ///
    /// # Errors
    /// [`TaskError::Config`] where `window` or `stride` is 0.
    pub fn check(&self) -> Result<(), TaskError> {
        for (key, got) in [("window", self.window), ("stride", self.stride)] {
            if got == 0 {
                return Err(TaskError::config(key, "at least 1", got));
            }
        }
        Ok(())
    }
}

/// Windows of series and their classes.
///
/// Masks follow burn: `true` marks padding, which a model must not see. Features of padding are 0,
/// which is also the mean of every channel over the training set.
#[derive(Clone, Debug)]
pub struct SeriesBatch {
    /// Standardised values: `[batch, steps, channels]`, with the steps of the longest window.
    pub features: Tensor<3>,
    /// `true` = padding: `[batch, steps]`. Nothing is masked unless series are taken whole.
    pub mask: Tensor<2, Bool>,
    /// Steps per window, padding not counted: `[batch]`, on the host.
    pub counts: Vec<usize>,
    /// The class of each window: `[batch, 1]`.
    pub classes: Tensor<2, Int>,
    /// Which window each example is: `[batch]`, on the host. Windows are numbered through a set,
    /// series by series.
    pub indices: Vec<usize>,
}

/// Classification of time series by windows: each window has the class of its series.
///
/// Every channel is standardised by its mean and standard deviation over all steps of the training
/// set, in both sets. A channel that is constant there is only centred.
///
/// Training walks through the windows in epochs, each in an order of its own. Evaluation walks once
/// through all windows of the test set.
#[derive(Clone, Debug)]
pub struct SeriesClassification {
    train: Windows,
    test: Windows,
    classes: Vec<String>,
    means: Vec<f32>,
    deviations: Vec<f32>,
}

impl SeriesClassification {
    /// The task on a training and a test set. Their classes are matched by name: the test set may have fewer, in
    /// another order, and others that none of its series is of.
    ///
    /// # Errors
    /// As [`SeriesConfig::check`]; [`TaskError::SeriesSet`] if the sets differ in their channels, or a series of
    /// the test set has a class that the training set does not have; [`TaskError::ShortSeries`] for a series shorter than a window.
    pub fn new(
        train: &SeriesSet,
        test: &SeriesSet,
        config: SeriesConfig,
    ) -> Result<Self, TaskError> {
        config.check()?;
        if train.channels() != test.channels() {
            let expected = format!("{} as in the training set", train.channels());
            let got = test.channels().to_string();
            return Err(TaskError::series_set(
                "channels of the test set",
                expected,
                got,
            ));
        }
        let (means, deviations) = moments(train);
        let windows = |set: &SeriesSet, name| {
            let numbers = set.series().iter().map(|series| {
                let class = &set.classes()[series.class];
                let number = train.classes().iter().position(|known| known == class);
                number.ok_or_else(|| {
                    let expected = format!("those of training, {}", train.classes().join(", "));
                    TaskError::series_set("classes of the test set", expected, class.clone())
                })
            });
            let numbers = numbers.collect::<Result<Vec<usize>, _>>()?;
            Windows::cut(set, name, config, &means, &deviations, &numbers)
        };
        Ok(Self {
            train: windows(train, "training")?,
            test: windows(test, "test")?,
            classes: train.classes().to_vec(),
            means: means.iter().map(|&mean| mean as f32).collect(),
            deviations: deviations.iter().map(|&one| one as f32).collect(),
        })
    }

    /// The names of the classes.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Values per step.
    pub fn channels(&self) -> usize {
        self.means.len()
    }

    /// What is subtracted from each channel: `[channels]`.
    pub fn means(&self) -> &[f32] {
        &self.means
    }

    /// What each channel is divided by after that: `[channels]`.
    pub fn deviations(&self) -> &[f32] {
        &self.deviations
    }

    /// How many windows the training set has.
    pub fn train_windows(&self) -> usize {
        self.train.windows.len()
    }

    /// How many windows the test set has.
    pub fn test_windows(&self) -> usize {
        self.test.windows.len()
    }

    /// The training batch of `step`: a pure function of its arguments.
    ///
    /// # Errors
    /// [`TaskError::EmptyBatch`] if `batch_size` is 0.
    pub fn batch(
        &self,
        seed: u64,
        step: u64,
        batch_size: usize,
        device: &Device,
    ) -> Result<SeriesBatch, TaskError> {
        check_batch(batch_size)?;
        let indices = shuffle::batch_indices(self.train_windows(), seed, step, batch_size);
        Ok(self.train.host_batch(indices).upload(device))
    }

    /// All windows of the test set in order, each once. The last batch may be smaller.
    ///
    /// # Errors
    /// [`TaskError::EmptyBatch`] if `batch_size` is 0.
    pub fn eval_batches<'a>(
        &'a self,
        batch_size: usize,
        device: &Device,
    ) -> Result<impl ExactSizeIterator<Item = SeriesBatch> + use<'a>, TaskError> {
        check_batch(batch_size)?;
        let count = self.test_windows();
        let device = device.clone();
        Ok((0..count.div_ceil(batch_size)).map(move |index| {
            let first = index * batch_size;
            let indices = (first..count.min(first + batch_size)).collect();
            self.test.host_batch(indices).upload(&device)
        }))
    }
}

/// Mean and standard deviation of each channel, the latter 1 where there is none.
fn moments(set: &SeriesSet) -> (Vec<f64>, Vec<f64>) {
    let channels = set.channels();
    let steps = || {
        set.series()
            .iter()
            .flat_map(|series| series.values.chunks_exact(channels))
    };
    let count = steps().count() as f64;
    let mut means = vec![0.0; channels];
    for step in steps() {
        for (mean, &value) in means.iter_mut().zip(step) {
            *mean += f64::from(value);
        }
    }
    means.iter_mut().for_each(|mean| *mean /= count);
    // In a second pass, because the difference of two large sums would lose a small variance.
    let mut deviations = vec![0.0; channels];
    for step in steps() {
        for ((sum, &value), mean) in deviations.iter_mut().zip(step).zip(&means) {
            *sum += (f64::from(value) - mean).powi(2) / count;
        }
    }
    for (deviation, mean) in deviations.iter_mut().zip(&means) {
        *deviation = f64::sqrt(*deviation);
        // What is left of a constant channel is the rounding of its mean.
        if *deviation <= 1e-7 * mean.abs() {
            *deviation = 1.0;
        }
    }
    (means, deviations)
}

/// A standardised set, cut into windows.
#[derive(Clone, Debug)]
struct Windows {
    channels: usize,
    /// `[steps of all series, channels]`
    values: Vec<f32>,
    windows: Vec<Window>,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    /// The first step, in the steps of all series.
    start: usize,
    steps: usize,
    class: usize,
}

impl Windows {
    /// - classes: of each series, a number of the task
    fn cut(
        set: &SeriesSet,
        name: &'static str,
        config: SeriesConfig,
        means: &[f64],
        deviations: &[f64],
        classes: &[usize],
    ) -> Result<Self, TaskError> {
        let mut cut = Self {
            channels: set.channels(),
            values: Vec::new(),
            windows: Vec::new(),
        };
        let mut first = 0;
        for (index, series) in set.series().iter().enumerate() {
            let (steps, class) = (set.steps(index), classes[index]);
            let (window, stride) = if config.whole {
                (steps, steps)
            } else {
                (config.window, config.stride)
            };
            if steps < window {
                return Err(TaskError::ShortSeries {
                    set: name,
                    index,
                    steps,
                    window,
                });
            }
            let starts = (first..=first + steps - window).step_by(stride);
            cut.windows.extend(starts.map(|start| Window {
                start,
                steps: window,
                class,
            }));
            for step in series.values.chunks_exact(cut.channels) {
                let moments = means.iter().zip(deviations);
                let standard = |(&value, (mean, deviation)): (&f32, (&f64, &f64))| {
                    ((f64::from(value) - mean) / deviation) as f32
                };
                cut.values.extend(step.iter().zip(moments).map(standard));
            }
            first += steps;
        }
        Ok(cut)
    }

    fn host_batch(&self, indices: Vec<usize>) -> HostSeries {
        let windows = || indices.iter().map(|&index| self.windows[index]);
        let steps = windows().map(|window| window.steps).max().unwrap_or(0);
        let mut batch = HostSeries {
            shape: [indices.len(), steps, self.channels],
            features: Vec::with_capacity(indices.len() * steps * self.channels),
            mask: Vec::with_capacity(indices.len() * steps),
            counts: windows().map(|window| window.steps).collect(),
            classes: windows().map(|window| window.class as i64).collect(),
            indices: Vec::new(),
        };
        for (example, window) in windows().enumerate() {
            let range = window.start * self.channels..(window.start + window.steps) * self.channels;
            batch.features.extend_from_slice(&self.values[range]);
            let padded = (example + 1) * steps;
            batch.features.resize(padded * self.channels, 0.0);
            batch.mask.resize(example * steps + window.steps, false);
            batch.mask.resize(padded, true);
        }
        batch.indices = indices;
        batch
    }
}

/// A batch before it goes to a device.
#[derive(Clone, Debug, PartialEq)]
struct HostSeries {
    shape: [usize; 3],
    features: Vec<f32>,
    mask: Vec<bool>,
    counts: Vec<usize>,
    classes: Vec<i64>,
    indices: Vec<usize>,
}

impl HostSeries {
    fn upload(self, device: &Device) -> SeriesBatch {
        let [batch, steps, _] = self.shape;
        SeriesBatch {
            features: Tensor::from_data(TensorData::new(self.features, self.shape), device),
            mask: Tensor::from_data(TensorData::new(self.mask, [batch, steps]), device),
            counts: self.counts,
            classes: Tensor::from_data(TensorData::new(self.classes, [batch, 1]), device),
            indices: self.indices,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::series::Series;

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
        SeriesConfig {
            window,
            stride,
            whole: false,
        }
    }

    /// The first channel of a batch as it was before standardising.
    fn numbers(task: &SeriesClassification, batch: &HostSeries) -> Vec<i64> {
        let back = |step: &[f32]| step[0] * task.deviations[0] + task.means[0];
        batch
            .features
            .chunks(2)
            .map(|step| back(step).round() as i64)
            .collect()
    }

    #[test]
    fn windows_cover_each_series_in_order_and_keep_its_class() {
        let sets = set(&[7, 4, 5]);
        let task = SeriesClassification::new(&sets, &sets, config(4, 2)).unwrap();
        assert_eq!((task.train_windows(), task.test_windows()), (4, 4));
        let batch = task.test.host_batch((0..4).collect());
        assert_eq!(batch.shape, [4, 4, 2]);
        assert_eq!(
            numbers(&task, &batch),
            [
                0, 1, 2, 3, 2, 3, 4, 5, 100, 101, 102, 103, 200, 201, 202, 203
            ]
        );
        assert_eq!(batch.classes, [0, 0, 1, 0]);
        assert!(batch.mask.iter().all(|masked| !masked));
    }

    #[test]
    fn whole_series_are_padded_with_masked_zeros() {
        let whole = SeriesConfig {
            whole: true,
            ..Default::default()
        };
        let task = SeriesClassification::new(&set(&[3, 1]), &set(&[2]), whole).unwrap();
        let batch = task.train.host_batch(vec![0, 1]);
        assert_eq!(batch.shape, [2, 3, 2]);
        assert_eq!(batch.counts, [3, 1]);
        assert_eq!(batch.mask, [false, false, false, false, true, true]);
        assert_eq!(batch.features[8..], [0.0; 4]);
        assert_eq!(numbers(&task, &batch)[..4], [0, 1, 2, 100]);
    }

    #[test]
    fn channels_are_standardised_by_the_training_set_alone() {
        let task = SeriesClassification::new(&set(&[5, 9]), &set(&[4, 4]), config(4, 1)).unwrap();
        let values = |channel: usize| task.train.values.chunks(2).map(move |step| step[channel]);
        let count = values(0).count() as f32;
        let mean = values(0).sum::<f32>() / count;
        let variance = values(0).map(|value| (value - mean).powi(2)).sum::<f32>() / count;
        assert!(mean.abs() < 1e-5 && (variance - 1.0).abs() < 1e-5);
        // The constant channel is centred and not blown up.
        assert!(values(1).all(|value| value.abs() < 1e-6));
        assert_eq!((task.means()[1], task.deviations()[1]), (7.5, 1.0));
        let test = task.test.host_batch(vec![0]);
        assert_eq!(numbers(&task, &test), [0, 1, 2, 3]);
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
            let all = (0..task.test_windows()).collect();
            assert_eq!(task.test.host_batch(all).classes, expected);
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
            "series 1 of the test set: expected at least 5 steps, the window, got 4",
            "window: expected at least 1, got 0",
            "stride: expected at least 1, got 0",
        ];
        assert_eq!(errors, expected);
    }
}
