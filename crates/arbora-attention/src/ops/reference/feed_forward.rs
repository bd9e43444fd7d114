//! The feed-forward block by its definition.

use crate::ops::FeedForwardPrimitive;
use crate::ops::primitive::Float;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};

/// Reference of [`FeedForwardOps::feed_forward`](crate::ops::FeedForwardOps::feed_forward).
pub fn feed_forward<B: Backend>(
    rows: FloatTensor<B>,
    weights: FeedForwardPrimitive<B>,
    epsilon: f64,
) -> FloatTensor<B> {
    if rows.shape().num_elements() == 0 {
        return rows;
    }
    let rows = Float::<B>(rows);
    let output_dtype = rows.dtype();
    let [count, dim] = rows.dims();
    FeedForward::new(weights, epsilon)
        .apply(rows.at_least_single().reshape([1, count, dim]))
        .reshape([count, dim])
        .cast(output_dtype)
        .0
}

/// The part's weights, each of a shape that broadcasts over `[groups, rows, features]`.
pub(super) struct FeedForward<B: Backend> {
    norm: Norm<B>,
    inner: Float<B>,
    inner_bias: Float<B>,
    outer: Float<B>,
    outer_bias: Float<B>,
}

impl<B: Backend> FeedForward<B> {
    pub(super) fn new(weights: FeedForwardPrimitive<B>, epsilon: f64) -> Self {
        Self {
            norm: Norm::new(weights.norm_gamma, weights.norm_beta, epsilon),
            inner: matrix(weights.inner),
            inner_bias: row(weights.inner_bias),
            outer: matrix(weights.outer),
            outer_bias: row(weights.outer_bias),
        }
    }

    /// `[groups, rows, dim]` -> the same
    pub(super) fn apply(&self, rows: Float<B>) -> Float<B> {
        let normalized = self.norm.apply(rows);
        let inner = linear(normalized.clone(), &self.inner).add(self.inner_bias.clone());
        let (values, gates) = inner.halves();
        linear(values.mul(gates.gelu()), &self.outer)
            .add(self.outer_bias.clone())
            .add(normalized)
    }
}

/// Layer normalisation of the last axis of three.
pub(super) struct Norm<B: Backend> {
    gamma: Float<B>,
    beta: Float<B>,
    epsilon: f64,
}

impl<B: Backend> Norm<B> {
    pub(super) fn new(gamma: FloatTensor<B>, beta: FloatTensor<B>, epsilon: f64) -> Self {
        Self {
            gamma: row(gamma),
            beta: row(beta),
            epsilon,
        }
    }

    pub(super) fn apply(&self, rows: Float<B>) -> Float<B> {
        let [.., dim] = rows.dims::<3>();
        let mean = rows.clone().sum(2).scale(1.0 / dim as f64);
        let centered = rows.sub(mean);
        let variance = centered
            .clone()
            .mul(centered.clone())
            .sum(2)
            .scale(1.0 / dim as f64);
        centered
            .div(variance.shift(self.epsilon).sqrt())
            .mul(self.gamma.clone())
            .add(self.beta.clone())
    }
}

pub(super) fn matrix<B: Backend>(tensor: FloatTensor<B>) -> Float<B> {
    Float::<B>(tensor).at_least_single()
}

/// A vector as the one row that broadcasts over two axes.
pub(super) fn row<B: Backend>(tensor: FloatTensor<B>) -> Float<B> {
    let vector = Float::<B>(tensor).at_least_single();
    let [width] = vector.dims();
    vector.reshape([1, 1, width])
}

/// `x · W` over the last axis of three.
pub(super) fn linear<B: Backend>(rows: Float<B>, weight: &Float<B>) -> Float<B> {
    let [groups, siblings, from] = rows.dims();
    let [_, to] = weight.dims();
    rows.reshape([groups * siblings, from])
        .matmul(weight.clone())
        .reshape([groups, siblings, to])
}
