//! Which leaf a token reaches, and which leaves come close.

use super::level::{children, first_maximum, margin_terms, margins};
use super::{Heads, RoutingTree};
use crate::shape::CompleteTree;
use crate::tensors::{counting, single};
use burn::tensor::{Bool, Int, Tensor};

/// The leaf of a masked token.
pub const NO_LEAF: i64 = -1;

/// The path of each token from the root to its leaf. It carries no gradient.
#[derive(Clone, Debug)]
pub struct Routing {
    /// The node at each depth, by its index within that depth: `[batch, tokens, heads, height +
    /// 1]`. The root is node 0, the last entry is the leaf. [`NO_LEAF`] throughout for masked
    /// tokens.
    pub path: Tensor<4, Int>,
    /// By how much each decision was taken, at least 0: `|a|` of a binary node, the best child's
    /// logit minus the second best's of a k-ary one. `[batch, tokens, heads, height]`, and one
    /// entry of `f32::MAX` for a tree of height 0, which decides nothing. Zero for masked tokens.
    pub margins: Tensor<4>,
    shape: CompleteTree,
    trees: usize,
}

impl Routing {
    /// The routing that ends at given leaves; its margins are `f32::MAX`, since nothing was
    /// decided.
    ///
    /// # Shapes
    /// - leaves: `[batch, tokens, heads]`, [`NO_LEAF`] for masked tokens
    ///
    /// # Panics
    /// If an axis is 0 or `heads` is no multiple of `trees`. That leaves exist is not checked.
    #[track_caller]
    pub fn from_leaves(leaves: Tensor<3, Int>, shape: &CompleteTree, trees: usize) -> Self {
        let [batch, tokens, heads] = leaves.dims();
        assert!(
            trees >= 1,
            "routing: trees: expected at least 1, got {trees}"
        );
        Heads::new("routing", [batch, tokens, heads], trees);
        let device = leaves.device();
        let masked = leaves.clone().lower_elem(0);
        let path = (0..=shape.height())
            .map(|depth| {
                let below = (shape.leaves() / shape.width(depth)) as i64;
                let index = leaves.clone().clamp_min(0);
                // Division of integers rounds differently between backends; what is left is exact.
                let rest = index.clone().remainder_scalar(below);
                ((index - rest) / below).mask_fill(masked.clone(), NO_LEAF)
            })
            .collect();
        Self {
            path: Tensor::stack(path, 3),
            margins: Tensor::full(
                [batch, tokens, heads, shape.height().max(1)],
                f32::MAX,
                single(&device),
            ),
            shape: shape.clone(),
            trees,
        }
    }

    /// The leaf of each token, `[batch, tokens, heads]`; [`NO_LEAF`] for masked tokens.
    pub fn leaves(&self) -> Tensor<3, Int> {
        self.nodes(self.shape.height())
    }

    /// The node of each token at one depth, `[batch, tokens, heads]`; [`NO_LEAF`] for masked
    /// tokens.
    ///
    /// # Panics
    /// If the tree is not that high.
    #[track_caller]
    pub fn nodes(&self, depth: usize) -> Tensor<3, Int> {
        assert!(
            depth <= self.shape.height(),
            "routing: depth: expected at most {}, got {depth}",
            self.shape.height()
        );
        self.path.clone().narrow(3, depth, 1).squeeze_dim(3)
    }

    /// The smallest margin on each token's way, `[batch, tokens, heads]`: how far it is from
    /// another leaf. Rounding on another backend can only change routes whose least margin is of
    /// the order of rounding.
    pub fn least_margin(&self) -> Tensor<3> {
        self.margins.clone().min_dim(3).squeeze_dim(3)
    }

    /// The shape of the trees.
    pub fn shape(&self) -> &CompleteTree {
        &self.shape
    }

    /// Number of trees that the heads are grouped onto.
    pub fn trees(&self) -> usize {
        self.trees
    }

    pub(super) fn heads(&self) -> Heads {
        let [batch, tokens, heads, _] = self.path.dims();
        Heads::new("routing", [batch, tokens, heads], self.trees)
    }
}

/// The best leaves of each token by margin score.
#[derive(Clone, Debug)]
pub struct Candidates {
    /// Distinct leaves, best first, `[batch, tokens, heads, count]`; [`NO_LEAF`] for masked tokens.
    pub leaves: Tensor<4, Int>,
    /// Their margin scores, at most 0, `[batch, tokens, heads, count]`: 0 for the first (up to
    /// rounding where a decision is that close), and 0 throughout for masked tokens.
    /// Differentiable.
    pub scores: Tensor<4>,
}

impl RoutingTree {
    /// Routes every token to a leaf.
    ///
    /// Only nodes on the path are evaluated: `height` inner products per token in a binary tree.
    ///
    /// # Shapes
    /// - x: `[batch, tokens, heads, dim]`
    /// - mask: `[batch, tokens]`, `true` = masked out: the token gets [`NO_LEAF`]
    ///
    /// # Panics
    /// If an axis is 0 or disagrees with the tree or the mask, or `heads` is no multiple of
    /// `trees`.
    #[track_caller]
    pub fn route(&self, x: Tensor<4>, mask: Option<Tensor<2, Bool>>) -> Routing {
        let (rows, heads) = self.rows("route", x.without_autodiff());
        let [trees, count, _] = rows.dims();
        let (path, mut taken) = self.descend(&rows);
        if taken.is_empty() {
            taken.push(Tensor::full(
                [trees, count, 1],
                f32::MAX,
                single(&rows.device()),
            ));
        }
        let mut path = heads.to_heads(Tensor::cat(path, 2));
        let mut margins = heads.to_heads(Tensor::cat(taken, 2));
        if let Some(mask) = mask {
            let width = path.dims()[3];
            path = path.mask_fill(heads.spread("route", mask.clone(), width), NO_LEAF);
            let width = margins.dims()[3];
            margins = margins.mask_fill(heads.spread("route", mask, width), 0.0);
        }
        Routing {
            path,
            margins,
            shape: self.shape.clone(),
            trees: self.trees,
        }
    }

    /// The `count` leaves with the largest margin scores, best first; the first is the routed one.
    /// Where the tree has fewer leaves, all of them.
    ///
    /// A beam of `count` nodes per level finds exactly these: no term of the score is positive, and
    /// some child of every node adds 0, so a node outside the beam has `count` leaves elsewhere
    /// that score at least as well as any of its own. Leaves with equal scores come in the same
    /// order on every backend.
    ///
    /// # Shapes
    /// - x: `[batch, tokens, heads, dim]`
    /// - mask: `[batch, tokens]`, `true` = masked out
    ///
    /// # Panics
    /// If `count` is 0, and as [`route`](Self::route).
    #[track_caller]
    pub fn best_leaves(
        &self,
        x: Tensor<4>,
        mask: Option<Tensor<2, Bool>>,
        count: usize,
    ) -> Candidates {
        assert!(count >= 1, "best_leaves: count: expected at least 1, got 0");
        let (rows, heads) = self.rows("best_leaves", x);
        let (path, _) = self.descend(&rows.clone().without_autodiff());
        let mut beam = Beam::root(&rows);
        for (level, routed) in self.levels.iter().zip(&path[1..]) {
            let logits = level
                .functions(self.side)
                .logits_at(rows.clone(), beam.nodes.clone());
            beam = beam.children(logits);
            if beam.nodes.dims()[2] > count {
                beam = beam.best(count, routed);
            }
        }
        let width = beam.nodes.dims()[2];
        let beam = beam.best(width, &path[self.height()]);
        let mut leaves = heads.to_heads(beam.nodes);
        let mut scores = heads.to_heads(beam.scores);
        if let Some(mask) = mask {
            let mask = heads.spread("best_leaves", mask, width);
            leaves = leaves.mask_fill(mask.clone(), NO_LEAF);
            scores = scores.mask_fill(mask, 0.0);
        }
        Candidates { leaves, scores }
    }

    /// The nodes on the path, `height + 1` tensors, and the margins, `height` tensors: `[trees,
    /// rows, 1]` each.
    fn descend(&self, rows: &Tensor<3>) -> (Vec<Tensor<3, Int>>, Vec<Tensor<3>>) {
        let [trees, count, _] = rows.dims();
        let mut node = Tensor::<3, Int>::zeros([trees, count, 1], &rows.device());
        let mut path = vec![node.clone()];
        let mut taken = Vec::with_capacity(self.height());
        for level in &self.levels {
            let functions = level.functions(self.side).constant();
            let logits = functions.logits_at(rows.clone(), node.clone());
            node = node * level.branching() as i64 + children(logits.clone());
            path.push(node.clone());
            taken.push(margins(logits));
        }
        (path, taken)
    }
}

/// Some nodes of one depth, `[trees, rows, width]` each.
struct Beam {
    nodes: Tensor<3, Int>,
    scores: Tensor<3>,
}

impl Beam {
    fn root(rows: &Tensor<3>) -> Self {
        let [trees, count, _] = rows.dims();
        let device = rows.device().without_autodiff();
        Self {
            nodes: Tensor::zeros([trees, count, 1], &device),
            scores: Tensor::zeros([trees, count, 1], single(&device)),
        }
    }

    /// All children of the beam's nodes.
    ///
    /// - logits: `[trees, rows, width, logits]`
    fn children(self, logits: Tensor<4>) -> Self {
        let [trees, rows, width] = self.nodes.dims();
        let terms = margin_terms(logits);
        let branching = terms.dims()[3];
        let all = [trees, rows, width, branching];
        let first = (self.nodes * branching as i64).unsqueeze_dim::<4>(3);
        let nodes = first.expand(all) + counting(all, &terms.device().without_autodiff());
        let scores = self.scores.unsqueeze_dim::<4>(3) + terms;
        Self {
            nodes: nodes.reshape([trees, rows, width * branching]),
            scores: scores.reshape([trees, rows, width * branching]),
        }
    }

    /// The best `count` nodes in order, the routed one first. With a decision of exactly 0 others
    /// score as well as that one, and rounding can make them score better.
    ///
    /// It takes the maximum `count` times: burn's sorts are not stable and run on the host for most
    /// backends.
    ///
    /// - routed: `[trees, rows, 1]`
    fn best(self, count: usize, routed: &Tensor<3, Int>) -> Self {
        let dims = self.nodes.dims();
        let first = self.nodes.clone().equal(routed.clone().expand(dims));
        let mut key = self.scores.clone().without_autodiff();
        key = key.mask_fill(first, f32::MAX);
        let places = counting(dims, &key.device());
        let mut order = Vec::with_capacity(count);
        for _ in 0..count {
            let at = first_maximum(key.clone());
            let taken = places.clone().equal(at.clone().expand(dims));
            key = key.mask_fill(taken, f32::MIN);
            order.push(at);
        }
        let order = Tensor::cat(order, 2);
        Self {
            nodes: self.nodes.gather(2, order.clone()),
            scores: self.scores.gather(2, order),
        }
    }
}
