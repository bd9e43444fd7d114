//! The node tensors of a token tree.

mod changed;
mod stream;

pub use changed::Changed;
pub use stream::StreamError;

use crate::shape::TokenTreeShape;
use crate::tensors::{at_least_single, expect_equal, expect_some, int_tensor};
use burn::tensor::{Bool, Device, FloatDType, Int, Tensor};

/// Summarises the children of a node: the encoder of inner nodes.
pub trait Aggregator {
    /// One summary per group of siblings.
    ///
    /// # Shapes
    /// - children: `[groups, siblings, dim]`
    /// - leaves: `[groups, siblings]`, how many real leaves are below each child, itself if it is one; 0 = masked out. Real
    ///   siblings come first
    /// - returns `[groups, dim]`; what it returns for a group without real siblings is ignored, but
    ///   must be finite
    fn aggregate(&self, children: Tensor<3>, leaves: Tensor<2, Int>) -> Tensor<2>;

    /// All nodes of a batch of trees. The provided method aggregates level by level, from the leaves
    /// up, all nodes of a level at once; an aggregator that has a faster way to the same nodes
    /// overrides it.
    ///
    /// # Shapes
    /// - leaves: `[batch, shape.width(0), dim]`; rows of ghosts are ignored
    /// - lengths: `[batch]`, real leaves per example
    /// - returns `[batch, shape.nodes(), dim]` in level order; ghosts are zero
    ///
    /// # Panics
    /// If [`aggregate`](Self::aggregate) does not return one row of the same width per group.
    #[track_caller]
    fn nodes(
        &self,
        leaves: Tensor<3>,
        lengths: Tensor<1, Int>,
        shape: &TokenTreeShape,
    ) -> Tensor<3> {
        let [batch, _, dim] = leaves.dims();
        let device = leaves.device();
        let counts = leaves_below(shape, lengths);
        let counts_at = |height: usize| {
            let offset = shape.offset(height);
            counts
                .clone()
                .slice([0..batch, offset..offset + shape.width(height)])
        };
        let mut level_counts = counts_at(0);
        let mut level = zero_masked(leaves, level_counts.clone().equal_elem(0));
        let mut levels = vec![level.clone()];
        for height in 1..=shape.height() {
            let (width, group) = (shape.width(height), shape.group(height));
            // [batch, width * group, dim] -> [batch * width, group, dim]: siblings side by side.
            let children = pad_rows(level, width * group).reshape([batch * width, group, dim]);
            let missing = width * group - level_counts.dims()[1];
            if missing > 0 {
                let options = (&device, level_counts.dtype());
                let ghosts = Tensor::<2, Int>::zeros([batch, missing], options);
                level_counts = Tensor::cat(vec![level_counts, ghosts], 1);
            }
            let children_leaves = level_counts.reshape([batch * width, group]);
            let parents = self.aggregate(children, children_leaves);
            expect_equal(
                "token_tree: aggregator's output",
                [batch * width, dim],
                parents.dims(),
            );
            level_counts = counts_at(height);
            let ghosts = level_counts.clone().equal_elem(0);
            level = zero_masked(parents.reshape([batch, width, dim]), ghosts);
            levels.push(level.clone());
        }
        levels.reverse();
        Tensor::cat(levels, 1)
    }
}

/// The mean of the leaves below a node: that of its children, each by its number of leaves. Half precision is computed in
/// single.
#[derive(Clone, Copy, Debug, Default)]
pub struct MeanAggregator;

impl Aggregator for MeanAggregator {
    fn aggregate(&self, children: Tensor<3>, leaves: Tensor<2, Int>) -> Tensor<2> {
        let dtype = children.dtype();
        let children = at_least_single(children);
        let leaves = leaves.cast(FloatDType::from(children.dtype()));
        let leaves = leaves.unsqueeze_dim::<3>(2); // [groups, siblings, 1]
        let all = leaves.clone().sum_dim(1).clamp_min(1.0);
        // Shares, and not a sum that is divided: that would overflow before the mean does.
        let mean = (children * (leaves / all)).sum_dim(1);
        mean.squeeze_dim(1).cast(dtype)
    }
}

/// Mean over axis 1 of the rows that are not masked; zero where all are.
///
/// # Shapes
/// - rows: `[groups, siblings, dim]`
/// - mask: `[groups, siblings]`, `true` = masked out
/// - returns `[groups, dim]`
pub fn masked_mean(rows: Tensor<3>, mask: Tensor<2, Bool>) -> Tensor<2> {
    let keep = mask.bool_not().cast(FloatDType::from(rows.dtype()));
    let keep = keep.unsqueeze_dim::<3>(2); // [groups, siblings, 1]
    let count = keep.clone().sum_dim(1).clamp_min(1.0); // [groups, 1, 1]
    ((rows * keep).sum_dim(1) / count).squeeze_dim(1)
}

/// A batch of balanced trees whose leaves are tokens, as tensors in level order.
///
/// All trees of a batch share one [`TokenTreeShape`], that of the longest example. A shorter example
/// fills the left part of it; nodes over none of its tokens are *ghosts*: their vector is zero and
/// they are masked.
///
/// A tree can also grow and change: see [`append`](Self::append) and [`update`](Self::update). Then
/// the shape is that of the tokens there is room for, and the rest of it is ghosts.
#[derive(Clone, Debug)]
pub struct TokenTree {
    shape: TokenTreeShape,
    nodes: Tensor<3>,
    lengths: Tensor<1, Int>,
    order: Tensor<2, Int>,
    /// `lengths` on the host, once the order is known to be the given one.
    stream: Option<Vec<usize>>,
    /// How many tokens an example may grow to.
    max_tokens: Option<usize>,
}

impl TokenTree {
    /// Builds the trees bottom-up by [`Aggregator::nodes`].
    ///
    /// # Shapes
    /// - tokens: `[batch, tokens, dim]`
    /// - mask: `[batch, tokens]`, `true` = masked out; an example may have no token at all
    /// - order: `[batch, tokens]`, the token of each leaf, real tokens first
    ///   (see [`TokenOrder::permutation`](crate::TokenOrder::permutation))
    ///
    /// # Panics
    /// If there is no example, or the axes of `tokens`, `mask`, `order` and `shape` disagree.
    #[track_caller]
    pub fn build<A: Aggregator + ?Sized>(
        tokens: Tensor<3>,
        mask: Option<Tensor<2, Bool>>,
        order: Tensor<2, Int>,
        shape: TokenTreeShape,
        aggregator: &A,
    ) -> Self {
        let [batch, count, dim] = tokens.dims();
        let device = tokens.device();
        expect_some("token_tree: axis 0 of tokens", batch);
        expect_equal("token_tree: axis 1 of tokens", shape.tokens(), count);
        expect_equal("token_tree: order", [batch, count], order.dims());
        if let Some(mask) = &mask {
            expect_equal("token_tree: mask", [batch, count], mask.dims());
        }
        let lengths = match &mask {
            Some(mask) => mask.clone().bool_not().int().sum_dim(1).squeeze_dim(1),
            None => Tensor::full([batch], count as i64, &device),
        };
        let leaves = select_rows(tokens, order.clone()); // [batch, tokens, dim]
        let leaves = pad_rows(leaves, shape.width(0));
        let nodes = aggregator.nodes(leaves, lengths.clone(), &shape);
        expect_equal(
            "token_tree: aggregator's nodes",
            [batch, shape.nodes(), dim],
            nodes.dims(),
        );
        Self {
            shape,
            nodes,
            lengths,
            order,
            stream: None,
            max_tokens: None,
        }
    }

    /// The shape that all trees of the batch share.
    pub fn shape(&self) -> &TokenTreeShape {
        &self.shape
    }

    /// All nodes in level order, `[batch, nodes, dim]`: the root first, the leaves last.
    pub fn nodes(&self) -> Tensor<3> {
        self.nodes.clone()
    }

    /// Which nodes are ghosts, `[batch, nodes]`, `true` = masked out.
    pub fn mask(&self) -> Tensor<2, Bool> {
        node_mask(&self.shape, self.lengths.clone())
    }

    /// Real tokens per example, `[batch]`.
    pub fn lengths(&self) -> Tensor<1, Int> {
        self.lengths.clone()
    }

    /// The token of each leaf, `[batch, tokens]`.
    pub fn order(&self) -> Tensor<2, Int> {
        self.order.clone()
    }

    /// The paths from the root to tokens; see [`paths_to_leaves`].
    ///
    /// # Shapes
    /// - tokens: `[batch, queries]`, indices of tokens as they came
    /// - returns `[batch, queries, decisions + 1]`
    pub fn paths_to_tokens(&self, tokens: Tensor<2, Int>) -> Tensor<3, Int> {
        // A permutation has no equal entries, so sorting it inverts it on every backend.
        let leaf_of = self.order.clone().argsort(1);
        paths_to_leaves(&self.shape, leaf_of.gather(1, tokens))
    }

    /// The nodes of one height, `[batch, width, dim]`.
    ///
    /// # Panics
    /// If `height` is above the root.
    #[track_caller]
    pub fn level(&self, height: usize) -> Tensor<3> {
        let first = self.shape.position(height, 0);
        let [batch, _, dim] = self.nodes.dims();
        self.nodes
            .clone()
            .slice([0..batch, first..first + self.shape.width(height), 0..dim])
    }
}

/// Which nodes of `shape` are ghosts for examples of the given lengths, in level order.
///
/// # Shapes
/// - lengths: `[batch]`
/// - returns `[batch, nodes]`, `true` = masked out
pub fn node_mask(shape: &TokenTreeShape, lengths: Tensor<1, Int>) -> Tensor<2, Bool> {
    leaves_below(shape, lengths).lower_elem(1)
}

/// How many real leaves are below each node of `shape` for examples of the given lengths, in level order; a leaf is below
/// itself.
///
/// # Shapes
/// - lengths: `[batch]`
/// - returns `[batch, nodes]`, 0 for ghosts
pub fn leaves_below(shape: &TokenTreeShape, lengths: Tensor<1, Int>) -> Tensor<2, Int> {
    let [batch] = lengths.dims();
    let device: Device = lengths.device();
    let first = shape.first_leaves();
    let nodes = first.len();
    let row = |numbers: Vec<i64>| int_tensor(numbers, [1, nodes], &device).expand([batch, nodes]);
    let spans = (0..=shape.height())
        .rev()
        .flat_map(|height| vec![shape.span(height) as i64; shape.width(height)]);
    let spans = row(spans.collect());
    let first = row(first.iter().map(|leaf| *leaf as i64).collect());
    let lengths = lengths.reshape([batch, 1]).expand([batch, nodes]);
    (lengths - first).clamp_min(0).min_pair(spans)
}

/// Picks rows of each example: `output[e, i] = rows[e, indices[e, i]]`.
///
/// # Shapes
/// - rows: `[batch, rows, dim]`
/// - indices: `[batch, picked]`, each below `rows`, which is not checked
/// - returns `[batch, picked, dim]`
pub fn select_rows(rows: Tensor<3>, indices: Tensor<2, Int>) -> Tensor<3> {
    let [batch, count, dim] = rows.dims();
    let [_, picked] = indices.dims();
    // One selection over the flattened batch copies whole rows; a gather would need an index per
    // element.
    let device = rows.device();
    let first = Tensor::<1, Int>::arange(0..batch as i64, &device) * count as i64;
    let indices = (indices + first.reshape([batch, 1])).reshape([batch * picked]);
    rows.reshape([batch * count, dim])
        .select(0, indices)
        .reshape([batch, picked, dim])
}

/// Appends zero rows up to `count` rows.
fn pad_rows(rows: Tensor<3>, count: usize) -> Tensor<3> {
    let [batch, existing, dim] = rows.dims();
    if existing == count {
        return rows;
    }
    let device = rows.device();
    let zeros = Tensor::zeros([batch, count - existing, dim], (&device, rows.dtype()));
    Tensor::cat(vec![rows, zeros], 1)
}

fn zero_masked(rows: Tensor<3>, mask: Tensor<2, Bool>) -> Tensor<3> {
    let dims = rows.dims();
    rows.mask_fill(mask.unsqueeze_dim::<3>(2).expand(dims), 0.0)
}

/// The paths from the root to leaves, as a tree search takes and returns them: the node at each
/// height down to the one whose leaves are taken whole.
///
/// # Shapes
/// - leaves: `[batch, queries]`, each below `shape.width(0)`
/// - returns `[batch, queries, decisions + 1]`, the root first
pub fn paths_to_leaves(shape: &TokenTreeShape, leaves: Tensor<2, Int>) -> Tensor<3, Int> {
    let lowest = shape.height() - shape.decisions();
    let leaves = leaves.unsqueeze_dim::<3>(2);
    let path = (lowest..=shape.height())
        .rev()
        .map(|height| leaves.clone().div_scalar(shape.span(height) as i64))
        .collect();
    Tensor::cat(path, 2)
}
