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

use crate::ops::limits::are_single;
use crate::ops::{
    AttentionOutput, BlockPrimitive, CandidateInputs, DenseAttentionInputs, DenseAttentionOptions,
    LeafAttentionGradients, LeafAttentionInputs, LeafAttentionOptions, RoutePrimitive,
    TreeAttentionOps, TreeBuildGradients, TreeBuildOptions, TreeSearchInputs, TreeSearchOptions,
    TreeSearchPrimitive, limits, reference,
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
        inputs: TreeSearchInputs<Self>,
        route: RoutePrimitive<Self>,
        options: TreeSearchOptions,
    ) -> TreeSearchPrimitive<Self> {
        let choice = match &route {
            RoutePrimitive::Sampled(numbers) | RoutePrimitive::Uniform(numbers) => Some(numbers),
            RoutePrimitive::Greedy | RoutePrimitive::Given(_) => None,
        };
        if are_single(choice) && limits::tree_search(&inputs, &options) {
            tree_search::search(inputs, route, options)
        } else {
            reference::tree_search::<Self>(inputs, route, options)
        }
    }

    fn tree_context_backward_kernel(
        inputs: TreeSearchInputs<Self>,
        path: IntTensor<Self>,
        grad: FloatTensor<Self>,
        options: TreeSearchOptions,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        assert!(
            limits::tree_search_backward(&inputs, &path, &grad, &options),
            "tree_context_backward_kernel: {TOO_MUCH}"
        );
        tree_search::context_backward(inputs, path, grad, options)
    }

    fn tree_policy_backward_kernel(
        inputs: TreeSearchInputs<Self>,
        path: IntTensor<Self>,
        grad: FloatTensor<Self>,
        options: TreeSearchOptions,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        assert!(
            limits::tree_search_backward(&inputs, &path, &grad, &options),
            "tree_policy_backward_kernel: {TOO_MUCH}"
        );
        tree_search::policy_backward(inputs, path, grad, options)
    }

    fn dense_attention(
        inputs: DenseAttentionInputs<Self>,
        options: DenseAttentionOptions,
    ) -> AttentionOutput<Self> {
        if limits::dense_attention(&inputs) {
            dense_attention::attend(inputs, options)
        } else {
            reference::dense_attention::<Self>(inputs, options)
        }
    }

    fn dense_attention_backward_kernel(
        inputs: DenseAttentionInputs<Self>,
        output: AttentionOutput<Self>,
        grad: FloatTensor<Self>,
        options: DenseAttentionOptions,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        assert!(
            limits::dense_attention_backward(&inputs, &output, &grad),
            "dense_attention_backward_kernel: {TOO_MUCH}"
        );
        dense_attention::backward(inputs, output, grad, options)
    }

    fn leaf_attention(
        inputs: LeafAttentionInputs<Self>,
        options: LeafAttentionOptions,
    ) -> AttentionOutput<Self> {
        let rows = [&inputs.query, &inputs.key, &inputs.value];
        if are_single([&inputs.key_bias]) && limits::leaf_attention::<Self>(rows, &options) {
            leaf_attention::attend(inputs, options)
        } else {
            reference::leaf_attention::<Self>(inputs, options)
        }
    }

    fn leaf_attention_backward_kernel(
        inputs: LeafAttentionInputs<Self>,
        output: AttentionOutput<Self>,
        grad: FloatTensor<Self>,
        options: LeafAttentionOptions,
    ) -> LeafAttentionGradients<Self> {
        assert!(
            limits::leaf_attention_backward(&inputs, &output, &grad, &options),
            "leaf_attention_backward_kernel: {TOO_MUCH}"
        );
        leaf_attention::backward(inputs, output, grad, options)
    }

    fn candidate_keys_backward(
        inputs: CandidateInputs<Self>,
        output: AttentionOutput<Self>,
        grad: FloatTensor<Self>,
        options: LeafAttentionOptions,
    ) -> FloatTensor<Self> {
        let rows = [&inputs.query, &inputs.key, &inputs.value];
        let single = are_single([&output.context, &output.lse, &grad]);
        if single && limits::leaf_attention::<Self>(rows, &options) {
            leaf_attention::candidate_gates(inputs, output, grad, options)
        } else {
            reference::candidate_keys_backward::<Self>(inputs, output, grad, options)
        }
    }

    fn tree_build(
        leaves: FloatTensor<Self>,
        lengths: IntTensor<Self>,
        block: BlockPrimitive<Self>,
        options: TreeBuildOptions,
    ) -> FloatTensor<Self> {
        if limits::tree_build(&leaves, &block, &options) {
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
        assert!(
            are_single([&grad]) && limits::tree_build(&nodes, &block, &options),
            "tree_build_backward_kernel: {TOO_MUCH}"
        );
        tree_build::backward(nodes, lengths, block, grad, options)
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
