//! Tree cross attention as an index and a search.

use super::pre_norm_attention::{
    PreNormAttention, PreNormAttentionConfig, ProjectedQueries, QueryResidual,
};
use super::streaming_index::StreamingIndex;
use super::tree_index::TreeIndex;
use crate::functions::{Route, tree_search};
use crate::ops::{GhostNodes, TreeSearchOptions};
use arbora_tree::TokenTree;
use burn::config::Config;
use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};

/// Configuration of [`TreeCrossAttention`].
#[derive(Config, Debug)]
pub struct TreeCrossAttentionConfig {
    /// Width of queries and nodes.
    pub d_model: usize,
    /// Number of heads; must divide `d_model`.
    pub heads: usize,
    /// What is added to the attention's output.
    #[config(default = "QueryResidual::NormalizedAndRaw")]
    pub residual: QueryResidual,
    /// What final attention does with nodes over no token.
    #[config(default = "GhostNodes::Masked")]
    pub ghosts: GhostNodes,
}

/// Cross attention from queries to token trees.
///
/// The policy that picks the route and the final attention over what the search selects are one
/// [`PreNormAttention`], with one set of weights (arXiv 2309.17388, §3.1).
#[derive(Module, Debug)]
pub struct TreeCrossAttention {
    /// Policy and final attention.
    pub attention: PreNormAttention,
    /// What final attention does with nodes over no token.
    #[module(skip)]
    pub ghosts: GhostNodes,
}

impl TreeCrossAttentionConfig {
    /// Initialises the layer on a device.
    ///
    /// # Panics
    /// If `heads` does not divide `d_model`.
    #[track_caller]
    pub fn init(&self, device: &Device) -> TreeCrossAttention {
        let attention = PreNormAttentionConfig::new(self.d_model, self.heads)
            .with_residual(self.residual)
            .init(device);
        TreeCrossAttention {
            attention,
            ghosts: self.ghosts,
        }
    }
}

/// What [`TreeCrossAttention::search`] returns.
#[derive(Clone, Debug)]
pub struct SearchOutput {
    /// The layer's output `z`, `[batch, queries, d_model]`.
    pub context: Tensor<3>,
    /// Index of the node visited at each height, `[batch, queries, decisions + 1]`.
    pub path: Tensor<3, Int>,
    /// Log-probability of the decisions made, summed, `[batch, queries]`.
    pub log_prob: Tensor<2>,
    /// Entropy in nats, the mean over heads and real decisions, `[batch, queries]`.
    pub entropy: Tensor<2>,
    /// Real decisions, `[batch, queries]`.
    pub decisions: Tensor<2, Int>,
    /// Size of the selected set, `[batch, queries]`.
    pub selected: Tensor<2, Int>,
    /// Nodes whose keys were read, `[batch, queries]`.
    pub read: Tensor<2, Int>,
}

impl TreeCrossAttention {
    /// Projects the keys and values of all nodes, once.
    ///
    /// # Panics
    /// If the nodes are not `d_model` wide.
    #[track_caller]
    pub fn index(&self, tree: &TokenTree) -> TreeIndex {
        let (key, value) = self.attention.project_context(tree.nodes());
        TreeIndex::from_parts(&self.attention, *tree.shape(), key, value, tree.lengths())
    }

    /// Indexes trees that are to grow and change: [`StreamingIndex`] keeps the index up to date.
    ///
    /// # Panics
    /// If the nodes are not `d_model` wide.
    #[track_caller]
    pub fn stream(&self, tree: TokenTree) -> StreamingIndex {
        let index = self.index(&tree);
        StreamingIndex { tree, index }
    }

    /// Searches the trees of an index with queries and attends to what the search selects.
    ///
    /// # Shapes
    /// - queries: `[batch, queries, d_model]`
    ///
    /// # Panics
    /// If the axes of queries, index and route disagree (see [`tree_search`](crate::tree_search)), or
    /// the index is of other weights (see [`TreeIndex::check`]).
    #[track_caller]
    pub fn search(&self, queries: Tensor<3>, index: &TreeIndex, route: Route) -> SearchOutput {
        self.search_with(queries, index, route, 1.0)
    }

    /// [`search`](Self::search) with the policy's logits divided by a temperature.
    ///
    /// # Panics
    /// As [`search`](Self::search), and if the temperature is not positive.
    #[track_caller]
    pub fn search_with(
        &self,
        queries: Tensor<3>,
        index: &TreeIndex,
        route: Route,
        temperature: f64,
    ) -> SearchOutput {
        let queries = self.attention.project_queries(queries);
        self.search_projected(queries, index, route, temperature)
    }

    /// [`search_with`](Self::search_with) for queries that
    /// [`PreNormAttention::project_queries`] of [`attention`](Self::attention) has projected.
    ///
    /// # Panics
    /// As [`search_with`](Self::search_with).
    #[track_caller]
    pub fn search_projected(
        &self,
        queries: ProjectedQueries,
        index: &TreeIndex,
        route: Route,
        temperature: f64,
    ) -> SearchOutput {
        index.expect(&self.attention);
        let found = tree_search(
            queries.query.clone(),
            index.key.clone(),
            index.value.clone(),
            index.lengths.clone(),
            route,
            TreeSearchOptions {
                temperature,
                ghosts: self.ghosts,
                ..TreeSearchOptions::new(index.shape)
            },
        );
        SearchOutput {
            context: self.attention.project_output(found.context, queries),
            path: found.path,
            log_prob: found.log_prob,
            entropy: found.entropy,
            decisions: found.decisions,
            selected: found.selected,
            read: found.read,
        }
    }

    /// Attends to all leaves of the indexed trees: dense cross attention with the same weights.
    ///
    /// # Shapes
    /// - queries: `[batch, queries, d_model]`
    /// - returns `[batch, queries, d_model]`
    ///
    /// # Panics
    /// If the axes of queries and index disagree, or the index is of other weights (see
    /// [`TreeIndex::check`]).
    #[track_caller]
    pub fn attend_leaves(&self, queries: Tensor<3>, index: &TreeIndex) -> Tensor<3> {
        self.attend_leaves_projected(self.attention.project_queries(queries), index)
    }

    /// [`attend_leaves`](Self::attend_leaves) for queries that
    /// [`PreNormAttention::project_queries`] of [`attention`](Self::attention) has projected.
    ///
    /// # Panics
    /// As [`attend_leaves`](Self::attend_leaves).
    #[track_caller]
    pub fn attend_leaves_projected(
        &self,
        queries: ProjectedQueries,
        index: &TreeIndex,
    ) -> Tensor<3> {
        index.expect(&self.attention);
        self.attention.attend_projected(
            queries,
            index.key.clone(),
            index.value.clone(),
            index.shape.offset(0),
            Some(index.leaf_mask()),
        )
    }
}
