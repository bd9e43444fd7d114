use super::kind::HeadSizes;
use super::{Kind, SelfAttention, SelfAttentionInput, SelfAttentionOutput};
use crate::flops;
use crate::functions::{EmptyNode, TreeCoarseOptions, TreeCoarseState, head_leaves, tree_coarse};
use arbora_tree::routing::{RoutingTree, RoutingTreeConfig};
use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};

/// Inference of a [`SelfAttention`] of the kind tree-coarse whose projections of queries and keys are folded into the
/// trees: a hyperplane `w` of projected queries is the hyperplane `W_q w` of tokens. Only values and outputs are
/// projected, half of what the layer projects (Treeformer, arXiv 2208.09015, section 3.2).
///
/// Made by [`SelfAttention::fold`]. Hyperplanes of tokens are as wide as tokens, so a decision costs as many
/// times more as heads have trees of their own. Folding saves work where the decisions of all heads, `heads ·
/// height`, are fewer than the numbers of a token, and always with
/// [`TreeScope::PerLayer`](super::TreeScope::PerLayer). With trees per head the router reads tokens once per head.
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
        let Kind::TreeCoarse(coarse) = &self.kind else {
            panic!(
                "self_attention: fold: expected the kind tree-coarse, got {}",
                self.kind.name()
            );
        };
        assert!(
            !coarse.normalize,
            "self_attention: fold: expected a router with normalize = false, got true"
        );
        let HeadSizes {
            heads, kv_heads, ..
        } = self.sizes;
        FoldedTreeCoarse {
            query: folded(&coarse.router.query, &self.query, heads),
            key: folded(coarse.router.key_tree(), &self.key, kv_heads),
            value: self.value.clone(),
            output: self.output.clone(),
            alpha: coarse.alpha.clone(),
            empty_node: coarse.empty_node,
            sizes: self.sizes,
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
        let SelfAttentionInput {
            tokens,
            context,
            masks,
            ..
        } = input;
        masks.only("tree-coarse", false, true);
        let HeadSizes {
            heads,
            kv_heads,
            head_dim,
        } = self.sizes;
        let is_self = context.is_none();
        let context = context.unwrap_or_else(|| tokens.clone());
        let d_model = heads * head_dim;
        for (name, rows) in [("tokens", &tokens), ("context", &context)] {
            let width = rows.dims()[2];
            assert_eq!(
                width, d_model,
                "folded_tree_coarse: axis 2 of {name}: expected {d_model}, got {width}"
            );
        }
        let [batch, queries, _] = tokens.dims();
        let [contexts, keys, _] = context.dims();
        assert_eq!(
            contexts, batch,
            "folded_tree_coarse: axis 0 of context: expected {batch}, got {contexts}"
        );
        masks.check(batch, queries, keys);
        flops::record(|total| {
            total.value += batch * keys;
            total.output += batch * queries;
        });
        let key_padding = masks.padding;
        let query_padding = key_padding.clone().filter(|_| is_self);
        let query = self
            .query
            .route(for_trees(tokens, &self.query), query_padding);
        let key = self
            .key
            .route(for_trees(context.clone(), &self.key), key_padding);
        let value = self.value.forward(context);
        let attended = tree_coarse(
            head_leaves(&query, heads),
            head_leaves(&key, kv_heads),
            value.reshape([batch, keys, kv_heads, head_dim]),
            self.alpha.val(),
            self.query.shape(),
            TreeCoarseOptions {
                causal: masks.causal,
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
        let HeadSizes {
            kv_heads, head_dim, ..
        } = self.sizes;
        TreeCoarseState::new(batch, kv_heads, head_dim, self.key.shape(), device)
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
        let HeadSizes {
            heads,
            kv_heads,
            head_dim,
        } = self.sizes;
        let ([batch, new, width], d_model) = (tokens.dims(), heads * head_dim);
        assert_eq!(
            width, d_model,
            "folded_tree_coarse: axis 2 of tokens: expected {d_model}, got {width}"
        );
        assert_eq!(
            state.tree(),
            self.key.shape(),
            "folded_tree_coarse: cache: expected one of trees {:?}, got {:?}",
            self.key.shape(),
            state.tree()
        );
        assert!(
            !tokens.device().is_autodiff(),
            "folded_tree_coarse: cache: expected a device without autodiff, got {:?}",
            tokens.device()
        );
        flops::record(|total| {
            total.value += batch * new;
            total.output += batch * new;
        });
        let query = self
            .query
            .route(for_trees(tokens.clone(), &self.query), None);
        let key = self.key.route(for_trees(tokens.clone(), &self.key), None);
        let value = self.value.forward(tokens);
        let attended = state.attend(
            head_leaves(&query, heads),
            head_leaves(&key, kv_heads),
            value.reshape([batch, new, kv_heads, head_dim]),
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
    let weight = weight.reshape([d_model, trees, dim]).permute([1, 2, 0]);
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
            let balance = level.balance.value_sync().without_autodiff();
            let bias = level.bias.val() + balance;
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

/// Tokens `[batch, tokens, d_model]` as rows of each tree, `[batch, tokens, trees, d_model]`.
fn for_trees(tokens: Tensor<3>, tree: &RoutingTree) -> Tensor<4> {
    let [batch, count, d_model] = tokens.dims();
    let rows = tokens.reshape([batch, count, 1, d_model]);
    rows.expand([batch, count, tree.trees(), d_model])
}
