//! Which node of each depth a key is in, as zeros and ones.

use crate::functions::check::expect;
use crate::functions::masked_attention::one_hot;
use arbora_tree::CompleteTree;
use burn::tensor::{DType, Int, Tensor};

/// Which nodes a token passes, `[batch, tokens, heads, nodes]` with the nodes in level order: 1 along its path and
/// 0 elsewhere, or a relaxation of that. All 0 for a masked token.
#[derive(Clone, Debug)]
pub struct NodeIndicators {
    nodes: Tensor<4>,
    tree: CompleteTree,
}

impl NodeIndicators {
    /// Given indicators, `[batch, tokens, heads, nodes]`.
    ///
    /// # Panics
    /// If axis 3 is not the number of nodes.
    #[track_caller]
    pub fn new(nodes: Tensor<4>, tree: &CompleteTree) -> Self {
        let (got, tree) = (nodes.dims()[3], tree.clone());
        expect("node_indicators: axis 3 of nodes", got, tree.nodes());
        Self { nodes, tree }
    }

    /// The nodes above each leaf of `[batch, tokens, heads]`; none for a negative leaf.
    pub fn of_leaves(leaves: Tensor<3, Int>, tree: &CompleteTree) -> Self {
        // Counts in half precision would be inexact beyond 2048.
        let mut depths = vec![one_hot(&leaves, tree.leaves()).cast(DType::F32)];
        for depth in (0..tree.height()).rev() {
            let children = depths[depths.len() - 1].clone();
            depths.push(children_summed(children, tree.branching(depth)));
        }
        depths.reverse();
        Self::new(Tensor::cat(depths, 3), tree)
    }

    /// The same indicators forward; backward, the given probabilities (a straight-through estimator, Treeformer
    /// section 3.3). The root, where every token is, gets no gradient.
    ///
    /// # Shapes
    /// - probabilities: one `[batch, tokens, heads, nodes of the depth]` per depth, root first, as
    ///   [`RoutingTree::node_probabilities`](arbora_tree::RoutingTree::node_probabilities) gives them
    ///
    /// # Panics
    /// If a depth is missing or an axis disagrees.
    #[must_use]
    #[track_caller]
    pub fn straight_through(self, probabilities: &[Tensor<4>]) -> Self {
        let soft = self.soft(probabilities).nodes;
        // The difference is exactly zero, so the forward value stays exactly hard.
        let zero = soft.clone() - soft.detach();
        Self {
            nodes: self.nodes + zero,
            ..self
        }
    }

    /// The given probabilities, forward and backward; 0 for masked tokens. Shapes and panics as
    /// [`straight_through`](Self::straight_through).
    #[must_use]
    #[track_caller]
    pub fn soft(&self, probabilities: &[Tensor<4>]) -> Self {
        let depths = self.tree.height() + 1;
        expect(
            "node_indicators: depths of probabilities",
            probabilities.len(),
            depths,
        );
        let [batch, tokens, heads, _] = self.nodes.dims();
        let is_unmasked = self.nodes.clone().narrow(3, 0, 1);
        let depths = probabilities.iter().enumerate().map(|(depth, nodes)| {
            let expected = [batch, tokens, heads, self.tree.width(depth)];
            let what = format!("node_indicators: probabilities of depth {depth}");
            expect(&what, nodes.dims(), expected);
            match depth {
                0 => is_unmasked.clone(),
                _ => nodes.clone().cast(is_unmasked.dtype()) * is_unmasked.clone(),
            }
        });
        Self {
            nodes: Tensor::cat(depths.collect(), 3),
            tree: self.tree.clone(),
        }
    }

    /// `[batch, tokens, heads, nodes]`
    pub fn nodes(&self) -> &Tensor<4> {
        &self.nodes
    }

    /// `[batch, tokens, heads, nodes]`
    pub fn into_nodes(self) -> Tensor<4> {
        self.nodes
    }

    /// The tree whose nodes these are.
    pub fn tree(&self) -> &CompleteTree {
        &self.tree
    }
}

/// `[.., children]` -> `[.., parents]`, the sum over the `branching` children of each.
pub(super) fn children_summed(children: Tensor<4>, branching: usize) -> Tensor<4> {
    let [batch, tokens, heads, count] = children.dims();
    let parents = count / branching;
    children
        .reshape([batch, tokens, heads, parents, branching])
        .sum_dim(4)
        .reshape([batch, tokens, heads, parents])
}
