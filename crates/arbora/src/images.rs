//! Image completion as a task to train: data, models and measurements.

use crate::config::{ImageSource, ModelKind, RunConfig};
use crate::picture::completion::{CompletionRow, Prediction as Picture};
use anyhow::{Context as _, Result, anyhow};
use arbora_attention::{Route, SearchOutput};
use arbora_models::prediction::masked_average;
use arbora_models::{Context, CrossAttentionModel, Prediction, ReTreever, Target};
use arbora_rl::sample::uniform;
use arbora_rl::train::{Decisions, Measurement, StepOutput, TrainableModel};
use arbora_tasks::images::{ImageCompletion, ImageSet};
use arbora_tasks::{RegressionBatch, TaskError};
use burn::module::Module;
use burn::tensor::{Bool, Device, Tensor};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Evaluation asks for the same pixels in every run, whatever its seed.
const EVALUATION_SEED: u64 = 0;

/// Training and test images, ready to draw batches from.
#[derive(Clone, Debug)]
pub struct ImageTask {
    train: Arc<ImageCompletion>,
    test: Arc<ImageCompletion>,
}

impl ImageTask {
    /// Loads the images that a configuration names.
    ///
    /// # Errors
    /// If they cannot be read, differ in size or do not fit the configuration.
    pub fn load(config: &RunConfig) -> Result<Self> {
        let (train, test) = match &config.data {
            ImageSource::Sample => ImageSet::bundled(),
            ImageSource::Idx { train, test } => (
                ImageSet::from_idx(train, None::<&Path>)?,
                ImageSet::from_idx(test, None::<&Path>)?,
            ),
            ImageSource::Folder {
                path,
                size,
                held_out,
            } => ImageSet::from_folder(path, *size)
                .and_then(|set| set.split(*held_out, EVALUATION_SEED))
                .map_err(|error| with_path("data", error))?,
        };
        train
            .check_same_size(&test)
            .context("test images beside training images")?;
        let completion = |set| {
            ImageCompletion::new(set, config.points.clone())
                .map_err(|error| with_path("points", error))
        };
        Ok(Self {
            train: Arc::new(completion(train)?),
            test: Arc::new(completion(test)?),
        })
    }

    /// 1 for grey images, 3 for colour.
    pub fn channels(&self) -> usize {
        self.train.set().channels
    }

    /// Number of test images.
    pub fn test_images(&self) -> usize {
        self.test.set().count
    }

    /// Where the trainer gets its batches.
    pub fn training_source(
        &self,
        batch_size: usize,
    ) -> impl Fn(u64, u64, &Device) -> Result<RegressionBatch, TaskError> + Send + Sync + 'static
    {
        let train = self.train.clone();
        move |seed, step, device: &Device| train.batch(seed, step, batch_size, device)
    }

    /// The fixed evaluation batches over the first `images` test images (0: all).
    ///
    /// # Errors
    /// If `batch_size` is 0.
    pub fn evaluation_batches(
        &self,
        images: usize,
        batch_size: usize,
        device: &Device,
    ) -> Result<Vec<RegressionBatch>, TaskError> {
        let images = if images == 0 {
            self.test_images()
        } else {
            images
        };
        let batches = self
            .test
            .eval_batches(EVALUATION_SEED, batch_size, device)?;
        Ok(batches.take(images.div_ceil(batch_size)).collect())
    }

    /// Completes test images from `context` of their pixels, each by every model.
    ///
    /// # Errors
    /// If an image does not exist or has fewer pixels.
    pub fn complete(
        &self,
        models: &[&ImageModel],
        images: &[usize],
        context: usize,
        device: &Device,
    ) -> Result<Vec<CompletionRow>, TaskError> {
        let set = self.test.set();
        let complete = |index: usize| {
            let whole = self
                .test
                .whole_image(index, context, EVALUATION_SEED, device)?;
            let models = models
                .iter()
                .map(|model| {
                    let Prediction::Gaussian { mean, std } = model
                        .predict(&whole.batch, &mut arbora_rl::seed::step_rng(0, 0))
                        .0
                    else {
                        unreachable!("image models have Gaussian heads")
                    };
                    let numbers =
                        |tensor: Tensor<3>| tensor.into_data().iter::<f32>().collect::<Vec<_>>();
                    Picture {
                        mean: numbers(mean),
                        std: numbers(std),
                    }
                })
                .collect();
            Ok(CompletionRow {
                height: set.height,
                width: set.width,
                channels: set.channels,
                truth: whole.truth,
                observed: whole.observed,
                models,
            })
        };
        images.iter().map(|index| complete(*index)).collect()
    }
}

/// The models that learn images.
#[derive(Module, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "a process holds one or two of them, and burn's modules are no boxes"
)]
enum Network {
    ReTreever(ReTreever),
    Dense(CrossAttentionModel),
}

/// How a model is trained and measured.
#[derive(Clone, Copy, Debug)]
struct Objective {
    random_route: bool,
    lambda_ca: f64,
    samples: usize,
    greedy_reward: bool,
}

/// A model of images with what its training needs.
#[derive(Module, Debug)]
pub struct ImageModel {
    network: Network,
    #[module(skip)]
    objective: Objective,
}

impl ImageModel {
    /// The model that a configuration names, with weights drawn from its seed.
    pub fn new(config: &RunConfig, channels: usize, device: &Device) -> Self {
        let seed =
            arbora_rl::seed::derive(config.trainer.seed, arbora_rl::seed::Purpose::Parameters);
        let network = match config.model {
            ModelKind::CrossAttention => {
                Network::Dense(config.cross_attention(channels).init(seed, device))
            }
            _ => Network::ReTreever(config.retreever(channels).init(seed, device)),
        };
        let objective = Objective {
            random_route: config.model == ModelKind::RandomRoute,
            lambda_ca: config.lambda_ca,
            samples: config.samples,
            greedy_reward: config
                .trainer
                .policy_gradient
                .baseline
                .needs_greedy_reward(),
        };
        Self { network, objective }
    }

    /// The same model walking its tree at random: what its learned route is worth.
    pub fn with_random_route(mut self) -> Self {
        self.objective.random_route = true;
        self
    }

    /// Means of every measurement over the evaluation batches, by name: what an evaluation during
    /// training with the same seed reports.
    pub fn measure(&self, batches: Vec<RegressionBatch>, seed: u64) -> BTreeMap<String, f64> {
        let mut totals: BTreeMap<String, (f64, f64)> = BTreeMap::new();
        for (index, batch) in batches.into_iter().enumerate() {
            let purpose = arbora_rl::seed::Purpose::Evaluation;
            let mut rng = arbora_rl::seed::rng(seed, purpose, index as u64);
            for measured in self.evaluate(batch, &mut rng) {
                let (sum, weight) = totals.entry(measured.name).or_default();
                *sum += measured.sum;
                *weight += measured.weight;
            }
        }
        totals
            .into_iter()
            .map(|(name, (sum, weight))| (name, sum / weight))
            .collect()
    }

    /// Predicts the targets of a batch, with the search where there is one.
    fn predict(
        &self,
        batch: &RegressionBatch,
        rng: &mut ChaCha8Rng,
    ) -> (Prediction, Option<SearchOutput>) {
        let context = context(batch);
        let queries = batch.target_x.clone();
        match &self.network {
            Network::Dense(model) => (model.predict(queries, &model.encode(&context)), None),
            Network::ReTreever(model) => {
                let route = match self.objective.random_route {
                    true => Route::Uniform(self.numbers(model, batch, 1, rng)),
                    false => Route::Greedy,
                };
                let found = model.predict(queries, &model.index(&context), route);
                (found.prediction, Some(found.search))
            }
        }
    }

    /// Uniform numbers for one step, `[batch, targets · samples, decisions]`.
    fn numbers(
        &self,
        model: &ReTreever,
        batch: &RegressionBatch,
        samples: usize,
        rng: &mut ChaCha8Rng,
    ) -> Tensor<3> {
        let [examples, targets, _] = batch.target_x.dims();
        // A tree without decisions reads no number, but some backends refuse empty tensors.
        let draws = model.decisions(batch.context_x.dims()[1]).max(1);
        uniform(
            rng,
            [examples, targets * samples, draws],
            &batch.target_x.device(),
        )
    }
}

impl TrainableModel for ImageModel {
    type Batch = RegressionBatch;

    fn training_step(&self, batch: RegressionBatch, rng: &mut ChaCha8Rng) -> StepOutput {
        let target = Target::Values(batch.target_y.clone());
        let mask = target_mask(&batch);
        let model = match &self.network {
            Network::ReTreever(model) => model,
            Network::Dense(_) => {
                let (prediction, _) = self.predict(&batch, rng);
                let loss = prediction.loss(&target, mask.as_ref());
                return StepOutput::new(loss.clone())
                    .with_metric("log_likelihood", -loss)
                    .with_metric("tokens_percent", full_tokens(&batch));
            }
        };
        let Objective {
            random_route,
            lambda_ca,
            samples,
            greedy_reward,
        } = self.objective;
        let numbers = self.numbers(model, &batch, samples, rng);
        let route = match random_route {
            true => Route::Uniform(numbers),
            false => Route::Sampled(numbers),
        };
        let context = context(&batch);
        let queries = batch.target_x.clone();
        let losses = model.losses(
            &context,
            queries.clone(),
            &target,
            mask.as_ref(),
            route,
            arbora_models::LossOptions {
                samples,
                ..Default::default()
            },
        );
        let per_token =
            100.0 * batch.batch_size() as f64 / batch.context_counts.iter().sum::<usize>() as f64;
        let output = StepOutput::new(losses.tree.clone() + losses.leaves.clone() * lambda_ca)
            .with_metric("log_likelihood", -losses.tree)
            .with_metric("leaves_log_likelihood", -losses.leaves)
            .with_metric("tokens_percent", losses.selected * per_token);
        if random_route {
            // There is no policy to learn.
            return output;
        }
        let greedy_reward = greedy_reward.then(|| {
            let found = model.predict(queries, &model.index(&context), Route::Greedy);
            let reward = found
                .prediction
                .reward(&target, arbora_models::RewardKind::Published);
            let [examples, targets] = reward.dims();
            reward.reshape([examples * targets, 1])
        });
        let (rollout, reward) = (losses.rollout, losses.reward);
        output.with_decisions(Decisions {
            rollout,
            reward,
            greedy_reward,
        })
    }

    fn evaluate(&self, batch: RegressionBatch, rng: &mut ChaCha8Rng) -> Vec<Measurement> {
        let (prediction, search) = self.predict(&batch, rng);
        let target = Target::Values(batch.target_y.clone());
        // The mean over a batch counts as one, as published: every batch has its own numbers of
        // pixels.
        let mask = target_mask(&batch);
        let mean = |values: Tensor<2>| {
            let mean = masked_average(values, mask.as_ref());
            f64::from(mean.into_scalar::<f32>())
        };
        let log_likelihood = mean(prediction.log_likelihood(&target));
        let tokens = batch.context_counts.iter().sum::<usize>() as f64 / batch.batch_size() as f64;
        let (selected, read) = match search {
            Some(search) => (mean(search.selected.float()), mean(search.read.float())),
            None => (tokens, tokens),
        };
        vec![
            Measurement::new("log_likelihood", log_likelihood, 1.0),
            Measurement::new("tokens_percent", 100.0 * selected / tokens, 1.0),
            Measurement::new("nodes_selected", selected, 1.0),
            Measurement::new("nodes_read", read, 1.0),
            Measurement::new("context_tokens", tokens, 1.0),
        ]
    }
}

/// A refused setting by its path in the configuration, as `--set` takes it.
fn with_path(section: &str, error: TaskError) -> anyhow::Error {
    match error {
        TaskError::Config { .. } => anyhow!("{section}.{error}"),
        _ => error.into(),
    }
}

fn context(batch: &RegressionBatch) -> Context {
    let mask = mask(&batch.context_mask, &batch.context_counts);
    Context::points(batch.context_x.clone(), batch.context_y.clone(), mask)
}

fn target_mask(batch: &RegressionBatch) -> Option<Tensor<2, Bool>> {
    mask(&batch.target_mask, &batch.target_counts)
}

/// The mask, unless it masks nothing: unmasked attention is faster.
fn mask(mask: &Tensor<2, Bool>, counts: &[usize]) -> Option<Tensor<2, Bool>> {
    let [_, padded] = mask.dims();
    counts
        .iter()
        .any(|count| *count < padded)
        .then(|| mask.clone())
}

/// Dense attention reads every token.
fn full_tokens(batch: &RegressionBatch) -> Tensor<1> {
    Tensor::full([1], 100.0, &batch.target_x.device())
}
