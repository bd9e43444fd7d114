//! Image completion.

use burn::config::Config;
use burn::tensor::Device;
use derive_setters::Setters;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::ImageSet;
use crate::batch::batches_in_order;
use crate::draws::{PointCounts, Purpose, generator};
use crate::error::check_points;
use crate::{RegressionBatch, RegressionExample, TaskError, shuffle};

/// Coordinates of a pixel: row and column.
const X_DIM: usize = 2;

/// How many pixels are shown and asked for.
///
/// With n = `max_points` (200 as published), the number of context pixels is uniform over
/// `min_context ..= n - 1 - min_targets` (3 to 196) and then the number of targets is uniform over
/// `min_targets ..= n - 1 - context` (3 to 199 - context), as in
/// [Tree Cross Attention](https://arxiv.org/abs/2309.17388), section 4, and the neural processes
/// before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Setters)]
#[serde(default, deny_unknown_fields)]
#[setters(prefix = "with_")]
pub struct ImageCompletionConfig {
    /// Context and targets together stay below this many pixels. Default 200.
    pub max_points: usize,
    /// The least number of context pixels. Default 3.
    pub min_context: usize,
    /// The least number of target pixels. Default 3.
    pub min_targets: usize,
    /// `false` (default, as published): all images of a batch have the same numbers of pixels.
    /// `true`: each image draws its own, and the batch is padded and masked.
    pub ragged: bool,
}

impl Default for ImageCompletionConfig {
    fn default() -> Self {
        Self {
            max_points: 200,
            min_context: 3,
            min_targets: 3,
            ragged: false,
        }
    }
}

impl Config for ImageCompletionConfig {}

impl ImageCompletionConfig {
    /// Checks that there is something to show and something to ask for.
    ///
    /// # Errors
    /// [`TaskError::EmptyContext`] and [`TaskError::NoTargets`] where a minimum is 0,
    /// [`TaskError::Config`] where `max_points` leaves no room for both minima.
    pub fn check(&self) -> Result<(), TaskError> {
        self.counts().check()
    }

    fn counts(&self) -> PointCounts {
        PointCounts {
            max_points: self.max_points,
            min_context: self.min_context,
            min_targets: self.min_targets,
        }
    }
}

/// Image completion as a regression problem: from the values of a few random pixels, predict those
/// of others.
///
/// A pixel at `row` and `col` has the coordinates `(2 * row / (height - 1) - 1, 2 * col / (width - 1) -
/// 1)`, each in [-1, 1] (0 where an image is one pixel high or wide), and per channel the value
/// `byte / 255 - 0.5`, in [-0.5, 0.5]. Within an image the pixels drawn are distinct, so no target is
/// in the context.
///
/// Training walks through the set in epochs, each in an order of its own that is computed position by
/// position: a batch costs what its size costs, at any step, and every image comes once per epoch. A
/// batch that ends one epoch begins the next.
#[derive(Clone, Debug)]
pub struct ImageCompletion {
    set: ImageSet,
    config: ImageCompletionConfig,
    /// Coordinates of every pixel, row-major: no division per point.
    coordinates: Vec<[f32; X_DIM]>,
}

/// One image with all its pixels as targets, for pictures. See [`ImageCompletion::whole_image`].
#[derive(Clone, Debug)]
pub struct WholeImage {
    /// The problem, batch 1: `context` pixels and `height * width` targets in row-major order.
    pub batch: RegressionBatch,
    /// Which pixels are in the context: `[height * width]`.
    pub observed: Vec<bool>,
    /// The values of all pixels: `[height * width * channels]`, in [-0.5, 0.5].
    pub truth: Vec<f32>,
}

impl ImageCompletion {
    /// Image completion on `set`.
    ///
    /// # Errors
    /// What [`ImageSet::check`] and [`ImageCompletionConfig::check`] refuse, and
    /// [`TaskError::Config`] if `max_points` exceeds the pixels of an image.
    pub fn new(set: ImageSet, config: ImageCompletionConfig) -> Result<Self, TaskError> {
        set.check()?;
        config.check()?;
        if config.max_points > set.pixels_per_image() {
            let (pixels, height, width) = (set.pixels_per_image(), set.height, set.width);
            let expected = format!("at most {pixels}, the pixels of an image of {height}x{width}");
            return Err(TaskError::config("max_points", expected, config.max_points));
        }
        let coordinate = |at: usize, size: usize| match size {
            1 => 0.0,
            _ => (2.0 * at as f64 / (size - 1) as f64 - 1.0) as f32,
        };
        let row = |at: usize| coordinate(at / set.width, set.height);
        let column = |at: usize| coordinate(at % set.width, set.width);
        Ok(Self {
            coordinates: (0..set.pixels_per_image())
                .map(|at| [row(at), column(at)])
                .collect(),
            set,
            config,
        })
    }

    /// The images.
    pub fn set(&self) -> &ImageSet {
        &self.set
    }

    /// How many pixels are shown and asked for.
    pub fn config(&self) -> &ImageCompletionConfig {
        &self.config
    }

    /// The training batch of `step`: a pure function of its arguments.
    ///
    /// Shapes as in [`RegressionBatch`], with `x_dim` = 2 and `y_dim` = `channels`.
    ///
    /// # Errors
    /// [`TaskError::EmptyBatch`] if `batch_size` is 0.
    pub fn batch(
        &self,
        seed: u64,
        step: u64,
        batch_size: usize,
        device: &Device,
    ) -> Result<RegressionBatch, TaskError> {
        let indices = shuffle::batch_indices(self.set.count, seed, step, batch_size)?;
        let rng = generator(seed, Purpose::Training, step);
        Ok(self.draw(rng, indices, device))
    }

    /// Fixed batches over the whole set in its order, each image once. The last batch may be smaller.
    ///
    /// Batch `i` is a pure function of `seed`, `i` and `batch_size`, so that all models are judged on
    /// the same pixels. The draws differ from those of training with the same seed.
    ///
    /// # Errors
    /// [`TaskError::EmptyBatch`] if `batch_size` is 0.
    pub fn eval_batches<'a>(
        &'a self,
        seed: u64,
        batch_size: usize,
        device: &Device,
    ) -> Result<impl ExactSizeIterator<Item = RegressionBatch> + use<'a>, TaskError> {
        let device = device.clone();
        let batches = batches_in_order(self.set.count, batch_size)?.enumerate();
        Ok(batches.map(move |(index, images)| {
            let rng = generator(seed, Purpose::Evaluation, index as u64);
            self.draw(rng, images.collect(), &device)
        }))
    }

    /// One image, `context` of its pixels as context and all of its pixels as targets.
    ///
    /// A pure function of its arguments. With the same seed and index, a smaller context is part of a
    /// larger one.
    ///
    /// # Errors
    /// [`TaskError::NoSuchImage`] for an index out of range, [`TaskError::EmptyContext`] if `context`
    /// is 0, [`TaskError::Config`] if it exceeds the pixels of the image.
    pub fn whole_image(
        &self,
        index: usize,
        context: usize,
        seed: u64,
        device: &Device,
    ) -> Result<WholeImage, TaskError> {
        let image = self.set.image(index)?;
        let pixels = self.set.pixels_per_image();
        check_points(("context", context), ("targets", pixels))?;
        if context > pixels {
            let expected = format!("at most {pixels}, the pixels of an image");
            return Err(TaskError::config("context", expected, context));
        }
        let all: Vec<usize> = (0..pixels).collect();
        let mut order = all.clone();
        let mut rng = generator(seed, Purpose::Picture, index as u64);
        let picked = pick(&mut rng, &mut order, context);
        let mut observed = vec![false; pixels];
        picked.iter().for_each(|&pixel| observed[pixel] = true);
        let example = self.example(image, picked, &all);
        Ok(WholeImage {
            batch: self.padded(std::slice::from_ref(&example), vec![index], device),
            observed,
            truth: example.target_y,
        })
    }

    /// Draws numbers of pixels, then pixels of each image.
    fn draw(&self, mut rng: ChaCha8Rng, indices: Vec<usize>, device: &Device) -> RegressionBatch {
        let counts = self.config.counts();
        let counts: Vec<(usize, usize)> = if self.config.ragged {
            indices.iter().map(|_| counts.draw(&mut rng)).collect()
        } else {
            vec![counts.draw(&mut rng); indices.len()]
        };
        // A shuffled table stays a permutation, so one table serves every image of the batch.
        let mut order: Vec<usize> = (0..self.set.pixels_per_image()).collect();
        let size = self.set.pixels_per_image() * self.set.channels;
        let examples: Vec<_> = indices
            .iter()
            .zip(counts)
            .map(|(&index, (context, targets))| {
                let image = &self.set.pixels[index * size..(index + 1) * size];
                let picked = pick(&mut rng, &mut order, context + targets);
                self.example(image, &picked[..context], &picked[context..])
            })
            .collect();
        self.padded(&examples, indices, device)
    }

    fn padded(
        &self,
        examples: &[RegressionExample],
        indices: Vec<usize>,
        device: &Device,
    ) -> RegressionBatch {
        RegressionBatch::padded(examples, [X_DIM, self.set.channels], indices, device)
    }

    /// Coordinates and values of some pixels of an image.
    fn example(&self, image: &[u8], context: &[usize], targets: &[usize]) -> RegressionExample {
        let channels = self.set.channels;
        let x = |pixels: &[usize]| pixels.iter().flat_map(|&at| self.coordinates[at]).collect();
        let y = |pixels: &[usize]| {
            let bytes = pixels
                .iter()
                .flat_map(|&at| &image[at * channels..(at + 1) * channels]);
            bytes
                .map(|&byte| (f64::from(byte) / 255.0 - 0.5) as f32)
                .collect()
        };
        RegressionExample {
            context_x: x(context),
            context_y: y(context),
            target_x: x(targets),
            target_y: y(targets),
        }
    }
}

/// Shuffles `count` random elements to the front (Fisher and Yates, stopped early) and returns them.
fn pick<'a>(rng: &mut ChaCha8Rng, order: &'a mut [usize], count: usize) -> &'a [usize] {
    for at in 0..count {
        let from = rng.random_range(at..order.len());
        order.swap(at, from);
    }
    &order[..count]
}
