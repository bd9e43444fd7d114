//! The gated feed-forward part after a normalisation.
//!
//! Products with weights are burn's own; one kernel each does what is between them, in part those of
//! tree builds. Gradients save nothing: they compute what they need once more from the rows.

use super::tree_build::{
    buffer, gate_backward_kernel, gate_kernel, normalize_backward_kernel, product, transposed,
};
use super::{TOO_MUCH, empty, grid, into_contiguous, shapes};
use crate::ops::limits::{self, are_single};
use crate::ops::{FeedForwardGradients, FeedForwardOps, FeedForwardPrimitive, reference};
use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// One unit per row: its normalisation.
#[cube(launch_unchecked)]
fn normalize_kernel(
    rows: &[f32],
    gamma: &[f32],
    beta: &[f32],
    normalized: &mut [f32],
    dim: usize,
    units: usize,
    epsilon: f32,
) {
    let row = ABSOLUTE_POS;
    if row >= units {
        terminate!();
    }
    let at = row * dim;
    let width = f32::cast_from(dim);
    let mut sum = 0.0f32;
    for feature in 0..dim {
        sum += rows[at + feature];
    }
    let mean = sum / width;
    let mut squares = 0.0f32;
    for feature in 0..dim {
        let centered = rows[at + feature] - mean;
        squares += centered * centered;
    }
    let deviation = (squares / width + epsilon).sqrt();
    for feature in 0..dim {
        let centered = rows[at + feature] - mean;
        normalized[at + feature] = centered / deviation * gamma[feature] + beta[feature];
    }
}

/// One unit per number: adds bias and residual.
#[cube(launch_unchecked)]
fn finish_kernel(fed: &mut [f32], bias: &[f32], residual: &[f32], dim: usize, units: usize) {
    if ABSOLUTE_POS >= units {
        terminate!();
    }
    fed[ABSOLUTE_POS] = fed[ABSOLUTE_POS] + bias[ABSOLUTE_POS % dim] + residual[ABSOLUTE_POS];
}

/// What the last layer and gradients need, `[rows, width]`.
struct Activations {
    normalized: CubeTensor,
    /// Without the bias.
    inner: CubeTensor,
    gated: CubeTensor,
}

/// Takes rows and weights without gaps.
fn activations(
    rows: &CubeTensor,
    weights: &FeedForwardPrimitive<CubeBackend>,
    epsilon: f64,
) -> Activations {
    let [count, dim] = rows.shape().dims();
    let [ff, _] = weights.outer.shape().dims();
    let normalized = empty(rows, [count, dim], DType::F32);
    let (cubes, cube) = grid(rows, count);
    // SAFETY: a unit reads and writes its own row. Shapes are checked by who calls; those of products follow.
    unsafe {
        normalize_kernel::launch_unchecked(
            &rows.client,
            cubes,
            cube,
            buffer(rows),
            buffer(&weights.norm_gamma),
            buffer(&weights.norm_beta),
            buffer(&normalized),
            dim,
            count,
            epsilon as f32,
        );
    }
    let inner = product(&normalized, &weights.inner);
    let gated = empty(rows, [count, ff], DType::F32);
    let (cubes, cube) = grid(&gated, count * ff);
    // SAFETY: a unit writes its own number, and reads its value and gate, `ff` apart in rows of `2 * ff`.
    unsafe {
        gate_kernel::launch_unchecked(
            &rows.client,
            cubes,
            cube,
            buffer(&inner),
            buffer(&weights.inner_bias),
            buffer(&gated),
            ff,
            count * ff,
        );
    }
    Activations {
        normalized,
        inner,
        gated,
    }
}

pub(super) fn forward(
    rows: CubeTensor,
    weights: FeedForwardPrimitive<CubeBackend>,
    epsilon: f64,
) -> CubeTensor {
    shapes::feed_forward(&rows.shape(), &weights, None);
    let [count, dim] = rows.shape().dims();
    let rows = into_contiguous(rows);
    let weights: FeedForwardPrimitive<CubeBackend> = weights.map(into_contiguous);
    let found = activations(&rows, &weights, epsilon);
    let fed = product(&found.gated, &weights.outer);
    let (cubes, cube) = grid(&fed, count * dim);
    // SAFETY: a unit reads and writes its own number. The product that it writes over is of this function alone.
    unsafe {
        finish_kernel::launch_unchecked(
            &rows.client,
            cubes,
            cube,
            buffer(&fed),
            buffer(&weights.outer_bias),
            buffer(&found.normalized),
            dim,
            count * dim,
        );
    }
    fed
}

pub(super) fn backward(
    rows: CubeTensor,
    weights: FeedForwardPrimitive<CubeBackend>,
    grad: CubeTensor,
    epsilon: f64,
) -> FeedForwardGradients<CubeBackend> {
    shapes::feed_forward(&rows.shape(), &weights, Some(&grad.shape()));
    let [count, dim] = rows.shape().dims();
    let [ff, _] = weights.outer.shape().dims();
    let (rows, grad) = (into_contiguous(rows), into_contiguous(grad));
    let weights: FeedForwardPrimitive<CubeBackend> = weights.map(into_contiguous);
    let found = activations(&rows, &weights, epsilon);

    let d_gated = product(&grad, &transposed(&weights.outer));
    let d_inner = empty(&rows, [count, 2 * ff], DType::F32);
    let (cubes, cube) = grid(&d_inner, count * ff);
    // SAFETY: a unit writes its own value and gate, and reads the same, `ff` apart in rows of `2 * ff`.
    unsafe {
        gate_backward_kernel::launch_unchecked(
            &rows.client,
            cubes,
            cube,
            buffer(&found.inner),
            buffer(&weights.inner_bias),
            buffer(&d_gated),
            buffer(&d_inner),
            ff,
            count * ff,
        );
    }

    let through_inner = product(&d_inner, &transposed(&weights.inner));
    let [shift, factor, d_rows] = [(); 3].map(|()| empty(&rows, [count, dim], DType::F32));
    let (cubes, cube) = grid(&rows, count);
    // SAFETY: a unit reads and writes its own row.
    unsafe {
        normalize_backward_kernel::launch_unchecked(
            &rows.client,
            cubes,
            cube,
            buffer(&rows),
            buffer(&weights.norm_gamma),
            buffer(&grad),
            buffer(&through_inner),
            buffer(&shift),
            buffer(&factor),
            buffer(&d_rows),
            dim,
            count,
            epsilon as f32,
        );
    }

    let of_weight = |rows: &CubeTensor, grad: &CubeTensor| product(&transposed(rows), grad);
    let of_vector = |rows: CubeTensor| {
        let [_, width] = rows.shape().dims();
        CubeBackend::float_reshape(CubeBackend::float_sum_dim(rows, 0), [width].into())
    };
    FeedForwardGradients {
        rows: d_rows,
        weights: FeedForwardPrimitive {
            norm_gamma: of_vector(factor),
            norm_beta: of_vector(shift),
            inner: of_weight(&found.normalized, &d_inner),
            inner_bias: of_vector(d_inner),
            outer: of_weight(&found.gated, &grad),
            outer_bias: of_vector(grad),
        },
    }
}

impl FeedForwardOps for CubeBackend {
    fn feed_forward(
        rows: FloatTensor<Self>,
        weights: FeedForwardPrimitive<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        if limits::feed_forward(&rows, &weights) {
            forward(rows, weights, epsilon)
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
        assert!(
            are_single([&grad]) && limits::feed_forward(&rows, &weights),
            "feed_forward_backward_kernel: {TOO_MUCH}"
        );
        backward(rows, weights, grad, epsilon)
    }
}
