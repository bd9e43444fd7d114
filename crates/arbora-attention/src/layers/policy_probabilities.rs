//! Probabilities of the policy along a path.

use super::tree_cross_attention::TreeCrossAttention;
use super::tree_index::TreeIndex;
use crate::functions::check::{expect, expect_some};
use crate::functions::masked_attention::index_along;
use arbora_tree::tensors::at_least_single;
use burn::tensor::activation::softmax;
use burn::tensor::{Int, Tensor};

impl TreeCrossAttention {
    /// The probabilities that the policy gives to the children of the nodes on a path, at temperature
    /// 1: what a picture of a search shows beside the nodes. For inference: it repeats work of the
    /// search, on the nodes that the search read and on no others.
    ///
    /// # Shapes
    /// - queries: `[batch, queries, d_model]`
    /// - path: `[batch, queries, paths, decisions + 1]`, as a search returns it
    /// - returns `[batch, queries, paths, decisions, branching]`, the decision at the root first. Ghosts have
    ///   probability 0, and so has every child of a node that is itself a ghost. The others of a
    ///   decision sum to 1, also where only one child is real and nothing was decided.
    ///
    /// # Panics
    /// If axes disagree, the tree has no decision, or the index is of other weights (see
    /// [`TreeIndex::check`]).
    #[track_caller]
    pub fn policy_probabilities(
        &self,
        queries: Tensor<3>,
        index: &TreeIndex,
        path: Tensor<4, Int>,
    ) -> Tensor<5> {
        index.expect(&self.attention);
        let shape = &index.shape;
        let (decisions, branching) = (shape.decisions(), shape.branching());
        expect_some("policy_probabilities: decisions", decisions);
        let [batch, queries_each, _] = queries.dims();
        let [examples, nodes, ..] = index.key.dims();
        expect("policy_probabilities: axis 0 of queries", batch, examples);
        let paths = path.dims()[2];
        let expected = [batch, queries_each, paths, decisions + 1];
        expect("policy_probabilities: path", path.dims(), expected);
        // Paths of a query are those of queries side by side.
        let queries = self.attention.project_queries(queries).repeat(paths);
        let query = queries.query;
        let [_, count, heads, head_dim] = query.dims();
        let path = path.reshape([batch, count, decisions + 1]);

        let device = query.device();
        let group = [batch, count, branching];
        let slot = index_along(2, group, &device);
        let length = index.lengths.clone().reshape([batch, 1, 1]).expand(group);
        let first_node = index_along(0, group, &device) * nodes as i64;
        let (rows, ghosts): (Vec<_>, Vec<_>) = (0..decisions)
            .map(|depth| {
                // The children of the node at this depth.
                let height = decisions - depth;
                let parent = path.clone().narrow(2, depth, 1);
                let child = (parent * branching as i64).expand(group) + slot.clone();
                let ghost = (child.clone() * shape.span(height) as i64)
                    .greater_equal(length.clone())
                    .unsqueeze_dim::<4>(2);
                // Slots past the last stored node are ghosts; any stored node can stand in for them.
                let stored = child.clamp(0, shape.width(height) as i64 - 1);
                let row = stored + first_node.clone() + shape.offset(height) as i64;
                (row.unsqueeze_dim::<4>(2), ghost)
            })
            .unzip();

        let children = [batch, queries_each, paths, decisions, branching];
        let ghosts = Tensor::cat(ghosts, 2); // [batch, queries · paths, decisions, branching]
        let rows = Tensor::cat(rows, 2).reshape([batch * count * decisions * branching]);
        let key = index.key.clone();
        let key = key
            .reshape([batch * nodes, heads * head_dim])
            .select(0, rows)
            .reshape([batch * count, decisions * branching, heads, head_dim])
            .swap_dims(1, 2); // [batch · queries, heads, children, head_dim]
        let query = query.reshape([batch * count, heads, head_dim, 1]);
        let logits = key.matmul(query) * (head_dim as f64).powf(-0.5);
        let all = [batch * count, heads, decisions, branching];
        let hidden = ghosts.clone();
        let hidden = hidden.reshape([batch * count, 1, decisions, branching]);
        let logits = at_least_single(logits).reshape(all);
        let logits = logits.mask_fill(hidden.expand(all), f32::MIN);
        // Where all children are ghosts the softmax gives each a share, which the mask takes back.
        softmax(logits, 3)
            .mean_dim(1)
            .reshape(children)
            .mask_fill(ghosts.reshape(children), 0.0)
    }
}
