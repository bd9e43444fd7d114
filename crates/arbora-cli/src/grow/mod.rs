//! Loops that learn while they choose: predict from the context so far, choose, observe, append.
//!
//! - [`bandit`]: pull arms of the wheel bandit, with a run of the task `bandit`
//! - [`optimisation`]: look for the maximum of functions drawn from Gaussian processes, with a run of the
//!   task `gp`
//! - [`play`]: the rounds of both
//!
//! All repeats of a loop go through the model as one batch. Every number that is drawn belongs to a
//! repeat and a purpose, so every model meets the same worlds and makes its choices with the same
//! numbers.

pub mod bandit;
pub mod optimisation;

use crate::families::retrieval::RetrievalModel;
use crate::families::retrieval::data::Problem;
use anyhow::{Result, ensure};
use arbora::attention::{Route, TreeIndex};
use arbora::models::{
    Context, Prediction, ReTreever, ReTreeverStream, ReTreeverStreamError, Target,
};
use arbora::rl::sample::uniform;
use arbora::rl::seed::{Purpose, derive, rng};
use burn::tensor::{Device, Tensor, TensorData};
use clap::ValueEnum;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use serde::Serialize;
use std::time::Instant;

/// What a model attends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum View {
    /// What its policy selects, by the most probable choice.
    Learned,
    /// What a uniformly random route selects: the control.
    Random,
    /// All leaves, with the same weights.
    AllLeaves,
    /// What it has: a model without a tree.
    Whole,
}

impl View {
    pub fn name(self) -> &'static str {
        match self {
            Self::Learned => "learned route",
            Self::Random => "random route",
            Self::AllLeaves => "all leaves",
            Self::Whole => "whole context",
        }
    }
}

/// How one of several choices is taken, given mean and standard deviation of what each is worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Choice {
    /// Thompson sampling: the greatest of one draw from each prediction (Thompson 1933, Biometrika
    /// 25).
    #[default]
    Thompson,
    /// The greatest upper confidence bound: mean plus two standard deviations.
    Ucb,
}

impl Choice {
    /// The position of the choice to take; the first of several. Predictions that are not finite are refused.
    ///
    /// - predictions: mean and standard deviation of each choice
    /// - rng: read for every choice by Thompson sampling alone
    fn take(self, predictions: &[(f32, f32)], rng: &mut ChaCha8Rng) -> Result<usize> {
        let (mut best, mut highest) = (0, f32::NEG_INFINITY);
        for (at, (mean, std)) in predictions.iter().enumerate() {
            ensure!(
                mean.is_finite() && std.is_finite(),
                "the model predicts mean {mean} and standard deviation {std}"
            );
            let score = match self {
                Self::Thompson => mean + std * rng.sample::<f32, _>(StandardNormal),
                Self::Ucb => mean + 2.0 * std,
            };
            if score > highest {
                (best, highest) = (at, score);
            }
        }
        Ok(best)
    }
}

/// How a loop is run.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Choices made in each repeat.
    pub rounds: usize,
    /// Worlds of each kind.
    pub repeats: usize,
    /// Of these first rounds the choices are uniformly random: contexts shorter than a model was
    /// trained on tell it nothing.
    pub random_rounds: usize,
    /// How the others are made.
    pub choice: Choice,
    /// What all worlds and choices derive from.
    pub seed: u64,
}

impl Settings {
    /// The numbers of one repeat's world.
    fn world(&self, repeat: usize) -> ChaCha8Rng {
        rng(self.seed, Purpose::Data, repeat as u64)
    }

    /// The numbers of the choices in `count` worlds.
    fn choices(&self, count: usize) -> Vec<ChaCha8Rng> {
        (0..count as u64)
            .map(|world| rng(self.seed, Purpose::Policy, world))
            .collect()
    }

    /// The seed of one repeat's world.
    fn world_seed(&self, repeat: usize) -> u64 {
        derive(self.seed, Purpose::Data).wrapping_add(repeat as u64)
    }
}

/// What a loop costs.
#[derive(Clone, Debug, Default)]
pub struct Cost {
    /// Seconds of each round, for all worlds together: predict, choose, observe, append.
    pub seconds: Vec<f64>,
    /// Nodes whose keys a query reads in the last round, the mean over queries; `None` for a model
    /// without a tree.
    pub nodes_read: Option<f64>,
}

impl Cost {
    /// Milliseconds per round, the median over a tenth of the rounds around `share` (0 to 1) of the
    /// loop: what a round costs with a context of that length.
    pub fn milliseconds(&self, share: f64) -> f64 {
        let count = self.seconds.len();
        let width = (count / 10).max(1).min(count);
        let first = ((count as f64 * share) as usize).min(count - width);
        1e3 * median(&self.seconds[first..first + width])
    }

    /// Tokens of context and milliseconds per round, by medians over a twentieth of the rounds, the
    /// first `skip` left out.
    pub fn by_tokens(&self, skip: usize) -> Vec<(f64, f64)> {
        let rounds = self.seconds.get(skip..).unwrap_or_default();
        let width = (rounds.len() / 20).max(1);
        let medians = rounds.chunks(width).enumerate().map(|(at, chunk)| {
            let tokens = skip + at * width + chunk.len() / 2;
            (tokens as f64, 1e3 * median(chunk))
        });
        medians.collect()
    }
}

/// The worlds of a loop.
trait Worlds {
    /// What there is to choose from in the next round, `[worlds, choices, d_query]`.
    fn questions(&mut self, device: &Device) -> Tensor<3>;

    /// Where a choice leads in a world, of `d_query` numbers, and the value that is seen there.
    fn look(&mut self, world: usize, choice: usize) -> (Vec<f32>, f32);
}

/// Lets a model choose in `count` worlds, round by round. A prediction that is not finite ends the loop.
fn play(
    model: &RetrievalModel,
    view: View,
    worlds: &mut impl Worlds,
    count: usize,
    settings: &Settings,
    device: &Device,
    mut after_round: impl FnMut(),
) -> Result<Cost> {
    let mut growing = Growing::new(model, view, count, settings.seed, device);
    let mut numbers = settings.choices(count);
    let mut cost = Cost::default();
    for round in 0..settings.rounds {
        let start = Instant::now();
        let questions = worlds.questions(device);
        let [_, choices, _] = questions.dims();
        let predictions = (round >= settings.random_rounds).then(|| growing.predict(questions));
        let mut seen = (Vec::new(), Vec::new());
        for (world, numbers) in numbers.iter_mut().enumerate() {
            let choice = match &predictions {
                None => numbers.random_range(0..choices),
                Some(predictions) => {
                    let own = world * choices..(world + 1) * choices;
                    settings.choice.take(&predictions[own], numbers)?
                }
            };
            let (place, value) = worlds.look(world, choice);
            seen.0.extend(place);
            seen.1.push(value);
        }
        growing.append(seen.0, seen.1)?;
        cost.seconds.push(start.elapsed().as_secs_f64());
        after_round();
    }
    cost.nodes_read = growing.nodes_read;
    Ok(cost)
}

/// A model and a batch of contexts that grow by one token per example at a time.
///
/// Where the model can, the token joins a stream: `O(b log N)` work. Otherwise the whole context is
/// encoded again for each prediction.
struct Growing<'model> {
    model: &'model RetrievalModel,
    view: View,
    memory: Memory<'model>,
    /// For random routes.
    rng: ChaCha8Rng,
    nodes_read: Option<f64>,
    device: Device,
}

enum Memory<'model> {
    Stream(Box<ReTreeverStream<'model>>),
    /// `None` before the first token.
    Whole(Option<Box<Context>>),
}

/// Why the contexts of a model are encoded again in every round; `None` where they are streamed.
pub fn refusal(model: &RetrievalModel, device: &Device) -> Option<ReTreeverStreamError> {
    model.retreever()?.stream_empty(1, 1, device).err()
}

impl<'model> Growing<'model> {
    /// A batch of contexts without tokens.
    fn new(
        model: &'model RetrievalModel,
        view: View,
        batch: usize,
        seed: u64,
        device: &Device,
    ) -> Self {
        let stream = model
            .retreever()
            .and_then(|tree| tree.stream_empty(batch, 16, device).ok());
        Self {
            model,
            view,
            memory: match stream {
                Some(stream) => Memory::Stream(Box::new(stream)),
                None => Memory::Whole(None),
            },
            rng: rng(seed, Purpose::Evaluation, 0),
            nodes_read: None,
            device: device.clone(),
        }
    }

    /// Mean and standard deviation of the value at each query, `[batch · queries]`.
    ///
    /// - queries: `[batch, queries, d_query]`
    fn predict(&mut self, queries: Tensor<3>) -> Vec<(f32, f32)> {
        let whole = |context: &Option<Box<Context>>| -> Context {
            let context = context.as_deref();
            context.expect("a round of random choices before").clone()
        };
        let prediction = match (self.model.retreever(), &self.memory) {
            (Some(tree), memory) => {
                let anew;
                let index = match memory {
                    Memory::Stream(stream) => stream.index(),
                    Memory::Whole(context) => {
                        anew = tree.index(&whole(context));
                        &anew
                    }
                };
                let (prediction, read) = answer(tree, index, self.view, queries, &mut self.rng);
                self.nodes_read = read;
                prediction
            }
            (None, Memory::Whole(context)) => {
                let problem = unanswered(whole(context), queries);
                self.model.predict(&problem, &mut self.rng).0
            }
            (None, Memory::Stream(_)) => unreachable!("only trees are streamed"),
        };
        let Prediction::Gaussian { mean, std } = prediction else {
            unreachable!("the tasks of loops predict values")
        };
        let numbers = |tensor: Tensor<3>| tensor.into_data().iter::<f32>().collect::<Vec<_>>();
        numbers(mean).into_iter().zip(numbers(std)).collect()
    }

    /// Appends one token to every example.
    ///
    /// - x: where values were seen, `[batch · d_query]`, row-major
    /// - y: the values, `[batch]`
    fn append(&mut self, x: Vec<f32>, y: Vec<f32>) -> Result<()> {
        let (batch, width) = (y.len(), x.len() / y.len());
        let x = Tensor::<3>::from_data(TensorData::new(x, [batch, 1, width]), &self.device);
        let y = Tensor::<3>::from_data(TensorData::new(y, [batch, 1, 1]), &self.device);
        let token = Context::points(x, y, None);
        match &mut self.memory {
            Memory::Stream(stream) => {
                stream.append(token.features)?;
            }
            Memory::Whole(context) => {
                let grown = match context.take() {
                    None => token,
                    Some(context) => Context {
                        features: Tensor::cat(vec![context.features, token.features], 1),
                        positions: Tensor::cat(vec![context.positions, token.positions], 1),
                        mask: None,
                    },
                };
                *context = Some(Box::new(grown));
            }
        }
        Ok(())
    }
}

/// A tree's prediction from a view, and the nodes read per query.
fn answer(
    tree: &ReTreever,
    index: &TreeIndex,
    view: View,
    queries: Tensor<3>,
    rng: &mut ChaCha8Rng,
) -> (Prediction, Option<f64>) {
    let [batch, count, _] = queries.dims();
    let route = match view {
        View::Random => {
            let draws = index.shape().decisions().max(1);
            Route::Uniform(uniform(rng, [batch, count, 1, draws], &queries.device()))
        }
        View::Learned => Route::Greedy,
        View::AllLeaves | View::Whole => {
            let leaves = index.lengths().float().mean().into_scalar::<f32>();
            let prediction = tree.predict_from_leaves(queries, index);
            return (prediction, Some(leaves.into()));
        }
    };
    let found = tree.predict(queries, index, route);
    let read = found.search.read.float().mean().into_scalar::<f32>();
    (found.prediction, Some(read.into()))
}

/// Questions whose truth nobody knows yet.
fn unanswered(context: Context, queries: Tensor<3>) -> Problem {
    let [batch, count, _] = queries.dims();
    Problem {
        target: Target::Values(Tensor::zeros([batch, count, 1], &queries.device())),
        tokens: context.features.dims()[1] as f64,
        context,
        queries,
        target_mask: None,
        kind: None,
        answers: None,
    }
}

/// The greater of the two middle values where there are two.
fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistic::Statistic;

    #[test]
    fn the_choice_weighs_mean_and_deviation() {
        let mut rng = rng(1, Purpose::Policy, 0);
        let predictions = [(0.5, 0.0), (0.0, 0.35), (0.4, 0.2)];
        let ucb = Choice::Ucb.take(&predictions, &mut rng).unwrap();
        assert_eq!(ucb, 2);
        // Without doubt there is nothing to draw.
        let certain = [(0.1, 0.0), (0.3, 0.0), (0.2, 0.0)];
        assert_eq!(Choice::Thompson.take(&certain, &mut rng).unwrap(), 1);
        let mut taken = [0; 3];
        for _ in 0..300 {
            taken[Choice::Thompson.take(&predictions, &mut rng).unwrap()] += 1;
        }
        assert!(taken.iter().all(|count| *count > 5), "{taken:?}");
        assert!(Choice::Ucb.take(&[(f32::NAN, 1.0)], &mut rng).is_err());
    }

    #[test]
    fn errors_of_means_shrink_with_the_sample() {
        let of = |values: &[f64]| {
            let all = Statistic::of(values.iter().copied()).unwrap();
            all.with_error(values.len())
        };
        let two = of(&[1.0, 3.0]);
        assert!((two.mean, two.sd) == (2.0, Some(1.0)));
        assert!(of(&[5.0]).sd.is_none());
    }

    #[test]
    fn the_cost_of_a_round_is_a_median_near_its_place() {
        let cost = Cost {
            seconds: (0..100).map(|round| f64::from(round) / 1e3).collect(),
            nodes_read: None,
        };
        assert_eq!(cost.milliseconds(0.0), 5.0);
        assert_eq!(cost.milliseconds(1.0), 95.0);
        let curve = cost.by_tokens(20);
        assert_eq!(curve.len(), 20);
        assert_eq!((curve[0], curve[19]), ((22.0, 22.0), (98.0, 98.0)));
        assert_eq!(cost.by_tokens(200), []);
        let single = Cost {
            seconds: vec![0.25],
            nodes_read: None,
        };
        assert_eq!(single.milliseconds(1.0), 250.0);
    }
}
