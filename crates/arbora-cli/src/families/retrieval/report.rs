//! What people see of runs of retrieval: curves, and completed images.

use super::data::{ImageTask, Problem, TaskData};
use super::{RetrievalConfig, RetrievalModel};
use crate::families::curves::{self, Curve, PERCENT};
use crate::families::{EVALUATION_SEED, Finished};
use crate::picture::completion::{self, CompletionRow, Prediction as Picture};
use anyhow::Result;
use arbora::models::{Prediction, RewardKind};
use arbora::rl::seed::step_rng;
use arbora::tasks::TaskError;
use burn::tensor::{Device, Tensor};
use std::path::Path;

/// Test images in the picture of completions, from the front: the sample is balanced by class.
const PICTURE_ROWS: usize = 8;
/// Pixels shown to the models in that picture.
const PICTURE_CONTEXT: usize = 100;

/// Draws `curves.png` and `curves.svg`, and for images `completion.png` and `completion.svg`.
pub fn draw(
    runs: &[Finished<'_, RetrievalConfig>],
    data: &TaskData,
    device: &Device,
    folder: &Path,
) -> Result<()> {
    curves::draw(&curves::panels(runs)?, folder)?;
    if let (Some(images), Some(first)) = (&data.images, runs.first()) {
        let models: Vec<&RetrievalModel> = runs.iter().filter_map(|run| run.model).collect();
        let context = picture_context(first.config);
        let shown = 0..images.test().count.min(PICTURE_ROWS);
        let rows = shown.map(|image| completed(images, &models, image, context, device));
        let rows: Vec<CompletionRow> = rows.collect::<Result<_, _>>()?;
        let names: Vec<&str> = runs.iter().map(|run| run.name).collect();
        completion::draw(&rows, &names, &folder.join("completion"))?;
    }
    Ok(())
}

/// Pixels of an image that a model is shown for a picture.
pub fn picture_context(config: &RetrievalConfig) -> usize {
    let points = config.points.clone().unwrap_or_default();
    PICTURE_CONTEXT.min(points.max_points - 1)
}

/// The curves of runs: loss, quality (where there are classes with their accuracy), share of tokens, entropy and reward.
pub fn curves_shown(reward: RewardKind, has_classes: bool) -> Vec<Curve> {
    let reward = reward_unit(reward, has_classes);
    let nats = ("nats per query", 1.0);
    let per_decision = ("nats per decision", 1.0);
    let tokens = "Share of tokens selected";
    vec![
        Curve("Training loss", ("nats", 1.0), "train", "loss"),
        Curve(tokens, ("%", 1.0), "train", "tokens_percent"),
        Curve("Log-likelihood, training", nats, "train", "log_likelihood"),
        Curve("Log-likelihood, held out", nats, "valid", "log_likelihood"),
        Curve("Accuracy, training", PERCENT, "train", "accuracy"),
        Curve("Accuracy, held out", PERCENT, "valid", "accuracy"),
        Curve("Entropy of the policy", per_decision, "train", "entropy"),
        Curve("Reward", reward, "train", "reward"),
    ]
}

/// Name and scale of the rewards of a task, with classes or without.
fn reward_unit(kind: RewardKind, has_classes: bool) -> (&'static str, f64) {
    match kind {
        RewardKind::Published if has_classes => ("% of answers right", 100.0),
        RewardKind::Accuracy => ("% of answers right", 100.0),
        RewardKind::Published | RewardKind::LogLikelihood => ("nats per query", 1.0),
        RewardKind::NegativeMse => ("negative squared error", 1.0),
    }
}

/// A test image, completed from `context` of its pixels by every model.
fn completed(
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
