//! The gated feed-forward part after a normalisation, by itself and in the block of a tree build.
//!
//! Products with weights are burn's own; one kernel each does what is between them. Gradients save nothing: they compute what they
//! need once more from the rows.

use super::{end_past, expect_fits, floats, into_contiguous, launch};
use crate::ops::limits::{self, are_single};
use crate::ops::shapes;
use crate::ops::{FeedForwardGradients, FeedForwardOps, FeedForwardPrimitive, reference};
use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

const FRAC_1_SQRT_2: f32 = std::f32::consts::FRAC_1_SQRT_2;
/// Of the standard normal distribution.
const DENSITY_AT_ZERO: f32 = 0.398_942_3;

#[cube]
fn deviation(rows: &[f32], at: usize, mean: f32, dim: usize, epsilon: f32) -> f32 {
    let mut squares = 0.0f32;
    for feature in 0..dim {
        let centered = rows[at + feature] - mean;
        squares += centered * centered;
    }
    (squares / f32::cast_from(dim) + epsilon).sqrt()
}

/// Normalises the row at `at`, whose sum is known.
#[cube]
pub(super) fn normalize(
    rows: &[f32],
    at: usize,
    sum: f32,
    gamma: &[f32],
    beta: &[f32],
    normalized: &mut [f32],
    dim: usize,
    epsilon: f32,
) {
    let mean = sum / f32::cast_from(dim);
    let deviation = deviation(rows, at, mean, dim, epsilon);
    for feature in 0..dim {
        let centered = rows[at + feature] - mean;
        normalized[at + feature] = centered / deviation * gamma[feature] + beta[feature];
    }
}

/// One unit per row: its normalisation.
#[cube(launch_unchecked)]
fn normalize_kernel(
    rows: &[f32],
    gamma: &[f32],
    beta: &[f32],
    normalized: &mut [f32],
    units: usize,
    dim: usize,
    epsilon: f32,
) {
    end_past(units);
    let at = ABSOLUTE_POS * dim;
    let mut sum = 0.0f32;
    for feature in 0..dim {
        sum += rows[at + feature];
    }
    normalize(rows, at, sum, gamma, beta, normalized, dim, epsilon);
}

/// One unit per row: the gradient of a normalised row, given that of the normalisation in two parts.
/// Leaves their sum in `shift`, of which the gradient of beta is the sum over rows, and that times the
/// normalised row in `factor`, for gamma.
#[cube(launch_unchecked)]
fn normalize_backward_kernel(
    rows: &[f32],
    gamma: &[f32],
    first: &[f32],
    second: &[f32],
    shift: &mut [f32],
    factor: &mut [f32],
    d_rows: &mut [f32],
    units: usize,
    dim: usize,
    epsilon: f32,
) {
    end_past(units);
    let at = ABSOLUTE_POS * dim;
    let width = f32::cast_from(dim);
    let mut sum = 0.0f32;
    for feature in 0..dim {
        sum += rows[at + feature];
    }
    let mean = sum / width;
    let inverse = 1.0f32 / deviation(rows, at, mean, dim, epsilon);
    let mut along_ones = 0.0f32;
    let mut along_row = 0.0f32;
    for feature in 0..dim {
        let grad = first[at + feature] + second[at + feature];
        let normalized = (rows[at + feature] - mean) * inverse;
        shift[at + feature] = grad;
        factor[at + feature] = grad * normalized;
        along_ones += grad * gamma[feature];
        along_row += grad * gamma[feature] * normalized;
    }
    along_ones /= width;
    along_row /= width;
    for feature in 0..dim {
        let normalized = (rows[at + feature] - mean) * inverse;
        let scaled = shift[at + feature] * gamma[feature];
        d_rows[at + feature] = (scaled - along_ones - normalized * along_row) * inverse;
    }
}

/// One unit per number: values times the exact GELU of gates. `inner`, `[rows, 2 * ff]`, holds them side
/// by side.
#[cube(launch_unchecked)]
fn gate_kernel(inner: &[f32], bias: &[f32], gated: &mut [f32], units: usize, ff: usize) {
    end_past(units);
    let feature = ABSOLUTE_POS % ff;
    let at = ABSOLUTE_POS / ff * 2 * ff + feature;
    let value = inner[at] + bias[feature];
    let gate = inner[at + ff] + bias[ff + feature];
    let share = 0.5f32 * (1.0f32 + Erf::erf(gate * FRAC_1_SQRT_2));
    gated[ABSOLUTE_POS] = value * (gate * share);
}

/// One unit per gated number: the gradients of its value and its gate, side by side.
#[cube(launch_unchecked)]
fn gate_backward_kernel(
    inner: &[f32],
    bias: &[f32],
    d_gated: &[f32],
    d_inner: &mut [f32],
    units: usize,
    ff: usize,
) {
    end_past(units);
    let feature = ABSOLUTE_POS % ff;
    let at = ABSOLUTE_POS / ff * 2 * ff + feature;
    let value = inner[at] + bias[feature];
    let gate = inner[at + ff] + bias[ff + feature];
    let share = 0.5f32 * (1.0f32 + Erf::erf(gate * FRAC_1_SQRT_2));
    let density = (gate * gate * -0.5f32).exp() * DENSITY_AT_ZERO;
    let grad = d_gated[ABSOLUTE_POS];
    d_inner[at] = grad * gate * share;
    d_inner[at + ff] = grad * value * (share + gate * density);
}

/// One unit per number: adds bias and residual.
#[cube(launch_unchecked)]
fn finish_kernel(fed: &mut [f32], bias: &[f32], residual: &[f32], units: usize, dim: usize) {
    end_past(units);
    fed[ABSOLUTE_POS] = fed[ABSOLUTE_POS] + bias[ABSOLUTE_POS % dim] + residual[ABSOLUTE_POS];
}

pub(super) fn product(rows: &CubeTensor, weight: &CubeTensor) -> CubeTensor {
    into_contiguous(CubeBackend::float_matmul(rows.clone(), weight.clone()))
}

pub(super) fn transposed(matrix: &CubeTensor) -> CubeTensor {
    CubeBackend::float_swap_dims(matrix.clone(), 0, 1)
}

/// The gradient of a matrix that rows are multiplied with.
pub(super) fn of_matrix(rows: &CubeTensor, grad: &CubeTensor) -> CubeTensor {
    product(&transposed(rows), grad)
}

/// The gradient of a vector that is added to rows.
pub(super) fn of_vector(grad: CubeTensor) -> CubeTensor {
    let [_, width] = grad.shape().dims();
    CubeBackend::float_reshape(CubeBackend::float_sum_dim(grad, 0), [width].into())
}

/// Gradient of a normalisation, in two parts -> its sum, that times the normalised rows, and the
/// gradient of the rows.
pub(super) fn normalize_backward(
    rows: &CubeTensor,
    gamma: &CubeTensor,
    [first, second]: [&CubeTensor; 2],
    epsilon: f32,
) -> [CubeTensor; 3] {
    let [count, dim] = rows.shape().dims();
    let outputs = [(); 3].map(|()| floats(rows, [count, dim]));
    let [shift, factor, d_rows] = &outputs;
    // SAFETY: a unit reads and writes its own row.
    unsafe {
        launch!(
            normalize_backward_kernel(count, dim, epsilon),
            [rows, gamma, first, second, shift, factor, d_rows]
        );
    }
    outputs
}

/// What the last layer and gradients need, `[rows, width]`.
pub(super) struct Activations {
    pub normalized: CubeTensor,
    /// Without the bias.
    inner: CubeTensor,
    gated: CubeTensor,
}

impl Activations {
    /// Those of normalised rows. Weights lie without gaps.
    pub fn new(normalized: CubeTensor, weights: &FeedForwardPrimitive<CubeBackend>) -> Self {
        let [count, _] = normalized.shape().dims();
        let [ff, _] = weights.outer.shape().dims();
        let inner = product(&normalized, &weights.inner);
        let gated = floats(&normalized, [count, ff]);
        // SAFETY: a unit writes its own number, and reads its value and gate, `ff` apart in rows of `2 * ff`.
        unsafe {
            launch!(
                gate_kernel(count * ff, ff),
                [inner, weights.inner_bias, gated]
            );
        }
        Self {
            normalized,
            inner,
            gated,
        }
    }

    /// The result without bias and residual.
    pub fn fed(&self, weights: &FeedForwardPrimitive<CubeBackend>) -> CubeTensor {
        product(&self.gated, &weights.outer)
    }

    /// Gradients of the rows that were normalised, and of the weights, in the order of `map`.
    pub fn backward(
        &self,
        rows: &CubeTensor,
        weights: &FeedForwardPrimitive<CubeBackend>,
        grad: CubeTensor,
        epsilon: f32,
    ) -> (CubeTensor, [CubeTensor; 6]) {
        let [count, ff] = self.gated.shape().dims();
        let d_gated = product(&grad, &transposed(&weights.outer));
        let d_inner = floats(rows, [count, 2 * ff]);
        // SAFETY: a unit writes its own value and gate, and reads the same, `ff` apart in rows of `2 * ff`.
        unsafe {
            launch!(
                gate_backward_kernel(count * ff, ff),
                [self.inner, weights.inner_bias, d_gated, d_inner]
            );
        }
        let parts = [&grad, &product(&d_inner, &transposed(&weights.inner))];
        let [shift, factor, d_rows] = normalize_backward(rows, &weights.norm_gamma, parts, epsilon);
        let d_weights = [
            of_vector(factor),
            of_vector(shift),
            of_matrix(&self.normalized, &d_inner),
            of_vector(d_inner),
            of_matrix(&self.gated, &grad),
            of_vector(grad),
        ];
        (d_rows, d_weights)
    }
}

/// Activations of rows, which lie without gaps.
fn activations(
    rows: &CubeTensor,
    weights: &FeedForwardPrimitive<CubeBackend>,
    epsilon: f32,
) -> Activations {
    let [count, dim] = rows.shape().dims();
    let normalized = floats(rows, [count, dim]);
    // SAFETY: a unit reads and writes its own row. Shapes are checked by who calls; those of products follow.
    unsafe {
        launch!(
            normalize_kernel(count, dim, epsilon),
            [rows, weights.norm_gamma, weights.norm_beta, normalized]
        );
    }
    Activations::new(normalized, weights)
}

impl FeedForwardOps for CubeBackend {
    fn feed_forward(
        rows: FloatTensor<Self>,
        weights: FeedForwardPrimitive<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        if !limits::feed_forward(&rows, &weights) {
            return reference::feed_forward::<Self>(rows, weights, epsilon);
        }
        shapes::feed_forward(&rows.shape(), &weights, None);
        let [count, dim] = rows.shape().dims();
        let weights: FeedForwardPrimitive<Self> = weights.map(into_contiguous);
        let found = activations(&into_contiguous(rows), &weights, epsilon as f32);
        let fed = found.fed(&weights);
        // SAFETY: a unit reads and writes its own number. The product that it writes over is of this function alone.
        unsafe {
            launch!(
                finish_kernel(count * dim, dim),
                [fed, weights.outer_bias, found.normalized]
            );
        }
        fed
    }

    fn feed_forward_backward_kernel(
        rows: FloatTensor<Self>,
        weights: FeedForwardPrimitive<Self>,
        grad: FloatTensor<Self>,
        epsilon: f64,
    ) -> FeedForwardGradients<Self> {
        let fits = are_single([&grad]) && limits::feed_forward(&rows, &weights);
        expect_fits("feed_forward_backward_kernel", fits);
        shapes::feed_forward(&rows.shape(), &weights, Some(&grad.shape()));
        let [rows, grad] = [rows, grad].map(into_contiguous);
        let weights: FeedForwardPrimitive<Self> = weights.map(into_contiguous);
        let epsilon = epsilon as f32;
        let found = activations(&rows, &weights, epsilon);
        let (rows, gradients) = found.backward(&rows, &weights, grad, epsilon);
        let mut gradients = gradients.into_iter();
        FeedForwardGradients {
            rows,
            weights: weights.map(|_| gradients.next().expect("a gradient of each weight")),
        }
    }
}
