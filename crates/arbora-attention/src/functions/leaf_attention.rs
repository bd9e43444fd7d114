//! Softmax attention of queries to the keys of their leaf.

use super::check::Axes;
use crate::ops::{
    AttentionOutput, CandidateInputs, LeafAttentionInputs, LeafAttentionOptions, TreeAttentionOps,
    shapes,
};
use burn::backend::Dispatch;
use burn::tensor::{Int, Tensor};

/// What [`leaf_attention`] attends with and to. `heads` is a multiple of `kv_heads`.
#[derive(Clone, Debug)]
pub struct LeafAttentionInput {
    /// `[batch, queries, heads, head_dim]`
    pub query: Tensor<4>,
    /// `[batch, keys, kv_heads, head_dim]`
    pub key: Tensor<4>,
    /// `[batch, keys, kv_heads, value_dim]`
    pub value: Tensor<4>,
    /// The leaf of each query, `[batch, queries, heads]`. A query whose leaf is outside `0..leaves` is masked out.
    pub query_leaf: Tensor<3, Int>,
    /// The leaf of each key, `[batch, keys, kv_heads]`. A key whose leaf is outside `0..leaves` is seen by
    /// no query.
    pub key_leaf: Tensor<3, Int>,
    /// Added to the logits of a key after the scale, `[batch, keys, kv_heads]`; finite.
    pub key_bias: Option<Tensor<3>>,
}

/// What [`leaf_attention`] returns.
#[derive(Clone, Debug)]
pub struct LeafAttentionOutput {
    /// `[batch, queries, heads, value_dim]`, zero for a query that sees no key.
    pub context: Tensor<4>,
    /// The logarithm of the softmax's denominator, `[batch, queries, heads]`, in at least single precision
    /// and without a gradient; `f32::MIN` for a query that sees no key.
    pub lse: Tensor<3>,
}

/// Softmax attention of every query to the keys of its own leaf: TF-Attention of
/// [Treeformer](https://arxiv.org/abs/2208.09015), section 3.1, with the leaves given.
///
/// ```text
/// s_ij = scale * query_i . key_j + bias_j
/// context_i = sum over j with leaf_j = leaf_i of  exp(s_ij) / total_i * keep_ij * value_j
/// ```
///
/// where `total_i` is the sum of `exp(s_ij)` over the same keys: the softmax is that of the leaf. Query
/// head `h` reads the key head `h / (heads / kv_heads)`. If
/// [`causal`](LeafAttentionOptions::causal), a query sees of its leaf only the keys up to its own position.
/// `keep_ij` is 1 without dropout.
///
/// The gradient reaches query, key, value and key bias. That of a bias is the sum of its logits'
/// gradients. With `key_bias = log p - detach(log p)`, which is zero, the probability `p` with which a key
/// is in its leaf gets the gradient that it would have if keys counted by it.
///
/// Where there is a [kernel](crate::functions#kernels), time grows with the sum over leaves of their queries times their keys,
/// and memory with queries plus keys: beside inputs and outputs it holds the order of rows by leaf, and tiles. One leaf that
/// holds most rows costs what dense attention costs. On GPUs listing the rows of a leaf also reads the leaf numbers of all rows
/// of its example and key head: `leaves · (queries + keys)` integers per example and head. A reference body forms every pair
/// of query and key, in time and in memory.
///
/// # Panics
/// If an axis disagrees with the others, if there are no leaves, if `heads` is not a multiple of
/// `kv_heads`, or if the rate of dropout is not in `0.0..1.0`.
#[track_caller]
pub fn leaf_attention(
    input: LeafAttentionInput,
    options: LeafAttentionOptions,
) -> LeafAttentionOutput {
    let rows = [&input.query, &input.key, &input.value];
    let axes = check("leaf_attention", rows, &input.query_leaf, &options);
    let (key, key_leaf) = (input.key, input.key_leaf);
    axes.expect("key_leaf", "batch, keys, kv_heads", &key_leaf.dims());
    if let Some(dropout) = options.dropout {
        assert!(
            (0.0..1.0).contains(&dropout.rate),
            "leaf_attention: rate of dropout: expected a number in 0.0..1.0, got {}",
            dropout.rate
        );
    }
    let no_bias = || Tensor::zeros(key_leaf.dims(), (&key.device(), key.dtype()));
    let key_bias = input.key_bias.unwrap_or_else(no_bias);
    axes.expect("key_bias", "batch, keys, kv_heads", &key_bias.dims());
    let inputs = LeafAttentionInputs {
        query: input.query.into_dispatch(),
        key: key.into_dispatch(),
        value: input.value.into_dispatch(),
        key_bias: key_bias.into_dispatch(),
        query_leaf: input.query_leaf.into_dispatch(),
        key_leaf: key_leaf.into_dispatch(),
    };
    let output = <Dispatch as TreeAttentionOps>::leaf_attention(inputs, options);
    LeafAttentionOutput {
        context: Tensor::from_dispatch(output.context),
        lse: Tensor::from_dispatch(output.lse),
    }
}

/// For each query the mean value of the keys of its leaf, 0 where there is none: attention with equal logits, whose
/// denominators count the keys.
pub(crate) fn means_of_leaves(
    query_leaf: Tensor<3, Int>,
    key_leaf: Tensor<3, Int>,
    value: Tensor<4>,
    leaves: usize,
) -> LeafAttentionOutput {
    let input = LeafAttentionInput {
        query: zero_rows(query_leaf.dims(), &value),
        key: zero_rows(key_leaf.dims(), &value),
        value,
        query_leaf,
        key_leaf,
        key_bias: None,
    };
    leaf_attention(input, LeafAttentionOptions::new(leaves))
}

/// Queries or keys whose dot products are all 0: constants, `[batch, rows, heads, 4]`. Kernels read four numbers at a time.
pub(crate) fn zero_rows([batch, rows, heads]: [usize; 3], like: &Tensor<4>) -> Tensor<4> {
    let device = like.device().without_autodiff();
    Tensor::zeros([batch, rows, heads, 4], (&device, like.dtype()))
}

/// Inputs of [`candidate_keys`]; only the gate has a gradient.
#[derive(Clone, Debug)]
pub struct CandidateKeys {
    /// `[batch, keys, kv_heads]`, zero: it is there for its gradient.
    pub gate: Tensor<3>,
    /// As in [`LeafAttentionInput`], `[batch, queries, heads, head_dim]`.
    pub query: Tensor<4>,
    /// As in [`LeafAttentionInput`], `[batch, keys, kv_heads, head_dim]`.
    pub key: Tensor<4>,
    /// As in [`LeafAttentionInput`], `[batch, keys, kv_heads, value_dim]`.
    pub value: Tensor<4>,
    /// As in [`LeafAttentionInput`], `[batch, queries, heads]`.
    pub query_leaf: Tensor<3, Int>,
    /// One other leaf per key, `[batch, keys, kv_heads]`; outside `0..leaves`: none.
    pub candidate_leaf: Tensor<3, Int>,
    /// As attention returned it, `[batch, queries, heads]`.
    pub lse: Tensor<3>,
}

/// The context of [`leaf_attention`], unchanged, and a gradient for moving keys to another leaf.
///
/// Attention within leaves says nothing about the leaves that a key is not in. What if key `j` were in its
/// candidate leaf as well? Each query of that leaf would give it the weight `u / (total + u)` with
/// `u = exp(scale * query . key)`, and its context would move towards the value of `j`. The gradient of
/// `gate_j` is the gain of that:
///
/// ```text
/// sum over i with leaf_i = candidate_j of  u_ij / (total_i + u_ij) * grad_i . (value_j - context_i)
/// ```
///
/// over the queries that may see `j` by the causal rule, where `grad_i` is the gradient of the returned
/// context. The weight is below 1, unlike `u / total`, and is computed as the sigmoid of
/// `scale * query . key - lse`, so that no exponential overflows; it is 1 for a query that sees no
/// key of its own leaf. There is no dropout in it.
///
/// The gradient of the returned context passes through to `context`; nothing else gets one. Time and
/// memory are as those of [`leaf_attention`].
///
/// # Shapes
/// - context: `[batch, queries, heads, value_dim]`, as is what is returned
/// - the others: see [`CandidateKeys`]
///
/// # Panics
/// If an axis disagrees with the others, if there are no leaves, or if `heads` is not a multiple of
/// `kv_heads`.
#[track_caller]
pub fn candidate_keys(
    context: Tensor<4>,
    input: CandidateKeys,
    options: LeafAttentionOptions,
) -> Tensor<4> {
    let rows = [&input.query, &input.key, &input.value];
    let axes = check("candidate_keys", rows, &input.query_leaf, &options);
    let of_keys = "batch, keys, kv_heads";
    axes.expect("candidate_leaf", of_keys, &input.candidate_leaf.dims());
    axes.expect("gate", of_keys, &input.gate.dims());
    axes.expect("lse", "batch, queries, heads", &input.lse.dims());
    axes.expect(
        "context",
        "batch, queries, heads, value_dim",
        &context.dims(),
    );
    let inputs = CandidateInputs {
        query: input.query.into_dispatch(),
        key: input.key.into_dispatch(),
        value: input.value.into_dispatch(),
        query_leaf: input.query_leaf.into_dispatch(),
        candidate_leaf: input.candidate_leaf.into_dispatch(),
    };
    let output = AttentionOutput {
        context: context.into_dispatch(),
        lse: input.lse.into_dispatch(),
    };
    let gate = input.gate.into_dispatch();
    Tensor::from_dispatch(<Dispatch as TreeAttentionOps>::candidate_keys(
        inputs, output, gate, options,
    ))
}

/// Checks what both functions take; the axes that the rest must agree with.
#[track_caller]
fn check(
    function: &'static str,
    [query, key, value]: [&Tensor<4>; 3],
    query_leaf: &Tensor<3, Int>,
    options: &LeafAttentionOptions,
) -> Axes {
    assert!(
        options.leaves > 0,
        "{function}: leaves: expected at least 1, got 0"
    );
    let shapes = [
        query.shape(),
        key.shape(),
        value.shape(),
        query_leaf.shape(),
    ];
    shapes::leaf_attention(function, shapes.each_ref())
}
