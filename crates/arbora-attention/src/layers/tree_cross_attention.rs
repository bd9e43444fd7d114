//! Tree cross attention as an index and a search.

use super::pre_norm_attention::{
    PreNormAttention, PreNormAttentionConfig, ProjectedQueries, QueryResidual,
};
use super::streaming_index::StreamingIndex;
use super::tree_index::TreeIndex;
use crate::functions::{Route, SearchOutput, tree_search};
use crate::ops::{GhostNodes, TreeSearchOptions};
use arbora_tree::{ConfigError, Layout, MeanAggregator, TokenOrder, TokenTree, TokenTreeShape};
use burn::config::Config;
use burn::module::Module;
use burn::tensor::{Device, Tensor};

/// Configuration of [`TreeCrossAttention`].
#[derive(Config, Debug)]
pub struct TreeCrossAttentionConfig {
    /// Width of queries and nodes.
    pub d_model: usize,
    /// Number of heads; must divide `d_model`.
    pub n_heads: usize,
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
    fn attention(&self) -> PreNormAttentionConfig {
        PreNormAttentionConfig::new(self.d_model, self.n_heads).with_residual(self.residual)
    }

    /// Checks that every setting is in its range and goes with the others.
    ///
    /// # Errors
    /// As [`PreNormAttentionConfig::check`].
    pub fn check(&self) -> Result<(), ConfigError> {
        self.attention().check()
    }

    /// Initialises the layer on a device.
    ///
    /// # Panics
    /// With a setting that [`check`](Self::check) refuses.
    #[track_caller]
    pub fn init(&self, device: &Device) -> TreeCrossAttention {
        TreeCrossAttention {
            attention: self.attention().init(device),
            ghosts: self.ghosts,
        }
    }
}

/// How a layer searches. A [`Route`] converts into it, with temperature 1.
#[derive(Clone, Debug)]
pub struct SearchOptions {
    /// How paths are chosen.
    pub route: Route,
    /// Divides the logits of the policy, and only those: above 1 evens out the choice of a path.
    /// Finite and above 0.
    pub temperature: f64,
}

impl From<Route> for SearchOptions {
    fn from(route: Route) -> Self {
        Self {
            route,
            temperature: 1.0,
        }
    }
}

impl Default for SearchOptions {
    /// Greedy, as published.
    fn default() -> Self {
        Route::Greedy.into()
    }
}

/// Queries as a layer takes them.
#[derive(Clone, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "a search holds one of them, and not for long"
)]
pub enum Queries {
    /// `[batch, queries, d_model]`
    Raw(Tensor<3>),
    /// Those that [`PreNormAttention::project_queries`] of the layer's [`attention`](TreeCrossAttention::attention) has
    /// projected, for any number of searches.
    Projected(ProjectedQueries),
}

impl From<Tensor<3>> for Queries {
    fn from(queries: Tensor<3>) -> Self {
        Self::Raw(queries)
    }
}

impl From<ProjectedQueries> for Queries {
    fn from(queries: ProjectedQueries) -> Self {
        Self::Projected(queries)
    }
}

impl Queries {
    #[track_caller]
    fn projected(self, attention: &PreNormAttention) -> ProjectedQueries {
        match self {
            Self::Raw(queries) => attention.project_queries(queries),
            Self::Projected(queries) => queries,
        }
    }
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

    /// Builds a tree over tokens, indexes and searches it, with defaults: the tokens are the leaves of a binary tree, in
    /// their order, an inner node is the mean of its children, and each query takes the most probable path. All tokens are
    /// real. For padded batches, other trees, tokens that are asked several times, and to train the policy, call
    /// [`index`](Self::index) and [`search`](Self::search).
    ///
    /// # Shapes
    /// - queries: `[batch, queries, d_model]`
    /// - tokens: `[batch, tokens, d_model]`
    ///
    /// # Panics
    /// If an axis does not fit the layer, there is no token, or [`ghosts`](Self::ghosts) are published, which the
    /// tree built here has no layout for.
    #[track_caller]
    pub fn forward(&self, queries: Tensor<3>, tokens: Tensor<3>) -> SearchOutput {
        let shape = TokenTreeShape::new(tokens.dims()[1], 2, Layout::LeftFilled);
        let order = TokenOrder::Given.permutation(&tokens, None, &shape);
        let tree = TokenTree::build(tokens, None, order, shape, &MeanAggregator);
        self.search(queries, &self.index(&tree), Route::Greedy)
    }

    /// Searches the trees of an index, along one or several paths per query, and attends to what the search
    /// selects: see [`tree_search`].
    ///
    /// # Shapes
    /// - queries: `[batch, queries, d_model]`, or what was projected of such
    ///
    /// # Panics
    /// If the axes of queries, index and route disagree or an option is out of its range (see [`tree_search`]), or
    /// the index is of other weights (see [`TreeIndex::check`]).
    #[track_caller]
    pub fn search(
        &self,
        queries: impl Into<Queries>,
        index: &TreeIndex,
        options: impl Into<SearchOptions>,
    ) -> SearchOutput {
        index.expect(&self.attention);
        let SearchOptions { route, temperature } = options.into();
        let queries = queries.into().projected(&self.attention);
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
        found.map_context(|context| self.attention.project_output(context, queries))
    }

    /// Attends to all leaves of the indexed trees: dense cross attention with the same weights.
    ///
    /// # Shapes
    /// - queries: `[batch, queries, d_model]`, or what was projected of such
    /// - returns `[batch, queries, d_model]`
    ///
    /// # Panics
    /// If the axes of queries and index disagree, or the index is of other weights (see
    /// [`TreeIndex::check`]).
    #[track_caller]
    pub fn attend_leaves(&self, queries: impl Into<Queries>, index: &TreeIndex) -> Tensor<3> {
        index.expect(&self.attention);
        self.attention.attend_projected(
            queries.into().projected(&self.attention),
            index.key.clone(),
            index.value.clone(),
            index.shape.offset(0),
            Some(index.leaf_mask()),
        )
    }
}
