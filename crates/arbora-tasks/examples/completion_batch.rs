//! One batch of image completion, with this crate and burn alone.
//!
//! ```text
//! cargo run --release -p arbora-tasks --example completion_batch --features flex,sample
//! ```
//!
//! Without the feature `sample`, the example draws its own images.

use std::time::Instant;

use arbora_tasks::{
    TaskError,
    images::{ImageCompletion, ImageCompletionConfig, ImageSet},
};
use burn::tensor::Device;

#[cfg(feature = "sample")]
fn images() -> ImageSet {
    ImageSet::bundled().0
}

/// Slanted stripes.
#[cfg(not(feature = "sample"))]
fn images() -> ImageSet {
    let (count, side) = (64, 28);
    let pixel = |at: usize| (at / (side * side) + 3 * (at / side % side) + 5 * (at % side)) as u8;
    ImageSet {
        pixels: (0..count * side * side).map(pixel).collect(),
        count,
        height: side,
        width: side,
        channels: 1,
        labels: None,
    }
}

fn main() -> Result<(), TaskError> {
    let device = Device::default();
    let task = ImageCompletion::new(images(), ImageCompletionConfig::default())?;
    let (seed, batch_size) = (0, 16);

    let batch = task.batch(seed, 0, batch_size, &device)?;
    println!(
        "context x {:?}, y {:?}",
        batch.context_x.dims(),
        batch.context_y.dims()
    );
    println!(
        "targets x {:?}, y {:?}",
        batch.target_x.dims(),
        batch.target_y.dims()
    );
    println!("images {:?}", batch.indices);

    let (steps, start) = (200, Instant::now());
    for step in 0..steps {
        task.batch(seed, step, batch_size, &device)?;
    }
    println!(
        "{:.3} ms per batch",
        start.elapsed().as_secs_f64() * 1e3 / steps as f64
    );
    Ok(())
}
