//! Classification of time series as a task.

use super::problem::{Problem, mean, needed};
use super::{DataProvenance, Evaluation, Features, Source, TaskData, Training, sha256, with_path};
use anyhow::{Context as _, Result, bail};
use arbora::models::{Context, EmbeddingKind, HeadKind, Target};
use arbora::tasks::series::{SeriesBatch, SeriesClassification, SeriesSet};
use burn::tensor::Tensor;
use std::sync::Arc;

/// Windows of the time series that a source names, to be named by their class.
pub fn load(source: &Source) -> Result<TaskData> {
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
    let lengths = [&train, &test].map(|set| (0..set.len()).map(|index| set.steps(index)).max());
    let most_tokens = if windows.whole {
        lengths.into_iter().flatten().max().unwrap_or(1)
    } else {
        windows.window
    };
    let features = Features {
        d_context: series.channels(),
        d_query: 1,
        d_position: 1,
        head: HeadKind::Classes {
            count: series.classes().len(),
        },
        embedding: EmbeddingKind::Sequence,
        most_tokens,
    };
    let count = series.test_windows();
    let series = Arc::new(series);
    let held_out = series.clone();
    let training: Training = Box::new(move |seed, step, batch_size, device| {
        Ok(problem(series.batch(seed, step, batch_size, device)?))
    });
    let evaluation: Evaluation = Box::new(move |batches, batch_size, device| {
        let all = held_out.eval_batches(batch_size, device)?;
        Ok(all.take(batches).map(problem).collect())
    });
    Ok(TaskData {
        count: Some(count),
        provenance: Some(DataProvenance {
            sha256: digest([&train, &test]),
            training: train.series().len(),
            test: test.series().len(),
        }),
        ..TaskData::new("test windows", features, training, evaluation)
    })
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
            let class = (series.class as u64).to_le_bytes().into_iter();
            bytes.push(class.chain(values).collect());
        }
    }
    sha256(bytes.iter().map(Vec::as_slice))
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
