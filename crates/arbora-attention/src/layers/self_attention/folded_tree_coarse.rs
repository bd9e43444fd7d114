//! Inference of tree-coarse attention with the projections of queries and keys folded into its trees.

use super::cache::{expect_no_autodiff, expect_trees};
use super::kind::HeadSizes;
use super::{AttentionKind, SelfAttention, SelfAttentionInput, SelfAttentionOutput};
use crate::flops;
use crate::functions::check::expect;
use crate::functions::{EmptyNode, TreeCoarseOptions, TreeCoarseState, head_leaves, tree_coarse};
use arbora_tree::routing::{RoutingTree, RoutingTreeConfig};
use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{Bool, Device, Int, Tensor};

/// Inference of a [`SelfAttention`] of the kind tree-coarse whose projections of queries and keys are folded into the
/// trees: a hyperplane `w` of projected queries is the hyperplane `W_q w` of tokens. Only values and outputs are
/// projected, half of what the layer projects (Treeformer, arXiv 2208.09015, section 3.2).
///
/// Made by [`SelfAttention::fold`]. A folded hyperplane has `d_model` weights in place of `head_dim`. With a tree per
/// head, folding saves work if `(heads - 1)` times the logits of all levels (1 of a binary one) is below `d_model`; with
/// [`TreeScope::PerLayer`](super::TreeScope::PerLayer) always.
///
/// No gradient reaches the trees.
#[derive(Module, Debug)]
pub struct FoldedTreeCoarse {
    /// Trees of tokens `[d_model]` that route queries, one per query head or one for all.
    pub query: RoutingTree,
    /// Trees of tokens `[d_model]` that route keys, one per key head or one for all.
    pub key: RoutingTree,
    /// `W_v`, `[d_model, kv_heads · head_dim]`
    pub value: Linear,
    /// `W_o`, `[heads · head_dim, d_model]`
    pub output: Linear,
    /// The weight of each depth, root first, `[heads or 1, height + 1]`.
    pub alpha: Param<Tensor<2>>,
    #[module(skip)]
    empty_node: EmptyNode,
    #[module(skip)]
    sizes: HeadSizes,
}

impl SelfAttention {
    /// The layer for inference without projections of queries and keys. It computes the same, up to rounding; tokens
    /// whose decisions are that close may go elsewhere.
    ///
    /// Balance biases become part of the biases.
    ///
    /// # Panics
    /// If the kind is not tree-coarse, or its router normalises rows: a norm of projected rows cannot be had from the
    /// tokens' hyperplanes.
    #[must_use]
    #[track_caller]
    pub fn fold(&self) -> FoldedTreeCoarse {
        let AttentionKind::TreeCoarse(coarse) = &self.kind else {
            panic!(
                "self_attention: fold: expected the kind tree-coarse, got {}",
                self.kind.name()
            );
        };
        assert!(
            !coarse.normalize,
            "self_attention: fold: expected a router with normalize = false, got true"
        );
        let sizes = self.sizes;
        FoldedTreeCoarse {
            query: folded(&coarse.router.query, &self.query, sizes.heads),
            key: folded(&coarse.router.key_tree(), &self.key, sizes.kv_heads),
            value: self.value.clone(),
            output: self.output.clone(),
            alpha: coarse.alpha.clone(),
            empty_node: coarse.empty_node,
            sizes,
        }
    }
}

impl FoldedTreeCoarse {
    /// Attends as the layer that was folded. The surrogate and the seed of the input are not read, and nothing is
    /// reported on routing.
    ///
    /// # Shapes
    /// - tokens: `[batch, tokens, d_model]`
    /// - returns `[batch, tokens, d_model]`
    ///
    /// # Panics
    /// As [`SelfAttention::forward`].
    #[track_caller]
    pub fn forward(&self, input: SelfAttentionInput) -> SelfAttentionOutput {
        let sizes = self.sizes;
        let d_model = sizes.d_model();
        let (context, [batch, queries, keys]) = input.checked("folded_tree_coarse", d_model);
        input.masks.only("tree-coarse", true);
        let is_self = input.context.is_none();
        flops::record(|total| {
            total.value += batch * keys;
            total.output += batch * queries;
        });
        let causal = input.masks.causal;
        let [query_padding, key_padding] = input.masks.of_rows(is_self);
        let value = self.value.forward(context.clone());
        let attended = tree_coarse(
            leaves(&self.query, input.tokens, query_padding, sizes.heads),
            leaves(&self.key, context, key_padding, sizes.kv_heads),
            value.reshape([batch, keys, sizes.kv_heads, sizes.head_dim]),
            self.alpha.val(),
            self.query.shape(),
            TreeCoarseOptions {
                causal,
                empty_node: self.empty_node,
            },
        );
        SelfAttentionOutput {
            context: self
                .output
                .forward(attended.reshape([batch, queries, d_model])),
            routing: None,
        }
    }

    /// What [`forward_cached`](Self::forward_cached) remembers of `batch` examples, before their first token.
    #[must_use]
    pub fn cache(&self, batch: usize, device: &Device) -> TreeCoarseState {
        let (sizes, tree) = (self.sizes, self.key.shape());
        TreeCoarseState::new(batch, sizes.kv_heads, sizes.head_dim, tree, device)
    }

    /// Attends from the next tokens to all tokens so far and themselves, causally. Any split of a sequence into calls
    /// gives what one causal [`forward`](Self::forward) gives, up to rounding. The state keeps one sum per node, however
    /// many tokens there were.
    ///
    /// # Shapes
    /// - tokens: `[batch, new tokens, d_model]`, at least one and none of them padding
    /// - returns `[batch, new tokens, d_model]`
    ///
    /// # Panics
    /// If an axis disagrees with the layer or the state, if there is no token, if the state is one of other trees, or on
    /// an autodiff device: a state would hold the graph of all calls.
    #[track_caller]
    pub fn forward_cached(&self, tokens: Tensor<3>, state: &mut TreeCoarseState) -> Tensor<3> {
        let ([batch, new, width], sizes) = (tokens.dims(), self.sizes);
        let d_model = sizes.d_model();
        expect("folded_tree_coarse: axis 2 of tokens", width, d_model);
        expect_trees("folded_tree_coarse", state.tree(), self.key.shape());
        expect_no_autodiff("folded_tree_coarse", &tokens.device());
        flops::record(|total| {
            total.value += batch * new;
            total.output += batch * new;
        });
        let value = self.value.forward(tokens.clone());
        let attended = state.attend(
            leaves(&self.query, tokens.clone(), None, sizes.heads),
            leaves(&self.key, tokens, None, sizes.kv_heads),
            value.reshape([batch, new, sizes.kv_heads, sizes.head_dim]),
            self.alpha.val(),
            self.empty_node,
        );
        self.output.forward(attended.reshape([batch, new, d_model]))
    }
}

/// Trees of tokens that send a token where `tree` sends its projection by `linear` to `heads` heads.
fn folded(tree: &RoutingTree, linear: &Linear, heads: usize) -> RoutingTree {
    let weight = linear.weight.val();
    let [d_model, width] = weight.dims();
    // One tree reads all heads side by side, or each tree reads some heads.
    let trees = if tree.dim() == width { 1 } else { heads };
    let dim = width / trees;
    // [trees, dim, d_model]
    let weight = weight
        .reshape([d_model, trees, dim])
        .swap_dims(0, 1)
        .swap_dims(1, 2);
    let offset = linear
        .bias
        .as_ref()
        .map(|bias| bias.val().reshape([trees, dim, 1]));
    let config = RoutingTreeConfig::new(d_model, tree.shape().clone().into())
        .with_trees(trees)
        .with_normalize(false);
    let start = config.init(&weight.device().without_autodiff());
    tree.levels()
        .iter()
        .enumerate()
        .fold(start, |folded, (depth, level)| {
            let hyperplane = level.weight.val();
            let [_, outputs, _] = hyperplane.dims();
            let balance = tree.balance_bias(depth);
            let bias = level.bias.val();
            let bias = bias.clone() + balance.cast(bias.dtype());
            let hyperplane = each_tree(hyperplane, trees);
            let bias = each_tree(bias.reshape([tree.trees(), outputs, 1]), trees);
            let bias = match &offset {
                None => bias,
                Some(offset) => bias + hyperplane.clone().matmul(offset.clone()),
            };
            folded.with_parameters(
                depth,
                hyperplane.matmul(weight.clone()).without_autodiff(),
                bias.reshape([trees, outputs]).without_autodiff(),
            )
        })
}

/// `[trees, rows, width]` with each tree as often as heads share it.
fn each_tree(rows: Tensor<3>, wanted: usize) -> Tensor<3> {
    let [trees, count, width] = rows.dims();
    if trees == wanted {
        return rows;
    }
    rows.reshape([trees, 1, count, width])
        .repeat_dim(1, wanted / trees)
        .reshape([wanted, count, width])
}

/// The leaves of tokens `[batch, tokens, d_model]` for each of `heads` heads, `[batch, tokens, heads]`.
fn leaves(
    tree: &RoutingTree,
    tokens: Tensor<3>,
    padding: Option<Tensor<2, Bool>>,
    heads: usize,
) -> Tensor<3, Int> {
    let [batch, count, d_model] = tokens.dims();
    // Each tree reads whole tokens.
    let rows =
        tokens
            .reshape([batch, count, 1, d_model])
            .expand([batch, count, tree.trees(), d_model]);
    head_leaves(&tree.route(rows, padding), heads)
}
