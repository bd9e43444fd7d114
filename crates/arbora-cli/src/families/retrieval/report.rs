//! What people see of runs of retrieval beside curves: completed images.

use super::data::{ImageTask, Problem};
use super::{RetrievalConfig, RetrievalModel};
use crate::families::EVALUATION_SEED;
use crate::picture::completion::{CompletionRow, Prediction as Picture};
use arbora::models::Prediction;
use arbora::rl::seed::step_rng;
use arbora::tasks::TaskError;
use burn::tensor::{Device, Tensor};

/// Test images in the picture of completions, from the front: the sample is balanced by class.
pub const PICTURE_ROWS: usize = 8;
/// Pixels shown to the models in that picture.
const PICTURE_CONTEXT: usize = 100;

/// Pixels of an image that a model is shown for a picture.
pub fn picture_context(config: &RetrievalConfig) -> usize {
    let points = config.points.clone().unwrap_or_default();
    PICTURE_CONTEXT.min(points.max_points - 1)
}

/// A test image, completed from `context` of its pixels by every model.
pub fn completed(
    images: &ImageTask,
    models: &[&RetrievalModel],
    image: usize,
    context: usize,
    device: &Device,
) -> Result<CompletionRow, TaskError> {
    let set = images.test();
    let numbers = |tensor: Tensor<3>| tensor.into_data().iter::<f32>().collect::<Vec<_>>();
    let whole = images.whole(image, context, device)?;
    let problem = Problem::from(whole.batch);
    let predict = |model: &&RetrievalModel| {
        let mut rng = step_rng(EVALUATION_SEED, 0);
        match model.predict(&problem, &mut rng).0 {
            Prediction::Gaussian { mean, std } => Picture {
                mean: numbers(mean),
                std: numbers(std),
            },
            Prediction::Classes { .. } => unreachable!("image models have Gaussian heads"),
        }
    };
    Ok(CompletionRow {
        height: set.height,
        width: set.width,
        channels: set.channels,
        truth: whole.truth,
        observed: whole.observed,
        models: models.iter().map(predict).collect(),
    })
}
