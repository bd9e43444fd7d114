//! The auxiliary loss that draws routes towards dense attention.

use super::router::Router;
use crate::functions::masked_attention::{
    by_head, fill_hidden, hidden_pairs, one_hot, repeat_each, softmax_of_visible,
};
use crate::functions::{head_leaves, tree_input};
use arbora_tree::routing::{Routing, RoutingTree, Surrogate};
use burn::tensor::activation::log_softmax;
use burn::tensor::{Bool, FloatDType, Int, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Below it a share counts as none.
const SMALLEST: f64 = 1e-12;

impl Router {
    /// Kullback-Leibler divergence from where dense attention looks to where rows may be routed, the
    /// mean over drawn rows and heads, for queries plus for keys:
    ///
    /// ```text
    /// KL(a_i || p_i),  a_il = dense attention of query i to the keys of leaf l
    /// KL(b_j || p_j),  b_jl = share of leaf l's queries in the attention that key j gets
    /// ```
    ///
    /// `p` is the softmax of margin scores over all leaves. The layer's own queries and keys make the dense attention, as
    /// constants: the loss trains the trees alone. Only drawn queries count in `b`; padded rows, and keys that no drawn query
    /// sees, count nothing. Without a row that counts the loss is 0. The indexer of DeepSeek-V3.2 is warmed up by the same
    /// divergence.
    ///
    /// - rows, masks: as [`report`](Self::report) takes them
    /// - (causal, temperature)
    /// - (number of rows, seed)
    #[track_caller]
    pub(super) fn alignment_loss(
        &self,
        (query, key): (Tensor<4>, Tensor<4>),
        [query_mask, key_mask]: [Option<Tensor<2, Bool>>; 2],
        routes: (&Routing, &Routing),
        (causal, temperature): (Option<usize>, f64),
        (rows, seed): (usize, Option<u64>),
    ) -> Tensor<1> {
        let (query, key) = (query.without_autodiff(), key.without_autodiff());
        let [batch, queries, heads, head_dim] = query.dims();
        let [_, keys, kv_heads, _] = key.dims();
        let group = heads / kv_heads;
        let device = query.device();
        let leaves = self.query.leaves();

        let mut random = seed.map(|seed| {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            // A stream of its own: the same seed drops weights.
            random.set_stream(1);
            random
        });
        let drawn_queries = draw(rows, queries, &mut random);
        let drawn_keys = draw(rows, keys, &mut random);
        let pick_queries = Tensor::<1, Int>::from_data(drawn_queries.as_slice(), &device);
        let pick_keys = Tensor::<1, Int>::from_data(drawn_keys.as_slice(), &device);

        let last = causal.map(|offset| pick_queries.clone().add_scalar(offset as i64));
        let hidden = hidden_pairs(keys, key_mask.as_ref(), last);
        let single = |rows: Tensor<4>| rows.cast(FloatDType::F32);
        let asked = single(query.clone().select(1, pick_queries.clone()));
        let logits = (by_head(asked) * (head_dim as f64).powf(-0.5))
            .matmul(by_head(repeat_each(single(key.clone()), group)).swap_dims(2, 3));
        let masked_queries = query_mask.map(|mask| {
            let mask = mask.select(1, pick_queries.clone());
            mask.reshape([batch, 1, drawn_queries.len(), 1])
        });
        // [batch, heads, drawn, keys]
        let weights = fill_hidden(softmax_of_visible(logits, hidden), &masked_queries, 0.0);

        let key_leaf = repeat_each(head_leaves(routes.1, kv_heads).unsqueeze_dim::<4>(3), group);
        let key_leaf = key_leaf.reshape([batch, keys, heads]);
        let of_queries = by_head(mass_by_leaf(weights.clone(), &key_leaf, leaves));

        let query_leaf = head_leaves(routes.0, heads).select(1, pick_queries.clone());
        let got = weights.select(3, pick_keys.clone()).swap_dims(2, 3);
        let of_keys = mass_by_leaf(got, &query_leaf, leaves); // [batch, heads, drawn keys, leaves]
        let of_keys = of_keys
            .reshape([batch, kv_heads, group, drawn_keys.len() * leaves])
            .sum_dim(2)
            .reshape([batch, kv_heads, drawn_keys.len(), leaves]);

        let loss = |tree: &RoutingTree, rows: Tensor<4>, mass: Tensor<4>| {
            let surrogate = Surrogate::Soft { temperature };
            let mut scores = tree.node_scores(tree_input(rows, tree), None, &surrogate);
            let leaves = scores.swap_remove(tree.height());
            divergence(mass, log_softmax(leaves / temperature, 3))
        };
        loss(&self.query, query.select(1, pick_queries), of_queries)
            + loss(&self.key_tree(), key.select(1, pick_keys), by_head(of_keys))
    }
}

/// Sums attention over the rows of each leaf; rows without a leaf count nothing.
///
/// It is a product with indicators, because a scatter to few leaves adds in another order at every call
/// on a GPU.
///
/// - weights: `[batch, heads, rows, others]`
/// - leaf: of the others, `[batch, others, heads]`
/// - returns `[batch, heads, rows, leaves]`
fn mass_by_leaf(weights: Tensor<4>, leaf: &Tensor<3, Int>, leaves: usize) -> Tensor<4> {
    weights.matmul(by_head(one_hot(leaf, leaves)))
}

/// Mean over rows with mass and over heads of `KL(mass / total || exp(log_probability))`.
///
/// - mass: `[batch, rows, heads, leaves]`, constant
/// - log_probability: `[batch, rows, heads or 1, leaves]`
fn divergence(mass: Tensor<4>, log_probability: Tensor<4>) -> Tensor<1> {
    let total = mass.clone().sum_dim(3); // [batch, rows, heads, 1]
    let counts = total.clone().greater_elem(SMALLEST).cast(FloatDType::F32);
    let share = mass / total.clamp_min(SMALLEST);
    // x log x is 0 at 0.
    let entropy = share.clone() * share.clone().clamp_min(SMALLEST).log();
    let each = (entropy - share * log_probability).sum_dim(3) * counts.clone();
    each.sum() / counts.sum().clamp_min(1.0)
}

/// Distinct rows of `count` in order, drawn on the host; all of them where no more than `rows`.
#[track_caller]
fn draw(rows: usize, count: usize, random: &mut Option<ChaCha8Rng>) -> Vec<i64> {
    let mut drawn: Vec<i64> = (0..count as i64).collect();
    if rows >= count {
        return drawn;
    }
    let random = random.as_mut().unwrap_or_else(|| {
        panic!(
            "self_attention: seed: alignment to {rows} of {count} rows on an autodiff device needs one per call, see with_seed"
        )
    });
    // The first places of a shuffle.
    for place in 0..rows {
        drawn.swap(place, random.random_range(place..count));
    }
    drawn.truncate(rows);
    drawn.sort_unstable();
    drawn
}
