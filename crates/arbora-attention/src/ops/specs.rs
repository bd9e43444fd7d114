//! Shapes and types of what the operators return, for fusion, which needs them before anything runs.

use super::{
    AttentionMaskMetadata, BlockPrimitiveMetadata, DenseAttentionOptions,
    FeedForwardGradientsMetadata, FeedForwardPrimitiveMetadata, LeafAttentionGradientsMetadata,
    LeafAttentionOptions, RoutePrimitiveMetadata, TreeBuildGradientsMetadata, TreeBuildOptions,
    TreeSearchOptions, TreeSearchPrimitiveMetadata,
};
use burn::backend::fusion::custom::TensorSpec;
use burn::tensor::{DType, Shape};

/// Half precision is computed in single precision.
fn at_least_single(dtype: DType) -> DType {
    match dtype {
        DType::F16 | DType::BF16 => DType::F32,
        _ => dtype,
    }
}

pub(super) fn tree_search(
    query: &TensorSpec,
    _key: &TensorSpec,
    value: &TensorSpec,
    lengths: &TensorSpec,
    _route: &RoutePrimitiveMetadata,
    options: &TreeSearchOptions,
) -> TreeSearchPrimitiveMetadata {
    let [batch, queries, heads, _] = query.shape.dims();
    let value_dim = value.shape[3];
    let per_entry = |entries: usize| Shape::from([entries, batch, queries]);
    TreeSearchPrimitiveMetadata {
        context: TensorSpec::new(Shape::from([batch, queries, heads, value_dim]), query.dtype),
        path: TensorSpec::new(
            Shape::from([batch, queries, options.shape.decisions() + 1]),
            lengths.dtype,
        ),
        policy: TensorSpec::new(per_entry(2), at_least_single(query.dtype)),
        counts: TensorSpec::new(per_entry(3), lengths.dtype),
    }
}

pub(super) fn dense_attention(
    query: &TensorSpec,
    _key: &TensorSpec,
    value: &TensorSpec,
    _mask: &AttentionMaskMetadata,
    _options: &DenseAttentionOptions,
) -> (TensorSpec, TensorSpec) {
    let [batch, queries, heads, _] = query.shape.dims();
    (
        TensorSpec::new(
            Shape::from([batch, queries, heads, value.shape[3]]),
            query.dtype,
        ),
        TensorSpec::new(
            Shape::from([batch, queries, heads]),
            at_least_single(query.dtype),
        ),
    )
}

pub(super) fn leaf_attention(
    query: &TensorSpec,
    _key: &TensorSpec,
    value: &TensorSpec,
    _key_bias: &TensorSpec,
    _query_leaf: &TensorSpec,
    _key_leaf: &TensorSpec,
    _options: &LeafAttentionOptions,
) -> (TensorSpec, TensorSpec) {
    let [batch, queries, heads, _] = query.shape.dims();
    (
        TensorSpec::new(
            Shape::from([batch, queries, heads, value.shape[3]]),
            query.dtype,
        ),
        TensorSpec::new(
            Shape::from([batch, queries, heads]),
            at_least_single(query.dtype),
        ),
    )
}

#[allow(clippy::too_many_arguments)]
pub(super) fn leaf_attention_backward(
    query: &TensorSpec,
    key: &TensorSpec,
    value: &TensorSpec,
    key_bias: &TensorSpec,
    _query_leaf: &TensorSpec,
    _key_leaf: &TensorSpec,
    _context: &TensorSpec,
    _log_total: &TensorSpec,
    _grad: &TensorSpec,
    _options: &LeafAttentionOptions,
) -> LeafAttentionGradientsMetadata {
    LeafAttentionGradientsMetadata {
        query: query.clone(),
        key: key.clone(),
        value: value.clone(),
        key_bias: key_bias.clone(),
    }
}

#[allow(clippy::too_many_arguments)]
pub(super) fn candidate_keys_backward(
    _query: &TensorSpec,
    key: &TensorSpec,
    _value: &TensorSpec,
    _query_leaf: &TensorSpec,
    _candidate_leaf: &TensorSpec,
    _context: &TensorSpec,
    _log_total: &TensorSpec,
    _grad: &TensorSpec,
    _options: &LeafAttentionOptions,
) -> TensorSpec {
    let [batch, keys, kv_heads, _] = key.shape.dims();
    TensorSpec::new(Shape::from([batch, keys, kv_heads]), key.dtype)
}

pub(super) fn tree_build(
    leaves: &TensorSpec,
    _lengths: &TensorSpec,
    _block: &BlockPrimitiveMetadata,
    options: &TreeBuildOptions,
) -> TensorSpec {
    let [batch, _, dim] = leaves.shape.dims();
    TensorSpec::new(
        Shape::from([batch, options.shape.nodes(), dim]),
        leaves.dtype,
    )
}

pub(super) fn tree_build_backward(
    nodes: &TensorSpec,
    _lengths: &TensorSpec,
    block: &BlockPrimitiveMetadata,
    _grad: &TensorSpec,
    options: &TreeBuildOptions,
) -> TreeBuildGradientsMetadata {
    let [batch, _, dim] = nodes.shape.dims();
    TreeBuildGradientsMetadata {
        leaves: TensorSpec::new(
            Shape::from([batch, options.shape.width(0), dim]),
            nodes.dtype,
        ),
        block: block.clone(),
    }
}

pub(super) fn feed_forward_backward(
    rows: &TensorSpec,
    weights: &FeedForwardPrimitiveMetadata,
    _grad: &TensorSpec,
    _epsilon: &f64,
) -> FeedForwardGradientsMetadata {
    FeedForwardGradientsMetadata {
        rows: rows.clone(),
        weights: weights.clone(),
    }
}
