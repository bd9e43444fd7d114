//! Classification of windows.

use burn::config::Config;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use derive_setters::Setters;
use serde::{Deserialize, Serialize};

use super::SeriesSet;
use crate::batch::{batches_in_order, pad, padding_mask};
use crate::{TaskError, shuffle};

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
    /// As [`SeriesConfig::check`]; [`TaskError::Set`] if the sets differ in their channels, a series of the test
    /// set has a class that the training set does not have, or a series is shorter than a window.
    pub fn new(
        train: &SeriesSet,
        test: &SeriesSet,
        config: SeriesConfig,
    ) -> Result<Self, TaskError> {
        config.check()?;
        if train.channels() != test.channels() {
            let expected = format!("{} as in the training set", train.channels());
            let what = "channels of the test set";
            return Err(TaskError::set("series", what, expected, test.channels()));
        }
        let (means, deviations) = moments(train);
        let windows = |set: &SeriesSet, name| {
            Windows::cut(set, name, config, [&means, &deviations], train.classes())
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
        let indices = shuffle::batch_indices(self.train_windows(), seed, step, batch_size)?;
        Ok(self.train.batch(indices, device))
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
        let device = device.clone();
        let batches = batches_in_order(self.test_windows(), batch_size)?;
        Ok(batches.map(move |windows| self.test.batch(windows.collect(), &device)))
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
    /// - classes: of the task
    fn cut(
        set: &SeriesSet,
        name: &str,
        config: SeriesConfig,
        [means, deviations]: [&[f64]; 2],
        classes: &[String],
    ) -> Result<Self, TaskError> {
        let mut cut = Self {
            channels: set.channels(),
            values: Vec::new(),
            windows: Vec::new(),
        };
        let mut first = 0;
        for (index, series) in set.series().iter().enumerate() {
            let (steps, class) = (set.steps(index), &set.classes()[series.class]);
            let number = classes.iter().position(|known| known == class);
            let class = number.ok_or_else(|| {
                let expected = format!("those of training, {}", classes.join(", "));
                TaskError::set("series", "classes of the test set", expected, class)
            })?;
            let (window, stride) = if config.whole {
                (steps, steps)
            } else {
                (config.window, config.stride)
            };
            if steps < window {
                let what = format!("series {index} of the {name} set");
                let expected = format!("at least {window} steps, the window");
                return Err(TaskError::set("series", what, expected, steps));
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

    fn batch(&self, indices: Vec<usize>, device: &Device) -> SeriesBatch {
        let windows: Vec<Window> = indices.iter().map(|&index| self.windows[index]).collect();
        let counts: Vec<usize> = windows.iter().map(|window| window.steps).collect();
        let (batch, channels) = (indices.len(), self.channels);
        let steps = counts.iter().copied().max().unwrap_or(0);
        let features = windows.iter().map(|window| {
            let range = window.start * channels..(window.start + window.steps) * channels;
            self.values[range].iter().copied()
        });
        let features = TensorData::new(
            pad(features, steps * channels, 0.0),
            [batch, steps, channels],
        );
        let classes: Vec<i64> = windows.iter().map(|window| window.class as i64).collect();
        SeriesBatch {
            features: Tensor::from_data(features, device),
            mask: padding_mask(&counts, steps, device),
            counts,
            classes: Tensor::from_data(TensorData::new(classes, [batch, 1]), device),
            indices,
        }
    }
}
