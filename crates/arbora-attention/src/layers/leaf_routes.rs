//! Routes that follow dense attention to the leaves.

use super::pre_norm_attention::ProjectedQueries;
use super::tree_cross_attention::TreeCrossAttention;
use super::tree_index::TreeIndex;
use crate::functions::check::expect;
use arbora_tree::tensors::at_least_single;
use arbora_tree::token::paths_to_leaves;
use burn::tensor::activation::softmax;
use burn::tensor::{Int, Tensor};

impl TreeCrossAttention {
    /// Draws a leaf for every query from its own attention to all leaves (the mean over heads), and
    /// returns the path that leads there, for [`Route::Given`](crate::Route::Given).
    ///
    /// The log-probability that the policy gives to such paths is, in expectation, its negative
    /// cross-entropy against dense attention: raising it teaches the policy to walk where dense
    /// attention with the same weights would have looked. Reads every leaf, carries no gradient.
    ///
    /// # Shapes
    /// - queries: `[batch, queries, …]`, projected by [`attention`](Self::attention)
    /// - uniforms: `[batch, queries]`, uniform in `0.0..1.0`
    /// - returns `[batch, queries, 1, decisions + 1]`; an example without tokens gets the leftmost path
    ///
    /// # Panics
    /// If `uniforms` has another shape, the index has another batch, or is of other weights.
    #[track_caller]
    pub fn leaf_routes(
        &self,
        queries: &ProjectedQueries,
        index: &TreeIndex,
        uniforms: Tensor<2>,
    ) -> Tensor<4, Int> {
        index.expect(&self.attention);
        let [batch, count, heads, head_dim] = queries.query.dims();
        expect("leaf_routes: uniforms", uniforms.dims(), [batch, count]);
        let uniforms = uniforms.without_autodiff();
        let [_, nodes, ..] = index.key.dims();
        let first = index.shape.offset(0);
        let leaves = nodes - first;
        let query = queries.query.clone().without_autodiff();
        let query = query.swap_dims(1, 2); // [batch, heads, queries, head_dim]
        let key = index.key.clone().without_autodiff();
        let key = key.narrow(1, first, leaves);
        let key = key.swap_dims(1, 2).swap_dims(2, 3); // [batch, heads, head_dim, leaves]
        let ghosts = index
            .leaf_mask()
            .reshape([batch, 1, 1, leaves])
            .expand([batch, heads, count, leaves]);
        let logits = query.matmul(key) * (head_dim as f64).powf(-0.5);
        let attention = softmax(at_least_single(logits).mask_fill(ghosts, f32::MIN), 3)
            .mean_dim(1)
            .squeeze_dim::<3>(1); // [batch, queries, leaves]

        // Inverts the cumulative distribution. Ghosts have no mass and lie behind the real leaves.
        let cumulative = attention.cumsum(2);
        let whole = cumulative.clone().narrow(2, leaves - 1, 1);
        let cut = uniforms.cast(whole.dtype()).unsqueeze_dim::<3>(2) * whole;
        let leaf = cumulative.lower_equal(cut).int().sum_dim(2); // [batch, queries, 1]
        let last = index.lengths.clone().sub_scalar(1).clamp_min(0);
        let last = last.reshape([batch, 1, 1]).expand([batch, count, 1]);
        let leaf = leaf.min_pair(last);

        paths_to_leaves(&index.shape, leaf.squeeze_dim(2)).unsqueeze_dim(2)
    }
}
