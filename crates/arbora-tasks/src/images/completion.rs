//! Image completion.

use burn::config::Config;
use burn::tensor::Device;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use derive_setters::Setters;
use serde::{Deserialize, Serialize};

use super::ImageSet;
use crate::{
    RegressionBatch, TaskError,
    batch::{HostBatch, HostPoints},
    draws::{PointCounts, Purpose, generator},
    error::check_batch,
    shuffle,
};

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
    /// The value of every byte.
    values: [f32; 256],
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
            values: std::array::from_fn(|byte| (byte as f64 / 255.0 - 0.5) as f32),
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
        Ok(self.host_batch(seed, step, batch_size)?.upload(device))
    }

    fn host_batch(&self, seed: u64, step: u64, batch_size: usize) -> Result<HostBatch, TaskError> {
        check_batch(batch_size)?;
        let indices = shuffle::batch_indices(self.set.count, seed, step, batch_size);
        Ok(self.draw(&mut generator(seed, Purpose::Training, step), indices))
    }

    /// How many batches [`eval_batches`](Self::eval_batches) yields.
    pub fn eval_batch_count(&self, batch_size: usize) -> usize {
        self.set.count.div_ceil(batch_size.max(1))
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
        check_batch(batch_size)?;
        let device = device.clone();
        Ok((0..self.eval_batch_count(batch_size)).map(move |index| {
            let batch = self.host_eval_batch(seed, index, batch_size);
            batch.upload(&device)
        }))
    }

    fn host_eval_batch(&self, seed: u64, index: usize, batch_size: usize) -> HostBatch {
        let first = index * batch_size;
        let indices = (first..self.set.count.min(first + batch_size)).collect();
        self.draw(
            &mut generator(seed, Purpose::Evaluation, index as u64),
            indices,
        )
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
        let (batch, observed) = self.host_whole_image(index, context, seed)?;
        let truth = batch.target.example(0).1.to_vec();
        Ok(WholeImage {
            batch: batch.upload(device),
            observed,
            truth,
        })
    }

    fn host_whole_image(
        &self,
        index: usize,
        context: usize,
        seed: u64,
    ) -> Result<(HostBatch, Vec<bool>), TaskError> {
        let image = self.set.image(index)?;
        let pixels = self.set.pixels_per_image();
        if context == 0 {
            return Err(TaskError::empty_context("context"));
        }
        if context > pixels {
            let expected = format!("at most {pixels}, the pixels of an image");
            return Err(TaskError::config("context", expected, context));
        }
        let mut order: Vec<usize> = (0..pixels).collect();
        let mut rng = generator(seed, Purpose::Picture, index as u64);
        let picked = pick(&mut rng, &mut order, context);
        let mut observed = vec![false; pixels];
        picked.iter().for_each(|&pixel| observed[pixel] = true);
        let mut batch = HostBatch {
            context: HostPoints::new(vec![context], X_DIM, self.set.channels),
            target: HostPoints::new(vec![pixels], X_DIM, self.set.channels),
            indices: vec![index],
        };
        self.fill(image, picked.iter().copied(), batch.context.example_mut(0));
        self.fill(image, 0..pixels, batch.target.example_mut(0));
        Ok((batch, observed))
    }

    /// Draws numbers of pixels, then pixels of each image.
    fn draw(&self, rng: &mut ChaCha8Rng, indices: Vec<usize>) -> HostBatch {
        let numbers = self.config.counts();
        let (contexts, targets) = if self.config.ragged {
            indices.iter().map(|_| numbers.draw(rng)).unzip()
        } else {
            let (context, targets) = numbers.draw(rng);
            (vec![context; indices.len()], vec![targets; indices.len()])
        };
        let mut batch = HostBatch {
            context: HostPoints::new(contexts, X_DIM, self.set.channels),
            target: HostPoints::new(targets, X_DIM, self.set.channels),
            indices,
        };
        // A shuffled table stays a permutation, so one table serves every image of the batch.
        let mut order: Vec<usize> = (0..self.set.pixels_per_image()).collect();
        let size = self.set.pixels_per_image() * self.set.channels;
        for (example, &index) in batch.indices.iter().enumerate() {
            let image = &self.set.pixels[index * size..(index + 1) * size];
            let context = batch.context.counts[example];
            let picked = pick(rng, &mut order, context + batch.target.counts[example]);
            let (context, targets) = picked.split_at(context);
            self.fill(
                image,
                context.iter().copied(),
                batch.context.example_mut(example),
            );
            self.fill(
                image,
                targets.iter().copied(),
                batch.target.example_mut(example),
            );
        }
        batch
    }

    /// Writes coordinates and values of `pixels` of one image.
    fn fill(
        &self,
        image: &[u8],
        pixels: impl Iterator<Item = usize>,
        (x, y): (&mut [f32], &mut [f32]),
    ) {
        let channels = self.set.channels;
        let rows = x.chunks_exact_mut(X_DIM).zip(y.chunks_exact_mut(channels));
        for (pixel, (x, y)) in pixels.zip(rows) {
            x.copy_from_slice(&self.coordinates[pixel]);
            let bytes = &image[pixel * channels..(pixel + 1) * channels];
            for (value, &byte) in y.iter_mut().zip(bytes) {
                *value = self.values[usize::from(byte)];
            }
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const HEIGHT: usize = 5;
    const WIDTH: usize = 7;

    /// Every pixel of every channel of an image has a value of its own.
    fn set(count: usize, channels: usize) -> ImageSet {
        let size = HEIGHT * WIDTH * channels;
        ImageSet {
            pixels: (0..count * size)
                .map(|at| (at % size) as u8 + (at / size) as u8)
                .collect(),
            count,
            height: HEIGHT,
            width: WIDTH,
            channels,
            labels: None,
        }
    }

    fn config(max_points: usize) -> ImageCompletionConfig {
        ImageCompletionConfig {
            max_points,
            ..Default::default()
        }
    }

    fn task(count: usize, channels: usize, ragged: bool) -> ImageCompletion {
        let config = ImageCompletionConfig {
            ragged,
            ..config(20)
        };
        ImageCompletion::new(set(count, channels), config).unwrap()
    }

    /// The pixel at the coordinates `x`.
    fn pixel(x: &[f32]) -> usize {
        let at = |x: f32, size: usize| ((x + 1.0) / 2.0 * (size - 1) as f32).round() as usize;
        at(x[0], HEIGHT) * WIDTH + at(x[1], WIDTH)
    }

    fn check(task: &ImageCompletion, batch: &HostBatch) {
        let channels = task.set.channels;
        for (example, &index) in batch.indices.iter().enumerate() {
            let image = task.set.image(index).unwrap();
            let mut seen = HashSet::new();
            for points in [&batch.context, &batch.target] {
                let (x, y) = points.example(example);
                assert_eq!(x.len() / 2, points.counts[example]);
                for (x, y) in x.chunks(2).zip(y.chunks(channels)) {
                    assert!(
                        x.iter().all(|x| (-1.0..=1.0).contains(x)),
                        "coordinates {x:?}"
                    );
                    let pixel = pixel(x);
                    assert!(seen.insert(pixel), "pixel {pixel} was drawn twice");
                    for (value, byte) in y.iter().zip(&image[pixel * channels..]) {
                        assert!((value - (f32::from(*byte) / 255.0 - 0.5)).abs() < 1e-6);
                        assert!((-0.5..=0.5).contains(value));
                    }
                }
            }
            let (context, targets) = (batch.context.counts[example], batch.target.counts[example]);
            assert!(context >= 3 && targets >= 3 && context + targets < 20);
        }
    }

    #[test]
    fn pixels_are_distinct_and_carry_their_own_values() {
        for channels in [1, 3] {
            for ragged in [false, true] {
                let task = task(4, channels, ragged);
                for step in 0..200 {
                    check(&task, &task.host_batch(1, step, 3).unwrap());
                }
                for index in 0..2 {
                    check(&task, &task.host_eval_batch(1, index, 3));
                }
            }
        }
    }

    #[test]
    fn a_batch_is_a_pure_function_of_seed_and_step() {
        let task = task(10, 1, false);
        let batch = |seed, step| task.host_batch(seed, step, 4).unwrap();
        let first = batch(3, 17);
        batch(3, 18);
        assert_eq!(batch(3, 17), first);
        assert_ne!(batch(3, 18).context, first.context);
        assert_ne!(batch(4, 17).context, first.context);
    }

    #[test]
    fn numbers_of_pixels_are_shared_over_a_batch_unless_ragged() {
        for ragged in [false, true] {
            let batch = task(8, 1, ragged).host_batch(0, 0, 8).unwrap();
            for counts in [batch.context.counts, batch.target.counts] {
                let differs = counts.iter().any(|&count| count != counts[0]);
                assert_eq!(differs, ragged, "{counts:?}");
            }
        }
    }

    #[test]
    fn both_ends_of_the_published_ranges_are_drawn() {
        // max_points = 9: context in 3..=5; targets in 3..=5, 3..=4 and 3..=3.
        let task = ImageCompletion::new(set(1, 1), config(9)).unwrap();
        let mut drawn: Vec<_> = (0..500)
            .map(|step| task.host_batch(0, step, 1).unwrap())
            .map(|batch| (batch.context.counts[0], batch.target.counts[0]))
            .collect();
        drawn.sort_unstable();
        drawn.dedup();
        assert_eq!(drawn, [(3, 3), (3, 4), (3, 5), (4, 3), (4, 4), (5, 3)]);
        // The least value that the configuration allows.
        let least = ImageCompletion::new(set(1, 1), config(7)).unwrap();
        let batch = least.host_batch(0, 0, 1).unwrap();
        assert_eq!((batch.context.counts[0], batch.target.counts[0]), (3, 3));
    }

    #[test]
    fn every_image_comes_once_per_epoch_across_batch_borders() {
        let task = task(10, 1, false);
        let indices: Vec<usize> = (0..10)
            .flat_map(|step| task.host_batch(5, step, 3).unwrap().indices)
            .collect();
        for epoch in indices.chunks(10) {
            let mut epoch = epoch.to_vec();
            epoch.sort_unstable();
            assert_eq!(epoch, (0..10).collect::<Vec<_>>());
        }
        assert_ne!(indices[..10], indices[10..20]);
    }

    #[test]
    fn a_batch_may_be_larger_than_the_set() {
        let batch = task(2, 1, false).host_batch(0, 0, 7).unwrap();
        assert_eq!(batch.indices.len(), 7);
        let ones = batch.indices.iter().filter(|&&index| index == 1).count();
        assert!((3..=4).contains(&ones));
    }

    #[test]
    fn the_last_step_of_all_has_a_batch() {
        let batch = task(3, 1, false).host_batch(u64::MAX, u64::MAX, 2).unwrap();
        assert_eq!(batch.indices.len(), 2);
    }

    #[test]
    fn evaluation_shows_each_image_once_in_order_and_repeats_itself() {
        let task = task(7, 1, false);
        assert_eq!(task.eval_batch_count(3), 3);
        let batches = || [0, 1, 2].map(|index| task.host_eval_batch(2, index, 3));
        let indices = batches().map(|batch| batch.indices);
        assert_eq!(indices, [vec![0, 1, 2], vec![3, 4, 5], vec![6]]);
        assert_eq!(batches(), batches());
    }

    #[test]
    fn evaluation_draws_other_pixels_than_training_with_the_same_seed() {
        let task = ImageCompletion::new(set(1, 1), config(20)).unwrap();
        let evaluation = task.host_eval_batch(2, 0, 1);
        for step in 0..5 {
            let training = task.host_batch(2, step, 1).unwrap();
            assert_ne!(training.context, evaluation.context);
        }
    }

    #[test]
    fn a_whole_image_has_all_pixels_as_targets_in_order() {
        let task = task(3, 3, false);
        let (batch, observed) = task.host_whole_image(2, 6, 1).unwrap();
        let (x, y) = batch.target.example(0);
        let order: Vec<usize> = x.chunks(2).map(pixel).collect();
        assert_eq!(order, (0..HEIGHT * WIDTH).collect::<Vec<_>>());
        assert_eq!(y[0], 2.0 / 255.0 - 0.5);
        assert_eq!(x[..2], [-1.0, -1.0]);
        assert_eq!(x[x.len() - 2..], [1.0, 1.0]);
        let shown: Vec<usize> = batch.context.example(0).0.chunks(2).map(pixel).collect();
        assert_eq!(shown.len(), 6);
        assert!(shown.iter().all(|&pixel| observed[pixel]));
        assert_eq!(observed.iter().filter(|&&observed| observed).count(), 6);
        let (more, _) = task.host_whole_image(2, 9, 1).unwrap();
        assert_eq!(more.context.example(0).0[..12], *batch.context.example(0).0);
    }

    #[test]
    fn images_one_pixel_high_or_wide_have_finite_coordinates() {
        for (height, width) in [(1, 35), (35, 1)] {
            let set = ImageSet {
                height,
                width,
                ..set(1, 1)
            };
            let task = ImageCompletion::new(set, config(10)).unwrap();
            let (batch, _) = task.host_whole_image(0, 35, 0).unwrap();
            let (x, _) = batch.target.example(0);
            let (flat, long) = if height == 1 { (0, 1) } else { (1, 0) };
            assert!(x.chunks(2).all(|x| x[flat] == 0.0));
            assert_eq!((x[long], x[68 + long]), (-1.0, 1.0));
        }
    }

    #[test]
    fn configurations_that_show_or_ask_nothing_are_refused() {
        let refused = |change: fn(&mut ImageCompletionConfig)| {
            let mut changed = config(20);
            change(&mut changed);
            let error = ImageCompletion::new(set(1, 1), changed).unwrap_err();
            error.to_string()
        };
        let messages = [
            refused(|config| config.min_context = 0),
            refused(|config| config.min_targets = 0),
            refused(|config| config.max_points = 6),
            refused(|config| config.max_points = 36),
        ];
        let expected = [
            "min_context = 0: the context is empty; at least one point is needed",
            "min_targets = 0: there are no targets; at least one point is needed",
            "max_points: expected more than min_context + min_targets = 6, got 6",
            "max_points: expected at most 35, the pixels of an image of 5x7, got 36",
        ];
        assert_eq!(messages, expected);
        ImageCompletion::new(set(1, 1), config(35)).unwrap();
    }

    #[test]
    fn contradictory_sets_are_refused() {
        let broken = ImageSet {
            pixels: vec![0; 5],
            ..set(1, 1)
        };
        assert!(matches!(
            ImageCompletion::new(broken, config(20)).unwrap_err(),
            TaskError::ImageSet { what: "pixels", .. }
        ));
    }

    #[test]
    fn bad_requests_are_refused() {
        let task = task(2, 1, false);
        assert!(matches!(
            task.host_batch(0, 0, 0),
            Err(TaskError::EmptyBatch)
        ));
        let messages = [(0, 0), (0, 36), (2, 3)].map(|(index, context)| {
            let error = task.host_whole_image(index, context, 0).unwrap_err();
            error.to_string()
        });
        let expected = [
            "context = 0: the context is empty; at least one point is needed",
            "context: expected at most 35, the pixels of an image, got 36",
            "image 2: expected an index below 2",
        ];
        assert_eq!(messages, expected);
    }
}
