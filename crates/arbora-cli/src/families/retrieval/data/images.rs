//! Image completion as a task.

use super::super::RetrievalConfig;
use super::problem::Problem;
use super::{Features, Source, TaskData, sha256, with_path};
use crate::families::EVALUATION_SEED;
use anyhow::{Context as _, Result, bail};
use arbora::models::{EmbeddingKind, HeadKind, StdKind};
use arbora::tasks::TaskError;
use arbora::tasks::images::{ImageCompletion, ImageSet, WholeImage};
use burn::tensor::Device;
use std::path::Path;

/// Training and test images, ready to draw batches from.
#[derive(Clone, Debug)]
pub struct ImageTask {
    train: ImageCompletion,
    test: ImageCompletion,
    std: StdKind,
}

impl ImageTask {
    /// Loads the images that a configuration names.
    ///
    /// # Errors
    /// If they cannot be read, differ in size or do not fit the configuration.
    pub fn load(config: &RetrievalConfig) -> Result<Self> {
        let (train, test) = match &config.data {
            Source::Sample => ImageSet::bundled(),
            Source::Idx { train, test } => (
                ImageSet::from_idx(train, None::<&Path>)?,
                ImageSet::from_idx(test, None::<&Path>)?,
            ),
            Source::Folder {
                path,
                size,
                held_out,
            } => ImageSet::from_folder(path, *size)
                .and_then(|set| set.split(*held_out, EVALUATION_SEED))
                .map_err(|error| with_path("data", error))?,
            _ => bail!("data: expected images"),
        };
        train
            .check_same_size(&test)
            .context("test images beside training images")?;
        let points = config.points.clone().unwrap_or_default();
        let completion = |set| {
            ImageCompletion::new(set, points.clone()).map_err(|error| with_path("points", error))
        };
        Ok(Self {
            train: completion(train)?,
            test: completion(test)?,
            std: config.architecture.std,
        })
    }

    /// The test images.
    pub fn test(&self) -> &ImageSet {
        self.test.set()
    }

    /// One test image with all of its pixels asked for.
    ///
    /// # Errors
    /// If it does not exist or has fewer pixels than `context`.
    pub fn whole(
        &self,
        image: usize,
        context: usize,
        device: &Device,
    ) -> Result<WholeImage, TaskError> {
        self.test
            .whole_image(image, context, EVALUATION_SEED, device)
    }
}

impl TaskData for ImageTask {
    fn digest(&self) -> Option<String> {
        let sets = [self.train.set(), self.test.set()];
        let shapes = sets.map(|set| {
            [set.count, set.height, set.width, set.channels]
                .map(|size| (size as u64).to_le_bytes())
                .concat()
        });
        let parts = sets.iter().zip(&shapes);
        Some(sha256(
            parts.flat_map(|(set, shape)| [shape.as_slice(), &set.pixels]),
        ))
    }

    fn features(&self) -> Features {
        let set = self.train.set();
        let config = self.train.config();
        Features {
            d_context: 2 + set.channels,
            d_query: 2,
            d_position: 2,
            head: HeadKind::Gaussian {
                dim: set.channels,
                std: self.std,
            },
            embedding: EmbeddingKind::Points,
            most_tokens: config.max_points - 1 - config.min_targets,
        }
    }

    fn training(
        &self,
        seed: u64,
        step: u64,
        batch_size: usize,
        device: &Device,
    ) -> Result<Problem, TaskError> {
        Ok(self.train.batch(seed, step, batch_size, device)?.into())
    }

    fn evaluation(
        &self,
        items: usize,
        batch_size: usize,
        device: &Device,
    ) -> Result<Vec<Problem>, TaskError> {
        let images = if items == 0 { self.test().count } else { items };
        let batches = self
            .test
            .eval_batches(EVALUATION_SEED, batch_size, device)?;
        Ok(batches
            .take(images.div_ceil(batch_size))
            .map(Problem::from)
            .collect())
    }

    fn items(&self) -> &'static str {
        "test images"
    }

    fn count(&self) -> Option<usize> {
        Some(self.test().count)
    }

    fn images(&self) -> Option<&ImageTask> {
        Some(self)
    }
}
