//! The second half of a transformer block as one operator: a normalisation and a gated feed-forward part.

use crate::ops::{FeedForwardOps, FeedForwardPrimitive, shapes};
use burn::backend::Dispatch;
use burn::tensor::Tensor;

/// The weights of a gated feed-forward part and of the normalisation before it. `dim` is the width of
/// rows, `ff` that of the hidden layer; matrices multiply from the right, as in burn's
/// [`Linear`](burn::nn::Linear).
#[derive(Clone, Debug)]
pub struct FeedForwardWeights {
    /// Scale of the normalisation, `[dim]`
    pub norm_gamma: Tensor<1>,
    /// Shift of the normalisation, `[dim]`
    pub norm_beta: Tensor<1>,
    /// `W_1`, values and gates side by side, `[dim, 2 ff]`
    pub inner: Tensor<2>,
    /// `b_1`, `[2 ff]`
    pub inner_bias: Tensor<1>,
    /// `W_2`, `[ff, dim]`
    pub outer: Tensor<2>,
    /// `b_2`, `[dim]`
    pub outer_bias: Tensor<1>,
}

impl FeedForwardWeights {
    /// The same on primitives.
    pub fn into_dispatch(self) -> FeedForwardPrimitive<Dispatch> {
        FeedForwardPrimitive {
            norm_gamma: self.norm_gamma.into_dispatch(),
            norm_beta: self.norm_beta.into_dispatch(),
            inner: self.inner.into_dispatch(),
            inner_bias: self.inner_bias.into_dispatch(),
            outer: self.outer.into_dispatch(),
            outer_bias: self.outer_bias.into_dispatch(),
        }
    }
}

/// The second half of a transformer block: a normalisation, and a gated feed-forward part with a
/// residual around it.
///
/// For every row `x`:
///
/// `m = LN(x)`, `[a, g] = W_1 m + b_1`, output = `W_2 (a · gelu(g)) + b_2 + m`
///
/// The residual is the normalised row, and GELU is the exact one. `epsilon` is added to the variance
/// under the root of the normalisation. No activation is kept for the gradient.
///
/// Source: the blocks of Tree Cross Attention (arXiv 2309.17388), as published.
///
/// # Shapes
/// - input: `[.., dim]`; each row of the last axis by itself, and there may be none
/// - returns the shape of the input
///
/// # Panics
/// If an axis disagrees with the others, or if `dim` or `ff` is 0.
#[track_caller]
pub fn feed_forward<const D: usize>(
    input: Tensor<D>,
    weights: FeedForwardWeights,
    epsilon: f64,
) -> Tensor<D> {
    let shape = input.dims();
    let Some(dim) = shape.last().copied() else {
        panic!("feed_forward: input: expected an axis at least, got none");
    };
    let [ff, _] = weights.outer.dims();
    assert!(
        dim > 0 && ff > 0,
        "feed_forward: dim and ff: expected at least 1, got {dim} and {ff}"
    );
    let count: usize = shape[..D - 1].iter().product();
    let rows: Tensor<2> = input.reshape([count, dim]);
    let weights = weights.into_dispatch();
    shapes::feed_forward(&rows.shape(), &weights, None);
    let rows = rows.into_dispatch();
    let output = <Dispatch as FeedForwardOps>::feed_forward(rows, weights, epsilon);
    Tensor::<2>::from_dispatch(output).reshape(shape)
}
