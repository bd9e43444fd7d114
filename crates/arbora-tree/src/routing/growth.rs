//! Trees that grow by a level, and trees whose decisions split given samples evenly.

use super::RoutingTree;
use super::level::{self, RoutingLevel};
use super::split::{equalising_biases, largest, median_bias};
use crate::order::normal_draws;
use crate::shape::CompleteTree;
use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How the decisions of a new level start (Treeformer, arXiv 2208.09015, section 3.3, grows trees
/// by random levels or by ones that send everything to one node).
#[derive(Clone, Debug)]
// One is made when a tree grows, and none is kept: a box would only burden callers.
#[allow(clippy::large_enum_variant)]
pub enum Growth {
    /// Weights from `N(0, 1/dim)`, biases 0: every leaf is cut in two by chance, and the function
    /// that the model computes jumps. With the seed of the tree's configuration the level is the
    /// one that a tree initialised at full height has.
    Random {
        /// Seed of the weights.
        seed: u64,
    },
    /// Every token goes to the last child, so attention within leaves computes the same function as
    /// before. The weights are small and not 0, so that gradients tell them apart.
    Preserve {
        /// Seed of the weights.
        seed: u64,
        /// Standard deviation of the new logits' part that depends on a token of unit size.
        noise: f64,
        /// The last child's bias; the others' is 0.
        bias: f64,
    },
    /// Random weights, by the seed of the tree's configuration, and biases that split the samples
    /// which reach a leaf evenly, as [`RoutingTree::with_median_split`].
    MedianSplit {
        /// Tokens to split, `[batch, tokens, heads, dim]`, none of them masked.
        samples: Tensor<4>,
    },
}

impl Growth {
    /// [`Preserve`](Self::Preserve) with noise 1e-3 and bias 10.
    pub fn preserve(seed: u64) -> Self {
        Self::Preserve {
            seed,
            noise: 1e-3,
            bias: 10.0,
        }
    }
}

impl RoutingTree {
    /// The tree with one more level below its leaves. Leaf `l` becomes the parent of the `branching`
    /// leaves from `l * branching` on. The other levels' parameters stay as they are and keep their
    /// ids. Where the level above is frozen, so is the new one.
    ///
    /// A tree of height 0 has no parameters and grows on the device that it was initialised on.
    ///
    /// # Panics
    /// If `branching` is below 2, the number of nodes does not fit a `usize`, or the samples
    /// disagree with the tree.
    #[track_caller]
    pub fn grow(mut self, branching: usize, growth: &Growth) -> Self {
        let depth = self.height();
        check_factor(depth, branching);
        let shape = CompleteTree::new([self.shape.factors(), &[branching]].concat());
        let outputs = level::outputs(&shape, depth);
        let dims = [self.trees, outputs, self.dim];
        let mut bias = vec![0.0; self.trees * outputs];
        let weight = match growth {
            Growth::Random { seed } => random_weight(dims, level_seed(*seed, depth), 1.0),
            Growth::MedianSplit { .. } => random_weight(dims, level_seed(self.seed, depth), 1.0),
            Growth::Preserve {
                seed,
                noise,
                bias: last,
            } => {
                let per_node = outputs / shape.width(depth);
                bias.chunks_mut(per_node)
                    .for_each(|node| node[per_node - 1] = *last as f32);
                random_weight(dims, level_seed(*seed, depth), *noise)
            }
        };
        let device = match self.levels.first() {
            Some(level) => level.weight.val().device(),
            None => self.device.clone(),
        };
        let mut level = RoutingLevel::new(weight, bias, (branching, self.sides), &device);
        if self
            .levels
            .last()
            .is_some_and(|above| !above.weight.is_require_grad())
        {
            level = level.no_grad();
        }
        self.levels.push(level);
        self.shape = shape;
        match growth {
            Growth::MedianSplit { samples } => self.split_from("grow", samples.clone(), depth),
            _ => self,
        }
    }

    /// The tree with biases that split samples evenly, and without balance biases. Weights are
    /// kept: those of a new tree are random directions.
    ///
    /// From the root down, a hyperplane's bias is minus the median of the projections of the
    /// samples that reach its node: each child gets half of them, give or take one. The biases of a
    /// k-ary node are found by repeatedly setting that of the child farthest from its share to
    /// where exactly its share comes to it, a coordinate descent on the dual of the balanced
    /// assignment problem; shares are close to equal, not exactly equal. Nodes that no sample
    /// reaches get 0. Equal samples cannot be split. The samples are read back to the host, once
    /// per level.
    ///
    /// # Shapes
    /// - samples: `[batch, tokens, heads, dim]`, none of them masked
    ///
    /// # Panics
    /// If the axes disagree with the tree.
    #[track_caller]
    pub fn with_median_split(self, samples: Tensor<4>) -> Self {
        self.split_from("with_median_split", samples, 0)
    }

    /// Splits at the levels from `first` on.
    #[track_caller]
    fn split_from(mut self, operation: &str, samples: Tensor<4>, first: usize) -> Self {
        let samples = samples.without_autodiff();
        let (rows, _) = self.rows(operation, samples);
        let [trees, count, _] = rows.dims();
        // The node of each sample at the current depth.
        let mut nodes = vec![0usize; trees * count];
        let mut split = Vec::with_capacity(self.levels.len());
        for (depth, level) in std::mem::take(&mut self.levels).into_iter().enumerate() {
            let (width, branching) = (self.shape.width(depth), level.branching());
            let outputs = trees * level::outputs(&self.shape, depth);
            let per_node = outputs / (trees * width);
            let is_split = depth >= first;
            let mut biases = vec![0.0f32; outputs];
            let level = if is_split {
                level.with_bias(biases.clone())
            } else {
                level
            };
            let functions = level.functions(self.side).constant();
            let logits = functions.logits(rows.clone()).into_data();
            let logits: Vec<f32> = logits.iter::<f32>().collect();
            let at =
                |row: usize, node: usize| &logits[(row * width + node) * per_node..][..per_node];
            if is_split {
                for tree in 0..trees {
                    let mut members = vec![Vec::new(); width];
                    for row in tree * count..(tree + 1) * count {
                        members[nodes[row]].extend_from_slice(at(row, nodes[row]));
                    }
                    for (node, members) in members.into_iter().enumerate() {
                        let found = match branching {
                            2 => vec![median_bias(members)],
                            _ => equalising_biases(&members, branching),
                        };
                        biases[(tree * width + node) * per_node..][..per_node]
                            .copy_from_slice(&found);
                    }
                }
            }
            for (row, node) in nodes.iter_mut().enumerate() {
                let bias = &biases[(row / count * width + *node) * per_node..][..per_node];
                let biased = at(row, *node).iter().zip(bias).map(|(a, b)| a + b);
                let child = match branching {
                    2 => usize::from(biased.sum::<f32>() >= 0.0),
                    _ => largest(biased),
                };
                *node = *node * branching + child;
            }
            split.push(if is_split {
                level.with_bias(biases)
            } else {
                level
            });
        }
        self.levels = split;
        self
    }
}

/// # Panics
/// If the factor is below 2: a node with one child decides nothing.
#[track_caller]
pub(super) fn check_factor(level: usize, factor: usize) {
    assert!(
        factor >= 2,
        "routing_tree: branching factor of level {level}: expected at least 2, got {factor}"
    );
}

/// The seed of one level's weights, so that trees which differ in height share their upper levels.
pub(super) fn level_seed(seed: u64, depth: usize) -> u64 {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(depth as u64);
    rng.next_u64()
}

/// Draws from `N(0, scale²/dim)`, `[trees, outputs, dim]`: the projection of a token of unit size
/// has deviation `scale`.
pub(super) fn random_weight(dims: [usize; 3], seed: u64, scale: f64) -> TensorData {
    let deviation = scale / (dims[2] as f64).sqrt();
    let values: Vec<f32> = normal_draws(seed, dims.iter().product())
        .into_iter()
        .map(|draw| (deviation * draw) as f32)
        .collect();
    TensorData::new(values, dims)
}
