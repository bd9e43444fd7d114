//! How queries walked down their trees, on the host.

use crate::families::retrieval::RetrievalModel;
use crate::families::retrieval::data::Problem;
use arbora::models::{Prediction, ReTreever, RewardKind, Target};
use arbora::tree::TokenTreeShape;
use burn::tensor::{Int, Tensor};
use rand_chacha::ChaCha8Rng;

/// The queries of a problem, answered by search.
pub struct Walk {
    pub shape: TokenTreeShape,
    /// What the model answers, `[batch, queries, …]`.
    pub prediction: Prediction,
    /// Log-likelihood of the truth in nats, `[batch · queries]`.
    pub log_likelihood: Vec<f32>,
    /// Whether the answer is right, `[batch · queries]`; `None` where values are predicted.
    pub is_right: Option<Vec<bool>>,
    /// Log-probability of the path taken, `[batch · queries]`.
    pub log_prob: Vec<f32>,
    /// Nodes attended to, `[batch · queries]`.
    pub selected: Vec<usize>,
    /// Nodes whose keys were read, `[batch · queries]`.
    pub read: Vec<usize>,
    /// Tokens of each example, `[batch]`.
    lengths: Vec<usize>,
    /// The token of each leaf, `[batch · tokens]`.
    order: Vec<usize>,
    queries: usize,
    /// `[batch · queries · (decisions + 1)]`
    path: Vec<usize>,
    /// `[batch · queries · decisions · branching]`
    policy: Vec<f32>,
}

/// One step on the way down, above the last group of leaves.
pub struct Decision {
    /// The child taken, from the left.
    pub child: usize,
    /// What the policy gave each stored child, from the left; 0 to children over no token.
    pub probabilities: Vec<f32>,
    /// Whether there was no choice: fewer than two children lie over tokens.
    pub is_forced: bool,
}

impl Decision {
    /// What the policy gave the child taken.
    pub fn probability(&self) -> f32 {
        self.probabilities[self.child]
    }

    /// The entropy of the choice in nats.
    pub fn entropy(&self) -> f32 {
        let positive = self.probabilities.iter().filter(|p| **p > 0.0);
        // A probability that rounds to a little over 1 has no negative entropy.
        positive.map(|p| -p * p.ln()).sum::<f32>().max(0.0)
    }
}

impl Walk {
    /// Answers all queries of a problem. `tree` is the model's own tree.
    pub fn new(
        model: &RetrievalModel,
        tree: &ReTreever,
        problem: &Problem,
        rng: &mut ChaCha8Rng,
    ) -> Self {
        let (prediction, search) = model.predict(problem, rng);
        let search = search.expect("a model with a tree searches it");
        let tokens = tree.tree(&problem.context);
        let shape = *tokens.shape();
        let policy = match shape.decisions() {
            0 => Vec::new(),
            _ => {
                let index = tree.index(&problem.context);
                floats(tree.policy_probabilities(
                    problem.queries.clone(),
                    &index,
                    search.path.clone(),
                ))
            }
        };
        let is_right = match problem.target {
            Target::Values(_) => None,
            Target::Classes(_) => {
                let right = prediction.reward(&problem.target, RewardKind::Accuracy);
                Some(floats(right).into_iter().map(|right| right > 0.5).collect())
            }
        };
        Self {
            shape,
            log_likelihood: floats(prediction.log_likelihood(&problem.target)),
            prediction,
            is_right,
            log_prob: floats(search.log_prob),
            selected: counts(search.selected),
            read: counts(search.read),
            lengths: counts(tokens.lengths()),
            order: counts(tokens.order()),
            queries: problem.queries.dims()[1],
            path: counts(search.path),
            policy,
        }
    }

    /// Tokens of an example.
    pub fn length(&self, example: usize) -> usize {
        self.lengths[example]
    }

    /// The token of each leaf of an example.
    pub fn order(&self, example: usize) -> &[usize] {
        let tokens = self.shape.tokens();
        &self.order[example * tokens..][..self.length(example)]
    }

    /// The nodes visited by a query, `row` counted over all examples.
    pub fn path(&self, row: usize) -> &[usize] {
        let steps = self.shape.decisions() + 1;
        &self.path[row * steps..][..steps]
    }

    /// The decisions of a query, the one at the root first.
    pub fn decisions(&self, row: usize) -> Vec<Decision> {
        let (decisions, branching) = (self.shape.decisions(), self.shape.branching());
        let length = self.length(row / self.queries);
        let path = self.path(row);
        (0..decisions)
            .map(|depth| {
                let height = self.shape.height() - depth;
                let children = self.shape.children(height, path[depth]);
                let span = self.shape.span(height - 1);
                let real = children.clone().filter(|child| child * span < length);
                let policy = &self.policy[(row * decisions + depth) * branching..];
                Decision {
                    child: path[depth + 1] - children.start,
                    is_forced: real.count() < 2,
                    probabilities: policy[..children.len()].to_vec(),
                }
            })
            .collect()
    }
}

/// A tensor's numbers on the host.
pub fn floats<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

/// Counts and indices on the host.
pub fn counts<const D: usize>(tensor: Tensor<D, Int>) -> Vec<usize> {
    let numbers = tensor.into_data();
    numbers
        .iter::<i64>()
        .map(|number| number as usize)
        .collect()
}
