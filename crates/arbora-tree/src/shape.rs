//! Index arithmetic of trees, on integers alone.
//!
//! Nodes are named by their *height* above the leaves (leaves have height 0) and their *index* among
//! the nodes of that height, from the left. Counting from the leaves keeps names stable: when a tree
//! grows, or when a shorter example is padded to a longer one's tree, the node over the same tokens
//! keeps its name. Tensors store nodes in *level order*: the root first, the leaves last.

use alloc::vec::Vec;
use core::ops::Range;
use serde::{Deserialize, Serialize};

/// How the leaves of a balanced token tree are grouped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// Groups of exactly `b` leaves, filled from the left; height `⌈log_b N⌉`. Only nodes over at
    /// least one token exist. The tree of a shorter example is the left part of a longer one's.
    #[default]
    LeftFilled,
    /// The published layout (Tree Cross Attention, arXiv 2309.17388): `k = ⌊log_b(N-1)⌋` decision
    /// levels of a complete b-ary tree, and `P = ⌈N / b^k⌉` leaves under each of its `b^k` lowest
    /// nodes. Leaf slots and nodes over no token exist as ghosts. For `b = 2` the real nodes are
    /// those of [`Layout::LeftFilled`].
    Published,
}

/// The shape of a balanced tree over `tokens` leaves with a fixed branching factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TokenTreeShape {
    tokens: usize,
    branching: usize,
    layout: Layout,
    height: usize,
    leaf_group: usize,
}

impl TokenTreeShape {
    /// The tree over `tokens` tokens with the given branching factor.
    ///
    /// # Panics
    /// If `tokens` is 0 or `branching` is below 2.
    #[track_caller]
    pub fn new(tokens: usize, branching: usize, layout: Layout) -> Self {
        assert!(
            tokens >= 1,
            "token_tree_shape: tokens: expected at least 1, got 0"
        );
        assert!(
            branching >= 2,
            "token_tree_shape: branching factor: expected at least 2, got {branching}"
        );
        let (height, leaf_group) = match layout {
            Layout::LeftFilled => (ceil_log(tokens, branching), branching),
            Layout::Published if tokens == 1 => (0, 1),
            Layout::Published => {
                let decisions = floor_log(tokens - 1, branching);
                let parents = power(branching, decisions);
                (decisions + 1, tokens.div_ceil(parents))
            }
        };
        Self {
            tokens,
            branching,
            layout,
            height,
            leaf_group,
        }
    }

    /// Number of tokens, N.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Branching factor, b.
    pub fn branching(&self) -> usize {
        self.branching
    }

    /// How leaves are grouped.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Edges on the way from the root to a leaf; 0 when the only token is the root itself.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Number of choices on the way down. The last group of leaves is taken whole, so this is one
    /// less than the height, and 0 for `N <= b`.
    pub fn decisions(&self) -> usize {
        self.height.saturating_sub(1)
    }

    /// Leaf slots under a node of height 1: b, or P in the published layout.
    pub fn leaf_group(&self) -> usize {
        self.leaf_group
    }

    /// Child slots of a node of the given height, at least 1. Height 0, a leaf, is not refused.
    pub fn group(&self, height: usize) -> usize {
        if height == 1 {
            self.leaf_group
        } else {
            self.branching
        }
    }

    /// Leaf slots under one node of the given height.
    pub fn span(&self, height: usize) -> usize {
        match height {
            0 => 1,
            _ => self
                .leaf_group
                .saturating_mul(power(self.branching, height - 1)),
        }
    }

    /// Number of stored nodes of the given height, ghosts included; 0 above the root.
    pub fn width(&self, height: usize) -> usize {
        if height > self.height {
            return 0;
        }
        match self.layout {
            Layout::LeftFilled => self.tokens.div_ceil(self.span(height)),
            Layout::Published if height == 0 => self.span(self.height),
            Layout::Published => power(self.branching, self.height - height),
        }
    }

    /// Number of stored nodes of all heights.
    pub fn nodes(&self) -> usize {
        (0..=self.height).map(|height| self.width(height)).sum()
    }

    /// Position, in level order, of the first node of the given height.
    pub fn offset(&self, height: usize) -> usize {
        (height + 1..=self.height)
            .map(|above| self.width(above))
            .sum()
    }

    /// Position of a node in level order.
    ///
    /// # Panics
    /// If the node is not stored.
    #[track_caller]
    pub fn position(&self, height: usize, index: usize) -> usize {
        self.check(height, index);
        self.offset(height) + index
    }

    /// The `(height, index)` of a node by its position in level order; the inverse of
    /// [`position`](Self::position).
    ///
    /// # Panics
    /// If no node has this position.
    #[track_caller]
    pub fn node_at(&self, position: usize) -> (usize, usize) {
        let mut first = 0;
        for height in (0..=self.height).rev() {
            let width = self.width(height);
            if position < first + width {
                return (height, position - first);
            }
            first += width;
        }
        panic!("token_tree_shape: position: expected below {first}, got {position}");
    }

    /// Indices, one height below, of a node's stored children; empty for a leaf.
    ///
    /// # Panics
    /// If the node is not stored.
    #[track_caller]
    pub fn children(&self, height: usize, index: usize) -> Range<usize> {
        self.check(height, index);
        if height == 0 {
            return 0..0;
        }
        let group = self.group(height);
        let below = self.width(height - 1);
        (index * group).min(below)..((index + 1) * group).min(below)
    }

    /// Index, one height above, of a node's parent; `None` for the root.
    ///
    /// # Panics
    /// If the node is not stored.
    #[track_caller]
    pub fn parent(&self, height: usize, index: usize) -> Option<usize> {
        self.check(height, index);
        (height < self.height).then(|| index / self.group(height + 1))
    }

    /// Index of a leaf's ancestor at the given height (the leaf itself at height 0).
    pub fn ancestor(&self, leaf: usize, height: usize) -> usize {
        leaf / self.span(height)
    }

    /// The tokens under a node; empty for a ghost.
    pub fn leaves(&self, height: usize, index: usize) -> Range<usize> {
        let span = self.span(height);
        let first = index.saturating_mul(span).min(self.tokens);
        first..first.saturating_add(span).min(self.tokens)
    }

    /// The first leaf slot under each stored node, in level order. A node is real for an example of
    /// `length` tokens exactly when its entry is below `length`.
    pub fn first_leaves(&self) -> Vec<usize> {
        (0..=self.height)
            .rev()
            .flat_map(|height| (0..self.width(height)).map(move |i| i * self.span(height)))
            .collect()
    }

    #[track_caller]
    fn check(&self, height: usize, index: usize) {
        assert!(
            height <= self.height,
            "token_tree_shape: height: expected at most {}, got {height}",
            self.height
        );
        let width = self.width(height);
        assert!(
            index < width,
            "token_tree_shape: index at height {height}: expected below {width}, got {index}"
        );
    }
}

/// A complete tree with one branching factor per level: the tree of routers and of transformer
/// blocks. Nodes are named by their *depth* below the root and their index from the left.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<usize>", into = "Vec<usize>")]
pub struct CompleteTree {
    branching: Vec<usize>,
}

impl CompleteTree {
    /// A tree whose nodes of depth `d` have `branching[d]` children. No factors: the root is the
    /// only leaf.
    ///
    /// # Panics
    /// If a factor is 0 or the number of nodes does not fit a `usize`.
    #[track_caller]
    pub fn new(branching: Vec<usize>) -> Self {
        Self::try_from(branching).unwrap_or_else(|error| panic!("complete_tree: {error}"))
    }

    /// A tree of the given height with the same branching factor on every level.
    ///
    /// # Panics
    /// As [`new`](Self::new).
    #[track_caller]
    pub fn uniform(branching: usize, height: usize) -> Self {
        Self::new(alloc::vec![branching; height])
    }

    /// Edges from the root to a leaf.
    pub fn height(&self) -> usize {
        self.branching.len()
    }

    /// The branching factor of each level, root first.
    pub fn factors(&self) -> &[usize] {
        &self.branching
    }

    /// Children of a node of the given depth; 0 for leaves.
    pub fn branching(&self, depth: usize) -> usize {
        self.branching.get(depth).copied().unwrap_or(0)
    }

    /// Number of nodes of the given depth.
    ///
    /// # Panics
    /// If `depth` is above the height.
    #[track_caller]
    pub fn width(&self, depth: usize) -> usize {
        let height = self.height();
        assert!(
            depth <= height,
            "complete_tree: depth: expected at most {height}, got {depth}"
        );
        self.branching[..depth].iter().product()
    }

    /// Number of leaves.
    pub fn leaves(&self) -> usize {
        self.width(self.height())
    }

    /// Number of nodes.
    pub fn nodes(&self) -> usize {
        (0..=self.height()).map(|depth| self.width(depth)).sum()
    }

    /// Position, in level order, of the first node of the given depth; of the height plus 1, the number of nodes.
    ///
    /// # Panics
    /// If `depth` is above that.
    #[track_caller]
    pub fn offset(&self, depth: usize) -> usize {
        (0..depth).map(|above| self.width(above)).sum()
    }

    /// Indices, one depth below, of a node's children.
    pub fn children(&self, depth: usize, index: usize) -> Range<usize> {
        let branching = self.branching(depth);
        index * branching..(index + 1) * branching
    }

    /// Index, one depth above, of a node's parent; `None` for the root.
    ///
    /// # Panics
    /// If `depth` is above the height.
    pub fn parent(&self, depth: usize, index: usize) -> Option<usize> {
        (depth > 0).then(|| index / self.branching[depth - 1])
    }

    /// The child taken at each depth on the way from the root to a leaf.
    ///
    /// # Panics
    /// If the leaf does not exist.
    #[track_caller]
    pub fn path(&self, leaf: usize) -> Vec<usize> {
        let leaves = self.leaves();
        assert!(
            leaf < leaves,
            "complete_tree: leaf: expected below {leaves}, got {leaf}"
        );
        let mut rest = leaf;
        let mut path: Vec<usize> = self
            .branching
            .iter()
            .rev()
            .map(|branching| {
                let child = rest % branching;
                rest /= branching;
                child
            })
            .collect();
        path.reverse();
        path
    }

    /// The leaf reached by a path; the inverse of [`path`](Self::path).
    ///
    /// # Panics
    /// If the path's length is not the height, or a step names no child.
    #[track_caller]
    pub fn leaf(&self, path: &[usize]) -> usize {
        assert_eq!(
            path.len(),
            self.height(),
            "complete_tree: path length: expected {}, got {}",
            self.height(),
            path.len()
        );
        path.iter()
            .zip(&self.branching)
            .enumerate()
            .fold(0, |leaf, (depth, (child, branching))| {
                assert!(
                    child < branching,
                    "complete_tree: path at depth {depth}: expected below {branching}, got {child}"
                );
                leaf * branching + child
            })
    }
}

impl TryFrom<Vec<usize>> for CompleteTree {
    type Error = &'static str;

    fn try_from(branching: Vec<usize>) -> Result<Self, Self::Error> {
        if branching.contains(&0) {
            return Err("branching factor: expected at least 1, got 0");
        }
        let mut width = 1usize;
        let mut nodes = 1usize;
        for factor in &branching {
            let next = width
                .checked_mul(*factor)
                .and_then(|w| Some((w, nodes.checked_add(w)?)));
            (width, nodes) = next.ok_or("branching factors: too many nodes to count")?;
        }
        Ok(Self { branching })
    }
}

impl From<CompleteTree> for Vec<usize> {
    fn from(tree: CompleteTree) -> Self {
        tree.branching
    }
}

/// `base^exponent`, or `usize::MAX` where that does not fit: larger than any number of tokens.
fn power(base: usize, exponent: usize) -> usize {
    u32::try_from(exponent).map_or(usize::MAX, |exponent| base.saturating_pow(exponent))
}

/// `⌊log_base value⌋` for `value >= 1`, without floating point: the published float32 ratio of
/// logarithms rounds wrongly at 2^13 and 2^15.
fn floor_log(value: usize, base: usize) -> usize {
    value.ilog(base) as usize
}

/// `⌈log_base value⌉` for `value >= 1`.
fn ceil_log(value: usize, base: usize) -> usize {
    if value == 1 {
        0
    } else {
        floor_log(value - 1, base) + 1
    }
}
