//! Classification of time series as a task.

use super::problem::{Problem, mean, needed};
use super::{Features, Source, TaskData, sha256, with_path};
use anyhow::{Context as _, Result, bail};
use arbora::models::{Context, EmbeddingKind, HeadKind, Target};
use arbora::tasks::TaskError;
use arbora::tasks::series::{SeriesBatch, SeriesClassification, SeriesSet};
use burn::tensor::{Device, Tensor};

/// Windows of time series, to be named by their class.
pub struct SeriesTask {
    series: SeriesClassification,
    digest: String,
    most_tokens: usize,
}

impl SeriesTask {
    /// Loads the series that a source names.
    ///
    /// # Errors
    /// If they cannot be read, differ in channels or classes, or are shorter than a window.
    pub fn load(source: &Source) -> Result<Self> {
        let Some(windows) = source.windows() else {
            bail!("data: expected time series");
        };
        let (train, test) = match source {
            Source::Series { train, test, .. } => {
                (SeriesSet::from_ts(train)?, SeriesSet::from_ts(test)?)
            }
            _ => SeriesSet::bundled(),
        };
        let series = SeriesClassification::new(&train, &test, windows)
            .map_err(|error| with_path("data", error))
            .with_context(|| match source {
                Source::Series { train, test, .. } => {
                    format!("{} and {}", train.display(), test.display())
                }
                _ => "bundled sample".into(),
            })?;
        let most_tokens = match windows.whole {
            true => [&train, &test]
                .iter()
                .flat_map(|set| (0..set.len()).map(|index| set.steps(index)))
                .max()
                .unwrap_or(1),
            false => windows.window,
        };
        Ok(Self {
            digest: digest([&train, &test]),
            series,
            most_tokens,
        })
    }
}

fn digest(sets: [&SeriesSet; 2]) -> String {
    let mut bytes = Vec::new();
    for set in sets {
        let names = set
            .classes()
            .iter()
            .flat_map(|name| [name.as_bytes(), b"\n"]);
        bytes.push(names.flatten().copied().collect());
        for series in set.series() {
            let values = series.values.iter().flat_map(|value| value.to_le_bytes());
            bytes.push(
                (series.class as u64)
                    .to_le_bytes()
                    .into_iter()
                    .chain(values)
                    .collect(),
            );
        }
    }
    sha256(bytes.iter().map(Vec::as_slice))
}

impl TaskData for SeriesTask {
    fn digest(&self) -> Option<String> {
        Some(self.digest.clone())
    }

    fn features(&self) -> Features {
        Features {
            d_context: self.series.channels(),
            d_query: 1,
            d_position: 1,
            head: HeadKind::Classes {
                count: self.series.classes().len(),
            },
            embedding: EmbeddingKind::Sequence,
            most_tokens: self.most_tokens,
        }
    }

    fn training(
        &self,
        seed: u64,
        step: u64,
        batch_size: usize,
        device: &Device,
    ) -> Result<Problem, TaskError> {
        Ok(problem(self.series.batch(seed, step, batch_size, device)?))
    }

    fn evaluation(
        &self,
        items: usize,
        batch_size: usize,
        device: &Device,
    ) -> Result<Vec<Problem>, TaskError> {
        let windows = match items {
            0 => self.series.test_windows(),
            items => items,
        };
        let batches = self.series.eval_batches(batch_size, device)?;
        Ok(batches
            .take(windows.div_ceil(batch_size))
            .map(problem)
            .collect())
    }

    fn items(&self) -> &'static str {
        "test windows"
    }

    fn count(&self) -> Option<usize> {
        Some(self.series.test_windows())
    }
}

/// One question per window, the same for all: of which class is it?
fn problem(batch: SeriesBatch) -> Problem {
    let [windows, ..] = batch.features.dims();
    let queries = Tensor::ones([windows, 1, 1], &batch.features.device());
    Problem {
        tokens: mean(&batch.counts),
        context: Context::sequence(batch.features, needed(batch.mask, &batch.counts)),
        queries,
        target: Target::Classes(batch.classes),
        target_mask: None,
        kind: None,
        answers: None,
    }
}
