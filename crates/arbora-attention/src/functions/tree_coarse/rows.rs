//! Rows added up by leaf, and rows read by index, in an order that never changes.
//!
//! On CUDA and Metal burn's `scatter`, which is also the gradient of its `gather`, adds floats in whatever order they
//! arrive. Attention within leaves adds in the order of tokens on every backend: with equal logits it is the mean of
//! a leaf, and with one key per leaf it reads that key.

use crate::functions::leaf_attention::means_of_leaves;
use crate::functions::masked_attention::{index_along, repeat_each};
use burn::tensor::{IndexingUpdateOp, Int, Tensor};

/// The sums over the keys of each leaf, `[batch, leaves, kv_heads, value_dim + 1]`, of
/// [`counted`](super::means::counted) rows; keys with a negative leaf are left out.
pub(super) fn leaf_sums(rows: Tensor<4>, key_leaves: Tensor<3, Int>, leaves: usize) -> Tensor<4> {
    let [batch, keys, kv_heads, width] = rows.dims();
    let value = rows.clone().narrow(3, 0, width - 1);
    // A count has no gradient along hard routes.
    let present = rows.narrow(3, width - 1, 1).detach();
    let options = (&value.device(), value.dtype());
    let index = key_leaves
        .clone()
        .clamp_min(0)
        .reshape([batch, keys, kv_heads, 1]);
    // Whole numbers: exact in any order.
    let counts = Tensor::zeros([batch, leaves, kv_heads, 1], options).scatter(
        1,
        index,
        present,
        IndexingUpdateOp::Add,
    );
    // Query `i` in leaf `i`.
    let integers = (&key_leaves.device(), key_leaves.dtype());
    let every_leaf = index_along(1, [batch, leaves, kv_heads], integers);
    let means = means_of_leaves(every_leaf, key_leaves, value, leaves).context;
    Tensor::cat(vec![means * counts.clone(), counts], 3)
}

/// Rows `[batch, count, kv_heads, width]` at each index of `[batch, tokens, heads]`, none of them negative:
/// `[batch, tokens, heads, width]`, where `kv_heads` divides `heads`.
pub(super) fn rows_at(rows: Tensor<4>, index: Tensor<3, Int>) -> Tensor<4> {
    let ([batch, count, kv_heads, width], [_, tokens, heads]) = (rows.dims(), index.dims());
    // Without a gradient nothing is added.
    if rows.device().is_autodiff() {
        let integers = (&index.device(), index.dtype());
        let own = index_along(1, [batch, count, kv_heads], integers);
        return means_of_leaves(index, own, rows, count).context;
    }
    let index = index
        .reshape([batch, tokens, heads, 1])
        .expand([batch, tokens, heads, width]);
    repeat_each(rows, heads / kv_heads).gather(1, index)
}
