//! Batches of image completion.

use arbora_tasks::images::{ImageCompletion, ImageCompletionConfig, ImageSet};
use arbora_testing::{assert_held, device, values};

fn task(channels: usize, ragged: bool) -> ImageCompletion {
    let size = 6 * 6 * channels;
    let set = ImageSet {
        pixels: (0..5 * size).map(|at| (at * 7 % 256) as u8).collect(),
        count: 5,
        height: 6,
        width: 6,
        channels,
        labels: None,
    };
    let config = ImageCompletionConfig {
        max_points: 20,
        ragged,
        ..Default::default()
    };
    ImageCompletion::new(set, config).unwrap()
}

#[test]
fn training_batches_have_the_stated_shapes() {
    for channels in [1, 3] {
        let batch = task(channels, false).batch(1, 2, 4, &device()).unwrap();
        let (context, targets) = (batch.context_counts[0], batch.target_counts[0]);
        assert_eq!(batch.context_x.dims(), [4, context, 2]);
        assert_eq!(batch.context_y.dims(), [4, context, channels]);
        assert_eq!(batch.context_mask.dims(), [4, context]);
        assert_eq!(batch.target_x.dims(), [4, targets, 2]);
        assert_eq!(batch.target_y.dims(), [4, targets, channels]);
        assert_eq!(batch.target_mask.dims(), [4, targets]);
        assert!(
            batch
                .context_mask
                .into_data()
                .iter::<bool>()
                .all(|masked| !masked)
        );
        assert!(
            values(batch.context_x)
                .iter()
                .all(|x| (-1.0..=1.0).contains(x))
        );
        assert!(
            values(batch.target_y)
                .iter()
                .all(|y| (-0.5..=0.5).contains(y))
        );
    }
}

#[test]
fn ragged_batches_mask_exactly_their_padding() {
    let batch = task(1, true).batch(3, 0, 5, &device()).unwrap();
    let longest = *batch.context_counts.iter().max().unwrap();
    assert_eq!(batch.context_y.dims(), [5, longest, 1]);
    let mask: Vec<bool> = batch.context_mask.into_data().iter::<bool>().collect();
    for (row, &count) in mask.chunks(longest).zip(&batch.context_counts) {
        assert!(
            row.iter()
                .enumerate()
                .all(|(at, &masked)| masked == (at >= count))
        );
    }
}

#[test]
fn the_same_seed_and_step_give_the_same_tensors() {
    let batch = |step| {
        values(
            task(1, false)
                .batch(9, step, 3, &device())
                .unwrap()
                .context_x,
        )
    };
    assert_eq!(batch(4), batch(4));
    assert_ne!(batch(4), batch(5));
}

#[test]
fn evaluation_covers_the_set_in_order() {
    let task = task(1, false);
    let batches = task.eval_batches(0, 2, &device()).unwrap();
    assert_eq!(batches.len(), 3);
    let batches: Vec<_> = batches.collect();
    let indices: Vec<_> = batches
        .iter()
        .flat_map(|batch| batch.indices.clone())
        .collect();
    assert_eq!(indices, [0, 1, 2, 3, 4]);
    assert_eq!(batches[2].target_y.dims()[0], 1);
}

#[test]
fn a_whole_image_asks_for_every_pixel() {
    let whole = task(3, false).whole_image(4, 10, 0, &device()).unwrap();
    assert_eq!(whole.batch.context_y.dims(), [1, 10, 3]);
    assert_eq!(whole.batch.target_y.dims(), [1, 36, 3]);
    assert_held(&values(whole.batch.target_y), &whole.truth, "targets");
    assert_eq!(
        whole.observed.iter().filter(|&&observed| observed).count(),
        10
    );
}
