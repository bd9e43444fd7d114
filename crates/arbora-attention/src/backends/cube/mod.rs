//! Kernels for every CubeCL runtime.
//!
//! They compute in single precision and take what fits 32-bit positions; all else takes the
//! reference body. Units write to places of their own and add in a fixed order: a launch gives the same
//! numbers every time, and needs no atomics.
//!
//! Launches are unchecked. What they rely on, beside what the comment of each says:
//!
//! - *Geometry.* At least as many units are launched as `units` says (`grid`), and those beyond end before they touch memory.
//! - *Bounds.* Positions follow from sizes alone, which inputs have (`shapes`) and with which all other buffers are made. Lengths,
//!   paths and leaves, which a tensor may hold anything for, are bounded by the kernels (`length_of`, `up_to`, `child_of`,
//!   `bucket_of`, `is_real`). Positions fit 32 bits (`ops::limits`). Tensors lie without gaps (`into_contiguous`).
//! - *Races.* A unit writes what it owns, and no unit reads what another one writes in the same launch.
//! - *Loops* run over sizes, and end.

// Kernels are host functions that record what the device runs; their arguments are its buffers.
#![allow(clippy::too_many_arguments)]

mod dense_attention;
mod feed_forward;
mod leaf_attention;
mod shapes;
mod tree_build;
mod tree_search;

use crate::ops::limits::{are_single, is_single, is_single_feed_forward};
use crate::ops::{
    AttentionMask, BlockPrimitive, DenseAttentionOptions, FeedForwardGradients,
    FeedForwardPrimitive, LeafAttentionGradients, LeafAttentionOptions, RoutePrimitive,
    TreeAttentionOps, TreeBuildGradients, TreeBuildOptions, TreeSearchOptions, TreeSearchPrimitive,
    limits, reference,
};
use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::{DType, Shape};
use burn_cubecl::ops::numeric::{empty_device_contiguous_dtype, zeros_client};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, kernel::into_contiguous};
use cubecl::ir::ElemType;
use cubecl::prelude::{CubeCount, CubeDim};

/// Launches are unchecked, so that what reaches them is checked here, whoever calls.
const TOO_MUCH: &str = "expected what kernels take, which `ops/limits.rs` says";

impl TreeAttentionOps for CubeBackend {
    fn tree_search(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        lengths: IntTensor<Self>,
        route: RoutePrimitive<Self>,
        options: TreeSearchOptions,
    ) -> TreeSearchPrimitive<Self> {
        let choice = match &route {
            RoutePrimitive::Sampled(numbers) | RoutePrimitive::Uniform(numbers) => Some(numbers),
            RoutePrimitive::Greedy | RoutePrimitive::Given(_) => None,
        };
        let floats = [&query, &key, &value].into_iter().chain(choice);
        if are_single(floats) && limits::tree_search(&query, &key, &value, &options) {
            tree_search::search(query, key, value, lengths, route, options)
        } else {
            reference::tree_search::<Self>(query, key, value, lengths, route, options)
        }
    }

    fn tree_context_backward_kernel(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        lengths: IntTensor<Self>,
        path: IntTensor<Self>,
        grad: FloatTensor<Self>,
        options: TreeSearchOptions,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let single = are_single([&query, &key, &value, &grad]) && path.dtype == lengths.dtype;
        assert!(
            single && limits::tree_search(&query, &key, &value, &options),
            "tree_context_backward_kernel: {TOO_MUCH}"
        );
        tree_search::context_backward(query, key, value, lengths, path, grad, options)
    }

    fn tree_policy_backward_kernel(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        lengths: IntTensor<Self>,
        path: IntTensor<Self>,
        grad: FloatTensor<Self>,
        options: TreeSearchOptions,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let single = are_single([&query, &key, &grad]) && path.dtype == lengths.dtype;
        assert!(
            single && limits::tree_search(&query, &key, &key, &options),
            "tree_policy_backward_kernel: {TOO_MUCH}"
        );
        tree_search::policy_backward(query, key, lengths, path, grad, options)
    }

    fn dense_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        mask: AttentionMask<Self>,
        options: DenseAttentionOptions,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        if are_single([&query, &key, &value]) && limits::dense_attention(&query, &value) {
            dense_attention::attend(query, key, value, mask, options)
        } else {
            reference::dense_attention::<Self>(query, key, value, mask, options)
        }
    }

    fn dense_attention_backward_kernel(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        mask: AttentionMask<Self>,
        context: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        options: DenseAttentionOptions,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let single = are_single([&query, &key, &value, &context, &lse, &grad]);
        assert!(
            single && limits::dense_attention(&query, &value),
            "dense_attention_backward_kernel: {TOO_MUCH}"
        );
        dense_attention::backward(query, key, value, mask, context, lse, grad, options)
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
        let single = are_single([&query, &key, &value, &key_bias]);
        if single && limits::leaf_attention(&query, &key, &value, &options) {
            leaf_attention::attend(query, key, value, key_bias, query_leaf, key_leaf, options)
        } else {
            reference::leaf_attention::<Self>(
                query, key, value, key_bias, query_leaf, key_leaf, options,
            )
        }
    }

    fn leaf_attention_backward_kernel(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        key_bias: FloatTensor<Self>,
        query_leaf: IntTensor<Self>,
        key_leaf: IntTensor<Self>,
        context: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        options: LeafAttentionOptions,
    ) -> LeafAttentionGradients<Self> {
        let single = are_single([&query, &key, &value, &key_bias, &context, &lse, &grad]);
        assert!(
            single && limits::leaf_attention(&query, &key, &value, &options),
            "leaf_attention_backward_kernel: {TOO_MUCH}"
        );
        leaf_attention::backward(
            query, key, value, key_bias, query_leaf, key_leaf, context, lse, grad, options,
        )
    }

    fn candidate_keys_backward(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        query_leaf: IntTensor<Self>,
        candidate_leaf: IntTensor<Self>,
        context: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        options: LeafAttentionOptions,
    ) -> FloatTensor<Self> {
        let single = are_single([&query, &key, &value, &context, &lse, &grad]);
        if single && limits::leaf_attention(&query, &key, &value, &options) {
            leaf_attention::candidate_gates(
                query,
                key,
                value,
                query_leaf,
                candidate_leaf,
                context,
                lse,
                grad,
                options,
            )
        } else {
            reference::candidate_keys_backward::<Self>(
                query,
                key,
                value,
                query_leaf,
                candidate_leaf,
                context,
                lse,
                grad,
                options,
            )
        }
    }

    fn tree_build(
        leaves: FloatTensor<Self>,
        lengths: IntTensor<Self>,
        block: BlockPrimitive<Self>,
        options: TreeBuildOptions,
    ) -> FloatTensor<Self> {
        let single = are_single([&leaves]) && is_single(&block);
        if single && limits::tree_build(&leaves, &block, &options) {
            tree_build::build(leaves, lengths, block, options)
        } else {
            reference::tree_build::<Self>(leaves, lengths, block, options)
        }
    }

    fn tree_build_backward_kernel(
        nodes: FloatTensor<Self>,
        lengths: IntTensor<Self>,
        block: BlockPrimitive<Self>,
        grad: FloatTensor<Self>,
        options: TreeBuildOptions,
    ) -> TreeBuildGradients<Self> {
        let single = are_single([&nodes, &grad]) && is_single(&block);
        assert!(
            single && limits::tree_build(&nodes, &block, &options),
            "tree_build_backward_kernel: {TOO_MUCH}"
        );
        tree_build::backward(nodes, lengths, block, grad, options)
    }

    fn feed_forward(
        rows: FloatTensor<Self>,
        weights: FeedForwardPrimitive<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        let single = are_single([&rows]) && is_single_feed_forward(&weights);
        if single && limits::feed_forward(&rows, &weights) {
            feed_forward::forward(rows, weights, epsilon)
        } else {
            reference::feed_forward::<Self>(rows, weights, epsilon)
        }
    }

    fn feed_forward_backward_kernel(
        rows: FloatTensor<Self>,
        weights: FeedForwardPrimitive<Self>,
        grad: FloatTensor<Self>,
        epsilon: f64,
    ) -> FeedForwardGradients<Self> {
        let single = are_single([&rows, &grad]) && is_single_feed_forward(&weights);
        assert!(
            single && limits::feed_forward(&rows, &weights),
            "feed_forward_backward_kernel: {TOO_MUCH}"
        );
        feed_forward::backward(rows, weights, grad, epsilon)
    }
}

/// Rows without gaps, on the device of `like`, not yet written.
fn empty<const D: usize>(like: &CubeTensor, shape: [usize; D], dtype: DType) -> CubeTensor {
    let (client, device) = (like.client.clone(), like.device.clone());
    empty_device_contiguous_dtype(client, device, Shape::from(shape), dtype)
}

fn zeros(like: &CubeTensor, shape: Shape) -> CubeTensor {
    zeros_client(like.client.clone(), like.device.clone(), shape, like.dtype)
}

/// As many units as there are places to write.
fn grid(like: &CubeTensor, units: usize) -> (CubeCount, CubeDim) {
    let dim = CubeDim::new(&like.client, units);
    let count = cubecl::calculate_cube_count_elemwise(&like.client, units, dim);
    (count, dim)
}

/// How many numbers of a row a unit reads at once.
fn vector_size(widths: &[usize]) -> usize {
    if widths.iter().all(|width| width.is_multiple_of(4)) {
        4
    } else {
        1
    }
}

fn element(tensor: &CubeTensor) -> ElemType {
    dtype_to_storage_type(tensor.dtype)
}
