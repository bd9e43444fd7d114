//! How the children of a level are chosen, and what is taken of them.

use super::TreeCoder;
use super::config::{SelectorBalance, SelectorGradient, SelectorKind};
use super::draws::{gumbel, hash_leaf, random_leaf, sampled_child};
use super::forward::{LevelRouting, Pass};
use super::items::Items;
use super::routes::{Carried, Routes, indices, select};
use crate::check::expect;
use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{Bool, Int, Tensor, TensorData};
use std::ops::Range;

/// The gate of each item before what a child adds.
#[derive(Clone, Debug)]
pub(super) enum Gate {
    /// It is multiplied with these, `[items]`.
    Scale(Tensor<1>),
    /// It is added whole, with the gradient of these numbers, which are 0: `[items]`.
    StraightThrough(Tensor<1>),
}

impl Gate {
    /// - entered: what came to the child, `[items, tokens, d_model]`
    /// - left: what came out of it
    pub fn apply(&self, entered: Tensor<3>, left: Tensor<3>) -> Tensor<3> {
        let (device, dtype) = (left.device(), left.dtype());
        let per_item = |numbers: &Tensor<1>| {
            let [items] = numbers.dims();
            let numbers = numbers.clone().to_device(&device).cast(dtype);
            numbers.reshape([items, 1, 1])
        };
        let added = left.clone() - entered.clone();
        match self {
            Self::Scale(scale) => entered + added * per_item(scale),
            Self::StraightThrough(zero) => left + added * per_item(zero),
        }
    }

    /// By the probability of the child that each row takes.
    ///
    /// - scores: `[rows, children]`
    pub fn by_probability(scores: Tensor<2>, children: &[usize]) -> Self {
        Self::Scale(of_children(softmax(scores, 1), children))
    }

    /// Of some rows, in any order.
    pub fn select(&self, rows: &[usize]) -> Self {
        self.map(|numbers| select(numbers, rows))
    }

    /// Of rows that follow each other.
    pub fn narrow(&self, rows: Range<usize>) -> Self {
        self.map(|numbers| numbers.clone().narrow(0, rows.start, rows.len()))
    }

    fn map(&self, of: impl FnOnce(&Tensor<1>) -> Tensor<1>) -> Self {
        match self {
            Self::Scale(scale) => Self::Scale(of(scale)),
            Self::StraightThrough(zero) => Self::StraightThrough(of(zero)),
        }
    }
}

/// A decision between the children of a node.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Choice {
    pub child: usize,
    /// How much its value was above that of the next.
    pub margin: f64,
}

/// What a decision takes: the first of the most likely children, with the bias of loss-free balancing added to the
/// probabilities (arXiv 2408.15664, equation 3).
pub(super) fn choose(scores: &[f32], bias: Option<&[f32]>) -> Choice {
    let mut values = probabilities(scores);
    for (value, bias) in values.iter_mut().zip(bias.unwrap_or_default()) {
        *value += f64::from(*bias);
    }
    let child = (0..values.len())
        .rev()
        .max_by(|&one, &other| values[one].total_cmp(&values[other]))
        .unwrap_or(0);
    let others = (0..values.len()).filter(|other| *other != child);
    let next = others
        .map(|other| values[other])
        .fold(f64::NEG_INFINITY, f64::max);
    Choice {
        child,
        margin: values[child] - next,
    }
}

/// The softmax of some scores.
pub(super) fn probabilities(scores: &[f32]) -> Vec<f64> {
    let most = f64::from(scores.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let powers: Vec<f64> = scores
        .iter()
        .map(|score| (f64::from(*score) - most).exp())
        .collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

/// The mean entropy of the softmax of rows of scores, of those that count, in nats; 0 where none does.
///
/// - scores: `[rows, children]`
pub(super) fn mean_entropy<'a>(
    scores: impl Iterator<Item = &'a [f32]>,
    counts: impl Iterator<Item = bool>,
) -> f64 {
    let counted = scores.zip(counts).filter(|(_, counts)| *counts);
    let (sum, rows) = counted.fold((0.0, 0), |(sum, rows), (scores, _)| {
        (sum + entropy(scores), rows + 1)
    });
    sum / f64::from(rows.max(1))
}

/// Of the softmax of some scores, in nats.
fn entropy(scores: &[f32]) -> f64 {
    let parts = probabilities(scores).into_iter();
    -parts
        .filter(|part| *part > 0.0)
        .map(|part| part * part.ln())
        .sum::<f64>()
}

/// The number of the child that each row takes, `[rows, children]` -> `[rows]`.
fn of_children(numbers: Tensor<2>, children: &[usize]) -> Tensor<1> {
    let chosen = indices(children, &numbers.device()).reshape([children.len(), 1]);
    numbers.gather(1, chosen).squeeze_dim(1)
}

/// Where rows go from the nodes of a level, in a batch or while decoding.
pub(super) struct Decided {
    pub children: Vec<usize>,
    /// Of the decisions of evaluation; infinite where there is none to take.
    pub margins: Vec<f64>,
    /// `None`: all of what a child adds is taken.
    pub gate: Option<Gate>,
}

/// The scores that the selectors of a level give its rows.
pub(super) struct Scores {
    /// `[rows, children]`, at home and in single precision.
    pub tensor: Tensor<2>,
    /// The biases of loss-free balancing of each group, `[1, children]`; empty where none is added.
    biases: Vec<Tensor<2>>,
    /// Rows of each group.
    counts: Vec<usize>,
}

impl Scores {
    /// Computes the scores of the selectors at a depth.
    ///
    /// - pooled: what that of each group reads, `[rows of the group, d_model]`
    pub fn new<S: Carried>(
        model: &TreeCoder,
        depth: usize,
        routes: &Routes<S>,
        pooled: Vec<Tensor<2>>,
        is_biased: bool,
    ) -> Self {
        let config = model.config();
        let mut biases = Vec::new();
        let scores = routes.groups.iter().zip(pooled).map(|(group, pooled)| {
            let pooled = if config.selector.detach {
                pooled.detach()
            } else {
                pooled
            };
            let node = model.node(depth, group.node);
            let selector = node.selector();
            let scores = selector.forward(pooled.to_device(&node.device()));
            if !is_biased {
                return scores.to_device(&routes.home);
            }
            let bias = selector.decision_bias().cast(scores.dtype());
            // Of a kind with the scores: a constant where these record gradients.
            let options = (&scores.device(), scores.dtype());
            let bias = Tensor::zeros([1, config.branching], options) + bias.unsqueeze_dim(0);
            // One trip home, wherever the node is.
            let both = Tensor::cat(vec![scores, bias], 0).to_device(&routes.home);
            let count = group.members.len();
            biases.push(both.clone().narrow(0, count, 1));
            both.narrow(0, 0, count)
        });
        Self {
            tensor: Tensor::cat(scores.collect(), 0),
            biases,
            counts: routes
                .groups
                .iter()
                .map(|group| group.members.len())
                .collect(),
        }
    }

    /// Reads them from the device, scores and biases at once.
    pub fn read(&self) -> HostScores {
        let [rows, children] = self.tensor.dims();
        let read = std::iter::once(&self.tensor).chain(&self.biases);
        let read = read.map(|tensor| tensor.clone().without_autodiff());
        let data = Tensor::cat(read.collect(), 0).into_data();
        let mut scores: Vec<f32> = data.iter().collect();
        let biases = scores.split_off(rows * children);
        HostScores {
            scores,
            biases,
            children,
            counts: self.counts.clone(),
        }
    }
}

/// The same on the host.
pub(super) struct HostScores {
    /// `[rows][children]`
    pub scores: Vec<f32>,
    /// `[groups][children]`, or empty
    biases: Vec<f32>,
    children: usize,
    counts: Vec<usize>,
}

impl HostScores {
    /// What is chosen for each row by these scores, or the same with noise.
    pub fn choose(&self, scores: &[f32]) -> Vec<Choice> {
        let counts = self.counts.iter().enumerate();
        let group_of = counts.flat_map(|(group, &count)| std::iter::repeat_n(group, count));
        let rows = group_of.zip(scores.chunks(self.children));
        rows.map(|(group, scores)| {
            let bias = self.biases.chunks(self.children).nth(group);
            choose(scores, bias)
        })
        .collect()
    }
}

/// The leaf of an item for which no selector decides.
///
/// - tokens: those that a selector would read
pub(super) fn fixed_leaf(
    kind: SelectorKind,
    (seed, item): (u64, usize),
    tokens: impl IntoIterator<Item = u64>,
    leaves: usize,
) -> usize {
    match kind {
        SelectorKind::Random => random_leaf(seed, item, leaves),
        SelectorKind::Hash | SelectorKind::Learned => hash_leaf(tokens, leaves),
    }
}

impl Pass<'_> {
    /// The leaves of all items where no selector has a say: given ones, chance, and hashes of their tokens.
    pub fn fixed_leaves(
        &self,
        tokens: &Tensor<2, Int>,
        padding: &Option<Tensor<2, Bool>>,
        chunks: usize,
    ) -> Option<Vec<usize>> {
        let config = self.model.config();
        let leaves = self.model.tree().leaves();
        let [batch, count] = tokens.dims();
        let items = batch * chunks;
        if let Some(given) = &self.options.leaves {
            expect(
                "tree_coder: options.leaves: axis 0 (items)",
                given.len(),
                items,
            );
            if let Some(leaf) = given.iter().find(|leaf| **leaf >= leaves) {
                panic!("tree_coder: options.leaves: expected leaves below {leaves}, got {leaf}");
            }
            return Some(given.clone());
        }
        let kind = config.selector.kind;
        if kind == SelectorKind::Learned {
            return None;
        }
        // Read for hashes alone.
        let is_hash = kind == SelectorKind::Hash;
        let ids: Vec<i64> = if is_hash {
            tokens.clone().into_data().iter().collect()
        } else {
            Vec::new()
        };
        let masked: Vec<bool> = match padding {
            Some(padding) if is_hash => padding.clone().into_data().iter().collect(),
            _ => vec![false; batch * count],
        };
        let leaf = |item: usize| {
            let read = config.route_on.read(item % chunks, count);
            let start = item / chunks * count;
            let read = read.map(|place| start + place);
            let kept = read.filter(|place| !masked[*place]);
            let tokens = kept.map(|place| ids[place] as u64);
            fixed_leaf(kind, (self.options.seed, item), tokens, leaves)
        };
        Some((0..items).map(leaf).collect())
    }

    /// Chooses the children of all items at a depth and sends them there.
    pub fn descend(&mut self, depth: usize, items: &mut Items, fixed: Option<&[usize]>) {
        let tree = self.model.tree();
        let fixed: Option<Vec<usize>> = fixed.map(|leaves| {
            let members = items.routes.members();
            members.map(|item| tree.path(leaves[item])[depth]).collect()
        });
        let (decided, entropy) = self.decide(depth, items, fixed);
        let children = &decided.children;
        let mut level = LevelRouting {
            nodes: vec![0; children.len()],
            children: vec![0; children.len()],
            margins: vec![f64::INFINITY; children.len()],
            entropy,
        };
        let rows = items.routes.members().zip(items.routes.nodes());
        for (row, (item, node)) in rows.enumerate() {
            level.nodes[item] = node;
            level.children[item] = children[row];
            level.margins[item] = decided.margins[row];
        }
        self.routing.levels.push(level);
        let branching = self.model.config().branching;
        items.routes.send(&decided, branching);
    }

    /// Also returns the mean entropy of the selectors, in nats.
    ///
    /// - given: children that are not to be chosen, row by row
    fn decide(&mut self, depth: usize, items: &Items, given: Option<Vec<usize>>) -> (Decided, f64) {
        let config = self.model.config();
        let (k, height) = (config.branching, config.height as f64);
        let selectors = &config.selector;
        let routes = &items.routes;
        let (rows, home) = (routes.count(), &routes.home);
        let is_training = home.is_autodiff();
        let is_fixed = given.is_some();
        let is_learned = selectors.kind == SelectorKind::Learned;
        let is_biased = !is_fixed && matches!(selectors.balance, SelectorBalance::LossFree { .. });
        let pooled = items.pooled(config.route_on);
        let asked = Scores::new(self.model, depth, routes, pooled, is_biased);
        // One read per level, and none where neither a decision nor its entropy is asked for.
        let host = (is_learned || !is_fixed).then(|| asked.read());
        let scores = asked.tensor;
        let mut noisy = scores.clone();
        let mut noise = Vec::new();
        if let SelectorGradient::GumbelStraightThrough { .. } = selectors.gradient
            && is_training
        {
            let of_items = routes.members();
            noise = of_items
                .flat_map(|item| gumbel(self.options.seed, depth, item, k))
                .collect();
            let data = TensorData::new(noise.clone(), [rows, k]);
            noisy = noisy + Tensor::from_data(data, (home, scores.dtype()));
        }
        // Balance is of what evaluation would choose, as Switch Transformers count it: noise and samples spread items
        // evenly over children that are all but equally likely, of which evaluation takes one and the same.
        let (children, counted, margins) = match (given, &host) {
            (None, Some(host)) => {
                let choices = host.choose(&host.scores);
                let counted = children_of(&choices);
                let children = match selectors.gradient {
                    SelectorGradient::GumbelStraightThrough { .. } if is_training => {
                        let noisy = host.scores.iter().zip(&noise);
                        let noisy: Vec<f32> = noisy.map(|(score, noise)| score + noise).collect();
                        children_of(&host.choose(&noisy))
                    }
                    SelectorGradient::Reinforce if is_training => {
                        let rows = routes.members().zip(host.scores.chunks(k));
                        rows.map(|(item, scores)| {
                            sampled_child(self.options.seed, depth, item, &probabilities(scores))
                        })
                        .collect()
                    }
                    _ => counted.clone(),
                };
                let margins = choices.iter().map(|choice| choice.margin).collect();
                (children, counted, margins)
            }
            (given, _) => {
                let given = given.expect("what is not given is read");
                (given.clone(), given, vec![f64::INFINITY; rows])
            }
        };
        let mut left = counted.as_slice();
        let loads: Vec<Vec<usize>> = routes
            .groups
            .iter()
            .map(|group| {
                let (of_group, others) = left.split_at(group.members.len());
                left = others;
                let mut loads = vec![0; k];
                for (item, child) in group.members.iter().zip(of_group) {
                    loads[*child] += usize::from(items.is_real(*item));
                }
                loads
            })
            .collect();
        if is_training && !is_fixed {
            for (group, loads) in routes.groups.iter().zip(&loads) {
                let selector = self.model.node(depth, group.node).selector();
                selector.track_balance(selectors.balance, loads);
            }
        }
        if let SelectorBalance::SwitchLoss { weight } = selectors.balance
            && is_learned
        {
            let counts = routes.groups.iter().zip(&loads).map(|(group, loads)| {
                let real = group.members.iter().map(|item| items.is_real(*item));
                (real.collect(), loads.as_slice())
            });
            let loss = switch_loss(softmax(scores.clone(), 1), &counts.collect::<Vec<_>>())
                * (weight / height);
            add(&mut self.routing.balance_loss, loss);
        }
        let entropy = match &host {
            Some(host) if is_learned => {
                let counts = routes.members().map(|item| items.is_real(item));
                mean_entropy(host.scores.chunks(k), counts)
            }
            _ => 0.0,
        };

        let of_chosen = |numbers: Tensor<2>| of_children(numbers, &children);
        let gate = match selectors.gradient {
            SelectorGradient::ScaledDelta => Some(Gate::by_probability(scores, &children)),
            SelectorGradient::ValuePreserving if is_training => {
                // Its derivative is that of p / stop(p), and stays bounded where a bias chose a child with p = 0.
                let log = of_chosen(log_softmax(scores, 1));
                let zero = log.clone() - log.detach();
                Some(Gate::StraightThrough(zero))
            }
            SelectorGradient::GumbelStraightThrough { temperature } if is_training => {
                let probability = of_chosen(softmax(noisy / temperature, 1));
                let zero = probability.clone() - probability.detach();
                Some(Gate::StraightThrough(zero))
            }
            SelectorGradient::Reinforce if is_learned => {
                let log = log_softmax(scores, 1);
                let entropies = (log.clone().exp() * log.clone()).sum_dim(1).squeeze_dim(1);
                let log_prob = items.by_item(of_chosen(log));
                let entropies = items.by_item(entropies) * -height.recip();
                add(&mut self.routing.log_prob, log_prob);
                add(&mut self.routing.entropy, entropies);
                None
            }
            SelectorGradient::ValuePreserving
            | SelectorGradient::GumbelStraightThrough { .. }
            | SelectorGradient::Reinforce
            | SelectorGradient::Soft => None,
        };
        let decided = Decided {
            children,
            margins,
            gate,
        };
        (decided, entropy)
    }
}

pub(super) fn children_of(choices: &[Choice]) -> Vec<usize> {
    choices.iter().map(|choice| choice.child).collect()
}

/// Adds the numbers of a level to those of the levels before it.
fn add(sum: &mut Option<Tensor<1>>, level: Tensor<1>) {
    *sum = Some(match sum.take() {
        Some(sum) => sum + level,
        None => level,
    });
}

/// `Σ_j share of items at node j · k Σ_c f_jc P_jc`: `[1]`. It is the mean over items of `k Σ_c f_jc p_c`, each with the
/// loads of its own node; over those that count, and 0 where none does.
///
/// - nodes: of each, which of its rows count, and how many of these went to each child
fn switch_loss(probabilities: Tensor<2>, nodes: &[(Vec<bool>, &[usize])]) -> Tensor<1> {
    let [rows, k] = probabilities.dims();
    let all: usize = nodes.iter().flat_map(|(_, loads)| loads.iter()).sum();
    let mut weights = Vec::with_capacity(rows * k);
    for (counts, loads) in nodes {
        let here: usize = loads.iter().sum();
        for counts in counts {
            weights.extend(loads.iter().map(|load| {
                if *counts {
                    (k * load) as f32 / (here * all) as f32
                } else {
                    0.0
                }
            }));
        }
    }
    let options = (&probabilities.device(), probabilities.dtype());
    let weights = Tensor::from_data(TensorData::new(weights, [rows, k]), options);
    (probabilities * weights).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_likely_child_is_chosen_and_the_first_among_equals() {
        assert_eq!(choose(&[0.0, 2.0, 1.0], None).child, 1);
        let tie = choose(&[1.0, 1.0, 0.0], None);
        assert_eq!((tie.child, tie.margin), (0, 0.0));
    }

    #[test]
    fn a_bias_is_added_to_probabilities_and_not_to_scores() {
        // The probabilities are 0.73 and 0.27.
        assert_eq!(choose(&[1.0, 0.0], Some(&[0.0, 0.4])).child, 0);
        let taken = choose(&[1.0, 0.0], Some(&[0.0, 0.5]));
        let probability = 1.0 / (1.0 + (-1f64).exp());
        assert_eq!(taken.child, 1);
        assert!((taken.margin - (0.5 + 1.0 - 2.0 * probability)).abs() < 1e-9);
    }

    #[test]
    fn entropy_is_that_of_the_softmax() {
        assert!((entropy(&[3.0, 3.0]) - 2f64.ln()).abs() < 1e-9);
        assert_eq!(entropy(&[1000.0, 0.0]), 0.0);
        let probability = 1.0 / (1.0 + (-1f64).exp());
        let rest = 1.0 - probability;
        let expected = -probability * probability.ln() - rest * rest.ln();
        assert!((entropy(&[1.0, 0.0]) - expected).abs() < 1e-9);
    }
}
