//! The mask of indicators, relaxed: every pair of a query and a key.

use super::{Call, LeafAttentionOutput, nothing_but_gradient};
use crate::functions::masked_attention::{
    by_head, fill_hidden, hidden_pairs, last_keys, one_hot, repeat_each, softmax_of_visible,
    without_absent,
};
use arbora_tree::routing::{RoutingTree, Surrogate};
use burn::tensor::{Bool, FloatDType, Int, Tensor};

/// Products and quotients stay finite in single precision, in the backward pass too.
const SMALLEST: f64 = 1e-18;

impl Call<'_> {
    /// Attention within leaves, with the straight-through gradient of all indicators.
    pub(super) fn dense_gradient(self, surrogate: &Surrogate) -> LeafAttentionOutput {
        let found = self.hard();
        if self.queries.leaves() == 1 {
            return found;
        }
        let (query, key) = self.probabilities(surrogate);
        let indicators = |leaf: &Tensor<3, Int>, probability: Tensor<4>| {
            one_hot(leaf, probability.dims()[3]) + nothing_but_gradient(probability)
        };
        let query = indicators(&self.query_leaf, query);
        let key = indicators(&self.key_leaf, key);

        let (logits, hidden) = self.scores();
        let logits = logits.without_autodiff();
        // The maximum over all keys, not those of the leaf: pairs of other leaves must not overflow.
        let greatest = fill_hidden(logits.clone(), &hidden, -1e30).max_dim(3);
        let weights = (logits - greatest).clamp_max(0.0).exp();
        let weights = fill_hidden(weights, &hidden, 0.0);
        let weights = self.shared(query, key) * weights; // [batch, heads, queries, keys]
        let group = self.input.query.dims()[2] / self.input.key.dims()[2];
        let value = self.input.value.clone().without_autodiff();
        let value = by_head(repeat_each(value.cast(FloatDType::F32), group));
        let total = weights.clone().sum_dim(3);
        let none = total.clone().without_autodiff().lower_elem(SMALLEST);
        let relaxed = weights.matmul(value) / total.mask_fill(none.clone(), 1.0);
        let none = none.expand(relaxed.dims());
        let relaxed = by_head(relaxed.mask_fill(none, 0.0));
        let gradient = nothing_but_gradient(relaxed).cast(found.context.dtype());
        LeafAttentionOutput {
            context: found.context + gradient,
            ..found
        }
    }

    /// Attention to all keys, weighted by the probability of a common leaf.
    #[track_caller]
    pub(super) fn soft(self, surrogate: &Surrogate) -> LeafAttentionOutput {
        let rate = self.within.options.dropout.map_or(0.0, |it| it.rate);
        assert!(
            rate == 0.0,
            "tree_fine: dropout: expected a rate of 0 with the soft surrogate, got {rate}"
        );
        let (query, key) = self.probabilities(surrogate);
        let (logits, hidden) = self.scores();
        let shared = self.shared(query, key).clamp_min(1e-30);
        let weights = softmax_of_visible(logits + shared.log(), hidden);
        let group = self.input.query.dims()[2] / self.input.key.dims()[2];
        let value = by_head(repeat_each(self.input.value.clone(), group));
        let context = by_head(weights.cast(value.dtype()).matmul(value));
        // Of the hard routes, as without gradients.
        let lse = self
            .within
            .attend(self.routed_rows().without_autodiff())
            .lse;
        LeafAttentionOutput {
            context: without_absent(context, self.query_leaf),
            lse,
        }
    }

    /// Of the leaves, for queries and keys: `[batch, rows, heads or 1, leaves]`.
    fn probabilities(&self, surrogate: &Surrogate) -> (Tensor<4>, Tensor<4>) {
        let of = |tree: &RoutingTree, rows: &Tensor<4>, padding: &Option<Tensor<2, Bool>>| {
            tree.leaf_probabilities(rows.clone(), padding.clone(), surrogate)
        };
        (
            of(self.queries, &self.query_rows, &self.input.query_padding),
            of(self.keys, &self.key_rows, &self.input.key_padding),
        )
    }

    /// `M`, how far query and key share a leaf: `[batch, heads, queries, keys]`.
    fn shared(&self, query: Tensor<4>, key: Tensor<4>) -> Tensor<4> {
        let heads = self.input.query.dims()[2];
        let spread = |rows: Tensor<4>| {
            let now = rows.dims()[2];
            by_head(repeat_each(rows, heads / now))
        };
        spread(query).matmul(spread(key).swap_dims(2, 3))
    }

    /// The logits of all pairs, `[batch, heads, queries, keys]` in single precision, and those that a
    /// query does not see.
    fn scores(&self) -> (Tensor<4>, Option<Tensor<4, Bool>>) {
        let [_, queries, heads, head_dim] = self.input.query.dims();
        let [_, keys, kv_heads, _] = self.input.key.dims();
        let options = self.within.options;
        let single = |rows: &Tensor<4>| rows.clone().cast(FloatDType::F32);
        let query = by_head(single(&self.input.query)) * options.scale(head_dim);
        let key = by_head(repeat_each(single(&self.input.key), heads / kv_heads));
        let last = options
            .causal
            .map(|offset| last_keys(queries, offset, &self.query_leaf.device()));
        let hidden = hidden_pairs(keys, self.input.key_padding.as_ref(), last);
        (query.matmul(key.swap_dims(2, 3)), hidden)
    }
}
