//! Softmax attention of every query to all keys.

use crate::ops::{
    AttentionMask, DenseAttentionInputs, DenseAttentionOptions, TreeAttentionOps, shapes,
};
use burn::backend::Dispatch;
use burn::tensor::{Bool, Tensor};

/// Softmax attention of every query to all keys from row `first_key` on: what a tree search is compared with, and the
/// attention to all leaves in training.
///
/// Rows of queries, keys and values hold all heads side by side, as projections leave them and as
/// [`tree_search`](crate::functions::tree_search) takes them. Where there is a [kernel](crate::functions#kernels), no matrix of
/// scores is held in memory; a reference body holds it.
///
/// # Shapes
/// - query: `[batch, queries, heads, head_dim]`
/// - key: `[batch, rows, heads, head_dim]`
/// - value: `[batch, rows, heads, value_dim]`
/// - mask: `[batch, rows - first_key]`, `true` = masked out
/// - returns `[batch, queries, heads, value_dim]`, zero for a query whose keys are all masked out or
///   that has none
///
/// # Panics
/// If an axis disagrees with the others, or if `first_key` is past the last row.
#[track_caller]
pub fn dense_attention(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    mask: Option<Tensor<2, Bool>>,
    options: DenseAttentionOptions,
) -> Tensor<4> {
    let shapes = [query.shape(), key.shape(), value.shape()];
    let shape_of_mask = mask.as_ref().map(Tensor::shape);
    shapes::dense_attention(shapes.each_ref(), shape_of_mask.as_ref(), &options);
    let keys = |mask: Tensor<2, Bool>| AttentionMask::Keys(mask.into_dispatch());
    let inputs = DenseAttentionInputs {
        query: query.into_dispatch(),
        key: key.into_dispatch(),
        value: value.into_dispatch(),
        mask: mask.map_or(AttentionMask::None, keys),
    };
    let output = <Dispatch as TreeAttentionOps>::dense_attention(inputs, options);
    Tensor::from_dispatch(output.context)
}
