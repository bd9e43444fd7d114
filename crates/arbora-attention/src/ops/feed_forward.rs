//! The feed-forward part of the block that summarises siblings, for rows by themselves.

use super::fields::{from_array, into_array};
use super::limits::{self, are_single};
use super::reference;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, ExtensionType, backend_extension};

/// The weights of a gated feed-forward part and of the normalisation before it:
/// [`FeedForwardWeights`](crate::functions::FeedForwardWeights) on primitives. `dim` is the width of rows and
/// `ff` that of the hidden layer.
#[derive(Clone, Debug, ExtensionType)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct FeedForwardPrimitive<B: Backend> {
    /// Scale of the normalisation, `[dim]`
    pub norm_gamma: FloatTensor<B>,
    /// Shift of the normalisation, `[dim]`
    pub norm_beta: FloatTensor<B>,
    /// `W_1`, values and gates side by side, `[dim, 2 ff]`
    pub inner: FloatTensor<B>,
    /// `b_1`, `[2 ff]`
    pub inner_bias: FloatTensor<B>,
    /// `W_2`, `[ff, dim]`
    pub outer: FloatTensor<B>,
    /// `b_2`, `[dim]`
    pub outer_bias: FloatTensor<B>,
}

impl<B: Backend> FeedForwardPrimitive<B> {
    /// The same function of every weight.
    pub fn map<C: Backend>(
        self,
        function: impl FnMut(FloatTensor<B>) -> FloatTensor<C>,
    ) -> FeedForwardPrimitive<C> {
        FeedForwardPrimitive::from_array(self.into_array().map(function))
    }

    into_array! { [FloatTensor<B>; 6] norm_gamma, norm_beta, inner, inner_bias, outer, outer_bias }
    from_array! { [FloatTensor<B>; 6] norm_gamma, norm_beta, inner, inner_bias, outer, outer_bias }
}

/// Gradients of a feed-forward part.
#[derive(Clone, Debug, ExtensionType)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct FeedForwardGradients<B: Backend> {
    /// `[rows, dim]`
    pub rows: FloatTensor<B>,
    /// Gradients of every weight, in its shape.
    #[extension_type]
    pub weights: FeedForwardPrimitive<B>,
}

/// A feed-forward part on a backend. Independent of trees: any transformer block can use it. As for
/// [`TreeAttentionOps`](super::TreeAttentionOps) the default bodies are the reference, and `backward` chooses.
#[backend_extension(
    Cube: cfg(any(
        feature = "wgpu",
        feature = "webgpu",
        feature = "vulkan",
        feature = "metal",
        feature = "cuda",
        feature = "rocm",
        feature = "cpu"
    )),
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    LibTorch: cfg(feature = "tch"),
    Remote: cfg(feature = "remote"),
    Fusion: cfg(feature = "fusion"),
    Autodiff,
)]
pub trait FeedForwardOps: Backend {
    /// A normalisation and a gated feed-forward part with a residual, row by row; see
    /// [`feed_forward`](crate::functions::feed_forward).
    ///
    /// `rows`: `[rows, dim]`, as the returned.
    #[fusion(meta = |rows, _, _| rows.clone())]
    fn feed_forward(
        rows: FloatTensor<Self>,
        #[extension_type] weights: FeedForwardPrimitive<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        reference::feed_forward::<Self>(rows, weights, epsilon)
    }

    /// Gradients of rows and weights through a feed-forward part. `grad` is the gradient of its output.
    #[fusion(default)]
    fn feed_forward_backward(
        rows: FloatTensor<Self>,
        #[extension_type] weights: FeedForwardPrimitive<Self>,
        grad: FloatTensor<Self>,
        epsilon: f64,
    ) -> FeedForwardGradients<Self> {
        if limits::feed_forward::<Self>(&rows, &weights) && are_single([&grad]) {
            Self::feed_forward_backward_kernel(rows, weights, grad, epsilon)
        } else {
            reference::feed_forward_backward::<Self>(rows, weights, grad, epsilon)
        }
    }

    /// [`feed_forward_backward`](Self::feed_forward_backward) where kernels take it.
    #[fusion(meta = |rows, weights, _, _| FeedForwardGradientsMetadata {
        rows: rows.clone(),
        weights: weights.clone(),
    })]
    fn feed_forward_backward_kernel(
        rows: FloatTensor<Self>,
        #[extension_type] weights: FeedForwardPrimitive<Self>,
        grad: FloatTensor<Self>,
        epsilon: f64,
    ) -> FeedForwardGradients<Self> {
        reference::feed_forward_backward::<Self>(rows, weights, grad, epsilon)
    }
}
