//! How the children of a level are chosen, and what is taken of them.

use super::TreeCoder;
use super::config::{RouteOn, SelectorBalance, SelectorGradient, SelectorKind};
use super::draws::{gumbel, hash_leaf, random_leaf, sampled_child};
use super::forward::{LevelRouting, TreeCoderOptions, TreeCoderRouting};
use super::group::places;
use super::items::Items;
use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{Bool, Int, Tensor, TensorData};
use std::collections::HashMap;
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
    /// - rows: which these are, of all
    /// - entered: what came to the child, `[rows, tokens, d_model]`
    /// - left: what came out of it
    pub fn take(&self, rows: Range<usize>, entered: Tensor<3>, left: Tensor<3>) -> Tensor<3> {
        let (device, dtype) = (left.device(), left.dtype());
        let per_item = |numbers: &Tensor<1>| {
            let numbers = numbers.clone().narrow(0, rows.start, rows.len());
            let numbers = numbers.to_device(&device).cast(dtype);
            numbers.reshape([rows.len(), 1, 1])
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
        let select = |gate: &Tensor<1>| gate.clone().select(0, places(rows, &gate.device()));
        match self {
            Self::Scale(scale) => Self::Scale(select(scale)),
            Self::StraightThrough(zero) => Self::StraightThrough(select(zero)),
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
    let chosen = places(children, &numbers.device()).reshape([children.len(), 1]);
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

impl TreeCoder {
    /// The leaves of all items where no selector has a say: given ones, chance, and hashes.
    pub(super) fn fixed_leaves(
        &self,
        tokens: &Tensor<2, Int>,
        padding: &Option<Tensor<2, Bool>>,
        options: &TreeCoderOptions,
        items: usize,
    ) -> Option<Vec<usize>> {
        let leaves = self.tree().leaves();
        match (&options.leaves, self.config.selector.kind) {
            (Some(given), _) => {
                assert_eq!(
                    given.len(),
                    items,
                    "tree_coder: options.leaves: axis 0 (items): expected {items}, got {}",
                    given.len()
                );
                if let Some(leaf) = given.iter().find(|leaf| **leaf >= leaves) {
                    panic!(
                        "tree_coder: options.leaves: expected leaves below {leaves}, got {leaf}"
                    );
                }
                Some(given.clone())
            }
            (None, SelectorKind::Learned) => None,
            (None, SelectorKind::Random) => Some(
                (0..items)
                    .map(|item| random_leaf(options.seed, item, leaves))
                    .collect(),
            ),
            (None, SelectorKind::Hash) => Some(self.hashed(tokens, padding)),
        }
    }

    /// The leaf of each item by the tokens that a selector would read, padding left out.
    fn hashed(&self, tokens: &Tensor<2, Int>, padding: &Option<Tensor<2, Bool>>) -> Vec<usize> {
        let [batch, count] = tokens.dims();
        let leaves = self.tree().leaves();
        let ids: Vec<i64> = tokens.clone().into_data().iter().collect();
        let masked: Vec<bool> = match padding {
            Some(padding) => padding.clone().into_data().iter().collect(),
            None => vec![false; batch * count],
        };
        let route_on = self.config.route_on;
        let chunks = self.config.items(count);
        let read = (0..batch * chunks).map(|item| {
            let (sequence, chunk) = (item / chunks, item % chunks);
            let places = match route_on {
                RouteOn::FirstN { tokens } => 0..tokens.min(count),
                RouteOn::PreviousChunk { .. } if chunk == 0 => 0..0,
                RouteOn::PreviousChunk { tokens } => (chunk - 1) * tokens..chunk * tokens,
                RouteOn::LastToken | RouteOn::MeanAll => 0..count,
            };
            sequence * count + places.start..sequence * count + places.end
        });
        read.map(|places| {
            let kept = places.filter(|place| !masked[*place]);
            hash_leaf(kept.map(|place| ids[place] as u64), leaves)
        })
        .collect()
    }

    /// Chooses the children of all items at a depth and sends them there. Returns how much of what the children
    /// add is to be taken; `None`: all.
    pub(super) fn descend(
        &self,
        depth: usize,
        items: &mut Items,
        fixed: Option<&[usize]>,
        options: &TreeCoderOptions,
        routing: &mut TreeCoderRouting,
    ) -> Option<Gate> {
        let tree = self.tree();
        let fixed: Option<Vec<usize>> = fixed.map(|leaves| {
            let children = items.order().map(|item| tree.path(leaves[item])[depth]);
            children.collect()
        });
        let (decided, entropy) = self.route_level(depth, items, fixed, options, routing);
        let children = decided.children;
        let mut level = LevelRouting {
            nodes: vec![0; children.len()],
            children: vec![0; children.len()],
            margins: vec![f64::INFINITY; children.len()],
            entropy,
        };
        let rows = items.order().zip(items.nodes());
        for (row, (item, node)) in rows.enumerate() {
            level.nodes[item] = node;
            level.children[item] = children[row];
            level.margins[item] = decided.margins[row];
        }
        routing.levels.push(level);
        let moved = items.send(&children, self.config.branching);
        let gate = decided.gate?;
        if moved.is_sorted() {
            return Some(gate);
        }
        Some(gate.select(&moved))
    }

    /// Also returns the mean entropy of the selectors, in nats.
    ///
    /// - given: children that are not to be chosen, row by row
    fn route_level(
        &self,
        depth: usize,
        items: &Items,
        given: Option<Vec<usize>>,
        options: &TreeCoderOptions,
        routing: &mut TreeCoderRouting,
    ) -> (Decided, f64) {
        let config = &self.config.selector;
        let k = self.config.branching;
        let home = items.home.clone();
        let is_training = home.is_autodiff();
        let rows = items.count();
        let is_fixed = given.is_some();
        let is_learned = config.kind == SelectorKind::Learned;
        let is_biased = !is_fixed && matches!(config.balance, SelectorBalance::LossFree { .. });
        let (scores, biases) = self.scores_and_biases(depth, items, is_biased);
        // One read per level, and none where neither a decision nor its entropy is asked for.
        let host: Vec<f32> = if is_fixed && !is_learned {
            Vec::new()
        } else {
            let read = std::iter::once(scores.clone()).chain(biases);
            let read = read.map(Tensor::without_autodiff).collect();
            Tensor::cat(read, 0).into_data().iter().collect()
        };
        let (host, biases) = host.split_at(host.len().min(rows * k));
        let of_node = items.groups.iter().map(|group| group.node);
        let biases: HashMap<usize, &[f32]> = of_node.zip(biases.chunks(k)).collect();

        let choose_all = |scores: &[f32]| -> Vec<Choice> {
            let rows = items.nodes().zip(scores.chunks(k));
            rows.map(|(node, scores)| choose(scores, biases.get(&node).copied()))
                .collect()
        };
        let children_of = |choices: &[Choice]| -> Vec<usize> {
            choices.iter().map(|choice| choice.child).collect()
        };
        let mut noisy = scores.clone();
        let mut with_noise = Vec::new();
        if let SelectorGradient::GumbelStraightThrough { .. } = config.gradient
            && is_training
        {
            let noise: Vec<f32> = items
                .order()
                .flat_map(|item| gumbel(options.seed, depth, item, k))
                .collect();
            // Nothing was read where the children are given.
            with_noise = host
                .iter()
                .zip(&noise)
                .map(|(one, noise)| one + noise)
                .collect();
            let noise = TensorData::new(noise, [rows, k]);
            noisy = noisy + Tensor::from_data(noise, (&home, scores.dtype()));
        }
        // Balance is of what evaluation would choose, as Switch Transformers count it: noise and samples spread items
        // evenly over children that are all but equally likely, of which evaluation takes one and the same.
        let (children, counted, margins) = match given {
            Some(given) => (given.clone(), given, vec![f64::INFINITY; rows]),
            None => {
                let choices = choose_all(host);
                let counted = children_of(&choices);
                let children = match config.gradient {
                    SelectorGradient::GumbelStraightThrough { .. } if is_training => {
                        children_of(&choose_all(&with_noise))
                    }
                    SelectorGradient::Reinforce if is_training => {
                        let rows = items.order().zip(host.chunks(k));
                        rows.map(|(item, scores)| {
                            sampled_child(options.seed, depth, item, &probabilities(scores))
                        })
                        .collect()
                    }
                    _ => counted.clone(),
                };
                let margins = choices.iter().map(|choice| choice.margin).collect();
                (children, counted, margins)
            }
        };
        let mut left = counted.as_slice();
        let loads: Vec<Vec<usize>> = items
            .groups
            .iter()
            .map(|group| {
                let (of_group, others) = left.split_at(group.items.len());
                left = others;
                let mut loads = vec![0; k];
                for (item, child) in group.items.iter().zip(of_group) {
                    loads[*child] += usize::from(items.is_real(*item));
                }
                loads
            })
            .collect();
        if is_training && !is_fixed {
            for (group, loads) in items.groups.iter().zip(&loads) {
                self.selector(depth, group.node)
                    .track_balance(config.balance, loads);
            }
        }
        if let SelectorBalance::SwitchLoss { weight } = config.balance
            && is_learned
        {
            let counts = items.groups.iter().zip(&loads).map(|(group, loads)| {
                let real = group.items.iter().map(|item| items.is_real(*item));
                (real.collect(), loads.as_slice())
            });
            let loss = switch_loss(softmax(scores.clone(), 1), &counts.collect::<Vec<_>>())
                * (weight / self.config.height as f64);
            add(&mut routing.balance_loss, loss);
        }

        let of_chosen = |numbers: Tensor<2>| of_children(numbers, &children);
        let gate = match config.gradient {
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
                let entropies = items.by_item(entropies) * -(self.config.height as f64).recip();
                add(&mut routing.log_prob, log_prob);
                add(&mut routing.entropy, entropies);
                None
            }
            SelectorGradient::ValuePreserving
            | SelectorGradient::GumbelStraightThrough { .. }
            | SelectorGradient::Reinforce
            | SelectorGradient::Soft => None,
        };
        let entropy = if is_learned {
            let counts = items.order().map(|item| items.is_real(item));
            mean_entropy(host.chunks(k), counts)
        } else {
            0.0
        };
        let decided = Decided {
            children,
            margins,
            gate,
        };
        (decided, entropy)
    }

    /// `[items, branching]`, row by row, in single precision.
    pub(super) fn scores(&self, depth: usize, items: &Items) -> Tensor<2> {
        self.scores_and_biases(depth, items, false).0
    }

    /// Scores as [`scores`](Self::scores) gives them, and where they are asked for the biases of loss-free balancing,
    /// `[1, branching]` for each node. Both of a node come home as one tensor: one trip, wherever the node is.
    fn scores_and_biases(
        &self,
        depth: usize,
        items: &Items,
        is_biased: bool,
    ) -> (Tensor<2>, Vec<Tensor<2>>) {
        let pooled = items.pooled(self.config.route_on);
        let mut biases = Vec::new();
        let scores = items.groups.iter().zip(pooled).map(|(group, pooled)| {
            let pooled = if self.config.selector.detach {
                pooled.detach()
            } else {
                pooled
            };
            let pooled = pooled.to_device(&group.rows.device());
            let selector = self.selector(depth, group.node);
            let scores = selector.forward(pooled);
            if !is_biased {
                return scores.to_device(&items.home);
            }
            let bias = selector.decision_bias().cast(scores.dtype());
            // Of a kind with the scores: a constant where these record gradients.
            let options = (&scores.device(), scores.dtype());
            let bias = Tensor::zeros([1, self.config.branching], options) + bias.unsqueeze_dim(0);
            let both = Tensor::cat(vec![scores, bias], 0).to_device(&items.home);
            let count = group.items.len();
            biases.push(both.clone().narrow(0, count, 1));
            both.narrow(0, 0, count)
        });
        let scores = Tensor::cat(scores.collect(), 0);
        (scores, biases)
    }

    pub(super) fn selector(&self, depth: usize, index: usize) -> &super::Selector {
        let selector = self.node(depth, index).selector.as_ref();
        selector.expect("inner nodes have selectors")
    }
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
