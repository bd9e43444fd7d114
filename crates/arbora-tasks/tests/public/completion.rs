//! Image completion.

use std::collections::HashSet;

use arbora_tasks::TaskError;
use arbora_tasks::images::{ImageCompletion, ImageCompletionConfig, ImageSet};
use burn::tensor::Device;

use crate::points::{HostBatch, host};

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
    ImageCompletionConfig::default().with_max_points(max_points)
}

fn task(count: usize, channels: usize, ragged: bool) -> ImageCompletion {
    let config = config(20).with_ragged(ragged);
    ImageCompletion::new(set(count, channels), config).unwrap()
}

fn train(task: &ImageCompletion, seed: u64, step: u64, batch_size: usize) -> HostBatch {
    let batch = task.batch(seed, step, batch_size, &Device::flex());
    host(batch.unwrap())
}

fn evaluation(task: &ImageCompletion, seed: u64, batch_size: usize) -> Vec<HostBatch> {
    let batches = task.eval_batches(seed, batch_size, &Device::flex());
    batches.unwrap().map(host).collect()
}

/// The pixel at the coordinates `x`.
fn pixel(x: &[f32]) -> usize {
    let at = |x: f32, size: usize| ((x + 1.0) / 2.0 * (size - 1) as f32).round() as usize;
    at(x[0], HEIGHT) * WIDTH + at(x[1], WIDTH)
}

fn check(task: &ImageCompletion, batch: &HostBatch) {
    let channels = task.set().channels;
    for (example, &index) in batch.indices.iter().enumerate() {
        let image = task.set().image(index).unwrap();
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
                check(&task, &train(&task, 1, step, 3));
            }
            for batch in evaluation(&task, 1, 3) {
                check(&task, &batch);
            }
        }
    }
}

#[test]
fn a_batch_is_a_pure_function_of_seed_and_step() {
    let task = task(10, 1, false);
    let batch = |seed, step| train(&task, seed, step, 4);
    let first = batch(3, 17);
    batch(3, 18);
    assert_eq!(batch(3, 17), first);
    assert_ne!(batch(3, 18).context, first.context);
    assert_ne!(batch(4, 17).context, first.context);
}

#[test]
fn numbers_of_pixels_are_shared_over_a_batch_unless_ragged() {
    for ragged in [false, true] {
        let batch = train(&task(8, 1, ragged), 0, 0, 8);
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
        .map(|step| train(&task, 0, step, 1))
        .map(|batch| (batch.context.counts[0], batch.target.counts[0]))
        .collect();
    drawn.sort_unstable();
    drawn.dedup();
    assert_eq!(drawn, [(3, 3), (3, 4), (3, 5), (4, 3), (4, 4), (5, 3)]);
    // The least value that the configuration allows.
    let least = ImageCompletion::new(set(1, 1), config(7)).unwrap();
    let batch = train(&least, 0, 0, 1);
    assert_eq!((batch.context.counts[0], batch.target.counts[0]), (3, 3));
}

#[test]
fn every_image_comes_once_per_epoch_across_batch_borders() {
    let task = task(10, 1, false);
    let indices: Vec<usize> = (0..10)
        .flat_map(|step| train(&task, 5, step, 3).indices)
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
    let batch = train(&task(2, 1, false), 0, 0, 7);
    assert_eq!(batch.indices.len(), 7);
    let ones = batch.indices.iter().filter(|&&index| index == 1).count();
    assert!((3..=4).contains(&ones));
}

#[test]
fn the_last_step_of_all_has_a_batch() {
    let batch = train(&task(3, 1, false), u64::MAX, u64::MAX, 2);
    assert_eq!(batch.indices.len(), 2);
}

#[test]
fn evaluation_shows_each_image_once_in_order_and_repeats_itself() {
    let task = task(7, 1, false);
    let batches = evaluation(&task, 2, 3);
    let indices = batches.iter().map(|batch| &batch.indices[..]);
    assert_eq!(
        indices.collect::<Vec<_>>(),
        [&[0, 1, 2][..], &[3, 4, 5], &[6]]
    );
    assert_eq!(evaluation(&task, 2, 3), batches);
}

#[test]
fn evaluation_draws_other_pixels_than_training_with_the_same_seed() {
    let task = ImageCompletion::new(set(1, 1), config(20)).unwrap();
    let evaluation = &evaluation(&task, 2, 1)[0];
    for step in 0..5 {
        let training = train(&task, 2, step, 1);
        assert_ne!(training.context, evaluation.context);
    }
}

#[test]
fn a_whole_image_has_all_pixels_as_targets_in_order() {
    let task = task(3, 3, false);
    let whole = |context| task.whole_image(2, context, 1, &Device::flex()).unwrap();
    let observed = whole(6).observed;
    let batch = host(whole(6).batch);
    let (x, y) = batch.target.example(0);
    assert_eq!(whole(6).truth, y);
    let order: Vec<usize> = x.chunks(2).map(pixel).collect();
    assert_eq!(order, (0..HEIGHT * WIDTH).collect::<Vec<_>>());
    assert_eq!(y[0], 2.0 / 255.0 - 0.5);
    assert_eq!(x[..2], [-1.0, -1.0]);
    assert_eq!(x[x.len() - 2..], [1.0, 1.0]);
    let shown: Vec<usize> = batch.context.example(0).0.chunks(2).map(pixel).collect();
    assert_eq!(shown.len(), 6);
    assert!(shown.iter().all(|&pixel| observed[pixel]));
    assert_eq!(observed.iter().filter(|&&observed| observed).count(), 6);
    let more = host(whole(9).batch);
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
        let batch = host(task.whole_image(0, 35, 0, &Device::flex()).unwrap().batch);
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
        TaskError::Set { set: "image", what, .. } if what == "pixels"
    ));
}

#[test]
fn bad_requests_are_refused() {
    let task = task(2, 1, false);
    assert!(matches!(
        task.batch(0, 0, 0, &Device::flex()),
        Err(TaskError::EmptyBatch)
    ));
    let messages = [(0, 0), (0, 36), (2, 3)].map(|(index, context)| {
        let error = task
            .whole_image(index, context, 0, &Device::flex())
            .unwrap_err();
        error.to_string()
    });
    let expected = [
        "context = 0: the context is empty; at least one point is needed",
        "context: expected at most 35, the pixels of an image, got 36",
        "image 2: expected an index below 2",
    ];
    assert_eq!(messages, expected);
}
