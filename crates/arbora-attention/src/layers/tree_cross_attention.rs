//! Tree cross attention as an index and a search.

use crate::flops;
use crate::functions::{Route, tree_search};
use crate::ops::{GhostNodes, TreeSearchOptions};
use arbora_tree::{TokenTree, TokenTreeShape};
use burn::config::Config;
use burn::module::Module;
use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::module::attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Bool, Device, Int, Tensor};
use serde::{Deserialize, Serialize};

/// What is added to the attention's output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QueryResidual {
    /// The normalised query: the published dense baseline.
    Normalized,
    /// The normalised query and the query itself: published Tree Cross Attention.
    #[default]
    NormalizedAndRaw,
}

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

/// Cross attention from queries to token trees, and to plain tokens with the same weights.
///
/// `z = W_o · attention(W_q · LN(q), W_k · S, W_v · S) + LN(q) [+ q]`
///
/// Only the query is normalised; keys and values are projected from raw nodes, without bias. The
/// policy that picks the route is this attention itself (arXiv 2309.17388, §3.1).
#[derive(Module, Debug)]
pub struct TreeCrossAttention {
    /// Normalises queries.
    pub norm: LayerNorm,
    /// `W_q`, `[d_model, d_model]`.
    pub query: Linear,
    /// `W_k`, `[d_model, d_model]`.
    pub key: Linear,
    /// `W_v`, `[d_model, d_model]`.
    pub value: Linear,
    /// `W_o`, `[d_model, d_model]`, with bias.
    pub output: Linear,
    /// Number of heads.
    pub heads: usize,
    /// Width of queries and nodes.
    pub d_model: usize,
    /// What is added to the attention's output.
    #[module(skip)]
    pub residual: QueryResidual,
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
        assert!(
            self.heads > 0 && self.d_model.is_multiple_of(self.heads),
            "tree_cross_attention: heads: expected a divisor of {}, got {}",
            self.d_model,
            self.heads
        );
        let linear = |bias| LinearConfig::new(self.d_model, self.d_model).with_bias(bias);
        TreeCrossAttention {
            norm: LayerNormConfig::new(self.d_model).init(device),
            query: linear(false).init(device),
            key: linear(false).init(device),
            value: linear(false).init(device),
            output: linear(true).init(device),
            heads: self.heads,
            d_model: self.d_model,
            residual: self.residual,
            ghosts: self.ghosts,
        }
    }
}

/// The projected keys and values of a batch of token trees: made once, searched by any number of
/// queries, also from several threads.
///
/// An index belongs to the weights of the layer that made it. Make a new one after a training step.
#[derive(Clone, Debug)]
pub struct TreeIndex {
    shape: TokenTreeShape,
    key: Tensor<4>,   // [batch, nodes, heads, head_dim]
    value: Tensor<4>, // [batch, nodes, heads, head_dim]
    lengths: Tensor<1, Int>,
    mask: Tensor<2, Bool>,
}

impl TreeIndex {
    /// The shape that all trees of the batch share.
    pub fn shape(&self) -> &TokenTreeShape {
        &self.shape
    }

    /// Real tokens per example, `[batch]`.
    pub fn lengths(&self) -> Tensor<1, Int> {
        self.lengths.clone()
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
        let (key, value) = self.project_context(tree.nodes());
        TreeIndex {
            shape: *tree.shape(),
            key,
            value,
            lengths: tree.lengths(),
            mask: tree.mask(),
        }
    }

    /// Searches the trees of an index with queries and attends to what the search selects.
    ///
    /// # Shapes
    /// - queries: `[batch, queries, d_model]`
    ///
    /// # Panics
    /// If the axes of queries, index and route disagree; see
    /// [`tree_search`](crate::tree_search).
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
        let (normalized, query) = self.project_queries(queries.clone());
        let found = tree_search(
            query,
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
            context: self.project_output(found.context, normalized, queries),
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
    #[track_caller]
    pub fn attend_leaves(&self, queries: Tensor<3>, index: &TreeIndex) -> Tensor<3> {
        let [batch, nodes, heads, head_dim] = index.key.dims();
        let leaves = index.shape.offset(0)..nodes;
        let slice = |rows: &Tensor<4>| {
            rows.clone()
                .slice([0..batch, leaves.clone(), 0..heads, 0..head_dim])
        };
        let mask = index.mask.clone().slice([0..batch, leaves.clone()]);
        self.attend_projected(queries, slice(&index.key), slice(&index.value), Some(mask))
    }

    /// Dense cross attention to plain tokens, with the same weights.
    ///
    /// # Shapes
    /// - queries: `[batch, queries, d_model]`
    /// - tokens: `[batch, tokens, d_model]`
    /// - mask: `[batch, tokens]`, `true` = masked out; a query without any token attends to nothing
    ///   and gets a zero attention output
    /// - returns `[batch, queries, d_model]`
    #[track_caller]
    pub fn attend(
        &self,
        queries: Tensor<3>,
        tokens: Tensor<3>,
        mask: Option<Tensor<2, Bool>>,
    ) -> Tensor<3> {
        let (key, value) = self.project_context(tokens);
        self.attend_projected(queries, key, value, mask)
    }

    fn attend_projected(
        &self,
        queries: Tensor<3>,
        key: Tensor<4>,
        value: Tensor<4>,
        mask: Option<Tensor<2, Bool>>,
    ) -> Tensor<3> {
        let (normalized, query) = self.project_queries(queries.clone());
        let [batch, count, heads, _] = query.dims();
        let tokens = key.dims()[1];
        let mask = mask.map(|mask| {
            mask.reshape([batch, 1, 1, tokens])
                .expand([batch, heads, count, tokens])
        });
        // burn's attention takes [batch, heads, rows, head_dim].
        let context = attention(
            query.swap_dims(1, 2),
            key.swap_dims(1, 2),
            value.swap_dims(1, 2),
            mask,
            None,
            AttentionModuleOptions::default(),
        );
        self.project_output(context.swap_dims(1, 2), normalized, queries)
    }

    /// `LN(q)` and `W_q · LN(q)` by head.
    fn project_queries(&self, queries: Tensor<3>) -> (Tensor<3>, Tensor<4>) {
        self.check_width("queries", &queries);
        let normalized = self.norm.forward(queries);
        let query = self.by_head(self.query.forward(normalized.clone()));
        flops::record(|total| total.query += rows(&normalized));
        (normalized, query)
    }

    fn project_context(&self, tokens: Tensor<3>) -> (Tensor<4>, Tensor<4>) {
        self.check_width("context", &tokens);
        flops::record(|total| {
            total.key += rows(&tokens);
            total.value += rows(&tokens);
        });
        let key = self.by_head(self.key.forward(tokens.clone()));
        (key, self.by_head(self.value.forward(tokens)))
    }

    fn project_output(
        &self,
        context: Tensor<4>,
        normalized: Tensor<3>,
        queries: Tensor<3>,
    ) -> Tensor<3> {
        let dims = queries.dims();
        let output = self.output.forward(context.reshape(dims)) + normalized;
        flops::record(|total| total.output += rows(&output));
        match self.residual {
            QueryResidual::Normalized => output,
            QueryResidual::NormalizedAndRaw => output + queries,
        }
    }

    /// `[batch, rows, d_model]` -> `[batch, rows, heads, head_dim]`
    fn by_head(&self, projected: Tensor<3>) -> Tensor<4> {
        let [batch, count, _] = projected.dims();
        projected.reshape([batch, count, self.heads, self.d_model / self.heads])
    }

    #[track_caller]
    fn check_width(&self, name: &str, tensor: &Tensor<3>) {
        let width = tensor.dims()[2];
        assert_eq!(
            width, self.d_model,
            "tree_cross_attention: axis 2 of {name}: expected {}, got {width}",
            self.d_model
        );
    }
}

fn rows(tensor: &Tensor<3>) -> usize {
    let [batch, count, _] = tensor.dims();
    batch * count
}
