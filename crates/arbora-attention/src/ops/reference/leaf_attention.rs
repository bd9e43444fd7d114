//! Leaf attention by its definition, and the gradient of candidate keys.

use super::softmax;
use crate::ops::primitive::{Float, Integer, Mask};
use crate::ops::{
    AttentionOutput, CandidateInputs, Dropout, LeafAttentionInputs, LeafAttentionOptions,
};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::TensorData;

/// Sizes, and the way to matrices with one row per query of a group of heads that share keys.
#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    queries: usize,
    heads: usize,
    keys: usize,
    kv_heads: usize,
}

impl Sizes {
    fn new<B: Backend>(query: &FloatTensor<B>, key: &FloatTensor<B>) -> Self {
        let [batch, queries, heads, _] = query.shape().dims();
        let [_, keys, kv_heads, _] = key.shape().dims();
        Self {
            batch,
            queries,
            heads,
            keys,
            kv_heads,
        }
    }

    fn is_empty(&self) -> bool {
        self.batch * self.queries * self.heads * self.keys == 0
    }

    /// Rows of one matrix.
    fn rows(&self) -> usize {
        self.heads / self.kv_heads * self.queries
    }

    /// `[batch, queries, heads, width]` -> `[batch, kv_heads, rows, width]`
    fn group<B: Backend>(&self, rows: Float<B>) -> Float<B> {
        let [_, _, _, width] = rows.dims();
        rows.swap_dims(1, 2)
            .reshape([self.batch, self.kv_heads, self.rows(), width])
    }

    /// `[batch, kv_heads, rows, width]` -> `[batch, queries, heads, width]`
    fn ungroup<B: Backend>(&self, rows: Float<B>) -> Float<B> {
        let [_, _, _, width] = rows.dims();
        rows.reshape([self.batch, self.heads, self.queries, width])
            .swap_dims(1, 2)
    }

    /// One number per query and head, in every column of a matrix.
    fn per_row<B: Backend>(&self, leaf: Integer<B>) -> Integer<B> {
        leaf.swap_dims(1, 2)
            .reshape([self.batch, self.kv_heads, self.rows(), 1])
            .expand([self.batch, self.kv_heads, self.rows(), self.keys])
    }

    /// One number per key and head, in every row of a matrix.
    fn per_key<B: Backend>(&self, leaf: Integer<B>) -> Integer<B> {
        leaf.swap_dims(1, 2)
            .reshape([self.batch, self.kv_heads, 1, self.keys])
            .expand([self.batch, self.kv_heads, self.rows(), self.keys])
    }

    /// Which query sees which key, `[batch, kv_heads, rows, keys]`.
    fn seen<B: Backend>(
        &self,
        query_leaf: IntTensor<B>,
        key_leaf: IntTensor<B>,
        options: &LeafAttentionOptions,
    ) -> Mask<B> {
        let (query_leaf, key_leaf) = (Integer::<B>(query_leaf), Integer::<B>(key_leaf));
        let key_leaf = key_leaf.cast_like(&query_leaf);
        // The leaf is that of the query, so one of the two need not be looked at.
        let is_unmasked = query_leaf
            .clone()
            .above(-1)
            .and(query_leaf.clone().above(options.leaves as i64 - 1).not());
        let is_unmasked = self.per_row(is_unmasked.integer(&query_leaf)).above(0);
        let seen = self
            .per_row(query_leaf.clone())
            .equal(self.per_key(key_leaf))
            .and(is_unmasked);
        let Some(offset) = options.causal else {
            return seen;
        };
        let query_at = Integer::arange(self.queries, &query_leaf)
            .plus(offset.min(self.keys) as i64)
            .reshape([1, self.queries, 1])
            .expand([self.batch, self.queries, self.heads]);
        let key_at = Integer::arange(self.keys, &query_leaf)
            .reshape([1, self.keys, 1])
            .expand([self.batch, self.keys, self.kv_heads]);
        seen.and(self.per_row(query_at).below(self.per_key(key_at)).not())
    }

    /// Factors of the weights: 0 for a pair that is dropped.
    fn dropped<B: Backend>(&self, dropout: Dropout, like: &Float<B>) -> Float<B> {
        let mut factors = Vec::with_capacity(self.batch * self.heads * self.queries * self.keys);
        for example in 0..self.batch {
            for head in 0..self.heads {
                for query in 0..self.queries {
                    factors.extend((0..self.keys).map(|key| {
                        if dropout.keeps(example, head, query, key) {
                            dropout.factor() as f32
                        } else {
                            0.0
                        }
                    }));
                }
            }
        }
        let data = TensorData::new(factors, [self.batch, self.kv_heads, self.rows(), self.keys]);
        Float(B::float_from_data(
            data.convert_dtype(like.dtype()),
            &like.0.device(),
        ))
    }
}

/// Reference of [`TreeAttentionOps::leaf_attention`](crate::ops::TreeAttentionOps::leaf_attention).
pub fn leaf_attention<B: Backend>(
    inputs: LeafAttentionInputs<B>,
    options: LeafAttentionOptions,
) -> AttentionOutput<B> {
    let sizes = Sizes::new::<B>(&inputs.query, &inputs.key);
    let [query, key, value] = [inputs.query, inputs.key, inputs.value].map(Float::<B>);
    let output_dtype = query.dtype();
    let [batch, queries, heads, head_dim] = query.dims();
    let [_, keys, kv_heads, value_dim] = value.dims();
    let query = query.at_least_single();
    if sizes.is_empty() {
        let context = query.zeros([batch, queries, heads, value_dim]);
        let lse = query.zeros([batch, queries, heads]);
        return AttentionOutput {
            context: context.cast(output_dtype).0,
            lse: lse.shift(f64::from(f32::MIN)).0,
        };
    }

    let dtype = query.dtype();
    let key = key.at_least_single().swap_dims(1, 2); // [batch, kv_heads, keys, head_dim]
    let value = value.at_least_single().swap_dims(1, 2);
    let key_bias = Float::<B>(inputs.key_bias)
        .at_least_single()
        .swap_dims(1, 2)
        .reshape([batch, kv_heads, 1, keys])
        .expand([batch, kv_heads, sizes.rows(), keys]);
    let unseen = sizes
        .seen::<B>(inputs.query_leaf, inputs.key_leaf, &options)
        .not();
    let logits = sizes
        .group(query.scale(options.scale(head_dim)))
        .matmul(key.swap_dims(2, 3)) // [batch, kv_heads, rows, keys]
        .add(key_bias);
    let (weights, lse) = softmax(logits, Some(&unseen));
    let weights = match options.dropping() {
        None => weights,
        Some(dropout) => {
            let factors = sizes.dropped(dropout, &weights);
            weights.mul(factors)
        }
    };
    let context = sizes.ungroup(weights.matmul(value));
    let empty = unseen.not().float(dtype).sum(3).equals_zero();
    let lse = lse().fill(empty, f64::from(f32::MIN));
    AttentionOutput {
        context: context.cast(output_dtype).0,
        lse: sizes.ungroup(lse).reshape([batch, queries, heads]).0,
    }
}

/// Reference of
/// [`TreeAttentionOps::candidate_keys_backward`](crate::ops::TreeAttentionOps::candidate_keys_backward).
pub fn candidate_keys_backward<B: Backend>(
    inputs: CandidateInputs<B>,
    output: AttentionOutput<B>,
    grad: FloatTensor<B>,
    options: LeafAttentionOptions,
) -> FloatTensor<B> {
    let sizes = Sizes::new::<B>(&inputs.query, &inputs.key);
    let [query, key, value] = [inputs.query, inputs.key, inputs.value].map(Float::<B>);
    let output_dtype = key.dtype();
    let [batch, queries, heads, head_dim] = query.dims();
    let [_, keys, kv_heads, _] = key.dims();
    if sizes.is_empty() {
        return key.zeros([batch, keys, kv_heads]).0;
    }
    let query = query.at_least_single();
    let key = key.at_least_single().swap_dims(1, 2); // [batch, kv_heads, keys, head_dim]
    let value = value.at_least_single().swap_dims(1, 2);
    let grad = sizes.group(Float::<B>(grad).at_least_single());
    let context = sizes.group(Float::<B>(output.context).at_least_single());
    let lse = sizes.group(Float::<B>(output.lse).reshape([batch, queries, heads, 1]));
    let matrix = [batch, kv_heads, sizes.rows(), keys];

    let score = sizes
        .group(query.scale(options.scale(head_dim)))
        .matmul(key.swap_dims(2, 3));
    // The weight that the key would have beside those of the leaf.
    let weight = score.sub(lse.expand(matrix)).sigmoid();
    let mean = grad.clone().mul(context).sum(3).expand(matrix);
    let gain = grad.matmul(value.swap_dims(2, 3)).sub(mean);
    let unseen = sizes
        .seen::<B>(inputs.query_leaf, inputs.candidate_leaf, &options)
        .not();
    weight
        .mul(gain)
        .fill(unseen, 0.0)
        .sum(2)
        .reshape([batch, kv_heads, keys])
        .swap_dims(1, 2)
        .cast(output_dtype)
        .0
}
