//! Gradients of the reference bodies, found by differentiating them.

use super::{dense_attention, feed_forward, leaf_attention, tree_build, tree_search};
use crate::ops::primitive::Float;
use crate::ops::{
    AttentionMask, BlockPrimitive, DenseAttentionOptions, FeedForwardGradients,
    FeedForwardPrimitive, LeafAttentionGradients, LeafAttentionOptions, RoutePrimitive,
    TreeBuildGradients, TreeBuildOptions, TreeSearchOptions,
};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, AutodiffBackend, Backend, TensorMetadata};

type Tracked<B> = FloatTensor<Autodiff<B>>;

fn track<B: Backend>(tensor: FloatTensor<B>) -> Tracked<B> {
    let tensor = <Autodiff<B> as AutodiffBackend>::from_inner(tensor);
    <Autodiff<B> as burn::backend::ops::FloatTensorOps<_>>::float_set_require_grad(tensor, true)
}

/// Backward from the sum of outputs times their gradients.
fn backward<B: Backend>(output: Tracked<B>, gradient: FloatTensor<B>) -> Gradients {
    let gradient = <Autodiff<B> as AutodiffBackend>::from_inner(gradient);
    let weighted = Float::<Autodiff<B>>(output).mul(Float(gradient));
    <Autodiff<B> as AutodiffBackend>::backward(weighted.total().0)
}

/// The gradient of a tensor, zero where nothing depends on it.
fn gradient<B: Backend>(tensor: &Tracked<B>, gradients: &mut Gradients) -> FloatTensor<B> {
    <Autodiff<B> as AutodiffBackend>::grad_remove(tensor, gradients).unwrap_or_else(|| {
        Float::<B>(<Autodiff<B> as AutodiffBackend>::inner(tensor.clone()))
            .zeros_like()
            .0
    })
}

/// Gradients of some tensors, through an output of which the gradient is given.
fn gradients<B: Backend, const N: usize>(
    tracked: [Tracked<B>; N],
    output: Tracked<B>,
    grad: FloatTensor<B>,
) -> [FloatTensor<B>; N] {
    let mut gradients = backward::<B>(output, grad);
    tracked.map(|tensor| gradient::<B>(&tensor, &mut gradients))
}

/// Reference of [`TreeAttentionOps::tree_context_backward`](crate::ops::TreeAttentionOps::tree_context_backward).
pub fn tree_context_backward<B: Backend>(
    query: FloatTensor<B>,
    key: FloatTensor<B>,
    value: FloatTensor<B>,
    lengths: IntTensor<B>,
    path: IntTensor<B>,
    grad: FloatTensor<B>,
    options: TreeSearchOptions,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let tracked = [query, key, value].map(track::<B>);
    let [query, key, value] = tracked.clone();
    let route = RoutePrimitive::Given(path);
    let found = tree_search::<Autodiff<B>>(query, key, value, lengths, route, options);
    gradients::<B, 3>(tracked, found.context, grad).into()
}

/// Reference of [`TreeAttentionOps::tree_policy_backward`](crate::ops::TreeAttentionOps::tree_policy_backward).
pub fn tree_policy_backward<B: Backend>(
    query: FloatTensor<B>,
    key: FloatTensor<B>,
    lengths: IntTensor<B>,
    path: IntTensor<B>,
    grad: FloatTensor<B>,
    options: TreeSearchOptions,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let value = <Autodiff<B> as AutodiffBackend>::from_inner(key.clone());
    let tracked = [query, key].map(track::<B>);
    let [query, key] = tracked.clone();
    let route = RoutePrimitive::Given(path);
    let found = tree_search::<Autodiff<B>>(query, key, value, lengths, route, options);
    gradients::<B, 2>(tracked, found.policy, grad).into()
}

/// Reference of [`TreeAttentionOps::dense_attention_backward`](crate::ops::TreeAttentionOps::dense_attention_backward).
pub fn dense_attention_backward<B: Backend>(
    query: FloatTensor<B>,
    key: FloatTensor<B>,
    value: FloatTensor<B>,
    mask: AttentionMask<B>,
    grad: FloatTensor<B>,
    options: DenseAttentionOptions,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let tracked = [query, key, value].map(track::<B>);
    let [query, key, value] = tracked.clone();
    let mask = match mask {
        AttentionMask::None => AttentionMask::None,
        AttentionMask::Keys(mask) => AttentionMask::Keys(mask),
    };
    let (context, _) = dense_attention::<Autodiff<B>>(query, key, value, mask, options);
    gradients::<B, 3>(tracked, context, grad).into()
}

/// Reference of [`TreeAttentionOps::leaf_attention_backward`](crate::ops::TreeAttentionOps::leaf_attention_backward).
#[allow(clippy::too_many_arguments)]
pub fn leaf_attention_backward<B: Backend>(
    query: FloatTensor<B>,
    key: FloatTensor<B>,
    value: FloatTensor<B>,
    key_bias: FloatTensor<B>,
    query_leaf: IntTensor<B>,
    key_leaf: IntTensor<B>,
    grad: FloatTensor<B>,
    options: LeafAttentionOptions,
) -> LeafAttentionGradients<B> {
    if query.shape().num_elements() * key.shape().num_elements() == 0 {
        // Attention to nothing is a constant, which has nothing to differentiate.
        let zeros = |tensor: FloatTensor<B>| Float::<B>(tensor).zeros_like().0;
        return LeafAttentionGradients {
            query: zeros(query),
            key: zeros(key),
            value: zeros(value),
            key_bias: zeros(key_bias),
        };
    }
    let tracked = [query, key, value, key_bias].map(track::<B>);
    let [query, key, value, key_bias] = tracked.clone();
    let (context, _) =
        leaf_attention::<Autodiff<B>>(query, key, value, key_bias, query_leaf, key_leaf, options);
    let [query, key, value, key_bias] = gradients::<B, 4>(tracked, context, grad);
    LeafAttentionGradients {
        query,
        key,
        value,
        key_bias,
    }
}

/// Reference of [`TreeAttentionOps::tree_build_backward`](crate::ops::TreeAttentionOps::tree_build_backward).
pub fn tree_build_backward<B: Backend>(
    nodes: FloatTensor<B>,
    lengths: IntTensor<B>,
    block: BlockPrimitive<B>,
    grad: FloatTensor<B>,
    options: TreeBuildOptions,
) -> TreeBuildGradients<B> {
    let leaves = track::<B>(Float::<B>(nodes).rows_from(options.shape.offset(0)).0);
    let block: BlockPrimitive<Autodiff<B>> = block.map(track::<B>);
    let built = tree_build::<Autodiff<B>>(leaves.clone(), lengths, block.clone(), options);
    let mut gradients = backward::<B>(built, grad);
    TreeBuildGradients {
        leaves: gradient::<B>(&leaves, &mut gradients),
        block: block.map(|weight| gradient::<B>(&weight, &mut gradients)),
    }
}

/// Reference of [`TreeAttentionOps::feed_forward_backward`](crate::ops::TreeAttentionOps::feed_forward_backward).
pub fn feed_forward_backward<B: Backend>(
    rows: FloatTensor<B>,
    weights: FeedForwardPrimitive<B>,
    grad: FloatTensor<B>,
    epsilon: f64,
) -> FeedForwardGradients<B> {
    if rows.shape().num_elements() == 0 {
        return FeedForwardGradients {
            rows,
            weights: weights.map(|weight| Float::<B>(weight).zeros_like().0),
        };
    }
    let rows = track::<B>(rows);
    let weights: FeedForwardPrimitive<Autodiff<B>> = weights.map(track::<B>);
    let output = feed_forward::<Autodiff<B>>(rows.clone(), weights.clone(), epsilon);
    let mut gradients = backward::<B>(output, grad);
    FeedForwardGradients {
        rows: gradient::<B>(&rows, &mut gradients),
        weights: weights.map(|weight| gradient::<B>(&weight, &mut gradients)),
    }
}
