//! Settings of the routing trees of a layer, and the trees.

use super::kind::HeadSizes;
use crate::functions::{to_heads, tree_input};
use arbora_tree::routing::{LeafCounts, Routing, RoutingTree, RoutingTreeConfig, Surrogate};
use burn::config::Config;
use burn::module::Module;
use burn::tensor::{Bool, Device, FloatDType, Tensor};
use derive_setters::Setters;
use serde::{Deserialize, Serialize};

/// What shares one tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TreeScope {
    /// Every key and value head has its own tree, which reads that head's rows. The query heads that
    /// read a key head share its tree.
    #[default]
    PerHead,
    /// One tree reads the rows of all heads side by side, and all heads of a token go to the same leaf.
    PerLayer,
}

/// Whether queries and keys are routed by the same trees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TreeSharing {
    /// The same, as published (Treeformer, equation 3).
    #[default]
    Shared,
    /// Trees of the same shape each. Queries and keys are distributed differently, so this fits them
    /// better, at twice the parameters; empty leaves are more likely at first.
    Separate,
}

/// How much of dense attention the routes are aligned with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Setters)]
#[setters(prefix = "with_")]
#[serde(default, deny_unknown_fields)]
pub struct AlignmentConfig {
    /// Query rows and key rows drawn per call; all rows where there are no more. Memory grows with
    /// `rows · keys`: as many rows as tokens make every pair, as dense attention does.
    pub rows: usize,
}

impl Config for AlignmentConfig {}

impl Default for AlignmentConfig {
    fn default() -> Self {
        Self { rows: 64 }
    }
}

/// The side of keys in trees that they share with queries, whose side is 0.
const KEYS: usize = 1;

/// Configuration of a [`Router`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Setters)]
#[setters(prefix = "with_")]
#[serde(default, deny_unknown_fields)]
pub struct RouterConfig {
    /// Branching factor per level, root first, each at least 2. Empty: one leaf, and attention within it
    /// is dense attention.
    pub branching: Vec<usize>,
    /// What shares one tree.
    pub scope: TreeScope,
    /// Whether queries and keys share their trees.
    pub sharing: TreeSharing,
    /// Whether rows are divided by their root mean square before the tree.
    pub normalize: bool,
    /// What the gradient of a route is, unless a call says otherwise. What each means for attention within
    /// leaves, and where it gives none, is in [`tree_fine`](crate::functions::tree_fine()).
    pub surrogate: Surrogate,
    /// Whether the report carries a balance loss. It evaluates the nodes on the way of every token.
    pub balance_loss: bool,
    /// Whether the report carries an alignment loss.
    pub alignment: Option<AlignmentConfig>,
    /// Step of the biases against skewed counts of children, after every call on an autodiff device; 0: none, and calls then
    /// leave the layer as it is. Queries and keys have biases of their own, also where they share hyperplanes. Biases even
    /// out leaves over batches within some tens of steps, at the price that a query and a key that are alike may no longer
    /// meet; within single examples only the balance loss does.
    pub balance_rate: f64,
    /// How far the tokens of a child may be off its fair share, as a part of that, before its bias moves; 0: any skew moves
    /// it.
    // Left out where it is the default: what was saved before there was a choice is named by its settings.
    #[serde(skip_serializing_if = "is_default_slack")]
    pub balance_slack: f64,
    /// Seed of the weights. Layers should differ in it.
    pub seed: u64,
}

const DEFAULT_SLACK: f64 = 0.5;

fn is_default_slack(slack: &f64) -> bool {
    *slack == DEFAULT_SLACK
}

impl Config for RouterConfig {}

impl Default for RouterConfig {
    fn default() -> Self {
        Self {
            branching: vec![2; 4],
            scope: TreeScope::default(),
            sharing: TreeSharing::default(),
            normalize: true,
            surrogate: Surrogate::default(),
            balance_loss: true,
            alignment: None,
            balance_rate: 0.05,
            balance_slack: DEFAULT_SLACK,
            seed: 0,
        }
    }
}

impl RouterConfig {
    /// The defaults with the given branching factors, root first.
    pub fn new(branching: impl Into<Vec<usize>>) -> Self {
        Self {
            branching: branching.into(),
            ..Self::default()
        }
    }

    pub(super) fn init(&self, sizes: HeadSizes, device: &Device) -> Router {
        let (kv_heads, head_dim) = (sizes.kv_heads, sizes.head_dim);
        let (trees, query, key) = match self.scope {
            TreeScope::PerHead => (kv_heads, head_dim, head_dim),
            TreeScope::PerLayer => (1, sizes.d_model(), kv_heads * head_dim),
        };
        // Without balance biases there is nothing for keys to have of their own.
        let sides = match self.sharing {
            TreeSharing::Shared if self.balance_rate > 0.0 => KEYS + 1,
            _ => 1,
        };
        let tree = |dim: usize, seed: u64| {
            RoutingTreeConfig::new(dim, self.branching.clone())
                .with_trees(trees)
                .with_sides(sides)
                .with_normalize(self.normalize)
                .with_balance_rate(self.balance_rate)
                .with_balance_slack(self.balance_slack)
                .with_seed(seed)
                .init(device)
        };
        let key_seed = Router::seed_of_keys(self.seed);
        Router {
            query: tree(query, self.seed),
            key: (self.sharing == TreeSharing::Separate).then(|| tree(key, key_seed)),
            surrogate: self.surrogate,
            balance_loss: self.balance_loss,
            alignment: self.alignment,
        }
    }
}

/// Routes queries and keys to leaves.
///
/// Keep its parameters out of weight decay: see
/// [`SelfAttention::tree_parameter_ids`](super::SelfAttention::tree_parameter_ids).
#[derive(Module, Debug)]
pub struct Router {
    /// The trees of queries, and of keys where these have none.
    pub query: RoutingTree,
    /// The trees of keys.
    pub key: Option<RoutingTree>,
    #[module(skip)]
    pub(super) surrogate: Surrogate,
    #[module(skip)]
    pub(super) balance_loss: bool,
    #[module(skip)]
    pub(super) alignment: Option<AlignmentConfig>,
}

/// Where queries and keys went, and what it costs.
///
/// `trees` is the number of key and value heads, or 1 with [`TreeScope::PerLayer`].
#[derive(Clone, Debug)]
pub struct RoutingReport {
    /// Routing of the queries. Its axis of heads has length 1 with [`TreeScope::PerLayer`].
    pub query: Routing,
    /// Routing of the keys.
    pub key: Routing,
    /// How many queries and how many keys each leaf holds, padding excluded. The queries of all heads of
    /// a tree are counted.
    pub counts: LeafCounts,
    /// The pairs of a query and a key in one leaf, as a share of all pairs: `[batch, trees]`, 1 / leaves
    /// for balanced leaves and 1 if one leaf holds everything. It also falls where queries and keys part, and
    /// then nothing is saved: see the next two.
    pub cost_ratio: Tensor<2>,
    /// The share of queries whose leaf has no key that they may see, `[batch, trees]`, padding excluded. They got what
    /// [`EmptyLeaf`](crate::EmptyLeaf) says, or in tree-coarse attention the mean of a node above. Keep it below 0.05.
    pub queries_without_key: Tensor<2>,
    /// The share of keys in leaves without a query, `[batch, trees]`, padding excluded: nobody reads them.
    pub keys_without_query: Tensor<2>,
    /// How unevenly nodes send the tokens of an example to their children, the mean of queries and keys: 1 where children
    /// are equally likely, the branching factor where one gets everything. Differentiable; on autodiff
    /// devices alone. The caller weighs it, by 0.1 to begin with, and adds it to the loss.
    pub balance_loss: Option<Tensor<1>>,
    /// By how much routes disagree with dense attention, at least 0. Differentiable with respect to the
    /// trees alone; on autodiff devices alone. The caller weighs it and adds it to the loss.
    pub alignment_loss: Option<Tensor<1>>,
}

/// A call of attention that trees routed.
pub(super) struct RoutedCall<'a> {
    /// Queries and keys, as [`Router::route`] takes them.
    pub rows: (Tensor<4>, Tensor<4>),
    /// Of queries and of keys, as [`Router::route`] takes them.
    pub masks: [Option<Tensor<2, Bool>>; 2],
    pub routes: (Routing, Routing),
    /// Of attention within leaves, `[batch, queries, heads]`.
    pub lse: Option<Tensor<3>>,
    pub surrogate: &'a Surrogate,
    /// How far queries are behind the first key, if they see no later keys.
    pub causal: Option<usize>,
    /// Of the rows that an alignment loss draws.
    pub seed: Option<u64>,
}

impl Router {
    /// The seed of the trees of keys, far from the seeds that a model gives to its other layers.
    pub(super) fn seed_of_keys(seed: u64) -> u64 {
        seed.wrapping_add(0x9e37_79b9_7f4a_7c15)
    }

    /// The trees that route keys: those of queries with balance biases of their own, or others.
    pub fn key_tree(&self) -> RoutingTree {
        match &self.key {
            None => self.query.side(KEYS.min(self.query.sides() - 1)),
            Some(key) => key.clone(),
        }
    }

    /// Routes queries and keys; no gradient.
    ///
    /// # Shapes
    /// - query: `[batch, queries, heads, head_dim]`
    /// - key: `[batch, keys, kv_heads, head_dim]`
    /// - masks: `[batch, queries]` and `[batch, keys]`, `true` = masked out, routed to leaf -1
    #[track_caller]
    pub fn route(
        &self,
        query: Tensor<4>,
        key: Tensor<4>,
        query_mask: Option<Tensor<2, Bool>>,
        key_mask: Option<Tensor<2, Bool>>,
    ) -> (Routing, Routing) {
        let keys = self.key_tree();
        (
            self.query.route(tree_input(query, &self.query), query_mask),
            keys.route(tree_input(key, &keys), key_mask),
        )
    }

    /// What to report about a call. On an autodiff device it ends with the balance biases of the trees following the routes:
    /// the losses of the call describe the trees that routed it.
    #[track_caller]
    pub(super) fn report(&self, call: RoutedCall<'_>) -> RoutingReport {
        let RoutedCall {
            rows: (query, key),
            masks,
            routes,
            lse,
            surrogate,
            causal,
            seed,
        } = call;
        let counts = LeafCounts::new(&routes.0, &routes.1);
        let (is_training, dtype) = (query.device().is_autodiff(), query.dtype());
        let has_loss = self.balance_loss && is_training;
        let balance_loss = has_loss.then(|| {
            let loss = |tree: &RoutingTree, rows: &Tensor<4>, routing| {
                tree.balance_loss(tree_input(rows.clone(), tree), routing, surrogate)
            };
            let of_keys = loss(&self.key_tree(), &key, &routes.1);
            ((loss(&self.query, &query, &routes.0) + of_keys) / 2.0).cast(dtype)
        });
        let alignment = self.alignment.filter(|_| is_training);
        let alignment_loss = alignment.map(|alignment| {
            let how = (causal, surrogate.temperature());
            let drawn = (alignment.rows, seed);
            let loss = self.alignment_loss((query, key), masks, (&routes.0, &routes.1), how, drawn);
            loss.cast(dtype)
        });
        if is_training {
            self.query.track_balance(&[&routes.0]);
            self.key_tree().track_balance(&[&routes.1]);
        }
        RoutingReport {
            cost_ratio: counts.cost_ratio(),
            queries_without_key: match lse {
                Some(lse) => without_key(lse, &routes.0),
                None => counts.queries_without_key(),
            },
            keys_without_query: counts.keys_without_query(),
            counts,
            query: routes.0,
            key: routes.1,
            balance_loss,
            alignment_loss,
        }
    }
}

/// The share of unmasked queries whose softmax was over nothing, `[batch, trees]`.
fn without_key(lse: Tensor<3>, routing: &Routing) -> Tensor<2> {
    let ([batch, queries, heads], trees) = (lse.dims(), routing.trees());
    let routed = to_heads(routing.leaves().greater_equal_elem(0), heads);
    let of = |tokens: Tensor<3, Bool>| {
        let by_tree = tokens
            .cast(FloatDType::F32)
            .reshape([batch, queries, trees, heads / trees]);
        by_tree.sum_dim(3).sum_dim(1).reshape([batch, trees])
    };
    let without = lse.lower_elem(f32::MIN / 2.0).bool_and(routed.clone());
    of(without) / of(routed).clamp_min(1.0)
}
