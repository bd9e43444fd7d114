//! Attention within leaves, from tensors to slices and back.

use super::leaf_attention::{self, LeafDims, LeafInputs, LeafOutputs};
use super::{HostBackend, on_host, read};
use crate::ops::{LeafAttentionGradients, LeafAttentionOptions, reference};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::Shape;

fn leaf_dims(
    query: &Shape,
    key: &Shape,
    value: &Shape,
    options: &LeafAttentionOptions,
) -> LeafDims {
    let [batch, queries, heads, head_dim] = query.dims();
    let [_, keys, kv_heads, _] = key.dims();
    LeafDims {
        batch,
        queries,
        keys,
        heads,
        kv_heads,
        head_dim,
        value_dim: value[3],
        leaves: options.leaves,
        scale: options.scale(head_dim) as f32,
        causal: options.causal,
        dropout: options.dropping(),
    }
}

/// Reads leaves, whatever their type.
fn leaves<B: Backend>(tensor: IntTensor<B>) -> Vec<i64> {
    read(B::int_into_data(tensor)).iter::<i64>().collect()
}

pub(crate) fn leaf_attention<B: HostBackend>(
    query: FloatTensor<B>,
    key: FloatTensor<B>,
    value: FloatTensor<B>,
    key_bias: FloatTensor<B>,
    query_leaf: IntTensor<B>,
    key_leaf: IntTensor<B>,
    options: LeafAttentionOptions,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (Some(query), Some(key), Some(value), Some(key_bias)) =
        on_host!(B: query, key, value, key_bias)
    else {
        return reference::leaf_attention::<B>(
            query, key, value, key_bias, query_leaf, key_leaf, options,
        );
    };
    let dims = leaf_dims(&query.shape(), &key.shape(), &value.shape(), &options);
    let device = query.device();
    let (batch, queries, heads) = (dims.batch, dims.queries, dims.heads);
    let mut context = B::allocate(
        Shape::from([batch, queries, heads, dims.value_dim]),
        &device,
    );
    let mut log_total = B::allocate(Shape::from([batch, queries, heads]), &device);
    leaf_attention::forward(
        dims,
        LeafInputs {
            query: B::floats(&query),
            key: B::floats(&key),
            value: B::floats(&value),
            query_leaf: &leaves::<B>(query_leaf),
            key_leaf: &leaves::<B>(key_leaf),
        },
        B::floats(&key_bias),
        B::floats_mut(&mut context),
        B::floats_mut(&mut log_total),
    );
    (context, log_total)
}

#[allow(clippy::too_many_arguments)]
pub(crate) fn leaf_attention_backward<B: HostBackend>(
    query: FloatTensor<B>,
    key: FloatTensor<B>,
    value: FloatTensor<B>,
    key_bias: FloatTensor<B>,
    query_leaf: IntTensor<B>,
    key_leaf: IntTensor<B>,
    context: FloatTensor<B>,
    log_total: FloatTensor<B>,
    grad: FloatTensor<B>,
    options: LeafAttentionOptions,
) -> LeafAttentionGradients<B> {
    let (
        (Some(query), Some(key), Some(value), Some(key_bias)),
        (Some(context), Some(log_total), Some(grad)),
    ) = (
        on_host!(B: query, key, value, key_bias),
        on_host!(B: context, log_total, grad),
    )
    else {
        return reference::leaf_attention_backward::<B>(
            query, key, value, key_bias, query_leaf, key_leaf, grad, options,
        );
    };
    let dims = leaf_dims(&query.shape(), &key.shape(), &value.shape(), &options);
    let device = query.device();
    let mut gradients = LeafAttentionGradients {
        query: B::allocate(query.shape(), &device),
        key: B::allocate(key.shape(), &device),
        value: B::allocate(value.shape(), &device),
        key_bias: B::allocate(key_bias.shape(), &device),
    };
    leaf_attention::backward(
        dims,
        LeafInputs {
            query: B::floats(&query),
            key: B::floats(&key),
            value: B::floats(&value),
            query_leaf: &leaves::<B>(query_leaf),
            key_leaf: &leaves::<B>(key_leaf),
        },
        B::floats(&key_bias),
        LeafOutputs {
            context: B::floats(&context),
            log_total: B::floats(&log_total),
            grad: B::floats(&grad),
        },
        [
            B::floats_mut(&mut gradients.query),
            B::floats_mut(&mut gradients.key),
            B::floats_mut(&mut gradients.value),
            B::floats_mut(&mut gradients.key_bias),
        ],
    );
    gradients
}

#[allow(clippy::too_many_arguments)]
pub(crate) fn candidate_keys_backward<B: HostBackend>(
    query: FloatTensor<B>,
    key: FloatTensor<B>,
    value: FloatTensor<B>,
    query_leaf: IntTensor<B>,
    candidate_leaf: IntTensor<B>,
    context: FloatTensor<B>,
    log_total: FloatTensor<B>,
    grad: FloatTensor<B>,
    options: LeafAttentionOptions,
) -> FloatTensor<B> {
    let ((Some(query), Some(key), Some(value)), (Some(context), Some(log_total), Some(grad))) = (
        on_host!(B: query, key, value),
        on_host!(B: context, log_total, grad),
    ) else {
        return reference::candidate_keys_backward::<B>(
            query,
            key,
            value,
            query_leaf,
            candidate_leaf,
            context,
            log_total,
            grad,
            options,
        );
    };
    let dims = leaf_dims(&query.shape(), &key.shape(), &value.shape(), &options);
    let shape = Shape::from([dims.batch, dims.keys, dims.kv_heads]);
    let mut d_gate = B::allocate(shape, &query.device());
    leaf_attention::candidate_gates(
        dims,
        LeafInputs {
            query: B::floats(&query),
            key: B::floats(&key),
            value: B::floats(&value),
            query_leaf: &leaves::<B>(query_leaf),
            key_leaf: &leaves::<B>(candidate_leaf),
        },
        LeafOutputs {
            context: B::floats(&context),
            log_total: B::floats(&log_total),
            grad: B::floats(&grad),
        },
        B::floats_mut(&mut d_gate),
    );
    d_gate
}
