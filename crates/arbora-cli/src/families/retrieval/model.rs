//! Every model as the trainer wants it: what a step minimises and what an evaluation measures.

use super::data::{Features, Problem};
use super::{RetrievalConfig, RetrievalModelKind};
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

/// How a tree is walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walk {
    /// By the policy.
    Learned,
    /// Uniformly at random: the lower control.
    Random,
    /// To the token that answers the query: the upper control, where a task knows it.
    Oracle,
}

/// How a trained model searches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Search {
    /// How paths are looked for.
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

/// How a model is trained and measured.
#[derive(Clone, Copy, Debug)]
struct Objective {
    walk: Walk,
    lambda_ca: f64,
    lambda_guide: f64,
    reward: RewardKind,
    samples: usize,
    greedy_reward: bool,
}

/// A model with what its training needs.
#[derive(Module, Debug)]
pub struct RetrievalModel {
    network: Network,
    #[module(skip)]
    objective: Objective,
    #[module(skip)]
    search: Option<Search>,
}

impl RetrievalModel {
    /// The model that a configuration names, with weights drawn from its seed.
    pub fn new(config: &RetrievalConfig, features: &Features, device: &Device) -> Self {
        let seed = derive(config.trainer.seed, Purpose::Parameters);
        let network = match config.model {
            RetrievalModelKind::CrossAttention => {
                Network::Dense(config.cross_attention(features).init(seed, device))
            }
            RetrievalModelKind::Perceiver => {
                Network::Perceiver(config.perceiver(features).init(seed, device))
            }
            RetrievalModelKind::ReTreever
            | RetrievalModelKind::RandomRoute
            | RetrievalModelKind::OracleRoute => {
                Network::ReTreever(config.retreever(features).init(seed, device))
            }
        };
        let baseline = config.trainer.policy_gradient.baseline;
        let objective = Objective {
            walk: match config.model {
                RetrievalModelKind::RandomRoute => Walk::Random,
                RetrievalModelKind::OracleRoute => Walk::Oracle,
                _ => Walk::Learned,
            },
            lambda_ca: config.lambda_ca,
            lambda_guide: config.lambda_guide,
            reward: config.reward,
            samples: config.samples,
            greedy_reward: baseline.needs_greedy_reward(),
        };
        Self {
            network,
            objective,
            search: None,
        }
    }

    /// The same weights measured with another search than one greedy path.
    #[must_use]
    pub fn with_search(mut self, search: Search) -> Self {
        self.search = Some(search);
        self
    }

    /// The same weights with another way down the tree: what the learned route is worth.
    #[must_use]
    pub fn with_walk(mut self, walk: Walk) -> Self {
        self.objective.walk = walk;
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
                let strategy = self.search.map(|search| search.strategy);
                let route = match (strategy, self.objective.walk) {
                    (Some(Strategy::Beam(width)), _) => Route::Beam(width),
                    (Some(Strategy::Samples(count)), _) => {
                        Route::Sampled(numbers(model, problem, count, rng))
                    }
                    (Some(Strategy::Greedy), _) | (None, Walk::Learned) => Route::Greedy,
                    (None, Walk::Random) => Route::Uniform(numbers(model, problem, 1, rng)),
                    (None, Walk::Oracle) => Route::Given(oracle(model, problem)),
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

    /// Context tokens or latents that a query attends to in a model without a search.
    fn attended(&self, problem: &Problem) -> f64 {
        match &self.network {
            Network::Perceiver(model) => model.latents() as f64,
            Network::Dense(_) | Network::ReTreever(_) => problem.tokens,
        }
    }
}

/// Uniform numbers for one step, `[batch, queries, samples, decisions]`.
fn numbers(
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
        let Objective {
            walk,
            lambda_ca,
            lambda_guide,
            reward,
            samples,
            greedy_reward,
        } = self.objective;
        let route = match walk {
            Walk::Learned => Route::Sampled(numbers(model, &problem, samples, rng)),
            Walk::Random => Route::Uniform(numbers(model, &problem, samples, rng)),
            Walk::Oracle => Route::Given(oracle(model, &problem)),
        };
        let learned = walk == Walk::Learned;
        let [examples, queries, _] = problem.queries.dims();
        let guide = (learned && lambda_guide > 0.0)
            .then(|| uniform(rng, [examples, queries], &problem.queries.device()));
        let losses = model.losses(
            &problem.context,
            problem.queries.clone(),
            target,
            mask,
            route,
            LossOptions { reward, guide },
        );
        let mut loss = losses.tree.clone() + losses.leaves.clone() * lambda_ca;
        if let Some(guide) = &losses.guide {
            loss = loss + guide.clone() * lambda_guide;
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
        if !learned {
            // There is no policy to learn.
            return output;
        }
        let greedy_reward = greedy_reward.then(|| {
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
                let all = problem.queries.dims()[0] * problem.queries.dims()[1];
                mask.map_or(all as f64, |mask| {
                    let masked = mask.clone().int().sum().into_scalar::<i64>();
                    (all as i64 - masked) as f64
                })
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
