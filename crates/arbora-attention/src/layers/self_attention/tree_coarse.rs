//! Tree-coarse attention as a kind of self-attention.

use super::cache::expect_trees;
use super::kind::{Attended, CachedRows, HeadSizes, Projected};
use super::router::{AlignmentConfig, RoutedCall, Router, RouterConfig, TreeScope, TreeSharing};
use crate::functions::masked_attention::without_padding;
use crate::functions::{
    EmptyNode, NodeIndicators, TreeCoarseOptions, TreeCoarseState, head_leaves, to_heads,
    tree_coarse, tree_coarse_relaxed, tree_input,
};
use arbora_tree::routing::{Routing, RoutingTree, Surrogate};
use burn::config::Config;
use burn::module::{Module, Param};
use burn::tensor::{Bool, Device, Tensor};
use derive_setters::Setters;
use serde::{Deserialize, Deserializer, Serialize};

/// Configuration of [`TreeCoarse`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Setters)]
#[setters(prefix = "with_")]
#[serde(default, deny_unknown_fields)]
pub struct TreeCoarseConfig {
    /// The trees, and how they learn. Unlike elsewhere the defaults are separate trees for queries and keys, whose rows are
    /// not normalised: so the projections of queries and keys can be folded into the trees
    /// ([`SelfAttention::fold`](super::SelfAttention::fold)). An alignment with dense attention is refused: means
    /// are not meant to resemble it.
    #[serde(deserialize_with = "router_of_coarse")]
    pub router: RouterConfig,
    /// Value of a node without keys.
    pub empty_node: EmptyNode,
    /// Whether every head weighs depths by itself.
    pub per_head_alpha: bool,
}

impl Config for TreeCoarseConfig {}

impl Default for TreeCoarseConfig {
    fn default() -> Self {
        Self {
            router: default_router(),
            empty_node: EmptyNode::default(),
            per_head_alpha: false,
        }
    }
}

fn default_router() -> RouterConfig {
    RouterConfig {
        sharing: TreeSharing::Separate,
        normalize: false,
        // A query of a node without keys has the mean of the node above.
        balance_rate: 0.0,
        ..RouterConfig::default()
    }
}

/// Reads a [`RouterConfig`] whose missing fields are those of [`TreeCoarseConfig`].
fn router_of_coarse<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RouterConfig, D::Error> {
    #[derive(Deserialize)]
    #[serde(
        remote = "RouterConfig",
        default = "default_router",
        deny_unknown_fields
    )]
    struct CoarseRouterConfig {
        branching: Vec<usize>,
        scope: TreeScope,
        sharing: TreeSharing,
        normalize: bool,
        surrogate: Surrogate,
        balance_loss: bool,
        alignment: Option<AlignmentConfig>,
        balance_rate: f64,
        balance_slack: f64,
        seed: u64,
    }
    CoarseRouterConfig::deserialize(deserializer)
}

impl TreeCoarseConfig {
    /// The defaults with the given branching factors, root first.
    pub fn new(branching: impl Into<Vec<usize>>) -> Self {
        Self {
            router: RouterConfig {
                branching: branching.into(),
                ..default_router()
            },
            ..Self::default()
        }
    }

    #[track_caller]
    pub(super) fn init(&self, sizes: HeadSizes, device: &Device) -> TreeCoarse {
        let depths = self.router.branching.len() + 1;
        let rows = if self.per_head_alpha { sizes.heads } else { 1 };
        let alpha = Tensor::full([rows, depths], (depths as f64).recip(), device);
        TreeCoarse {
            router: self.router.init(sizes, device),
            alpha: Param::from_tensor(alpha),
            empty_node: self.empty_node,
            normalize: self.router.normalize,
        }
    }
}

/// The mean of the values in each node on a query's path, weighted by depth: TC-Attention of
/// [Treeformer](https://arxiv.org/abs/2208.09015), section 3.2. See [`tree_coarse`](crate::functions::tree_coarse()).
///
/// On a device without autodiff the routes are hard, whatever the surrogate. On an autodiff device every surrogate
/// gives every node of each depth a gradient
/// ([`tree_coarse_relaxed`](crate::functions::tree_coarse_relaxed)): by the scores of
/// [`RoutingTree::node_scores`], at a cost linear in the number of tokens. `TopMargin` therefore takes all nodes and
/// ignores its number of candidates. With `Soft` the value is relaxed as well; with the others it stays that of
/// the hard routes.
#[derive(Module, Debug)]
pub struct TreeCoarse {
    /// The trees.
    pub router: Router,
    /// The weight of each depth, root first, `[heads or 1, height + 1]`. Neither positive nor summing to 1 by
    /// construction; 1 / (height + 1) each at first.
    pub alpha: Param<Tensor<2>>,
    #[module(skip)]
    pub(super) empty_node: EmptyNode,
    #[module(skip)]
    pub(super) normalize: bool,
}

impl TreeCoarse {
    #[track_caller]
    pub(super) fn attend(&self, input: Projected) -> Attended {
        input.masks.only("tree-coarse", true);
        let (query, key, value) = (input.query, input.key, input.value);
        let (heads, kv_heads) = (query.dims()[2], key.dims()[2]);
        let options = TreeCoarseOptions {
            causal: input.masks.causal,
            empty_node: self.empty_node,
        };
        let [query_padding, key_padding] = input.masks.of_rows(input.is_self);
        let surrogate = input.surrogate.unwrap_or(self.router.surrogate);
        let routes = self.router.route(
            query.clone(),
            key.clone(),
            query_padding.clone(),
            key_padding.clone(),
        );
        let alpha = self.alpha.val();
        let context = if query.device().is_autodiff() {
            let relax = |rows: &Tensor<4>, tree: &RoutingTree, routing: &Routing, padding| {
                indicators(rows.clone(), tree, routing, padding, &surrogate)
            };
            let queries = relax(&query, &self.router.query, &routes.0, query_padding);
            let keys = relax(
                &key,
                &self.router.key_tree(),
                &routes.1,
                key_padding.clone(),
            );
            let value = without_padding(value, key_padding);
            tree_coarse_relaxed(queries, keys, value, alpha, options)
        } else {
            tree_coarse(
                head_leaves(&routes.0, heads),
                head_leaves(&routes.1, kv_heads),
                value,
                alpha,
                self.router.query.shape(),
                options,
            )
        };
        // Means are not aligned, so neither masks nor a seed are asked for.
        let report = self.router.report(RoutedCall {
            rows: (query, key),
            masks: [None, None],
            routes,
            lse: None,
            surrogate: &surrogate,
            causal: None,
            seed: None,
        });
        Attended {
            context,
            routing: Some(report),
        }
    }

    /// Attention of the next tokens to those of the state and themselves, `[batch, new, heads, head_dim]`.
    #[track_caller]
    pub(super) fn attend_cached(&self, rows: CachedRows, state: &mut TreeCoarseState) -> Tensor<4> {
        expect_trees("tree_coarse", state.tree(), self.router.query.shape());
        let (heads, kv_heads) = (rows.query.dims()[2], rows.key.dims()[2]);
        let (query, key) = self.router.route(rows.query, rows.key, None, None);
        state.attend(
            head_leaves(&query, heads),
            head_leaves(&key, kv_heads),
            rows.value,
            self.alpha.val(),
            self.empty_node,
        )
    }
}

/// The indicators of the nodes that rows `[batch, rows, heads, head_dim]` pass, with the gradient of a surrogate.
fn indicators(
    rows: Tensor<4>,
    tree: &RoutingTree,
    routing: &Routing,
    padding: Option<Tensor<2, Bool>>,
    surrogate: &Surrogate,
) -> NodeIndicators {
    let heads = rows.dims()[2];
    let hard = NodeIndicators::of_leaves(head_leaves(routing, heads), tree.shape());
    let probabilities = tree.node_probabilities(tree_input(rows, tree), padding, surrogate);
    // With one tree for all heads they share its probabilities.
    let probabilities = probabilities.into_iter();
    let probabilities: Vec<_> = probabilities.map(|nodes| to_heads(nodes, heads)).collect();
    match surrogate {
        Surrogate::Soft { .. } => hard.soft(&probabilities),
        _ => hard.straight_through(&probabilities),
    }
}
