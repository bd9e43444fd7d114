//! Attention within leaves, and the gates of candidates.

use crate::ops::{LeafAttentionOptions, TreeAttentionOps};
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend};

type Tracked<B, C> = FloatTensor<Autodiff<B, C>>;

/// Attention within leaves: a function of query, key, value and key bias.
#[derive(Debug)]
struct LeafAttention;

#[derive(Clone, Debug)]
struct LeafAttentionState<B: Backend> {
    /// Query, key, value and key bias.
    inputs: [FloatTensor<B>; 4],
    query_leaf: IntTensor<B>,
    key_leaf: IntTensor<B>,
    context: FloatTensor<B>,
    log_total: FloatTensor<B>,
    options: LeafAttentionOptions,
}

impl<B: Backend + TreeAttentionOps> Backward<B, 4> for LeafAttention {
    type State = LeafAttentionState<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 4>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let state = ops.state;
        let grad = grads.consume::<B>(&ops.node);
        let [query, key, value, key_bias] = state.inputs;
        let found = B::leaf_attention_backward(
            query,
            key,
            value,
            key_bias,
            state.query_leaf,
            state.key_leaf,
            state.context,
            state.log_total,
            grad,
            state.options,
        );
        let gradients = [found.query, found.key, found.value, found.key_bias];
        for (parent, gradient) in ops.parents.into_iter().zip(gradients) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

/// `inputs`: query, key, value and key bias.
pub(super) fn attend<B: Backend + TreeAttentionOps, C: CheckpointStrategy>(
    inputs: [Tracked<B, C>; 4],
    query_leaf: IntTensor<B>,
    key_leaf: IntTensor<B>,
    options: LeafAttentionOptions,
) -> (Tracked<B, C>, Tracked<B, C>) {
    let nodes = inputs.each_ref().map(|input| input.node());
    let inputs = inputs.map(|input| input.into_primitive());
    let [query, key, value, key_bias] = inputs.clone();
    let (context, log_total) = B::leaf_attention(
        query,
        key,
        value,
        key_bias,
        query_leaf.clone(),
        key_leaf.clone(),
        options,
    );
    let state = LeafAttentionState {
        inputs,
        query_leaf,
        key_leaf,
        context: context.clone(),
        log_total: log_total.clone(),
        options,
    };
    let context = match LeafAttention.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(step) => step.finish(state, context),
        OpsKind::UnTracked(step) => step.finish(context),
    };
    (context, Tracked::<B, C>::new(log_total))
}

/// The identity of a context, which gives gates of candidates a gradient.
#[derive(Debug)]
struct CandidateKeys;

#[derive(Clone, Debug)]
struct CandidateKeysState<B: Backend> {
    context: FloatTensor<B>,
    /// Query, key, value and the logarithm of the total.
    inputs: [FloatTensor<B>; 4],
    query_leaf: IntTensor<B>,
    candidate_leaf: IntTensor<B>,
    options: LeafAttentionOptions,
}

impl<B: Backend + TreeAttentionOps> Backward<B, 2> for CandidateKeys {
    type State = CandidateKeysState<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let state = ops.state;
        let grad = grads.consume::<B>(&ops.node);
        let [of_context, of_gate] = ops.parents;
        if let Some(gate) = of_gate {
            let [query, key, value, log_total] = state.inputs;
            let gradient = B::candidate_keys_backward(
                query,
                key,
                value,
                state.query_leaf,
                state.candidate_leaf,
                state.context,
                log_total,
                grad.clone(),
                state.options,
            );
            grads.register::<B>(gate.id, gradient);
        }
        if let Some(context) = of_context {
            grads.register::<B>(context.id, grad);
        }
    }
}

/// `inputs`: query, key, value and the logarithm of the total.
pub(super) fn candidate_keys<B: Backend + TreeAttentionOps, C: CheckpointStrategy>(
    context: Tracked<B, C>,
    gate: Tracked<B, C>,
    inputs: [Tracked<B, C>; 4],
    query_leaf: IntTensor<B>,
    candidate_leaf: IntTensor<B>,
    options: LeafAttentionOptions,
) -> Tracked<B, C> {
    let nodes = [context.node(), gate.node()];
    let context = context.into_primitive();
    let state = CandidateKeysState {
        context: context.clone(),
        inputs: inputs.map(|input| input.into_primitive()),
        query_leaf,
        candidate_leaf,
        options,
    };
    match CandidateKeys.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(step) => step.finish(state, context),
        OpsKind::UnTracked(step) => step.finish(context),
    }
}
