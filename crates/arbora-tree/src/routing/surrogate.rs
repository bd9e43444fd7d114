//! Differentiable scores in place of decisions.

use super::level::{children, margin_terms, one_hot};
use super::{Heads, RoutingTree};
use crate::ConfigError;
use crate::tensors::single;
use burn::tensor::activation::softmax;
use burn::tensor::{Bool, FloatDType, Int, Tensor};
use serde::{Deserialize, Serialize};

/// Which differentiable scores stand in for the decisions of a [`RoutingTree`].
///
/// The best leaf by any of them is the routed one. Temperatures divide the scores before a softmax
/// and are positive.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Surrogate {
    /// Dense Gradient Trees as published (arXiv 2102.07567, and the authors' code): every decision
    /// counts `+s` or `-s` for the leaves on its two sides, whatever its margin, so a leaf with `m`
    /// wrong decisions on its path scores `(height - 2m) s`. The backward pass is a
    /// straight-through estimator: `∂L/∂a = 2 · 1[|a| <= clip] · ∂L/∂â`.
    ///
    /// A k-ary node, which the paper does not have, counts `s` for the child it takes and 0 for the
    /// others; its backward pass is that of `s · softmax(logits / temperature)`.
    DenseGradient {
        /// Temperature of the softmax over leaves.
        temperature: f64,
        /// Margins beyond it pass no gradient; 1 as published.
        clip: f64,
        /// The size `s` of a decision. `None` as published: the mean of `|a|` over all outputs of a
        /// tree and all unmasked tokens of the batch, without gradient. That makes the scores of a
        /// token depend on the batch it is in, and on later tokens of its own sequence; give a
        /// constant where that matters.
        scale: Option<f64>,
    },
    /// Margin scores; an attention mixes the best few leaves by a softmax over theirs
    /// ([`RoutingTree::best_leaves`]). The forward pass can stay exactly the routed one.
    TopMargin {
        /// How many leaves, the routed one included.
        candidates: usize,
        /// Temperature of the softmax over the candidates.
        temperature: f64,
    },
    /// Margin scores with a softmax over all leaves, to be annealed towards temperature 0.
    Soft {
        /// Temperature of the softmax over leaves.
        temperature: f64,
    },
}

impl Default for Surrogate {
    /// [`TopMargin`](Self::TopMargin) with two candidates and temperature 1.
    fn default() -> Self {
        Self::TopMargin {
            candidates: 2,
            temperature: 1.0,
        }
    }
}

impl Surrogate {
    /// What the scores are divided by before a softmax.
    pub fn temperature(&self) -> f64 {
        match *self {
            Self::DenseGradient { temperature, .. }
            | Self::TopMargin { temperature, .. }
            | Self::Soft { temperature } => temperature,
        }
    }

    /// Whether the size of a decision comes from the batch.
    fn needs_mean_size(&self) -> bool {
        matches!(self, Self::DenseGradient { scale: None, .. })
    }

    /// Checks that every number is in its range.
    ///
    /// # Errors
    /// With the first that is not.
    pub fn check(&self) -> Result<(), ConfigError> {
        ConfigError::unless_positive("temperature", self.temperature())?;
        match *self {
            Self::DenseGradient { clip, scale, .. } => {
                ConfigError::unless(clip > 0.0, "clip", "a positive number", clip)?;
                ConfigError::unless_positive("scale", scale.unwrap_or(1.0))
            }
            Self::TopMargin { candidates, .. } => {
                ConfigError::unless_at_least_1([("candidates", candidates)])
            }
            Self::Soft { .. } => Ok(()),
        }
    }
}

impl RoutingTree {
    /// The scores of the nodes of every depth, from the root to the leaves: sums of the terms of
    /// their ancestors. All nodes are evaluated.
    ///
    /// Masked tokens get scores too, which are to be ignored. The mask matters for [`Surrogate::DenseGradient`] without a
    /// scale alone, which takes the mean over unmasked tokens.
    ///
    /// # Shapes
    /// - x: `[batch, tokens, heads, dim]`
    /// - mask: `[batch, tokens]`, `true` = masked out
    /// - returns `height + 1` tensors `[batch, tokens, heads, nodes at the depth]`; the root scores
    ///   0
    ///
    /// # Panics
    /// If an axis is 0 or disagrees with the tree or the mask, `heads` is no multiple of `trees`, or
    /// [`Surrogate::check`] refuses the surrogate.
    #[track_caller]
    pub fn node_scores(
        &self,
        x: Tensor<4>,
        mask: Option<Tensor<2, Bool>>,
        surrogate: &Surrogate,
    ) -> Vec<Tensor<4>> {
        ConfigError::expect_ok("node_scores", surrogate.check());
        let (rows, heads) = self.rows("node_scores", x);
        let [trees, count, _] = rows.dims();
        let logits: Vec<Tensor<4>> = self
            .levels
            .iter()
            .map(|level| level.functions(self.side).logits(rows.clone()))
            .collect();
        let keep = mask.map(|mask| keep_rows(mask, heads, "node_scores"));
        let scale = surrogate
            .needs_mean_size()
            .then(|| mean_size(&logits, keep));

        let device = rows.device().without_autodiff();
        let mut scores = vec![Tensor::<3>::zeros([trees, count, 1], single(&device))];
        for logits in logits {
            let term = decision_terms(logits, surrogate, scale.as_ref());
            let [_, _, nodes, branching] = term.dims();
            let parents = scores[scores.len() - 1].clone().unsqueeze_dim::<4>(3);
            scores.push((parents + term).reshape([trees, count, nodes * branching]));
        }
        scores
            .into_iter()
            .map(|rows| heads.to_heads(rows))
            .collect()
    }

    /// The probability of every leaf: softmax of its score over the temperature.
    ///
    /// The softmax is over all leaves, for [`Surrogate::TopMargin`] too; its candidates are those of
    /// [`best_leaves`](Self::best_leaves).
    ///
    /// - mask: as of [`node_scores`](Self::node_scores)
    /// - returns `[batch, tokens, heads, leaves]`
    ///
    /// # Panics
    /// As [`node_scores`](Self::node_scores).
    #[track_caller]
    pub fn leaf_probabilities(
        &self,
        x: Tensor<4>,
        mask: Option<Tensor<2, Bool>>,
        surrogate: &Surrogate,
    ) -> Tensor<4> {
        let mut scores = self.node_scores(x, mask, surrogate);
        let leaves = scores.swap_remove(self.height());
        softmax(leaves / surrogate.temperature(), 3)
    }

    /// The probabilities of the nodes of every depth, from the root to the leaves: at each depth
    /// the softmax of the scores over the temperature. These are not sums of leaf probabilities:
    /// each depth is a distribution of its own.
    ///
    /// - mask: as of [`node_scores`](Self::node_scores)
    /// - returns `height + 1` tensors `[batch, tokens, heads, nodes at the depth]`; the root has 1
    ///
    /// # Panics
    /// As [`node_scores`](Self::node_scores).
    #[track_caller]
    pub fn node_probabilities(
        &self,
        x: Tensor<4>,
        mask: Option<Tensor<2, Bool>>,
        surrogate: &Surrogate,
    ) -> Vec<Tensor<4>> {
        self.node_scores(x, mask, surrogate)
            .into_iter()
            .map(|scores| softmax(scores / surrogate.temperature(), 3))
            .collect()
    }

    /// The probabilities of the children of the nodes that rows come to, given that node, per depth
    /// from the root on.
    ///
    /// These are the ratios of siblings in [`node_probabilities`](Self::node_probabilities). What the
    /// node itself scored, and what the depth sums to, cancel in them, so only nodes on the path are
    /// evaluated.
    ///
    /// - rows: `[trees, rows, dim]`
    /// - path: `[trees, rows, height + 1]`, nodes that exist
    /// - keep: `[trees, rows, 1]`, 1 for the rows that count in statistics
    /// - returns per depth `[trees, rows, 1, branching]`
    #[track_caller]
    pub(super) fn child_probabilities(
        &self,
        rows: Tensor<3>,
        path: &Tensor<3, Int>,
        keep: &Tensor<3>,
        surrogate: &Surrogate,
    ) -> Vec<Tensor<4>> {
        ConfigError::expect_ok("balance_loss", surrogate.check());
        let size = surrogate.needs_mean_size().then(|| {
            let rows = rows.clone().without_autodiff();
            let logits: Vec<_> = self
                .levels
                .iter()
                .map(|level| level.functions(self.side).constant().logits(rows.clone()))
                .collect();
            mean_size(&logits, Some(keep.clone()))
        });
        self.levels
            .iter()
            .enumerate()
            .map(|(depth, level)| {
                let node = path.clone().narrow(2, depth, 1);
                let logits = level.functions(self.side).logits_at(rows.clone(), node);
                let terms = decision_terms(logits, surrogate, size.as_ref());
                softmax(terms / surrogate.temperature(), 3)
            })
            .collect()
    }
}

/// What the decisions of a level add to the scores of their nodes' children.
///
/// - logits: `[trees, rows, nodes, logits]`
/// - mean_size: what [`mean_size`] says, where [`Surrogate::needs_mean_size`]
/// - returns `[trees, rows, nodes, branching]`
fn decision_terms(
    logits: Tensor<4>,
    surrogate: &Surrogate,
    mean_size: Option<&Tensor<4>>,
) -> Tensor<4> {
    let Surrogate::DenseGradient {
        temperature,
        clip,
        scale,
    } = *surrogate
    else {
        return margin_terms(logits);
    };
    let constant = logits.clone().without_autodiff();
    let size = match (scale, mean_size) {
        (None, Some(size)) => size.clone(),
        (scale, _) => Tensor::full([1; 4], scale.unwrap_or(1.0), single(&constant.device())),
    };
    if logits.dims()[3] == 1 {
        let passes = constant
            .clone()
            .abs()
            .lower_equal_elem(clip)
            .cast(FloatDType::F32);
        let sign = constant.greater_equal_elem(0.0).cast(FloatDType::F32) * 2.0 - 1.0;
        let right = sign * size + straight_through(logits * passes * 2.0);
        Tensor::cat(vec![right.clone().neg(), right], 3)
    } else {
        let branching = logits.dims()[3];
        let taken = one_hot(children(constant).unsqueeze_dim::<4>(3), branching);
        let soft = softmax(logits / temperature, 3);
        (taken + straight_through(soft)) * size
    }
}

/// Zero with the gradient of `value`.
fn straight_through(value: Tensor<4>) -> Tensor<4> {
    let constant = value.clone().without_autodiff();
    value - constant
}

/// Mean of `|a|` per tree over the kept rows and all outputs, `[trees, 1, 1, 1]`, without gradient.
fn mean_size(logits: &[Tensor<4>], keep: Option<Tensor<3>>) -> Tensor<4> {
    let [trees, count, _, _] = logits[0].dims();
    let device = logits[0].device().without_autodiff();
    let keep = keep.unwrap_or_else(|| Tensor::ones([trees, count, 1], single(&device)));
    let mut outputs = 0;
    let mut total = Tensor::<3>::zeros([trees, 1, 1], single(&device));
    for level in logits {
        let [_, _, nodes, per_node] = level.dims();
        outputs += nodes * per_node;
        let sizes = level.clone().without_autodiff().abs();
        let per_row = sizes.reshape([trees, count, nodes * per_node]).sum_dim(2);
        total = total + (per_row * keep.clone()).sum_dim(1);
    }
    let kept = keep.sum_dim(1).clamp_min(1.0) * outputs as f32;
    (total / kept).unsqueeze_dim(3)
}

/// 1 for unmasked rows, 0 for masked ones: `[trees, rows, 1]`.
#[track_caller]
fn keep_rows(mask: Tensor<2, Bool>, heads: Heads, operation: &str) -> Tensor<3> {
    let masked = heads.to_rows(heads.spread(operation, mask, 1));
    masked.bool_not().cast(FloatDType::F32)
}
