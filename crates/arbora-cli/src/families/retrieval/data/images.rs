//! Image completion as a task.

use super::super::RetrievalConfig;
use super::problem::Problem;
use super::{DataProvenance, Evaluation, Features, Source, TaskData, Training, sha256, with_path};
use crate::families::EVALUATION_SEED;
use anyhow::{Context as _, Result, bail};
use arbora::models::{EmbeddingKind, HeadKind, StdKind};
use arbora::tasks::TaskError;
use arbora::tasks::images::{ImageCompletion, ImageSet, PictureChanges, WholeImage};
use burn::tensor::Device;
use std::path::Path;
use std::sync::Arc;

/// Training and test images, ready to draw batches from.
#[derive(Clone, Debug)]
pub struct ImageTask {
    train: Arc<ImageCompletion>,
    test: Arc<ImageCompletion>,
    /// What was done to the pictures of a folder.
    changes: Option<PictureChanges>,
}

impl ImageTask {
    /// Loads the images that a configuration names.
    pub fn load(config: &RetrievalConfig) -> Result<Self> {
        let ((train, test), changes) = match &config.data {
            Source::Sample => (ImageSet::bundled(), None),
            Source::Idx { train, test } => {
                let read = |path| ImageSet::from_idx(path, None::<&Path>);
                ((read(train)?, read(test)?), None)
            }
            Source::Folder {
                path,
                size,
                channels,
                held_out,
            } => ImageSet::from_folder(path, *size, *channels)
                .and_then(|(set, changes)| {
                    let parts = set.split(*held_out, EVALUATION_SEED)?;
                    Ok((parts, Some(changes)))
                })
                .map_err(|error| with_path("data", error))?,
            _ => bail!("data: expected images"),
        };
        train
            .check_same_size(&test)
            .context("test images beside training images")?;
        let points = config.points.clone().unwrap_or_default();
        let completion = |set| {
            ImageCompletion::new(set, points.clone())
                .map(Arc::new)
                .map_err(|error| with_path("points", error))
        };
        Ok(Self {
            train: completion(train)?,
            test: completion(test)?,
            changes,
        })
    }

    pub fn test(&self) -> &ImageSet {
        self.test.set()
    }

    /// One test image with all of its pixels asked for.
    pub fn whole(
        &self,
        image: usize,
        context: usize,
        device: &Device,
    ) -> Result<WholeImage, TaskError> {
        self.test
            .whole_image(image, context, EVALUATION_SEED, device)
    }

    /// The same as a source of problems.
    pub fn into_data(self, std: StdKind) -> TaskData {
        let (set, config) = (self.train.set(), self.train.config());
        let features = Features {
            d_context: 2 + set.channels,
            d_query: 2,
            d_position: 2,
            head: HeadKind::Gaussian {
                dim: set.channels,
                std,
            },
            embedding: EmbeddingKind::Points,
            most_tokens: config.max_points - 1 - config.min_targets,
        };
        let (train, test, count) = (self.train.clone(), self.test.clone(), self.test().count);
        let training: Training = Box::new(move |seed, step, batch_size, device| {
            Ok(train.batch(seed, step, batch_size, device)?.into())
        });
        let evaluation: Evaluation = Box::new(move |batches, batch_size, device| {
            let all = test.eval_batches(EVALUATION_SEED, batch_size, device)?;
            Ok(all.take(batches).map(Problem::from).collect())
        });
        TaskData {
            count: Some(count),
            provenance: Some(self.provenance()),
            data_summary: self.changes.map(|changes| changes.to_string()),
            images: Some(self),
            ..TaskData::new("test images", features, training, evaluation)
        }
    }

    fn provenance(&self) -> DataProvenance {
        let sets = [self.train.set(), self.test.set()];
        let shapes = sets.map(|set| {
            let sizes = [set.count, set.height, set.width, set.channels];
            sizes.map(|size| (size as u64).to_le_bytes()).concat()
        });
        let parts = sets.iter().zip(&shapes);
        DataProvenance {
            sha256: sha256(parts.flat_map(|(set, shape)| [shape.as_slice(), &set.pixels])),
            training: sets[0].count,
            test: sets[1].count,
        }
    }
}
