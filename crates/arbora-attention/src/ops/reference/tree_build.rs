//! The building of a tree by its definition.

use super::feed_forward::{FeedForward, Norm, linear, matrix, row};
use super::softmax;
use crate::ops::primitive::{Float, Integer, Mask};
use crate::ops::{BlockPrimitive, TreeBuildOptions};
use burn::backend::Backend;
use burn::backend::tensor::{FloatTensor, IntTensor};

/// Reference of [`TreeAttentionOps::tree_build`](crate::ops::TreeAttentionOps::tree_build): one block
/// per level over all nodes of the level.
pub fn tree_build<B: Backend>(
    leaves: FloatTensor<B>,
    lengths: IntTensor<B>,
    block: BlockPrimitive<B>,
    options: TreeBuildOptions,
) -> FloatTensor<B> {
    let shape = options.shape;
    let lengths = Integer::<B>(lengths);
    let leaves = Float::<B>(leaves);
    let output_dtype = leaves.dtype();
    let leaves = leaves.at_least_single();
    let block = Block::<B>::new(block, &options);
    let [batch, _, dim] = leaves.dims();
    let real_at = |height: usize, width: usize| {
        let first = Integer::arange(width, &lengths)
            .times(shape.span(height))
            .reshape([1, width])
            .expand([batch, width]);
        first.below(lengths.clone().reshape([batch, 1]).expand([batch, width]))
    };
    let keep = |rows: Float<B>, height: usize| {
        let [_, width, _] = rows.dims();
        let ghost = real_at(height, width)
            .not()
            .reshape([batch, width, 1])
            .expand([batch, width, dim]);
        rows.fill(ghost, 0.0)
    };

    let mut level = keep(leaves, 0);
    let mut levels = vec![level.clone()];
    for height in 1..=shape.height() {
        let (width, group) = (shape.width(height), shape.group(height));
        // Siblings side by side; those past the last stored node are ghosts.
        let slots = width * group;
        let stored = level.dims::<3>()[1];
        let children = if slots > stored {
            let missing = level.zeros([batch, slots - stored, dim]);
            Float::cat(vec![level, missing], 1)
        } else {
            level
        };
        let children = if options.detach_children {
            children.detach()
        } else {
            children
        };
        let real = real_at(height - 1, slots).reshape([batch * width, group]);
        let parents = block.summarise(children.reshape([batch * width, group, dim]), real);
        level = keep(parents.reshape([batch, width, dim]), height);
        levels.push(level.clone());
    }
    levels.reverse();
    Float::cat(levels, 1).cast(output_dtype).0
}

/// The block's weights.
struct Block<B: Backend> {
    norm: Norm<B>,
    query: Float<B>,
    key: Float<B>,
    value: Float<B>,
    output: Float<B>,
    output_bias: Float<B>,
    feed_forward: FeedForward<B>,
    heads: usize,
}

impl<B: Backend> Block<B> {
    fn new(block: BlockPrimitive<B>, options: &TreeBuildOptions) -> Self {
        Self {
            norm: Norm::new(block.norm_gamma, block.norm_beta, options.epsilon),
            query: matrix(block.query),
            key: matrix(block.key),
            value: matrix(block.value),
            output: matrix(block.output),
            output_bias: row(block.output_bias),
            feed_forward: FeedForward::new(block.feed_forward, options.epsilon),
            heads: options.heads,
        }
    }

    /// `[groups, siblings, dim]` and which siblings are real -> `[groups, dim]`
    fn summarise(&self, children: Float<B>, real: Mask<B>) -> Float<B> {
        let [groups, siblings, dim] = children.dims();
        let head_dim = dim / self.heads;
        let by_head = |rows: Float<B>| {
            rows.reshape([groups, siblings, self.heads, head_dim])
                .swap_dims(1, 2) // [groups, heads, siblings, head_dim]
        };
        let normalized = self.norm.apply(children.clone());
        let query = by_head(linear(normalized.clone(), &self.query));
        let key = by_head(linear(children.clone(), &self.key));
        let value = by_head(linear(children, &self.value));
        let logits = query
            .scale((head_dim as f64).powf(-0.5))
            .matmul(key.swap_dims(2, 3)); // [groups, heads, siblings, siblings]
        let ghost = real
            .clone()
            .not()
            .reshape([groups, 1, 1, siblings])
            .expand([groups, self.heads, siblings, siblings]);
        let (weights, _) = softmax(logits, Some(&ghost));
        let context = weights
            .matmul(value)
            .swap_dims(1, 2)
            .reshape([groups, siblings, dim]);
        let attended = linear(context, &self.output)
            .add(self.output_bias.clone())
            .add(normalized);

        let fed = self.feed_forward.apply(attended);

        let keep = real.float(fed.dtype()).reshape([groups, siblings, 1]);
        let count = keep.clone().sum(1).clamp_min(1.0);
        fed.mul(keep).sum(1).div(count).reshape([groups, dim])
    }
}
