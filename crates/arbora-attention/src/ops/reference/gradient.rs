//! Gradients of the reference bodies, found by differentiating them.

use super::{dense_attention, feed_forward, leaf_attention, tree_build, tree_search};
use crate::ops::primitive::Float;
use crate::ops::{
    AttentionMask, BlockPrimitive, DenseAttentionInputs, DenseAttentionOptions,
    FeedForwardGradients, FeedForwardPrimitive, LeafAttentionGradients, LeafAttentionInputs,
    LeafAttentionOptions, RoutePrimitive, TreeBuildGradients, TreeBuildOptions, TreeSearchInputs,
    TreeSearchOptions, TreeSearchPrimitive,
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

/// Whether there is nothing to differentiate.
fn is_nothing(tensor: &impl TensorMetadata) -> bool {
    tensor.shape().num_elements() == 0
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
    inputs: TreeSearchInputs<B>,
    path: IntTensor<B>,
    grad: FloatTensor<B>,
    options: TreeSearchOptions,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    if is_nothing(&grad) {
        return [inputs.query, inputs.key, inputs.value]
            .map(|tensor| Float::<B>(tensor).zeros_like().0)
            .into();
    }
    let tracked = [inputs.query, inputs.key, inputs.value].map(track::<B>);
    let found = search_along::<B>(tracked.clone(), inputs.lengths, path, options);
    gradients::<B, 3>(tracked, found.context, grad).into()
}

/// Reference of [`TreeAttentionOps::tree_policy_backward`](crate::ops::TreeAttentionOps::tree_policy_backward).
pub fn tree_policy_backward<B: Backend>(
    inputs: TreeSearchInputs<B>,
    path: IntTensor<B>,
    grad: FloatTensor<B>,
    options: TreeSearchOptions,
) -> (FloatTensor<B>, FloatTensor<B>) {
    if is_nothing(&grad) {
        return [inputs.query, inputs.key]
            .map(|tensor| Float::<B>(tensor).zeros_like().0)
            .into();
    }
    let value = <Autodiff<B> as AutodiffBackend>::from_inner(inputs.value);
    let tracked = [inputs.query, inputs.key].map(track::<B>);
    let [query, key] = tracked.clone();
    let found = search_along::<B>([query, key, value], inputs.lengths, path, options);
    gradients::<B, 2>(tracked, found.policy, grad).into()
}

fn search_along<B: Backend>(
    [query, key, value]: [Tracked<B>; 3],
    lengths: IntTensor<B>,
    path: IntTensor<B>,
    options: TreeSearchOptions,
) -> TreeSearchPrimitive<Autodiff<B>> {
    let inputs = TreeSearchInputs {
        query,
        key,
        value,
        lengths,
    };
    tree_search::<Autodiff<B>>(inputs, RoutePrimitive::Given(path), options)
}

/// Reference of [`TreeAttentionOps::dense_attention_backward`](crate::ops::TreeAttentionOps::dense_attention_backward).
pub fn dense_attention_backward<B: Backend>(
    inputs: DenseAttentionInputs<B>,
    grad: FloatTensor<B>,
    options: DenseAttentionOptions,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let tracked = [inputs.query, inputs.key, inputs.value].map(track::<B>);
    let [query, key, value] = tracked.clone();
    let inputs = DenseAttentionInputs {
        query,
        key,
        value,
        mask: match inputs.mask {
            AttentionMask::None => AttentionMask::None,
            AttentionMask::Keys(mask) => AttentionMask::Keys(mask),
        },
    };
    let output = dense_attention::<Autodiff<B>>(inputs, options);
    gradients::<B, 3>(tracked, output.context, grad).into()
}

/// Reference of [`TreeAttentionOps::leaf_attention_backward`](crate::ops::TreeAttentionOps::leaf_attention_backward).
pub fn leaf_attention_backward<B: Backend>(
    inputs: LeafAttentionInputs<B>,
    grad: FloatTensor<B>,
    options: LeafAttentionOptions,
) -> LeafAttentionGradients<B> {
    let is_empty = inputs.query.shape().num_elements() * inputs.key.shape().num_elements() == 0;
    let floats = [inputs.query, inputs.key, inputs.value, inputs.key_bias];
    let [query, key, value, key_bias] = if is_empty {
        // Attention to nothing is a constant, which has nothing to differentiate.
        floats.map(|tensor| Float::<B>(tensor).zeros_like().0)
    } else {
        let tracked = floats.map(track::<B>);
        let [query, key, value, key_bias] = tracked.clone();
        let inputs = LeafAttentionInputs {
            query,
            key,
            value,
            key_bias,
            query_leaf: inputs.query_leaf,
            key_leaf: inputs.key_leaf,
        };
        let output = leaf_attention::<Autodiff<B>>(inputs, options);
        gradients::<B, 4>(tracked, output.context, grad)
    };
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

/// Reference of [`FeedForwardOps::feed_forward_backward`](crate::ops::FeedForwardOps::feed_forward_backward).
pub fn feed_forward_backward<B: Backend>(
    rows: FloatTensor<B>,
    weights: FeedForwardPrimitive<B>,
    grad: FloatTensor<B>,
    epsilon: f64,
) -> FeedForwardGradients<B> {
    if is_nothing(&rows) {
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
