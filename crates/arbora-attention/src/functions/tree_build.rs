//! Embeddings of all nodes of a token tree, from its leaves up.

use super::feed_forward::FeedForwardWeights;
use crate::ops::{BlockPrimitive, TreeAttentionOps, TreeBuildOptions, shapes};
use burn::backend::Dispatch;
use burn::tensor::{Int, Tensor};

/// The weights of the transformer block that summarises siblings. `dim` is the width of nodes, `ff`
/// that of the feed-forward layer; matrices multiply from the right, as in burn's
/// [`Linear`](burn::nn::Linear).
#[derive(Clone, Debug)]
pub struct BlockWeights {
    /// Scale of the normalisation before attention, `[dim]`
    pub norm_gamma: Tensor<1>,
    /// Shift of the normalisation before attention, `[dim]`
    pub norm_beta: Tensor<1>,
    /// `W_q`, `[dim, dim]`
    pub query: Tensor<2>,
    /// `W_k`, `[dim, dim]`
    pub key: Tensor<2>,
    /// `W_v`, `[dim, dim]`
    pub value: Tensor<2>,
    /// `W_o`, `[dim, dim]`
    pub output: Tensor<2>,
    /// `b_o`, `[dim]`
    pub output_bias: Tensor<1>,
    /// The feed-forward part, with the normalisation before it.
    pub feed_forward: FeedForwardWeights,
}

impl BlockWeights {
    /// The same on primitives.
    pub fn into_dispatch(self) -> BlockPrimitive<Dispatch> {
        BlockPrimitive {
            norm_gamma: self.norm_gamma.into_dispatch(),
            norm_beta: self.norm_beta.into_dispatch(),
            query: self.query.into_dispatch(),
            key: self.key.into_dispatch(),
            value: self.value.into_dispatch(),
            output: self.output.into_dispatch(),
            output_bias: self.output_bias.into_dispatch(),
            feed_forward: self.feed_forward.into_dispatch(),
        }
    }
}

/// Builds all nodes of a batch of token trees, bottom-up: the summary of a node is the mean of what a
/// transformer block makes of its real children.
///
/// With `x` the children of one node:
///
/// `n = LN(x)`, `y = W_o · attention(W_q n, W_k x, W_v x) + b_o + n`,
/// `m = LN(y)`, `[a, g] = W_1 m + b_1`, `z = W_2 (a · gelu(g)) + b_2 + m`, parent = mean of `z`
///
/// where attention is among the real children, per head, and GELU is the exact one. One block serves
/// all nodes of all levels. A node over no token is a ghost and zero.
///
/// Source: the encoder of inner nodes of Tree Cross Attention (arXiv 2309.17388, §3.1).
///
/// # Shapes
/// - leaves: `[batch, shape.width(0), dim]`, in the order of the tree
/// - lengths: `[batch]`, real leaves per example
/// - returns `[batch, nodes, dim]` in the level order of `options.shape`, the leaves last
///
/// # Panics
/// If an axis disagrees with the others or with `options.shape`, or if the heads do not divide the
/// width.
#[track_caller]
pub fn tree_build(
    leaves: Tensor<3>,
    lengths: Tensor<1, Int>,
    block: BlockWeights,
    options: TreeBuildOptions,
) -> Tensor<3> {
    let block = block.into_dispatch();
    let rows = [("leaves", &leaves.shape())];
    shapes::tree_build(&rows, &lengths.shape(), &block, &options);
    Tensor::from_dispatch(<Dispatch as TreeAttentionOps>::tree_build(
        leaves.into_dispatch(),
        lengths.into_dispatch(),
        block,
        options,
    ))
}
