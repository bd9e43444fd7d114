//! The gradient of each operator, as one step of the graph.

use crate::ops::{
    AttentionMask, AttentionOutput, BlockPrimitive, CandidateInputs, DenseAttentionInputs,
    DenseAttentionOptions, FeedForwardGradients, FeedForwardOps, FeedForwardPrimitive,
    LeafAttentionGradients, LeafAttentionInputs, LeafAttentionOptions, RoutePrimitive,
    TreeAttentionOps, TreeBuildGradients, TreeBuildOptions, TreeSearchInputs, TreeSearchOptions,
    TreeSearchPrimitive,
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

/// What attention returns as tensors of the graph, of which the context gets a gradient.
///
/// - nodes: of the inputs that get a gradient
/// - gradients: theirs, in the same order, of what attention returned and of the gradient of its context
fn attended<B: Backend, C: CheckpointStrategy, const N: usize>(
    nodes: [NodeGuard; N],
    output: AttentionOutput<B>,
    gradients: impl FnOnce(AttentionOutput<B>, FloatTensor<B>) -> [FloatTensor<B>; N] + Send + 'static,
) -> AttentionOutput<Autodiff<B, C>> {
    let AttentionOutput { context, lse } = output.clone();
    AttentionOutput {
        context: tracked::<B, C, N>(nodes, context, move |grad| gradients(output, grad)),
        lse: Tracked::<B, C>::new(lse),
    }
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

/// Gradients of gradients, which are not there.
macro_rules! first_order_only {
    ($($backward:ident($($input:ty),+) -> $gradients:ty;)+) => {$(
        fn $backward($(_: $input),+) -> $gradients {
            panic!(concat!(
                stringify!($backward),
                ": burn differentiates once: the gradient of a gradient is not defined"
            ));
        }
    )+};
}

impl<B: Backend + TreeAttentionOps, C: CheckpointStrategy> TreeAttentionOps for Autodiff<B, C> {
    first_order_only! {
        tree_context_backward(
            TreeSearchInputs<Self>, IntTensor<Self>, FloatTensor<Self>, TreeSearchOptions
        ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
        tree_policy_backward(
            TreeSearchInputs<Self>, IntTensor<Self>, FloatTensor<Self>, TreeSearchOptions
        ) -> (FloatTensor<Self>, FloatTensor<Self>);
        dense_attention_backward(
            DenseAttentionInputs<Self>, AttentionOutput<Self>, FloatTensor<Self>, DenseAttentionOptions
        ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
        leaf_attention_backward(
            LeafAttentionInputs<Self>, AttentionOutput<Self>, FloatTensor<Self>, LeafAttentionOptions
        ) -> LeafAttentionGradients<Self>;
        candidate_keys_backward(
            CandidateInputs<Self>, AttentionOutput<Self>, FloatTensor<Self>, LeafAttentionOptions
        ) -> FloatTensor<Self>;
        tree_build_backward(
            FloatTensor<Self>, IntTensor<Self>, BlockPrimitive<Self>, FloatTensor<Self>, TreeBuildOptions
        ) -> TreeBuildGradients<Self>;
    }

    /// Context and policy are two steps: a function of query, key and value, and one of query and key, the path given.
    fn tree_search(
        inputs: TreeSearchInputs<Self>,
        route: RoutePrimitive<Self>,
        options: TreeSearchOptions,
    ) -> TreeSearchPrimitive<Self> {
        let nodes = [inputs.query.node(), inputs.key.node(), inputs.value.node()];
        let policy_nodes = [inputs.query.node(), inputs.key.node()];
        let inputs = TreeSearchInputs::<B> {
            query: inputs.query.into_primitive(),
            key: inputs.key.into_primitive(),
            value: inputs.value.into_primitive(),
            lengths: inputs.lengths,
        };
        let learned = !matches!(route, RoutePrimitive::Uniform(_));
        let route = match route {
            RoutePrimitive::Greedy => RoutePrimitive::Greedy,
            RoutePrimitive::Sampled(uniforms) => RoutePrimitive::Sampled(uniforms.into_primitive()),
            RoutePrimitive::Uniform(uniforms) => RoutePrimitive::Uniform(uniforms.into_primitive()),
            RoutePrimitive::Given(path) => RoutePrimitive::Given(path),
        };
        let found = B::tree_search(inputs.clone(), route, options);
        let kept = (inputs.clone(), found.path.clone());
        let path = found.path.clone();
        let context = tracked::<B, C, 3>(nodes, found.context, move |grad| {
            B::tree_context_backward(inputs, path, grad, options).into()
        });
        let policy = tracked::<B, C, 2>(policy_nodes, found.policy, move |grad| {
            let (inputs, path) = kept;
            let grad = if learned {
                grad
            } else {
                entropy_only::<B>(grad)
            };
            B::tree_policy_backward(inputs, path, grad, options).into()
        });
        TreeSearchPrimitive {
            context,
            path: found.path,
            policy,
            counts: found.counts,
        }
    }

    fn dense_attention(
        inputs: DenseAttentionInputs<Self>,
        options: DenseAttentionOptions,
    ) -> AttentionOutput<Self> {
        let nodes = [inputs.query.node(), inputs.key.node(), inputs.value.node()];
        let inputs = DenseAttentionInputs::<B> {
            query: inputs.query.into_primitive(),
            key: inputs.key.into_primitive(),
            value: inputs.value.into_primitive(),
            mask: match inputs.mask {
                AttentionMask::None => AttentionMask::None,
                AttentionMask::Keys(mask) => AttentionMask::Keys(mask),
            },
        };
        let output = B::dense_attention(inputs.clone(), options);
        attended::<B, C, 3>(nodes, output, move |output, grad| {
            B::dense_attention_backward(inputs, output, grad, options).into()
        })
    }

    fn leaf_attention(
        inputs: LeafAttentionInputs<Self>,
        options: LeafAttentionOptions,
    ) -> AttentionOutput<Self> {
        let floats = [&inputs.query, &inputs.key, &inputs.value, &inputs.key_bias];
        let nodes = floats.map(|input| input.node());
        let inputs = LeafAttentionInputs::<B> {
            query: inputs.query.into_primitive(),
            key: inputs.key.into_primitive(),
            value: inputs.value.into_primitive(),
            key_bias: inputs.key_bias.into_primitive(),
            query_leaf: inputs.query_leaf,
            key_leaf: inputs.key_leaf,
        };
        let output = B::leaf_attention(inputs.clone(), options);
        attended::<B, C, 4>(nodes, output, move |output, grad| {
            let of = B::leaf_attention_backward(inputs, output, grad, options);
            [of.query, of.key, of.value, of.key_bias]
        })
    }

    /// The identity of a context, which gives gates of candidates a gradient.
    fn candidate_keys(
        inputs: CandidateInputs<Self>,
        output: AttentionOutput<Self>,
        gate: FloatTensor<Self>,
        options: LeafAttentionOptions,
    ) -> FloatTensor<Self> {
        let nodes = [output.context.node(), gate.node()];
        let inputs = CandidateInputs::<B> {
            query: inputs.query.into_primitive(),
            key: inputs.key.into_primitive(),
            value: inputs.value.into_primitive(),
            query_leaf: inputs.query_leaf,
            candidate_leaf: inputs.candidate_leaf,
        };
        let output = AttentionOutput::<B> {
            context: output.context.into_primitive(),
            lse: output.lse.into_primitive(),
        };
        let context = output.context.clone();
        let gradients = move |grad: FloatTensor<B>, [_, wants_gate]: [bool; 2]| {
            let of_gate = wants_gate
                .then(|| B::candidate_keys_backward(inputs, output, grad.clone(), options));
            [Some(grad), of_gate]
        };
        let step = Backward::<B, 2>::prepare::<C>(Step(gradients), nodes);
        step.compute_bound().stateless(context)
    }

    fn tree_build(
        leaves: FloatTensor<Self>,
        lengths: IntTensor<Self>,
        block: BlockPrimitive<Self>,
        options: TreeBuildOptions,
    ) -> FloatTensor<Self> {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m] =
            block.clone().into_array().map(|weight| weight.node());
        let inputs = [leaves.node(), a, b, c, d, e, f, g, h, i, j, k, l, m];
        let block: BlockPrimitive<B> = block.map(|weight| weight.into_primitive());
        let leaves = leaves.into_primitive();
        let nodes = B::tree_build(leaves, lengths.clone(), block.clone(), options);
        let kept = nodes.clone();
        tracked::<B, C, 14>(inputs, nodes, move |grad| {
            let TreeBuildGradients { leaves, block } =
                B::tree_build_backward(kept, lengths, block, grad, options);
            let [a, b, c, d, e, f, g, h, i, j, k, l, m] = block.into_array();
            [leaves, a, b, c, d, e, f, g, h, i, j, k, l, m]
        })
    }
}

impl<B: Backend + FeedForwardOps, C: CheckpointStrategy> FeedForwardOps for Autodiff<B, C> {
    first_order_only! {
        feed_forward_backward(
            FloatTensor<Self>, FeedForwardPrimitive<Self>, FloatTensor<Self>, f64
        ) -> FeedForwardGradients<Self>;
    }

    fn feed_forward(
        rows: FloatTensor<Self>,
        weights: FeedForwardPrimitive<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        let [a, b, c, d, e, f] = weights.clone().into_array().map(|weight| weight.node());
        let inputs = [rows.node(), a, b, c, d, e, f];
        let weights = weights.map::<B>(|weight| weight.into_primitive());
        let rows = rows.into_primitive();
        let output = B::feed_forward(rows.clone(), weights.clone(), epsilon);
        tracked::<B, C, 7>(inputs, output, move |grad| {
            let FeedForwardGradients { rows, weights } =
                B::feed_forward_backward(rows, weights, grad, epsilon);
            let [a, b, c, d, e, f] = weights.into_array();
            [rows, a, b, c, d, e, f]
        })
    }
}
