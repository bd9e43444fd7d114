//! What one call of attention costs, counted from its shape.

use crate::functions::check::expect;
use crate::layers::baselines::BigBirdConfig;
use crate::layers::{AttentionKind, SelfAttention, TreeScope};
use std::iter::Sum;
use std::ops::Add;

/// Operations per score of a softmax: scale, subtract the greatest, exponential, sum, divide. Fits the published
/// numbers.
const SOFTMAX: f64 = 5.0;

/// Floating-point operations of attention on one example in one layer; a multiplication with an addition is two.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct AttentionCost {
    /// Between the projections: scores, weights, means of values, and routing.
    pub core: f64,
    /// Of queries, keys, values and outputs.
    pub projections: f64,
}

impl AttentionCost {
    /// Core and projections.
    pub fn total(&self) -> f64 {
        self.core + self.projections
    }

    /// This core as a share of another one, which the published tables print as "FLOPs" with dense attention as
    /// the other. 1 where both are 0.
    pub fn core_ratio(&self, dense: &Self) -> f64 {
        match dense.core {
            0.0 => 1.0,
            core => self.core / core,
        }
    }
}

impl Add for AttentionCost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            core: self.core + other.core,
            projections: self.projections + other.projections,
        }
    }
}

impl Sum for AttentionCost {
    fn sum<I: Iterator<Item = Self>>(costs: I) -> Self {
        costs.fold(Self::default(), Add::add)
    }
}

/// Sizes of one layer on one example, and what each kind of attention costs at these sizes.
///
/// Costs are those of a forward pass at inference. Causal attention counts as if every pair were formed, as is usual
/// and as [`LeafCounts::cost_ratio`](arbora_tree::routing::LeafCounts::cost_ratio) counts. Padding costs whatever it
/// is counted as: pass real tokens for an ideal cost.
///
/// In formulas `n` is the number of queries and of keys, `d` is `d_model`, `H` heads, `h` the height, `b_l` the logits of a
/// node of level `l` (1 if binary), `k` the rank, `m` the features, `T` the trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CostShape {
    /// Queries.
    pub queries: usize,
    /// Keys.
    pub keys: usize,
    /// Width of tokens.
    pub d_model: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
}

impl CostShape {
    /// Self-attention among `tokens` tokens, with as many key heads as query heads.
    pub const fn new(tokens: usize, d_model: usize, heads: usize) -> Self {
        Self {
            queries: tokens,
            keys: tokens,
            d_model,
            heads,
            kv_heads: heads,
        }
    }

    /// The same with a number of key and value heads.
    #[must_use]
    pub fn with_kv_heads(self, kv_heads: usize) -> Self {
        Self { kv_heads, ..self }
    }

    /// The same with a number of keys.
    #[must_use]
    pub fn with_keys(self, keys: usize) -> Self {
        Self { keys, ..self }
    }

    /// Softmax attention to every key: `4 n² d + 5 H n²`, projections `8 n d²`.
    pub fn dense(&self) -> AttentionCost {
        self.with_core(self.pairs() * self.per_pair())
    }

    /// TF-Attention: the pairs that meet in a leaf at the price of dense ones, and the routing of queries and keys,
    /// `4 n d Σ_l b_l`, where a binary level has one hyperplane per node and so counts 1. Pairs that a policy for empty
    /// leaves forms (`AncestorAttend`, and `AncestorMean` where attention is causal) are not in the measured share, and
    /// so not in the cost.
    ///
    /// - branching: factor per level, root first
    /// - share: of all query-key pairs, those that meet in a leaf, averaged over heads:
    ///   [`LeafCounts::cost_ratio`](arbora_tree::routing::LeafCounts::cost_ratio), [`share_of_pairs`](Self::share_of_pairs)
    ///   or [`balanced_share`](Self::balanced_share)
    pub fn tree_fine(&self, branching: &[usize], share: f64) -> AttentionCost {
        let attention = share * self.pairs() * self.per_pair();
        self.with_core(attention + self.routing(branching))
    }

    /// TC-Attention at inference: routing along one path, values added up per leaf, and one row of `d` numbers per level
    /// read: `4 n h d + 2 n d + 2 n (h + 1) d` for a binary tree. Sums over the nodes do not grow with the
    /// number of tokens and are left out, as in the published formula.
    pub fn tree_coarse(&self, branching: &[usize]) -> AttentionCost {
        let levels = (branching.len() + 1) as f64;
        let (query, key) = self.numbers();
        self.with_core(self.routing(branching) + 2.0 * key + 2.0 * levels * query)
    }

    /// TC-Attention with every inner node evaluated for every token, as while training: queries, keys and a reading of the
    /// nodes by the queries, `3 · 2 n (2^h - 1) d` for a binary tree. That the published numbers are these
    /// is a fit: see the example `published_flops`.
    pub fn tree_coarse_all_nodes(&self, branching: &[usize]) -> AttentionCost {
        let mut nodes = 1;
        let mut all = 0;
        for factor in branching {
            all += nodes * logits(*factor);
            nodes *= factor;
        }
        let reading = 2.0 * self.numbers().0;
        self.with_core(all as f64 * (self.per_logit() + reading))
    }

    /// TC-Attention at inference whose projections of queries and keys are folded into the trees
    /// ([`SelfAttention::fold`]): the projections of values and outputs are left, `4 n d²`. Hyperplanes are as wide as
    /// tokens, one set per tree, so routing costs `4 n d T Σ_l b_l` with `T` trees per side: one per head, or one for the
    /// layer. All else is as in [`tree_coarse`](Self::tree_coarse).
    pub fn tree_coarse_folded(&self, branching: &[usize], scope: TreeScope) -> AttentionCost {
        let trees = match scope {
            TreeScope::PerHead => self.queries * self.heads + self.keys * self.kv_heads,
            TreeScope::PerLayer => self.queries + self.keys,
        };
        let routing = decisions(branching) * 2.0 * (trees * self.d_model) as f64;
        let (query, key) = self.numbers();
        AttentionCost {
            core: self.tree_coarse(branching).core - self.routing(branching) + routing,
            projections: 2.0 * self.d_model as f64 * (query + key),
        }
    }

    /// Linformer: mixing keys and values, and dense attention to `rank` mixtures: `8 n k d + 5 H n k`.
    pub fn linformer(&self, rank: usize) -> AttentionCost {
        let mixing = 2.0 * rank as f64 * 2.0 * self.numbers().1;
        let attention = self.with_keys(rank);
        self.with_core(mixing + attention.pairs() * self.per_pair())
    }

    /// BigBird: the queries of global blocks attend to every key, all others to the keys of as many blocks as are gathered
    /// for them.
    pub fn big_bird(&self, config: &BigBirdConfig) -> AttentionCost {
        let blocks = self.keys.div_ceil(config.block);
        let global = (config.global.min(blocks) * config.block).min(self.queries);
        let gathered = (config.width(blocks) * config.block).min(self.keys);
        let pairs = global * self.keys + (self.queries - global) * gathered;
        self.with_core(pairs as f64 * self.per_pair())
    }

    /// Performer: features of queries and keys (a product with `m` directions, and five operations per feature, as a
    /// softmax has per score), sums over keys and their reading by queries: `8 n m d + 14 n m H`.
    pub fn performer(&self, features: usize) -> AttentionCost {
        let (query, key) = self.numbers();
        let heads = (self.queries * self.heads + self.keys * self.kv_heads) as f64;
        let maps = 2.0 * (query + key) + SOFTMAX * heads;
        // One more column of values gives the sums of weights.
        let sums = 2.0 * (query + key + heads);
        self.with_core(features as f64 * (maps + sums))
    }

    /// The share of pairs that meet when all leaves are equally full.
    pub fn balanced_share(branching: &[usize]) -> f64 {
        1.0 / branching.iter().product::<usize>() as f64
    }

    /// The share of pairs that meet in a leaf, from the number of queries and of keys per leaf; 0 where there is no
    /// query or no key.
    ///
    /// # Panics
    /// If there are other numbers of leaves for keys than for queries.
    #[track_caller]
    pub fn share_of_pairs(queries: &[usize], keys: &[usize]) -> f64 {
        let (leaves, expected) = (keys.len(), queries.len());
        expect("share_of_pairs: leaves of keys", leaves, expected);
        let meet: usize = queries.iter().zip(keys).map(|(q, k)| q * k).sum();
        let all = queries.iter().sum::<usize>() * keys.iter().sum::<usize>();
        meet as f64 / all.max(1) as f64
    }

    fn with_core(&self, core: f64) -> AttentionCost {
        let (query, key) = self.numbers();
        // Queries and outputs; keys and values.
        let projections = 2.0 * self.d_model as f64 * (2.0 * query + 2.0 * key);
        AttentionCost { core, projections }
    }

    fn pairs(&self) -> f64 {
        self.queries as f64 * self.keys as f64
    }

    /// Cost of a pair in all heads: a score, its weight, and the value weighted.
    fn per_pair(&self) -> f64 {
        4.0 * self.d_model as f64 + SOFTMAX * self.heads as f64
    }

    /// Routing every query and every key along one path.
    fn routing(&self, branching: &[usize]) -> f64 {
        decisions(branching) * self.per_logit()
    }

    /// Cost of one routing logit for every query and every key.
    fn per_logit(&self) -> f64 {
        let (query, key) = self.numbers();
        2.0 * (query + key)
    }

    /// Numbers in projected queries, and in projected keys.
    fn numbers(&self) -> (f64, f64) {
        let head_dim = self.d_model as f64 / self.heads as f64;
        let query = self.queries as f64 * self.d_model as f64;
        (query, self.keys as f64 * self.kv_heads as f64 * head_dim)
    }
}

/// Linear functions along one path.
fn decisions(branching: &[usize]) -> f64 {
    let along: usize = branching.iter().map(|factor| logits(*factor)).sum();
    along as f64
}

/// Linear functions per node: a binary node decides by one hyperplane.
fn logits(factor: usize) -> usize {
    match factor {
        2 => 1,
        factor => factor,
    }
}

impl AttentionKind {
    /// What attending costs at the given sizes.
    ///
    /// - share: for kinds whose pairs meet in leaves, the measured share of pairs that do; `None` means leaves
    ///   that are equally full. Other kinds do not read it.
    pub fn cost(&self, shape: &CostShape, share: Option<f64>) -> AttentionCost {
        match self {
            Self::Dense(_) => shape.dense(),
            Self::TreeFine(tree) => {
                let branching = tree.router.query.shape().factors();
                let share = share.unwrap_or_else(|| CostShape::balanced_share(branching));
                shape.tree_fine(branching, share)
            }
            Self::TreeCoarse(tree) => shape.tree_coarse(tree.router.query.shape().factors()),
            Self::Linformer(linformer) => shape.linformer(linformer.rank()),
            Self::BigBird(big_bird) => shape.big_bird(big_bird.config()),
            Self::Performer(performer) => shape.performer(performer.features()),
        }
    }
}

impl SelfAttention {
    /// The sizes of this layer for one example.
    pub fn cost_shape(&self, queries: usize, keys: usize) -> CostShape {
        let sizes = self.sizes();
        CostShape::new(queries, sizes.heads * sizes.head_dim, sizes.heads)
            .with_keys(keys)
            .with_kv_heads(sizes.kv_heads)
    }
}
