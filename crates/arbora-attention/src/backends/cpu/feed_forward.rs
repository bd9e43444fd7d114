//! The gated feed-forward part of a transformer block, after a normalisation, and its gradient.
//!
//! Rows are cut into chunks whose activations stay in the cache of one core. Chunks are cut by the
//! number of rows alone, and sums over chunks have a fixed order, so that the number of threads changes
//! no result. The backward pass saves nothing: each chunk is computed once more.
//!
//! The steps in between serve tree builds as well, where each group of rows has one output, the mean
//! over them. The last layer is linear: hidden units are averaged first.

use super::rows::{
    Matrix, Pool, Write, add_rows, layer_norm, layer_norm_backward, load, most_rows, multiply,
    split_array, store, sum_partials,
};
use super::simd::{Arithmetic, Kernel, LANES, add_scaled, dispatch, exp};
use super::tuning::{CHUNK_ROWS, CHUNKS_OF_FEW_ROWS, PARTIAL_GRADIENTS};
use super::{HostBackend, allocate_like, on_host};
use crate::functions::check::expect;
use crate::ops::fields::from_array;
use crate::ops::{FeedForwardGradients, FeedForwardOps, FeedForwardPrimitive, reference};
use burn::backend::tensor::FloatTensor;
use rayon::prelude::*;
use std::ops::Range;

/// Parameters or their gradients, row-major: [`FeedForwardPrimitive`] in memory.
pub(crate) struct FeedForward<T> {
    norm_gamma: T,
    norm_beta: T,
    inner: T,
    inner_bias: T,
    outer: T,
    pub outer_bias: T,
}

impl<T> FeedForward<T> {
    from_array! { [T; 6] norm_gamma, norm_beta, inner, inner_bias, outer, outer_bias }
}

/// How many numbers each parameter should have, in the order of the fields.
pub(super) fn sizes(dim: usize, ff: usize) -> [usize; 6] {
    [dim, dim, dim * 2 * ff, 2 * ff, ff * dim, dim]
}

impl FeedForward<&[f32]> {
    fn dim(&self) -> usize {
        self.norm_gamma.len()
    }

    fn ff(&self) -> usize {
        self.inner_bias.len() / 2
    }
}

/// Activations of one chunk.
#[derive(Default)]
pub(super) struct Scratch {
    /// `[rows, dim]`
    normed: Vec<f32>,
    /// `[rows]`, mean and inverse deviation
    moments: Vec<[f32; 2]>,
    /// `[rows, 2 * ff]`; turns into its gradient
    hidden: Vec<f32>,
    /// `[groups, ff]` each; the gradient is empty forward
    gated: Vec<f32>,
    d_gated: Vec<f32>,
}

/// What rows go through.
#[derive(Clone, Copy)]
pub(super) struct Layer<'a> {
    pub weights: &'a FeedForward<&'a [f32]>,
    /// What the normalisation adds to the variance.
    pub epsilon: f32,
}

impl Layer<'_> {
    /// Normalises rows and multiplies them by `W_1`; `hidden` lacks the bias.
    #[inline(always)]
    fn activate<A: Arithmetic>(self, rows: &[f32], groups: usize, scratch: &mut Scratch) {
        let (weights, dim, ff) = (self.weights, self.weights.dim(), self.weights.ff());
        let count = rows.len() / dim;
        scratch.normed.resize(count * dim, 0.0);
        scratch.moments.resize(count, [0.0; 2]);
        scratch.hidden.resize(count * 2 * ff, 0.0);
        scratch.gated.resize(groups * ff, 0.0);
        layer_norm::<A>(
            rows,
            weights.norm_gamma,
            weights.norm_beta,
            self.epsilon,
            &mut scratch.normed,
            &mut scratch.moments,
        );
        multiply(
            &mut scratch.hidden,
            Write::Set,
            1.0,
            Matrix::new(&scratch.normed, dim),
            Matrix::new(weights.inner, 2 * ff),
        );
    }

    /// The mean over each group of rows of what becomes of them: `[groups, dim]`.
    #[inline(always)]
    pub(super) fn apply<A: Arithmetic>(
        self,
        groups: impl ExactSizeIterator<Item = Range<usize>> + Clone,
        rows: &[f32],
        outputs: &mut [f32],
        scratch: &mut Scratch,
    ) {
        self.activate::<A>(rows, groups.len(), scratch);
        let (weights, dim) = (self.weights, self.weights.dim());
        let (normed, gated) = (&scratch.normed[..], &mut scratch.gated[..]);
        gate::<A>(groups.clone(), weights.inner_bias, &scratch.hidden, gated);
        for (group, output) in groups.zip(outputs.chunks_exact_mut(dim)) {
            let share = 1.0 / group.len() as f32;
            output.copy_from_slice(weights.outer_bias);
            for row in group {
                add_scaled::<A>(output, share, &normed[row * dim..][..dim]);
            }
        }
        multiply(
            outputs,
            Write::Add,
            1.0,
            Matrix::new(gated, weights.ff()),
            Matrix::new(weights.outer, dim),
        );
    }

    /// Gradients of the rows, and of all parameters but the last bias, added to what those are. Rows are activated once more.
    ///
    /// - d_outputs: `[groups, dim]`, the gradient of each row of the group, all the same
    /// - d_rows: fully written
    #[inline(always)]
    pub(super) fn differentiate<A: Arithmetic>(
        self,
        groups: impl ExactSizeIterator<Item = Range<usize>>,
        rows: &[f32],
        d_outputs: &[f32],
        d_rows: &mut [f32],
        gradients: &mut FeedForward<&mut [f32]>,
        scratch: &mut Scratch,
    ) {
        self.activate::<A>(rows, groups.len(), scratch);
        scratch.d_gated.resize(scratch.gated.len(), 0.0);
        let (weights, dim, ff) = (self.weights, self.weights.dim(), self.weights.ff());
        // Slices: a vector would be looked up again in every loop.
        let (hidden, normed) = (&mut scratch.hidden[..], &scratch.normed[..]);
        let (gated, d_gated) = (&mut scratch.gated[..], &mut scratch.d_gated[..]);
        multiply(
            d_gated,
            Write::Set,
            1.0,
            Matrix::new(d_outputs, dim),
            Matrix::new(weights.outer, dim).transposed(),
        );
        let (value_bias, gate_bias) = weights.inner_bias.split_at(ff);
        let (d_value_bias, d_gate_bias) = gradients.inner_bias.split_at_mut(ff);
        for (index, group) in groups.enumerate() {
            let gated = &mut gated[index * ff..][..ff];
            let d_gated = &d_gated[index * ff..][..ff];
            for at in (0..ff).step_by(LANES) {
                let (value_bias, gate_bias) = (load(&value_bias[at..]), load(&gate_bias[at..]));
                let d_gated = load(&d_gated[at..]);
                let mut total = [0.0; LANES];
                let mut d_value_total = load(&d_value_bias[at..]);
                let mut d_gate_total = load(&d_gate_bias[at..]);
                for row in group.clone() {
                    let (values, gates) = hidden[row * 2 * ff..][..2 * ff].split_at_mut(ff);
                    let (mut value, mut gate) = (load(&values[at..]), load(&gates[at..]));
                    for lane in 0..LANES {
                        let (v, g) = (value[lane] + value_bias[lane], gate[lane] + gate_bias[lane]);
                        let below = normal_cdf::<A>(g);
                        let density = FRAC_1_SQRT_TAU * exp::<A>(-0.5 * g * g);
                        let activated = g * below;
                        total[lane] = A::mul_add(v, activated, total[lane]);
                        value[lane] = d_gated[lane] * activated;
                        gate[lane] = d_gated[lane] * v * A::mul_add(g, density, below);
                        d_value_total[lane] += value[lane];
                        d_gate_total[lane] += gate[lane];
                    }
                    store(&mut values[at..], value);
                    store(&mut gates[at..], gate);
                }
                store(&mut gated[at..], total);
                store(&mut d_value_bias[at..], d_value_total);
                store(&mut d_gate_bias[at..], d_gate_total);
            }
            for row in group {
                d_rows[row * dim..][..dim].copy_from_slice(&d_outputs[index * dim..][..dim]);
            }
        }
        let accumulate = |target: &mut [f32], rows: Matrix, grads: Matrix| {
            multiply(target, Write::Add, 1.0, rows.transposed(), grads);
        };
        let d_hidden = Matrix::new(hidden, 2 * ff);
        accumulate(
            gradients.outer,
            Matrix::new(gated, ff),
            Matrix::new(d_outputs, dim),
        );
        accumulate(gradients.inner, Matrix::new(normed, dim), d_hidden);
        multiply(
            d_rows,
            Write::Add,
            1.0,
            d_hidden,
            Matrix::new(weights.inner, 2 * ff).transposed(),
        );
        layer_norm_backward::<A>(
            rows,
            weights.norm_gamma,
            &scratch.moments,
            d_rows,
            gradients.norm_gamma,
            gradients.norm_beta,
        );
    }
}

/// Values times the GELU of gates, averaged over each group of rows: `[groups, ff]`.
#[inline(always)]
fn gate<A: Arithmetic>(
    groups: impl Iterator<Item = Range<usize>>,
    inner_bias: &[f32],
    hidden: &[f32],
    gated: &mut [f32],
) {
    let ff = inner_bias.len() / 2;
    let (value_bias, gate_bias) = inner_bias.split_at(ff);
    for (group, gated) in groups.zip(gated.chunks_exact_mut(ff)) {
        let share = 1.0 / group.len() as f32;
        for at in (0..ff).step_by(LANES) {
            let (value_bias, gate_bias) = (load(&value_bias[at..]), load(&gate_bias[at..]));
            let mut total = [0.0; LANES];
            for row in group.clone() {
                let (value, gate) = hidden[row * 2 * ff..][..2 * ff].split_at(ff);
                let (value, gate) = (load(&value[at..]), load(&gate[at..]));
                for lane in 0..LANES {
                    let value = value[lane] + value_bias[lane];
                    let gate = gate[lane] + gate_bias[lane];
                    total[lane] = A::mul_add(value, gate * normal_cdf::<A>(gate), total[lane]);
                }
            }
            store(&mut gated[at..], total.map(|total| share * total));
        }
    }
}

const FRAC_1_SQRT_TAU: f32 = 0.398_942_3;

/// The normal distribution function `(1 + erf(x / sqrt(2))) / 2`, to within 2e-7.
#[inline(always)]
fn normal_cdf<A: Arithmetic>(x: f32) -> f32 {
    // erf(x) = x * p(x^2) / q(x^2), a minimax quotient on |x| <= 4, beyond which erf is 1 in single
    // precision; the coefficients are those that Eigen and XLA use.
    let x = (x * std::f32::consts::FRAC_1_SQRT_2).clamp(-4.0, 4.0);
    let square = x * x;
    let mut above = -2.726_142_4e-10;
    above = A::mul_add(above, square, 2.770_681_4e-8);
    above = A::mul_add(above, square, -2.101_024e-6);
    above = A::mul_add(above, square, -5.692_506_5e-5);
    above = A::mul_add(above, square, -7.349_906_3e-4);
    above = A::mul_add(above, square, -2.954_6e-3);
    above = A::mul_add(above, square, -1.609_603_3e-2);
    let mut below = -1.456_607_2e-5;
    below = A::mul_add(below, square, -2.133_740_6e-4);
    below = A::mul_add(below, square, -1.682_827e-3);
    below = A::mul_add(below, square, -7.373_329e-3);
    below = A::mul_add(below, square, -1.426_474_e-2);
    0.5 * (1.0 + x * above / below)
}

/// Each row by itself.
fn alone(rows: usize) -> impl ExactSizeIterator<Item = Range<usize>> + Clone {
    (0..rows).map(|row| row..row + 1)
}

/// Rows per chunk of so many rows.
fn chunk_rows(rows: usize, numbers_per_row: usize) -> usize {
    let most = most_rows(numbers_per_row);
    rows.div_ceil(CHUNKS_OF_FEW_ROWS)
        .clamp(CHUNK_ROWS.start, most)
}

/// The feed-forward part of rows, `[rows, dim]`, as outputs are, which are fully written.
fn forward(rows: &[f32], weights: [&[f32]; 6], epsilon: f32, outputs: &mut [f32]) {
    check("feed_forward", rows, weights, outputs);
    let weights = &FeedForward::from_array(weights);
    let layer = Layer { weights, epsilon };
    let (dim, ff) = (weights.dim(), weights.ff());
    if rows.is_empty() {
        return;
    }
    let size = chunk_rows(rows.len() / dim, 3 * dim + 3 * ff);
    let pool = Pool::<Scratch>::default();
    rows.par_chunks(size * dim)
        .zip(outputs.par_chunks_mut(size * dim))
        .for_each(|(rows, outputs)| {
            pool.with(|scratch| {
                dispatch(Forward {
                    layer,
                    rows,
                    outputs,
                    scratch,
                });
            });
        });
}

/// Gradients of [`forward`] of rows and of weights, in their order, fully written; `grad` is that of the outputs.
fn backward(
    rows: &[f32],
    weights: [&[f32]; 6],
    grad: &[f32],
    epsilon: f32,
    d_rows: &mut [f32],
    d_weights: [&mut [f32]; 6],
) {
    check("feed_forward_backward", rows, weights, grad);
    check("feed_forward_backward", rows, weights, d_rows);
    let weights = &FeedForward::from_array(weights);
    let layer = Layer { weights, epsilon };
    let (dim, ff) = (weights.dim(), weights.ff());
    let mut partials = Vec::new();
    if !rows.is_empty() {
        let parameters = sizes(dim, ff).iter().sum();
        let size = chunk_rows(rows.len() / dim, 4 * dim + 4 * ff);
        let chunks = (rows.len() / dim).div_ceil(size);
        // Consecutive chunks share partial gradients.
        let share = chunks.div_ceil(PARTIAL_GRADIENTS) * size * dim;
        partials.resize(rows.len().div_ceil(share) * parameters, 0.0);
        let pool = Pool::<Scratch>::default();
        rows.par_chunks(share)
            .zip(grad.par_chunks(share))
            .zip(d_rows.par_chunks_mut(share))
            .zip(partials.par_chunks_exact_mut(parameters))
            .for_each(|(((rows, grad), d_rows), partial)| {
                pool.with(|scratch| {
                    let chunks = rows.chunks(size * dim).zip(grad.chunks(size * dim));
                    for ((rows, grad), d_rows) in chunks.zip(d_rows.chunks_mut(size * dim)) {
                        dispatch(Backward {
                            layer,
                            rows,
                            grad,
                            d_rows,
                            gradients: FeedForward::from_array(split_array(
                                partial,
                                sizes(dim, ff),
                            )),
                            scratch,
                        });
                    }
                });
            });
    }
    sum_partials(&partials, d_weights);
}

struct Forward<'a> {
    layer: Layer<'a>,
    rows: &'a [f32],
    outputs: &'a mut [f32],
    scratch: &'a mut Scratch,
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let groups = alone(self.rows.len() / self.layer.weights.dim());
        self.layer
            .apply::<A>(groups, self.rows, self.outputs, self.scratch);
    }
}

struct Backward<'a> {
    layer: Layer<'a>,
    rows: &'a [f32],
    grad: &'a [f32],
    d_rows: &'a mut [f32],
    gradients: FeedForward<&'a mut [f32]>,
    scratch: &'a mut Scratch,
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(mut self) {
        add_rows::<A>(self.gradients.outer_bias, self.grad);
        self.layer.differentiate::<A>(
            alone(self.rows.len() / self.layer.weights.dim()),
            self.rows,
            self.grad,
            self.d_rows,
            &mut self.gradients,
            self.scratch,
        );
    }
}

#[track_caller]
fn check(operation: &str, rows: &[f32], weights: [&[f32]; 6], others: &[f32]) {
    let (dim, ff) = (weights[0].len(), weights[3].len() / 2);
    assert!(
        dim > 0 && ff > 0 && rows.len().is_multiple_of(dim),
        "{operation}: expected rows of {dim} numbers and a hidden layer, got {} numbers and {ff}",
        rows.len()
    );
    expect(operation, weights.map(<[f32]>::len), sizes(dim, ff));
    expect(operation, others.len(), rows.len());
}

impl<B: HostBackend> FeedForwardOps for B {
    fn feed_forward(
        rows: FloatTensor<B>,
        weights: FeedForwardPrimitive<B>,
        epsilon: f64,
    ) -> FloatTensor<B> {
        let (Some([rows]), Some(host)) = (
            on_host::<B, _>([&rows]),
            on_host::<B, _>(weights.clone().into_array().each_ref()),
        ) else {
            return reference::feed_forward::<B>(rows, weights, epsilon);
        };
        let mut outputs = allocate_like::<B>(&rows);
        forward(
            B::floats(&rows),
            host.each_ref().map(B::floats),
            epsilon as f32,
            B::floats_mut(&mut outputs),
        );
        outputs
    }

    fn feed_forward_backward(
        rows: FloatTensor<B>,
        weights: FeedForwardPrimitive<B>,
        grad: FloatTensor<B>,
        epsilon: f64,
    ) -> FeedForwardGradients<B> {
        let (Some([rows, grad]), Some(host)) = (
            on_host::<B, _>([&rows, &grad]),
            on_host::<B, _>(weights.clone().into_array().each_ref()),
        ) else {
            return reference::feed_forward_backward::<B>(rows, weights, grad, epsilon);
        };
        let mut d_rows = allocate_like::<B>(&rows);
        let mut d_weights = host.each_ref().map(allocate_like::<B>);
        backward(
            B::floats(&rows),
            host.each_ref().map(B::floats),
            B::floats(&grad),
            epsilon as f32,
            B::floats_mut(&mut d_rows),
            d_weights.each_mut().map(B::floats_mut),
        );
        FeedForwardGradients {
            rows: d_rows,
            weights: FeedForwardPrimitive::from_array(d_weights),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_normal_distribution_function_is_exact_to_single_precision() {
        struct Cdf(f32);
        impl Kernel for Cdf {
            type Output = f32;
            #[inline(always)]
            fn run<A: Arithmetic>(self) -> f32 {
                normal_cdf::<A>(self.0)
            }
        }
        for step in -800..=800 {
            let x = step as f32 / 100.0;
            let z = (f64::from(x) * std::f64::consts::FRAC_1_SQRT_2).clamp(-4.5, 4.5);
            // The power series of the error function.
            let (mut term, mut erf) = (z, z);
            for n in 1..120 {
                term *= -z * z / f64::from(n);
                erf += term / f64::from(2 * n + 1);
            }
            let exact = 0.5 + erf / std::f64::consts::PI.sqrt();
            assert!((f64::from(dispatch(Cdf(x))) - exact).abs() <= 2e-7, "{x}");
        }
    }
}
