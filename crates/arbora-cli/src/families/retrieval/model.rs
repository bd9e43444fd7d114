//! Every model as the trainer wants it: what a step minimises and what an evaluation measures.

use super::config::NetworkConfig;
use super::data::{Features, Problem};
use super::{RetrievalConfig, RetrievalModelKind};
use crate::families::FamilyModel;
use crate::families::training::count_asked;
use anyhow::{Result, bail};
use arbora::attention::{Route, SearchOptions, SearchOutput};
use arbora::models::prediction::masked_average;
use arbora::models::{
    CrossAttentionModel, LossOptions, PerceiverIo, Prediction, ReTreever, RewardKind, Target,
};
use arbora::rl::sample::uniform;
use arbora::rl::seed::{Purpose, derive};
use arbora::rl::train::{Decisions, Measurement, StepOutput, TrainableModel};
use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use rand_chacha::ChaCha8Rng;

/// The models that learn tasks.
#[derive(Module, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "a process holds one or two of them, and burn's modules are no boxes"
)]
enum Network {
    ReTreever(ReTreever),
    Dense(CrossAttentionModel),
    Perceiver(PerceiverIo),
}

/// How a trained model searches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Search {
    pub strategy: Strategy,
    /// Divides the logits of the policy.
    pub temperature: f64,
}

/// How a search looks for its paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// One path, by the most probable child at each node.
    Greedy,
    /// So many paths, drawn from the policy.
    Samples(usize),
    /// So many of the most probable paths.
    Beam(usize),
}

/// A model with what its training needs.
#[derive(Module, Debug)]
pub struct RetrievalModel {
    network: Network,
    #[module(skip)]
    config: RetrievalConfig,
    #[module(skip)]
    search: Option<Search>,
}

impl RetrievalModel {
    /// The model that a configuration names, with weights drawn from its seed.
    pub fn new(config: &RetrievalConfig, features: &Features, device: &Device) -> Self {
        let seed = derive(config.trainer.seed, Purpose::Parameters);
        let network = match config.network(features) {
            NetworkConfig::ReTreever(config) => {
                Network::ReTreever(config.with_seed(seed).init(device))
            }
            NetworkConfig::Dense(config) => Network::Dense(config.with_seed(seed).init(device)),
            NetworkConfig::Perceiver(config) => {
                Network::Perceiver(config.with_seed(seed).init(device))
            }
        };
        Self {
            network,
            config: config.clone(),
            search: None,
        }
    }

    /// The same weights measured with another search than one greedy path.
    #[must_use]
    pub fn with_search(mut self, search: Search) -> Self {
        self.search = Some(search);
        self
    }

    /// The model with a tree, if it is one.
    pub fn retreever(&self) -> Option<&ReTreever> {
        match &self.network {
            Network::ReTreever(model) => Some(model),
            Network::Dense(_) | Network::Perceiver(_) => None,
        }
    }

    /// Answers the queries of a problem, with the search where there is one.
    pub fn predict(
        &self,
        problem: &Problem,
        rng: &mut ChaCha8Rng,
    ) -> (Prediction, Option<SearchOutput>) {
        let (context, queries) = (&problem.context, problem.queries.clone());
        match &self.network {
            Network::Dense(model) => (model.predict(queries, &model.encode(context)), None),
            Network::Perceiver(model) => (model.predict(queries, &model.encode(context)), None),
            Network::ReTreever(model) => {
                let route = match self.search.map(|search| search.strategy) {
                    Some(Strategy::Beam(width)) => Route::Beam(width),
                    Some(Strategy::Samples(count)) => {
                        Route::Sampled(uniforms(model, problem, count, rng))
                    }
                    Some(Strategy::Greedy) => Route::Greedy,
                    None => self
                        .control(model, problem, 1, rng)
                        .unwrap_or(Route::Greedy),
                };
                let options = SearchOptions {
                    route,
                    temperature: self.search.map_or(1.0, |search| search.temperature),
                };
                let found = model.predict(queries, &model.index(context), options);
                (found.prediction, Some(found.search))
            }
        }
    }

    /// The route of a control, of which there is no policy to learn.
    fn control(
        &self,
        model: &ReTreever,
        problem: &Problem,
        samples: usize,
        rng: &mut ChaCha8Rng,
    ) -> Option<Route> {
        match self.config.model {
            RetrievalModelKind::RandomRoute => {
                Some(Route::Uniform(uniforms(model, problem, samples, rng)))
            }
            RetrievalModelKind::OracleRoute => Some(Route::Given(oracle(model, problem))),
            _ => None,
        }
    }

    /// Context tokens or latents that a query attends to in a model without a search.
    fn attended(&self, problem: &Problem) -> f64 {
        match &self.network {
            Network::Perceiver(model) => model.latents() as f64,
            Network::Dense(_) | Network::ReTreever(_) => problem.tokens,
        }
    }
}

/// Uniforms for one step, `[batch, queries, samples, decisions]`.
fn uniforms(
    model: &ReTreever,
    problem: &Problem,
    samples: usize,
    rng: &mut ChaCha8Rng,
) -> Tensor<4> {
    let [examples, queries, _] = problem.queries.dims();
    // A tree without decisions reads no number, but some backends refuse empty tensors.
    let draws = model.decisions(problem.context.features.dims()[1]).max(1);
    let shape = [examples, queries, samples, draws];
    uniform(rng, shape, &problem.queries.device())
}

/// The paths to the tokens that answer the queries.
fn oracle(model: &ReTreever, problem: &Problem) -> Tensor<4, Int> {
    let answers = problem.answers.clone();
    // A configuration with this control is refused for tasks without answers.
    let answers = answers.expect("a task that knows where answers lie");
    model.paths_to(answers, &problem.context)
}

impl FamilyModel for RetrievalModel {
    fn timed_forward(&self, batch: &Problem, rng: &mut ChaCha8Rng) -> usize {
        drop(self.predict(batch, rng));
        let [examples, queries, _] = batch.queries.dims();
        examples * queries
    }

    fn walking_at_random(mut self) -> Result<Self> {
        if self.retreever().is_none() {
            bail!("has no tree");
        }
        self.config.model = RetrievalModelKind::RandomRoute;
        Ok(self)
    }
}

impl TrainableModel for RetrievalModel {
    type Batch = Problem;

    fn training_step(&self, problem: Problem, rng: &mut ChaCha8Rng) -> StepOutput {
        let (target, mask) = (&problem.target, problem.target_mask.as_ref());
        let Network::ReTreever(model) = &self.network else {
            let (prediction, _) = self.predict(&problem, rng);
            let loss = prediction.loss(target, mask);
            let share = 100.0 * self.attended(&problem) / problem.tokens;
            let share = Tensor::full([1], share, &problem.queries.device());
            let mut output = StepOutput::new(loss.clone()).with_metric("log_likelihood", -loss);
            if let Target::Classes(_) = target {
                let right = prediction.reward(target, RewardKind::Accuracy);
                output = output.with_metric("accuracy", masked_average(right, mask));
            }
            return output.with_metric("tokens_percent", share);
        };
        let config = &self.config;
        let control = self.control(model, &problem, config.samples, rng);
        let learns = control.is_none();
        let route = control
            .unwrap_or_else(|| Route::Sampled(uniforms(model, &problem, config.samples, rng)));
        let [examples, queries, _] = problem.queries.dims();
        let guide = (learns && config.lambda_guide > 0.0)
            .then(|| uniform(rng, [examples, queries], &problem.queries.device()));
        let reward = config.reward;
        let losses = model.losses(
            &problem.context,
            problem.queries.clone(),
            target,
            mask,
            route,
            LossOptions { reward, guide },
        );
        let mut loss = losses.tree.clone() + losses.leaves.clone() * config.lambda_ca;
        if let Some(guide) = &losses.guide {
            loss = loss + guide.clone() * config.lambda_guide;
        }
        let mut output = StepOutput::new(loss)
            .with_metric("log_likelihood", -losses.tree)
            .with_metric("leaves_log_likelihood", -losses.leaves)
            .with_metric("tokens_percent", losses.selected * (100.0 / problem.tokens));
        if let Some(guide) = losses.guide {
            output = output.with_metric("guide", guide);
        }
        let is_accuracy = matches!(reward, RewardKind::Published | RewardKind::Accuracy);
        if let (Target::Classes(_), true) = (target, is_accuracy) {
            let right = masked_average(losses.reward.clone(), losses.rollout.mask.as_ref());
            output = output.with_metric("accuracy", right);
        }
        if !learns {
            return output;
        }
        let baseline = config.trainer.policy_gradient.baseline;
        let greedy_reward = baseline.needs_greedy_reward().then(|| {
            let index = model.index(&problem.context);
            let found = model.predict(problem.queries.clone(), &index, Route::Greedy);
            let reward = found.prediction.reward(target, reward);
            reward.reshape([examples * queries, 1])
        });
        output.with_decisions(Decisions {
            rollout: losses.rollout,
            reward: losses.reward,
            greedy_reward,
        })
    }

    fn evaluate(&self, problem: Problem, rng: &mut ChaCha8Rng) -> Vec<Measurement> {
        let (prediction, found) = self.predict(&problem, rng);
        let mask = problem.target_mask.as_ref();
        let mean = |values: Tensor<2>| {
            let mean = masked_average(values, mask);
            f64::from(mean.into_scalar::<f32>())
        };
        // The mean over a regression batch counts as one, as published: every batch has its own
        // numbers of points. Classes count one by one.
        let weight = match &problem.target {
            Target::Values(_) => 1.0,
            Target::Classes(_) => {
                let [examples, queries, _] = problem.queries.dims();
                mask.map_or((examples * queries) as f64, count_asked)
            }
        };
        let (selected, read) = match found {
            Some(found) => (mean(found.selected.float()), mean(found.read.float())),
            None => (self.attended(&problem), self.attended(&problem)),
        };
        let likelihood = mean(prediction.log_likelihood(&problem.target));
        let mut measured = vec![
            ("log_likelihood", likelihood),
            ("tokens_percent", 100.0 * selected / problem.tokens),
            ("nodes_selected", selected),
            ("nodes_read", read),
            ("context_tokens", problem.tokens),
        ];
        if let Target::Classes(_) = problem.target {
            let right = prediction.reward(&problem.target, RewardKind::Accuracy);
            measured.push(("accuracy", mean(right)));
        }
        let end = problem.kind.map(|kind| format!("_{kind}"));
        let end = end.unwrap_or_default();
        let measured = measured.into_iter();
        measured
            .map(|(name, mean)| Measurement::new(format!("{name}{end}"), mean * weight, weight))
            .collect()
    }
}
