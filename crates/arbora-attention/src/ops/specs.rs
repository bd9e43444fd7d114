//! Shapes and types of what the operators return, for fusion, which needs them before anything runs.

use super::{
    AttentionOutputMetadata, BlockPrimitiveMetadata, TreeBuildGradientsMetadata, TreeBuildOptions,
    TreeSearchInputsMetadata, TreeSearchOptions, TreeSearchPrimitiveMetadata, at_least_single,
};
use burn::backend::fusion::custom::TensorSpec;
use burn::tensor::Shape;

pub(super) fn attention(query: &TensorSpec, value: &TensorSpec) -> AttentionOutputMetadata {
    let [batch, queries, heads, _] = query.shape.dims();
    let context = Shape::from([batch, queries, heads, value.shape[3]]);
    let lse = Shape::from([batch, queries, heads]);
    AttentionOutputMetadata {
        context: TensorSpec::new(context, query.dtype),
        lse: TensorSpec::new(lse, at_least_single(query.dtype)),
    }
}

pub(super) fn tree_search(
    inputs: &TreeSearchInputsMetadata,
    options: &TreeSearchOptions,
) -> TreeSearchPrimitiveMetadata {
    let (query, lengths) = (&inputs.query, &inputs.lengths);
    let [batch, queries, ..] = query.shape.dims::<4>();
    let per_entry = |entries: usize| Shape::from([entries, batch, queries]);
    let path = Shape::from([batch, queries, options.shape.decisions() + 1]);
    TreeSearchPrimitiveMetadata {
        context: attention(query, &inputs.value).context,
        path: TensorSpec::new(path, lengths.dtype),
        policy: TensorSpec::new(per_entry(2), at_least_single(query.dtype)),
        counts: TensorSpec::new(per_entry(3), lengths.dtype),
    }
}

pub(super) fn candidate_keys_backward(key: &TensorSpec) -> TensorSpec {
    let [batch, keys, kv_heads, _] = key.shape.dims();
    TensorSpec::new(Shape::from([batch, keys, kv_heads]), key.dtype)
}

pub(super) fn tree_build(leaves: &TensorSpec, options: &TreeBuildOptions) -> TensorSpec {
    let [batch, _, dim] = leaves.shape.dims();
    let nodes = Shape::from([batch, options.shape.nodes(), dim]);
    TensorSpec::new(nodes, leaves.dtype)
}

pub(super) fn tree_build_backward(
    nodes: &TensorSpec,
    block: &BlockPrimitiveMetadata,
    options: &TreeBuildOptions,
) -> TreeBuildGradientsMetadata {
    let [batch, _, dim] = nodes.shape.dims();
    let leaves = Shape::from([batch, options.shape.width(0), dim]);
    TreeBuildGradientsMetadata {
        leaves: TensorSpec::new(leaves, nodes.dtype),
        block: block.clone(),
    }
}
