//! Kernels for every CubeCL runtime.
//!
//! They compute in single precision and take what fits 32-bit positions; all else takes the
//! reference body. Units write to places of their own and add in a fixed order: a launch gives the same
//! numbers every time, and needs no atomics.
//!
//! Launches are unchecked. What they rely on, beside what the comment of each says:
//!
//! - *Geometry.* At least as many units are launched as `units` says (`launch`), and those beyond end (`end_past`) before
//!   they touch memory.
//! - *Bounds.* Positions follow from sizes alone, which inputs have (`shapes`) and with which all other buffers are made. Lengths,
//!   paths and leaves, which a tensor may hold anything for, are bounded by the kernels (`Siblings`, `up_to`,
//!   `bucket_of`, `is_real`). Positions fit 32 bits (`ops::limits`). Tensors lie without gaps (`into_contiguous`).
//! - *Races.* A unit writes what it owns, and no unit reads what another one writes in the same launch.
//! - *Loops* run over sizes, and end.

mod attention;
mod feed_forward;
mod tree_build;
mod tree_search;

use crate::ops::limits::are_single;
use crate::ops::reference::{MASKED_LOGIT, SMALLEST_TOTAL};
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
use cubecl::prelude::*;

const MASKED: f32 = MASKED_LOGIT as f32;
const SMALLEST: f32 = SMALLEST_TOTAL as f32;

/// Launches are unchecked, so that what reaches them is checked here, whoever calls.
fn expect_fits(operator: &str, fits: bool) {
    assert!(
        fits,
        "{operator}: expected what kernels take, which `ops/limits.rs` says"
    );
}

/// Launches a kernel, `kernel(units, ..)`, on the buffers of tensors. A kernel takes first its buffers, and then what stands in
/// parentheses. Without units nothing is launched.
macro_rules! launch {
    ($kernel:ident($units:expr $(, $argument:expr)* $(,)?), [$first:expr $(, $tensor:expr)* $(,)?] $(,)?) => {{
        let units: usize = $units;
        if units > 0 {
            let client = &$first.client;
            let dim = CubeDim::new(client, units);
            let count = cubecl::calculate_cube_count_elemwise(client, units, dim);
            $kernel::launch_unchecked(
                client,
                count,
                dim,
                $first.clone().into_buffer_arg(),
                $($tensor.clone().into_buffer_arg(),)*
                units,
                $($argument),*
            );
        }
    }};
}
use launch;

/// Ends a unit that has nothing to do.
#[cube]
fn end_past(units: usize) {
    if ABSOLUTE_POS >= units {
        terminate!();
    }
}

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
        let fits = limits::tree_search_backward(&inputs, &path, &grad, &options);
        expect_fits("tree_context_backward_kernel", fits);
        tree_search::context_backward(inputs, path, grad, options)
    }

    fn tree_policy_backward_kernel(
        inputs: TreeSearchInputs<Self>,
        path: IntTensor<Self>,
        grad: FloatTensor<Self>,
        options: TreeSearchOptions,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let fits = limits::tree_search_backward(&inputs, &path, &grad, &options);
        expect_fits("tree_policy_backward_kernel", fits);
        tree_search::policy_backward(inputs, path, grad, options)
    }

    fn dense_attention(
        inputs: DenseAttentionInputs<Self>,
        options: DenseAttentionOptions,
    ) -> AttentionOutput<Self> {
        if limits::dense_attention(&inputs) {
            attention::dense(inputs, options)
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
        let fits = limits::dense_attention_backward(&inputs, &output, &grad);
        expect_fits("dense_attention_backward_kernel", fits);
        attention::dense_backward(inputs, output, grad, options)
    }

    fn leaf_attention(
        inputs: LeafAttentionInputs<Self>,
        options: LeafAttentionOptions,
    ) -> AttentionOutput<Self> {
        let rows = [&inputs.query, &inputs.key, &inputs.value];
        if are_single([&inputs.key_bias]) && limits::leaf_attention::<Self>(rows, &options) {
            attention::within_leaves(inputs, options)
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
        let fits = limits::leaf_attention_backward(&inputs, &output, &grad, &options);
        expect_fits("leaf_attention_backward_kernel", fits);
        attention::within_leaves_backward(inputs, output, grad, options)
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
            attention::candidate_gates(inputs, output, grad, options)
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
        let fits = are_single([&grad]) && limits::tree_build(&nodes, &block, &options);
        expect_fits("tree_build_backward_kernel", fits);
        tree_build::backward(nodes, lengths, block, grad, options)
    }
}

/// Softmax, in its place, of `count` logits from `first` on, `stride` apart. What is masked gets exactly 0.
#[cube]
fn softmax(logits: &mut [f32], first: usize, stride: usize, count: usize) {
    let mut greatest = f32::new(MASKED);
    for i in 0..count {
        greatest = greatest.max(logits[first + i * stride]);
    }
    let mut total = 0.0f32;
    for i in 0..count {
        let logit = logits[first + i * stride];
        let mut weight = (logit - greatest).exp();
        // Not the other way round: NaN is no number to any comparison, and is to stay.
        if logit == f32::new(MASKED) {
            weight = 0.0f32;
        }
        logits[first + i * stride] = weight;
        total += weight;
    }
    // Where all are masked the total is 0; any positive divisor leaves them at 0.
    let inverse = 1.0f32 / total.max(SMALLEST);
    for i in 0..count {
        logits[first + i * stride] *= inverse;
    }
}

/// The gradients of `scale` times the logits in place of those of their softmax, `weights`.
#[cube]
fn softmax_backward(
    weights: &[f32],
    grads: &mut [f32],
    first: usize,
    stride: usize,
    count: usize,
    scale: f32,
) {
    let mut mean = 0.0f32;
    for i in 0..count {
        mean += weights[first + i * stride] * grads[first + i * stride];
    }
    for i in 0..count {
        let at = first + i * stride;
        grads[at] = weights[at] * (grads[at] - mean) * scale;
    }
}

/// Rows without gaps, on the device of `like`, not yet written.
fn empty(like: &CubeTensor, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
    let (client, device) = (like.client.clone(), like.device.clone());
    empty_device_contiguous_dtype(client, device, shape.into(), dtype)
}

/// [`empty`], of single precision.
fn floats(like: &CubeTensor, shape: impl Into<Shape>) -> CubeTensor {
    empty(like, shape, DType::F32)
}

fn zeros(like: &CubeTensor, shape: impl Into<Shape>) -> CubeTensor {
    let (client, device) = (like.client.clone(), like.device.clone());
    zeros_client(client, device, shape.into(), like.dtype)
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
