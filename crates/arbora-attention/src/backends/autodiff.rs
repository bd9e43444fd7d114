//! The gradient of each operator, as one step of the graph.

mod leaf_attention;

use crate::ops::{
    AttentionMask, BlockPrimitive, DenseAttentionOptions, FeedForwardGradients,
    FeedForwardPrimitive, LeafAttentionGradients, LeafAttentionOptions, RoutePrimitive,
    TreeAttentionOps, TreeBuildGradients, TreeBuildOptions, TreeSearchOptions, TreeSearchPrimitive,
};
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend};

/// Attention of a search: a function of query, key and value, its path given.
#[derive(Debug)]
struct Context;

/// What a search keeps for its gradients. All are shared with tensors that live anyway.
#[derive(Clone, Debug)]
struct SearchState<B: Backend> {
    query: FloatTensor<B>,
    key: FloatTensor<B>,
    value: FloatTensor<B>,
    lengths: IntTensor<B>,
    path: IntTensor<B>,
    options: TreeSearchOptions,
    /// Whether the log-probability is that of the policy.
    learned: bool,
}

impl<B: Backend + TreeAttentionOps> Backward<B, 3> for Context {
    type State = SearchState<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let state = ops.state;
        let grad = grads.consume::<B>(&ops.node);
        let (query, key, value) = B::tree_context_backward(
            state.query,
            state.key,
            state.value,
            state.lengths,
            state.path,
            grad,
            state.options,
        );
        for (parent, gradient) in ops.parents.into_iter().zip([query, key, value]) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

/// Log-probability and entropy of a search: a function of query and key, its path given.
#[derive(Debug)]
struct Policy;

impl<B: Backend + TreeAttentionOps> Backward<B, 2> for Policy {
    type State = SearchState<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let state = ops.state;
        let grad = grads.consume::<B>(&ops.node);
        let grad = match state.learned {
            true => grad,
            false => entropy_only::<B>(grad),
        };
        let (query, key) = B::tree_policy_backward(
            state.query,
            state.key,
            state.lengths,
            state.path,
            grad,
            state.options,
        );
        for (parent, gradient) in ops.parents.into_iter().zip([query, key]) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, gradient);
            }
        }
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

/// Dense attention.
#[derive(Debug)]
struct Dense;

#[derive(Clone, Debug)]
struct DenseState<B: Backend> {
    query: FloatTensor<B>,
    key: FloatTensor<B>,
    value: FloatTensor<B>,
    mask: AttentionMask<B>,
    context: FloatTensor<B>,
    log_total: FloatTensor<B>,
    options: DenseAttentionOptions,
}

impl<B: Backend + TreeAttentionOps> Backward<B, 3> for Dense {
    type State = DenseState<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let state = ops.state;
        let grad = grads.consume::<B>(&ops.node);
        let (query, key, value) = B::dense_attention_backward(
            state.query,
            state.key,
            state.value,
            state.mask,
            state.context,
            state.log_total,
            grad,
            state.options,
        );
        for (parent, gradient) in ops.parents.into_iter().zip([query, key, value]) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

/// A tree build: leaves first, then the weights in the order of [`weights`].
#[derive(Debug)]
struct Build;

#[derive(Clone, Debug)]
struct BuildState<B: Backend> {
    nodes: FloatTensor<B>,
    lengths: IntTensor<B>,
    block: BlockPrimitive<B>,
    options: TreeBuildOptions,
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

impl<B: Backend + TreeAttentionOps> Backward<B, 14> for Build {
    type State = BuildState<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 14>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let state = ops.state;
        let grad = grads.consume::<B>(&ops.node);
        let TreeBuildGradients { leaves, block } =
            B::tree_build_backward(state.nodes, state.lengths, state.block, grad, state.options);
        let gradients = std::iter::once(leaves).chain(weights::<B>(block));
        for (parent, gradient) in ops.parents.into_iter().zip(gradients) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

/// A feed-forward part: rows first, then the weights in the order of [`feed_forward_weights`].
#[derive(Debug)]
struct FeedForward;

#[derive(Clone, Debug)]
struct FeedForwardState<B: Backend> {
    rows: FloatTensor<B>,
    weights: FeedForwardPrimitive<B>,
    epsilon: f64,
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

impl<B: Backend + TreeAttentionOps> Backward<B, 7> for FeedForward {
    type State = FeedForwardState<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 7>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let state = ops.state;
        let grad = grads.consume::<B>(&ops.node);
        let FeedForwardGradients { rows, weights } =
            B::feed_forward_backward(state.rows, state.weights, grad, state.epsilon);
        let gradients = std::iter::once(rows).chain(feed_forward_weights::<B>(weights));
        for (parent, gradient) in ops.parents.into_iter().zip(gradients) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

const SECOND_ORDER: &str = "burn differentiates once: the gradient of a gradient is not defined";

impl<B: Backend + TreeAttentionOps, C: CheckpointStrategy> TreeAttentionOps for Autodiff<B, C> {
    fn tree_search(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        lengths: IntTensor<Self>,
        route: RoutePrimitive<Self>,
        options: TreeSearchOptions,
    ) -> TreeSearchPrimitive<Self> {
        let nodes = [query.node(), key.node(), value.node()];
        let policy_nodes = [query.node(), key.node()];
        let (query, key, value) = (
            query.into_primitive(),
            key.into_primitive(),
            value.into_primitive(),
        );
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
        let state = SearchState {
            query,
            key,
            value,
            lengths,
            path: found.path.clone(),
            options,
            learned,
        };
        let context = match Context.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(step) => step.finish(state.clone(), found.context),
            OpsKind::UnTracked(step) => step.finish(found.context),
        };
        let policy = match Policy.prepare::<C>(policy_nodes).compute_bound().stateful() {
            OpsKind::Tracked(step) => step.finish(state, found.policy),
            OpsKind::UnTracked(step) => step.finish(found.policy),
        };
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
        let nodes = [query.node(), key.node(), value.node()];
        let (query, key, value) = (
            query.into_primitive(),
            key.into_primitive(),
            value.into_primitive(),
        );
        let mask = match mask {
            AttentionMask::None => AttentionMask::None,
            AttentionMask::Keys(mask) => AttentionMask::Keys(mask),
        };
        let (context, log_total) = B::dense_attention(
            query.clone(),
            key.clone(),
            value.clone(),
            mask.clone(),
            options,
        );
        let state = DenseState {
            query,
            key,
            value,
            mask,
            context: context.clone(),
            log_total: log_total.clone(),
            options,
        };
        let context = match Dense.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(step) => step.finish(state, context),
            OpsKind::UnTracked(step) => step.finish(context),
        };
        (context, FloatTensor::<Self>::new(log_total))
    }

    fn dense_attention_backward(
        _query: FloatTensor<Self>,
        _key: FloatTensor<Self>,
        _value: FloatTensor<Self>,
        _mask: AttentionMask<Self>,
        _context: FloatTensor<Self>,
        _log_total: FloatTensor<Self>,
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
        leaf_attention::attend::<B, C>([query, key, value, key_bias], query_leaf, key_leaf, options)
    }

    fn leaf_attention_backward(
        _query: FloatTensor<Self>,
        _key: FloatTensor<Self>,
        _value: FloatTensor<Self>,
        _key_bias: FloatTensor<Self>,
        _query_leaf: IntTensor<Self>,
        _key_leaf: IntTensor<Self>,
        _context: FloatTensor<Self>,
        _log_total: FloatTensor<Self>,
        _grad: FloatTensor<Self>,
        _options: LeafAttentionOptions,
    ) -> LeafAttentionGradients<Self> {
        panic!("leaf_attention_backward: {SECOND_ORDER}");
    }

    fn candidate_keys(
        context: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        query_leaf: IntTensor<Self>,
        candidate_leaf: IntTensor<Self>,
        log_total: FloatTensor<Self>,
        options: LeafAttentionOptions,
    ) -> FloatTensor<Self> {
        leaf_attention::candidate_keys::<B, C>(
            context,
            gate,
            [query, key, value, log_total],
            query_leaf,
            candidate_leaf,
            options,
        )
    }

    fn candidate_keys_backward(
        _query: FloatTensor<Self>,
        _key: FloatTensor<Self>,
        _value: FloatTensor<Self>,
        _query_leaf: IntTensor<Self>,
        _candidate_leaf: IntTensor<Self>,
        _context: FloatTensor<Self>,
        _log_total: FloatTensor<Self>,
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
        let [
            norm_gamma,
            norm_beta,
            query,
            key,
            value,
            output,
            output_bias,
            feed_forward_norm_gamma,
            feed_forward_norm_beta,
            inner,
            inner_bias,
            outer,
            outer_bias,
        ] = weights::<Self>(block.clone()).map(|weight| weight.node());
        let nodes = [
            leaves.node(),
            norm_gamma,
            norm_beta,
            query,
            key,
            value,
            output,
            output_bias,
            feed_forward_norm_gamma,
            feed_forward_norm_beta,
            inner,
            inner_bias,
            outer,
            outer_bias,
        ];
        let block: BlockPrimitive<B> = block.map(|weight| weight.into_primitive());
        let built = B::tree_build(
            leaves.into_primitive(),
            lengths.clone(),
            block.clone(),
            options,
        );
        let state = BuildState {
            nodes: built.clone(),
            lengths,
            block,
            options,
        };
        match Build.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(step) => step.finish(state, built),
            OpsKind::UnTracked(step) => step.finish(built),
        }
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
        let [norm_gamma, norm_beta, inner, inner_bias, outer, outer_bias] =
            feed_forward_weights::<Self>(weights.clone()).map(|weight| weight.node());
        let nodes = [
            rows.node(),
            norm_gamma,
            norm_beta,
            inner,
            inner_bias,
            outer,
            outer_bias,
        ];
        let state = FeedForwardState {
            rows: rows.into_primitive(),
            weights: weights.map::<B>(|weight| weight.into_primitive()),
            epsilon,
        };
        let output = B::feed_forward(state.rows.clone(), state.weights.clone(), epsilon);
        match FeedForward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(step) => step.finish(state, output),
            OpsKind::UnTracked(step) => step.finish(output),
        }
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
