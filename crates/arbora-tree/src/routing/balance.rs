//! How evenly tokens spread over leaves, and what pulls them apart.

use super::{Routing, RoutingTree, Surrogate};
use crate::tensors::{expect_equal, single};
use burn::tensor::{FloatDType, IndexingUpdateOp, Int, Tensor};

/// How many queries and keys each leaf has, in single precision. Masked tokens are not counted.
///
/// Counts are exact up to 2^24 tokens.
#[derive(Clone, Debug)]
pub struct LeafCounts {
    /// `[batch, trees, leaves]`; the heads of a tree are summed.
    pub queries: Tensor<3>,
    /// `[batch, trees, leaves]`
    pub keys: Tensor<3>,
}

impl LeafCounts {
    /// Counts the leaves of two routings, which may be the same one.
    ///
    /// # Panics
    /// If they differ in batch, number of trees or leaves.
    #[track_caller]
    pub fn new(queries: &Routing, keys: &Routing) -> Self {
        let (queries, keys) = (leaf_counts(queries), leaf_counts(keys));
        expect_equal(
            "leaf_counts: batch, trees and leaves of keys",
            queries.dims(),
            keys.dims(),
        );
        Self { queries, keys }
    }

    /// The share of all query-key pairs that meet in a leaf, `Σ_l nq_l nk_l / (nq nk)`, `[batch,
    /// trees]`: the cost of attention within leaves relative to dense attention. `1 / leaves` when
    /// all leaves are equally full, 1 when one leaf has everything. 0 where there is no query or no
    /// key.
    ///
    /// What is saved are pairs, wanted or not. A ratio below `1 / leaves` says that queries and keys are
    /// in different leaves: look at [`queries_without_key`](Self::queries_without_key) beside it.
    pub fn cost_ratio(&self) -> Tensor<2> {
        let (meet, all) = self.pairs();
        meet / all.clamp_min(1.0)
    }

    /// `1 / cost_ratio`, `[batch, trees]`: how many equally full leaves would cost the same. 0
    /// where there is no query or no key. Infinite where there are both and no leaf has both. More than there are leaves
    /// is no balance, but queries and keys in different leaves.
    pub fn effective_leaves(&self) -> Tensor<2> {
        let (meet, all) = self.pairs();
        let (apart, none) = (meet.clone().equal_elem(0.0), all.clone().equal_elem(0.0));
        (all / meet.clamp_min(1.0))
            .mask_fill(apart, f32::INFINITY)
            .mask_fill(none, 0.0)
    }

    /// The share of queries in leaves without a key, `[batch, trees]`; 0 where there is no query. Attention within leaves has
    /// nothing to give them, and they meet no pair: [`cost_ratio`](Self::cost_ratio) takes their loss for a saving.
    pub fn queries_without_key(&self) -> Tensor<2> {
        share_where_none(&self.queries, &self.keys)
    }

    /// The share of keys in leaves without a query, `[batch, trees]`; 0 where there is no key. Nobody reads them.
    pub fn keys_without_query(&self) -> Tensor<2> {
        share_where_none(&self.keys, &self.queries)
    }

    /// Pairs in common leaves, and all pairs: `[batch, trees]` each.
    fn pairs(&self) -> (Tensor<2>, Tensor<2>) {
        let meet = (self.queries.clone() * self.keys.clone()).sum_dim(2);
        let all = self.queries.clone().sum_dim(2) * self.keys.clone().sum_dim(2);
        (meet.squeeze_dim(2), all.squeeze_dim(2))
    }
}

/// The share of tokens in leaves where the others are none, `[batch, trees]`.
fn share_where_none(tokens: &Tensor<3>, others: &Tensor<3>) -> Tensor<2> {
    let met = others.clone().greater_elem(0.0);
    let alone = tokens.clone().mask_fill(met, 0.0).sum_dim(2);
    (alone / tokens.clone().sum_dim(2).clamp_min(1.0)).squeeze_dim(2)
}

/// Tokens per leaf, `[batch, trees, leaves]`.
fn leaf_counts(routing: &Routing) -> Tensor<3> {
    let heads = routing.heads();
    let (batch, tokens) = (heads.batch, heads.tokens);
    let (trees, group) = (heads.trees, heads.group());
    let leaves = routing
        .leaves()
        .reshape([batch, tokens, trees, group])
        .swap_dims(1, 2) // [batch, trees, tokens, group]
        .reshape([batch, trees, tokens * group]);
    let counted = leaves.clone().greater_equal_elem(0).cast(FloatDType::F32);
    let zeros = Tensor::zeros(
        [batch, trees, routing.shape().leaves()],
        single(&leaves.device()),
    );
    // Whole numbers: their sum does not depend on the order.
    zeros.scatter(2, leaves.clamp_min(0), counted, IndexingUpdateOp::Add)
}

/// Tokens per child of every node of a depth, the nodes of all examples side by side.
///
/// - counts: `[trees, examples, leaves]`
/// - returns `[trees, examples * nodes, branching]`
fn child_counts(counts: Tensor<3>, routing: &Routing, depth: usize) -> Tensor<3> {
    let [trees, examples, leaves] = counts.dims();
    let shape = routing.shape();
    let children = shape.width(depth + 1);
    counts
        .reshape([trees, examples * children, leaves / children])
        .sum_dim(2)
        .reshape([trees, examples * shape.width(depth), shape.branching(depth)])
}

impl RoutingTree {
    /// An auxiliary loss against skewed decisions: for every node of every example `branching · Σ_c f_c P_c`,
    /// where `f_c` is the share of the example's tokens at the node that go to child `c` and `P_c` their mean
    /// probability of `c` given the node: the softmax over its children of what the surrogate adds
    /// to their scores, over the temperature.
    ///
    /// It is the load-balancing loss of Switch Transformers (arXiv 2101.03961, section 2.2) at every
    /// node, and within each example: tokens attend within one, so leaves that are even over a batch are of no use where
    /// the keys of an example are all in one of them. Nodes of a depth are weighted by the share of the tokens that reach
    /// them, then depths and trees are averaged. The loss is 1 where all children are equally likely, and the
    /// branching factor where every token surely goes to one child. The shares carry no gradient.
    /// Heads of a tree are pooled; masked tokens count nothing. A tree of height 0 has
    /// loss 1, and so has a tree without unmasked tokens; both without gradient.
    ///
    /// Only nodes on the path of a token are evaluated. [`Surrogate::DenseGradient`] without a scale
    /// needs the outputs of all nodes for its mean size besides, without gradient.
    ///
    /// # Shapes
    /// - x: `[batch, tokens, heads, dim]`
    /// - routing: of the same tokens by these trees, with [`NO_LEAF`](super::NO_LEAF) for those that
    ///   are masked
    /// - returns `[1]`
    ///
    /// # Panics
    /// If an axis is 0 or disagrees with the tree, the routing is of other trees or other tokens, or a
    /// number of the surrogate is out of its range.
    #[track_caller]
    pub fn balance_loss(
        &self,
        x: Tensor<4>,
        routing: &Routing,
        surrogate: &Surrogate,
    ) -> Tensor<1> {
        self.check_routing("balance_loss", routing);
        let (rows, heads) = self.rows("balance_loss", x);
        let expected = [heads.batch, heads.tokens, heads.heads];
        let [batch, tokens, routed, _] = routing.path.dims();
        expect_equal(
            "balance_loss: routing [batch, tokens, heads]",
            expected,
            [batch, tokens, routed],
        );
        let path = heads.to_rows(routing.path.clone()); // [trees, rows, height + 1]
        let device = path.device();
        if self.height() == 0 {
            return Tensor::ones([1], single(&device));
        }
        let counts = leaf_counts(routing).swap_dims(0, 1); // [trees, batch, leaves]
        let tokens = counts.clone().sum_dim(2).sum_dim(1).squeeze_dim::<2>(2); // [trees, 1]
        let keep = path.clone().narrow(2, 0, 1).greater_equal_elem(0);
        let keep = keep.cast(FloatDType::F32);
        let path = path.clamp_min(0);
        let [trees, count, _] = path.dims();
        // Which example each row is of.
        let example = Tensor::<1, Int>::arange(0..heads.batch as i64, (&device, path.dtype()))
            .reshape([1, heads.batch, 1])
            .expand([trees, heads.batch, count / heads.batch])
            .reshape([trees, count, 1]);

        let mut total = Tensor::<2>::zeros([trees, 1], single(&device));
        let probabilities = self.child_probabilities(rows, &path, &keep, surrogate);
        for (depth, given_node) in probabilities.into_iter().enumerate() {
            let [_, _, _, branching] = given_node.dims();
            // The nodes of all examples side by side.
            let first = example.clone() * self.shape.width(depth) as i64;
            let index = path.clone().narrow(2, depth, 1) + first;
            let index = index.expand([trees, count, branching]);
            let counts = child_counts(counts.clone(), routing, depth);
            // [trees, batch * nodes, branching]
            let shares = counts.clone() / counts.sum_dim(2).clamp_min(1.0);
            let shares = shares.gather(1, index); // [trees, rows, branching]
            let per_row = (shares * given_node.squeeze_dim::<3>(2)).sum_dim(2);
            let sum = (per_row * keep.clone()).sum_dim(1).squeeze_dim::<2>(2); // [trees, 1]
            total = total + sum * branching as f32;
        }
        let mean = total / tokens.clone().clamp_min(1.0) / self.height() as f32;
        mean.mask_fill(tokens.equal_elem(0.0), 1.0).mean()
    }

    /// Moves the balance biases one step against the skew of given routings: by `balance_rate` down
    /// for a child with more tokens than the mean of its siblings, up for one with fewer. The
    /// hyperplane of a binary node moves by `balance_rate` towards the side with fewer tokens. Children whose tokens are within
    /// the configuration's `balance_slack` of their share keep their biases. The loss is untouched (auxiliary-loss-free balancing, arXiv 2408.15664, there for experts).
    ///
    /// Tokens of all routings are pooled, over batch and heads of a tree. Biases of the other [sides](Self::side) stay as
    /// they are. Masked tokens count nothing. Nothing happens where `balance_rate` is 0 or
    /// `routings` is empty. To be called once per training step; the state is shared by clones of
    /// the module.
    ///
    /// # Panics
    /// If a routing is of other trees.
    #[track_caller]
    pub fn track_balance(&self, routings: &[&Routing]) {
        for routing in routings {
            self.check_routing("track_balance", routing);
        }
        let Some(first) = routings.first() else {
            return;
        };
        if self.balance_rate == 0.0 {
            return;
        }
        let counts = routings
            .iter()
            .map(|routing| leaf_counts(routing).sum_dim(0).swap_dims(0, 1)) // [trees, 1, leaves]
            .reduce(|sum, counts| sum + counts)
            .expect("there is a first routing");
        for (depth, level) in self.levels.iter().enumerate() {
            let counts = child_counts(counts.clone(), first, depth);
            let [trees, nodes, branching] = counts.dims();
            let fair = counts.clone().mean_dim(2);
            let mut excess = counts - fair.clone();
            let slack = fair.expand(excess.dims()) * self.balance_slack;
            let within = excess.clone().abs().lower_equal(slack);
            excess = excess.mask_fill(within, 0.0);
            if branching == 2 {
                // One hyperplane: what is too many on the right is too few on the left.
                excess = excess.narrow(2, 1, 1);
            }
            let outputs = excess.dims()[2] * nodes;
            let step = excess.sign().reshape([trees, outputs]) * self.balance_rate;
            level.move_balance(self.side, step);
        }
    }

    #[track_caller]
    fn check_routing(&self, operation: &str, routing: &Routing) {
        assert!(
            routing.shape() == &self.shape && routing.trees() == self.trees,
            "{operation}: routing: expected {} trees {:?}, got {} trees {:?}",
            self.trees,
            self.shape.factors(),
            routing.trees(),
            routing.shape().factors()
        );
    }
}
