//! Dense attention as a kind of self-attention.

use super::kind::{CachedRows, Projected};
use crate::functions::masked_attention::{
    by_head, dense_by_group, hidden_pairs, last_keys, repeat_each, softmax_of_visible,
};
use crate::functions::{LeafAttentionInput, leaf_attention};
use crate::ops::LeafAttentionOptions;
use burn::module::Module;
use burn::tensor::{Bool, Int, Tensor};

/// Softmax attention of every query to every key.
#[derive(Module, Debug)]
pub struct Dense {}

impl Dense {
    #[track_caller]
    pub(super) fn attend(&self, input: Projected) -> Tensor<4> {
        let (query, key, value) = (input.query, input.key, input.value);
        let masks = input.masks;
        let [batch, queries, heads, _] = query.dims();
        let [_, keys, kv_heads, _] = key.dims();
        let group = heads / kv_heads;
        let causal = masks.causal.then(|| keys - queries);
        match (masks.pairs, causal) {
            (None, None) => dense_by_group(query, key, value, masks.padding),
            (None, Some(offset)) => in_one_leaf(query, key, value, masks.padding, offset),
            (Some(pairs), causal) => {
                let (key, value) = (repeat_each(key, group), repeat_each(value, group));
                let shape = [batch, 1, queries, keys];
                let last = causal.map(|offset| last_keys(queries, offset, &pairs.device()));
                let mut hidden = pairs.reshape(shape);
                if let Some(more) = hidden_pairs(keys, masks.padding.as_ref(), last) {
                    hidden = hidden.bool_or(more.expand(shape));
                }
                let scale = (query.dims()[3] as f64).powf(-0.5);
                let logits = (by_head(query) * scale).matmul(by_head(key).swap_dims(2, 3));
                // A query that sees no key gets 0.
                let weights = softmax_of_visible(logits, Some(hidden));
                by_head(weights.matmul(by_head(value)))
            }
        }
    }

    /// Causal attention of the next tokens to those of the cache and to themselves.
    pub(super) fn attend_cached(
        &self,
        new: CachedRows,
        cache: &mut Option<[Tensor<4>; 2]>,
    ) -> Tensor<4> {
        let [key, value] = match cache.take() {
            None => [new.key, new.value],
            Some([key, value]) => [
                Tensor::cat(vec![key, new.key], 1),
                Tensor::cat(vec![value, new.value], 1),
            ],
        };
        *cache = Some([key.clone(), value.clone()]);
        let before = key.dims()[1] - new.query.dims()[1];
        in_one_leaf(new.query, key, value, None, before)
    }
}

/// Causal attention: all rows in one leaf. No matrix of scores is held where a backend has a kernel.
fn in_one_leaf(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    padding: Option<Tensor<2, Bool>>,
    offset: usize,
) -> Tensor<4> {
    let [batch, queries, heads, _] = query.dims();
    let [_, keys, kv_heads, _] = key.dims();
    let device = query.device().without_autodiff();
    let mut key_leaf = Tensor::<3, Int>::zeros([batch, keys, kv_heads], &device);
    if let Some(padding) = padding {
        let padding = padding.unsqueeze_dim::<3>(2).repeat_dim(2, kv_heads);
        key_leaf = key_leaf.mask_fill(padding, -1);
    }
    let input = LeafAttentionInput {
        query,
        key,
        value,
        query_leaf: Tensor::zeros([batch, queries, heads], &device),
        key_leaf,
        key_bias: None,
    };
    let options = LeafAttentionOptions {
        causal: Some(offset),
        ..LeafAttentionOptions::new(1)
    };
    leaf_attention(input, options).context
}
