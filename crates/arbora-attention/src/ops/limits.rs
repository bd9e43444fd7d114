//! Which problems the kernels of accelerators take: single precision, and what 32-bit positions count. The reference
//! bodies take all else.

use super::{
    AttentionOutput, BlockPrimitive, DenseAttentionInputs, FeedForwardPrimitive,
    LeafAttentionInputs, LeafAttentionOptions, TreeBuildOptions, TreeSearchInputs,
    TreeSearchOptions,
};
use arbora_tree::TokenTreeShape;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::DType;

/// A unit holds a row of one head in registers.
const WIDEST_HEAD: usize = 256;

/// Whether all have single precision and few enough elements.
pub(crate) fn are_single<'a, T: TensorMetadata + 'a>(
    tensors: impl IntoIterator<Item = &'a T>,
) -> bool {
    let single =
        |tensor: &T| tensor.dtype() == DType::F32 && counted(tensor.shape().num_elements());
    tensors.into_iter().all(single)
}

/// Kernels count in 32 bits.
fn counted(elements: usize) -> bool {
    i32::try_from(elements).is_ok()
}

/// The product, as far as numbers go.
fn product<const N: usize>(sizes: [usize; N]) -> usize {
    sizes.into_iter().fold(1, usize::saturating_mul)
}

/// Slots of all decisions, and of those and the leaves.
pub(crate) fn slots(shape: &TokenTreeShape) -> (usize, usize) {
    let decided = shape.decisions() * shape.branching();
    (decided, decided + leaf_group(shape))
}

/// Nodes that the last step of a search chooses among.
pub(crate) fn leaf_group(shape: &TokenTreeShape) -> usize {
    match shape.height() {
        // The only token is the root itself.
        0 => 1,
        _ => shape.leaf_group(),
    }
}

/// Whether a search has single precision, and can be counted in 32 bits, scratch memory and all.
pub(crate) fn tree_search<B: Backend>(
    inputs: &TreeSearchInputs<B>,
    options: &TreeSearchOptions,
) -> bool {
    let [batch, queries, heads, head_dim] = inputs.query.shape().dims();
    let [_, _, _, value_dim] = inputs.value.shape().dims();
    let shape = &options.shape;
    let (_, slots) = slots(shape);
    let scratch = product([slots, heads]).saturating_add(shape.branching());
    let widest = head_dim.max(value_dim);
    are_single([&inputs.query, &inputs.key, &inputs.value])
        && [
            product([scratch, batch, queries]),
            product([slots, batch, widest, heads]),
            product([batch, queries, widest, heads]),
            product([batch, queries, shape.decisions() + 1]),
            shape.span(shape.height()),
        ]
        .into_iter()
        .all(counted)
}

/// [`tree_search`] for a gradient along a path.
pub(crate) fn tree_search_backward<B: Backend>(
    inputs: &TreeSearchInputs<B>,
    path: &IntTensor<B>,
    grad: &FloatTensor<B>,
    options: &TreeSearchOptions,
) -> bool {
    let is_like_lengths = path.dtype() == inputs.lengths.dtype();
    tree_search(inputs, options) && are_single([grad]) && is_like_lengths
}

/// Whether attention has single precision, a unit can hold rows of a head, and 32 bits count everything.
pub(crate) fn dense_attention<B: Backend>(inputs: &DenseAttentionInputs<B>) -> bool {
    let [batch, queries, heads, head_dim] = inputs.query.shape().dims();
    let [_, rows, _, value_dim] = inputs.value.shape().dims();
    let widest = head_dim.max(value_dim);
    let narrowest = head_dim.min(value_dim);
    let numbers = product([batch, queries.max(rows), heads, widest.max(2)]);
    are_single([&inputs.query, &inputs.key, &inputs.value])
        && widest <= WIDEST_HEAD
        && narrowest > 0
        && counted(numbers)
}

/// [`dense_attention`] for its gradient.
pub(crate) fn dense_attention_backward<B: Backend>(
    inputs: &DenseAttentionInputs<B>,
    output: &AttentionOutput<B>,
    grad: &FloatTensor<B>,
) -> bool {
    dense_attention(inputs) && are_single([&output.context, &output.lse, grad])
}

/// Whether leaf attention has single precision and anything to do, a unit can hold rows of a head, and 32 bits count
/// everything.
pub(crate) fn leaf_attention<B: Backend>(
    [query, key, value]: [&FloatTensor<B>; 3],
    options: &LeafAttentionOptions,
) -> bool {
    let [batch, queries, heads, head_dim] = query.shape().dims();
    let [_, keys, kv_heads, value_dim] = value.shape().dims();
    let widest = head_dim.max(value_dim);
    let rows = [queries, keys, options.leaves.saturating_add(1)];
    let rows = rows.into_iter().fold(0, usize::saturating_add);
    let numbers = product([batch, rows, heads, widest.max(4)]);
    let empty = query.shape().num_elements() * key.shape().num_elements() * kv_heads == 0;
    are_single([query, key, value])
        && !empty
        && value_dim > 0
        && widest <= WIDEST_HEAD
        && counted(numbers)
}

/// [`leaf_attention`] for its gradient.
pub(crate) fn leaf_attention_backward<B: Backend>(
    inputs: &LeafAttentionInputs<B>,
    output: &AttentionOutput<B>,
    grad: &FloatTensor<B>,
    options: &LeafAttentionOptions,
) -> bool {
    leaf_attention::<B>([&inputs.query, &inputs.key, &inputs.value], options)
        && are_single([&inputs.key_bias, &output.context, &output.lse, grad])
}

/// Whether a build has single precision, a unit can hold a head, and 32 bits count everything.
pub(crate) fn tree_build<B: Backend>(
    rows: &FloatTensor<B>,
    block: &BlockPrimitive<B>,
    options: &TreeBuildOptions,
) -> bool {
    let [batch, _, dim] = rows.shape().dims();
    let [ff, _] = block.feed_forward.outer.shape().dims();
    let shape = &options.shape;
    let group = shape.branching().max(shape.leaf_group());
    let widest = (3 * dim).max(2 * ff).max(options.heads * group);
    let slots = (1..=shape.height())
        .map(|height| shape.width(height) * shape.group(height))
        .max()
        .unwrap_or(1);
    let most = product([slots.max(shape.nodes()), batch]);
    are_single([rows])
        && are_single(&block.clone().into_array())
        && ff > 0
        && dim / options.heads <= WIDEST_HEAD
        && counted(product([most, widest]))
        && counted(product([shape.span(shape.height()), shape.branching()]))
}

/// Whether there are rows, all in single precision, and 32 bits count everything.
pub(crate) fn feed_forward<B: Backend>(
    rows: &FloatTensor<B>,
    weights: &FeedForwardPrimitive<B>,
) -> bool {
    let [count, dim] = rows.shape().dims();
    let [ff, _] = weights.outer.shape().dims();
    are_single([rows])
        && are_single(&weights.clone().into_array())
        && count > 0
        && counted(product([count, dim.max(2 * ff)]))
}
