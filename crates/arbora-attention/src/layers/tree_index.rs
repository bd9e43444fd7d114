//! The projected keys and values of token trees.

use arbora_tree::TokenTreeShape;
use burn::tensor::{Bool, Int, Tensor};

/// The projected keys and values of a batch of token trees: made once, searched by any number of
/// queries, also from several threads.
///
/// An index belongs to the weights of the layer that made it. Make a new one after a training step.
#[derive(Clone, Debug)]
pub struct TreeIndex {
    pub(super) shape: TokenTreeShape,
    pub(super) key: Tensor<4>,   // [batch, nodes, heads, head_dim]
    pub(super) value: Tensor<4>, // [batch, nodes, heads, head_dim]
    pub(super) lengths: Tensor<1, Int>,
    pub(super) mask: Tensor<2, Bool>,
}

impl TreeIndex {
    /// The shape that all trees of the batch share.
    pub fn shape(&self) -> &TokenTreeShape {
        &self.shape
    }

    /// Real tokens per example, `[batch]`.
    pub fn lengths(&self) -> Tensor<1, Int> {
        self.lengths.clone()
    }
}
