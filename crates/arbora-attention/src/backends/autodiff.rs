//! The gradient of each operator, as one step of the graph.

use crate::ops::{
    AttentionMask, BlockPrimitive, DenseAttentionOptions, FeedForwardGradients,
    FeedForwardPrimitive, LeafAttentionGradients, LeafAttentionOptions, RoutePrimitive,
    TreeAttentionOps, TreeBuildGradients, TreeBuildOptions, TreeSearchOptions, TreeSearchPrimitive,
};
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend};
use std::fmt;

/// What the inputs of an operator get of the gradient of its output. What that takes is shared with tensors that live
/// anyway, and gone once it is computed.
struct Step<F>(F);

impl<F> fmt::Debug for Step<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Step")
    }
}

impl<B: Backend, F, const N: usize> Backward<B, N> for Step<F>
where
    F: FnOnce(FloatTensor<B>, [bool; N]) -> [Option<FloatTensor<B>>; N] + Send + 'static,
{
    type State = ();

    fn backward(self, ops: Ops<(), N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let gradients = (self.0)(grads.consume::<B>(&ops.node), wanted);
        for (parent, gradient) in ops.parents.into_iter().zip(gradients) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

/// A tensor of the graph.
type Tracked<B, C> = FloatTensor<Autodiff<B, C>>;

/// The output of an operator as a tensor of the graph.
///
/// - inputs: those that get a gradient
/// - gradients: theirs, in the same order, of that of the output
fn tracked<B: Backend, C: CheckpointStrategy, const N: usize>(
    inputs: [NodeGuard; N],
    output: FloatTensor<B>,
    gradients: impl FnOnce(FloatTensor<B>) -> [FloatTensor<B>; N] + Send + 'static,
) -> Tracked<B, C> {
    let all = |grad, _: [bool; N]| gradients(grad).map(Some);
    Step(all)
        .prepare::<C>(inputs)
        .compute_bound()
        .stateless(output)
}

/// Without the gradient of the log-probability, which is not the policy's on a uniform route.
fn entropy_only<B: Backend>(grad: FloatTensor<B>) -> FloatTensor<B> {
    use burn::backend::{Scalar, Slice, TensorMetadata};
    let [_, batch, queries] = grad.shape().dims();
    let axis = |size: usize| Slice::new(0, Some(size as isize), 1);
    let slices = [axis(1), axis(batch), axis(queries)];
    let zeros = B::float_mul_scalar(B::float_slice(grad.clone(), &slices), Scalar::from(0.0f64));
    B::float_slice_assign(grad, &slices, zeros)
}

/// All weights of a block, in a fixed order.
fn weights<B: Backend>(block: BlockPrimitive<B>) -> [FloatTensor<B>; 13] {
    [
        block.norm_gamma,
        block.norm_beta,
        block.query,
        block.key,
        block.value,
        block.output,
        block.output_bias,
        block.feed_forward_norm_gamma,
        block.feed_forward_norm_beta,
        block.inner,
        block.inner_bias,
        block.outer,
        block.outer_bias,
    ]
}

/// All weights of a feed-forward part, in a fixed order.
fn feed_forward_weights<B: Backend>(weights: FeedForwardPrimitive<B>) -> [FloatTensor<B>; 6] {
    [
        weights.norm_gamma,
        weights.norm_beta,
        weights.inner,
        weights.inner_bias,
        weights.outer,
        weights.outer_bias,
    ]
}

const SECOND_ORDER: &str = "burn differentiates once: the gradient of a gradient is not defined";

impl<B: Backend + TreeAttentionOps, C: CheckpointStrategy> TreeAttentionOps for Autodiff<B, C> {
    /// Context and policy are two steps: a function of query, key and value, and one of query and key, the path given.
    fn tree_search(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        lengths: IntTensor<Self>,
        route: RoutePrimitive<Self>,
        options: TreeSearchOptions,
    ) -> TreeSearchPrimitive<Self> {
        let inputs = [query.node(), key.node(), value.node()];
        let policy_inputs = [query.node(), key.node()];
        let [query, key, value] = [query, key, value].map(|input| input.into_primitive());
        let learned = !matches!(route, RoutePrimitive::Uniform(_));
        let route = match route {
            RoutePrimitive::Greedy => RoutePrimitive::Greedy,
            RoutePrimitive::Sampled(numbers) => RoutePrimitive::Sampled(numbers.into_primitive()),
            RoutePrimitive::Uniform(numbers) => RoutePrimitive::Uniform(numbers.into_primitive()),
            RoutePrimitive::Given(path) => RoutePrimitive::Given(path),
        };
        let found = B::tree_search(
            query.clone(),
            key.clone(),
            value.clone(),
            lengths.clone(),
            route,
            options,
        );
        let path = found.path.clone();
        let kept = (query.clone(), key.clone(), lengths.clone(), path.clone());
        let context = tracked::<B, C, 3>(inputs, found.context, move |grad| {
            let of = B::tree_context_backward(query, key, value, lengths, path, grad, options);
            [of.0, of.1, of.2]
        });
        let policy = tracked::<B, C, 2>(policy_inputs, found.policy, move |grad| {
            let (query, key, lengths, path) = kept;
            let grad = if learned {
                grad
            } else {
                entropy_only::<B>(grad)
            };
            let of = B::tree_policy_backward(query, key, lengths, path, grad, options);
            [of.0, of.1]
        });
        TreeSearchPrimitive {
            context,
            path: found.path,
            policy,
            counts: found.counts,
        }
    }

    fn tree_context_backward(
        _query: FloatTensor<Self>,
        _key: FloatTensor<Self>,
        _value: FloatTensor<Self>,
        _lengths: IntTensor<Self>,
        _path: IntTensor<Self>,
        _grad: FloatTensor<Self>,
        _options: TreeSearchOptions,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        panic!("tree_context_backward: {SECOND_ORDER}");
    }

    fn tree_policy_backward(
        _query: FloatTensor<Self>,
        _key: FloatTensor<Self>,
        _lengths: IntTensor<Self>,
        _path: IntTensor<Self>,
        _grad: FloatTensor<Self>,
        _options: TreeSearchOptions,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        panic!("tree_policy_backward: {SECOND_ORDER}");
    }

    fn dense_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        mask: AttentionMask<Self>,
        options: DenseAttentionOptions,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let inputs = [query.node(), key.node(), value.node()];
        let [query, key, value] = [query, key, value].map(|input| input.into_primitive());
        let mask = match mask {
            AttentionMask::None => AttentionMask::None,
            AttentionMask::Keys(mask) => AttentionMask::Keys(mask),
        };
        let (context, lse) = B::dense_attention(
            query.clone(),
            key.clone(),
            value.clone(),
            mask.clone(),
            options,
        );
        let kept = (context.clone(), lse.clone());
        let context = tracked::<B, C, 3>(inputs, context, move |grad| {
            let (context, lse) = kept;
            let of =
                B::dense_attention_backward(query, key, value, mask, context, lse, grad, options);
            [of.0, of.1, of.2]
        });
        (context, FloatTensor::<Self>::new(lse))
    }

    fn dense_attention_backward(
        _query: FloatTensor<Self>,
        _key: FloatTensor<Self>,
        _value: FloatTensor<Self>,
        _mask: AttentionMask<Self>,
        _context: FloatTensor<Self>,
        _lse: FloatTensor<Self>,
        _grad: FloatTensor<Self>,
        _options: DenseAttentionOptions,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        panic!("dense_attention_backward: {SECOND_ORDER}");
    }

    fn leaf_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        key_bias: FloatTensor<Self>,
        query_leaf: IntTensor<Self>,
        key_leaf: IntTensor<Self>,
        options: LeafAttentionOptions,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let inputs = [query.node(), key.node(), value.node(), key_bias.node()];
        let [query, key, value, key_bias] =
            [query, key, value, key_bias].map(|input| input.into_primitive());
        let (context, lse) = B::leaf_attention(
            query.clone(),
            key.clone(),
            value.clone(),
            key_bias.clone(),
            query_leaf.clone(),
            key_leaf.clone(),
            options,
        );
        let kept = (context.clone(), lse.clone());
        let context = tracked::<B, C, 4>(inputs, context, move |grad| {
            let (context, lse) = kept;
            let of = B::leaf_attention_backward(
                query, key, value, key_bias, query_leaf, key_leaf, context, lse, grad, options,
            );
            [of.query, of.key, of.value, of.key_bias]
        });
        (context, FloatTensor::<Self>::new(lse))
    }

    fn leaf_attention_backward(
        _query: FloatTensor<Self>,
        _key: FloatTensor<Self>,
        _value: FloatTensor<Self>,
        _key_bias: FloatTensor<Self>,
        _query_leaf: IntTensor<Self>,
        _key_leaf: IntTensor<Self>,
        _context: FloatTensor<Self>,
        _lse: FloatTensor<Self>,
        _grad: FloatTensor<Self>,
        _options: LeafAttentionOptions,
    ) -> LeafAttentionGradients<Self> {
        panic!("leaf_attention_backward: {SECOND_ORDER}");
    }

    /// The identity of a context, which gives gates of candidates a gradient.
    fn candidate_keys(
        context: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        query_leaf: IntTensor<Self>,
        candidate_leaf: IntTensor<Self>,
        lse: FloatTensor<Self>,
        options: LeafAttentionOptions,
    ) -> FloatTensor<Self> {
        let inputs = [context.node(), gate.node()];
        let [context, query, key, value, lse] =
            [context, query, key, value, lse].map(|input| input.into_primitive());
        let output = context.clone();
        let gradients = move |grad: FloatTensor<B>, [_, wants_gate]: [bool; 2]| {
            let of_gate = wants_gate.then(|| {
                B::candidate_keys_backward(
                    query,
                    key,
                    value,
                    query_leaf,
                    candidate_leaf,
                    context,
                    lse,
                    grad.clone(),
                    options,
                )
            });
            [Some(grad), of_gate]
        };
        let step = Backward::<B, 2>::prepare::<C>(Step(gradients), inputs);
        step.compute_bound().stateless(output)
    }

    fn candidate_keys_backward(
        _query: FloatTensor<Self>,
        _key: FloatTensor<Self>,
        _value: FloatTensor<Self>,
        _query_leaf: IntTensor<Self>,
        _candidate_leaf: IntTensor<Self>,
        _context: FloatTensor<Self>,
        _lse: FloatTensor<Self>,
        _grad: FloatTensor<Self>,
        _options: LeafAttentionOptions,
    ) -> FloatTensor<Self> {
        panic!("candidate_keys_backward: {SECOND_ORDER}");
    }

    fn tree_build(
        leaves: FloatTensor<Self>,
        lengths: IntTensor<Self>,
        block: BlockPrimitive<Self>,
        options: TreeBuildOptions,
    ) -> FloatTensor<Self> {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m] =
            weights::<Self>(block.clone()).map(|weight| weight.node());
        let inputs = [leaves.node(), a, b, c, d, e, f, g, h, i, j, k, l, m];
        let block: BlockPrimitive<B> = block.map(|weight| weight.into_primitive());
        let leaves = leaves.into_primitive();
        let nodes = B::tree_build(leaves, lengths.clone(), block.clone(), options);
        let kept = nodes.clone();
        tracked::<B, C, 14>(inputs, nodes, move |grad| {
            let TreeBuildGradients { leaves, block } =
                B::tree_build_backward(kept, lengths, block, grad, options);
            let [a, b, c, d, e, f, g, h, i, j, k, l, m] = weights::<B>(block);
            [leaves, a, b, c, d, e, f, g, h, i, j, k, l, m]
        })
    }

    fn tree_build_backward(
        _nodes: FloatTensor<Self>,
        _lengths: IntTensor<Self>,
        _block: BlockPrimitive<Self>,
        _grad: FloatTensor<Self>,
        _options: TreeBuildOptions,
    ) -> TreeBuildGradients<Self> {
        panic!("tree_build_backward: {SECOND_ORDER}");
    }

    fn feed_forward(
        rows: FloatTensor<Self>,
        weights: FeedForwardPrimitive<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        let [a, b, c, d, e, f] =
            feed_forward_weights::<Self>(weights.clone()).map(|weight| weight.node());
        let inputs = [rows.node(), a, b, c, d, e, f];
        let weights = weights.map::<B>(|weight| weight.into_primitive());
        let rows = rows.into_primitive();
        let output = B::feed_forward(rows.clone(), weights.clone(), epsilon);
        tracked::<B, C, 7>(inputs, output, move |grad| {
            let FeedForwardGradients { rows, weights } =
                B::feed_forward_backward(rows, weights, grad, epsilon);
            let [a, b, c, d, e, f] = feed_forward_weights::<B>(weights);
            [rows, a, b, c, d, e, f]
        })
    }

    fn feed_forward_backward(
        _rows: FloatTensor<Self>,
        _weights: FeedForwardPrimitive<Self>,
        _grad: FloatTensor<Self>,
        _epsilon: f64,
    ) -> FeedForwardGradients<Self> {
        panic!("feed_forward_backward: {SECOND_ORDER}");
    }
}
