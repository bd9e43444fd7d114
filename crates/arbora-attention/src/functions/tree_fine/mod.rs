//! Attention within the leaves of trees: routing, attention, and how the trees learn.

mod empty_leaf;
mod relaxed;
mod top_margin;

pub use empty_leaf::EmptyLeaf;
pub(crate) use empty_leaf::{RoutedRows, WithinLeaves};

use super::check::{axes, expect};
use super::leaf_attention::{LeafAttentionInput, LeafAttentionOutput, leaf_attention};
use crate::ops::{Dropout, LeafAttentionOptions};
use arbora_tree::routing::{Routing, RoutingTree, Surrogate};
use burn::tensor::kind::Basic;
use burn::tensor::{Bool, Int, Tensor};

/// What [`tree_fine`] attends with and to. `heads` is a multiple of `kv_heads`.
#[derive(Clone, Debug)]
pub struct TreeFineInput {
    /// `[batch, queries, heads, head_dim]`
    pub query: Tensor<4>,
    /// `[batch, keys, kv_heads, head_dim]`
    pub key: Tensor<4>,
    /// `[batch, keys, kv_heads, value_dim]`
    pub value: Tensor<4>,
    /// Masked queries, `[batch, queries]`, `true` = masked out: their context is 0.
    pub query_padding: Option<Tensor<2, Bool>>,
    /// Masked keys, `[batch, keys]`, `true` = masked out.
    pub key_padding: Option<Tensor<2, Bool>>,
    /// Whether query `i` and key `i` are of the same token, which [`EmptyLeaf::SelfKey`] needs.
    pub is_self: bool,
}

impl TreeFineInput {
    /// Attention among tokens: query `i` and key `i` are of the same token.
    pub fn self_attn(query: Tensor<4>, key: Tensor<4>, value: Tensor<4>) -> Self {
        Self {
            is_self: true,
            ..Self::cross(query, key, value)
        }
    }

    /// Attention to other tokens than those that ask.
    pub fn cross(query: Tensor<4>, key: Tensor<4>, value: Tensor<4>) -> Self {
        Self {
            query,
            key,
            value,
            query_padding: None,
            key_padding: None,
            is_self: false,
        }
    }

    /// Leaves out padded keys, `[batch, keys]`, `true` = masked out, and among tokens the queries there
    /// too.
    #[must_use]
    pub fn mask_pad(mut self, padding: Tensor<2, Bool>) -> Self {
        if self.is_self {
            self.query_padding = Some(padding.clone());
        }
        self.key_padding = Some(padding);
        self
    }
}

/// Options of [`tree_fine`]. The defaults: not causal, no dropout, and the
/// defaults of all else.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TreeFineOptions {
    /// Output of a query whose leaf has no visible key.
    pub empty_leaf: EmptyLeaf,
    /// What the gradient of a route is, on autodiff devices.
    pub surrogate: Surrogate,
    /// `None`: every query sees all keys of its leaf. `Some(offset)`: query `i` sees the keys `j` of its
    /// leaf with `j <= i + offset`.
    pub causal: Option<usize>,
    /// Factor on the dot products; `None` means `head_dim^-1/2`.
    pub scale: Option<f64>,
    /// Dropout of the weights within a leaf.
    pub dropout: Option<Dropout>,
}

/// What [`tree_fine`] returns.
#[derive(Clone, Debug)]
pub struct TreeFineOutput {
    /// `[batch, queries, heads, value_dim]`
    pub context: Tensor<4>,
    /// The logarithm of the softmax's denominator within the leaf, `[batch, queries, heads]`, in at least single
    /// precision and without a gradient; `f32::MIN` for a query whose leaf has no key that it may see, whatever
    /// [`EmptyLeaf`] gave it.
    pub lse: Tensor<3>,
    /// Routing of the queries.
    pub query: Routing,
    /// Routing of the keys.
    pub key: Routing,
}

/// Attention within the leaves of decision trees: TF-Attention of
/// [Treeformer](https://arxiv.org/abs/2208.09015), section 3.1, for your own projections.
///
/// Trees send every query and every key to a leaf. A query attends to the keys of its own leaf, with the
/// softmax over these alone. With `L` equally full leaves that is `1 / L` of the work of dense
/// attention. Trees that send everything to one leaf give dense attention (Lemma 1), and so does a tree
/// of height 0. A tree may have more leaves than there are keys: the queries of empty leaves follow
/// [`EmptyLeaf`], which the paper leaves open.
///
/// A tree as wide as a head routes every head for itself; with several trees, head `h` uses tree
/// `h / (heads / trees)`. A tree as wide as all heads together routes a token's heads, side by side, to one
/// leaf.
///
/// # How trees learn
///
/// A route has no derivative, and under hard routing the derivative with respect to the share of a query
/// in its own leaf is exactly 0. On an autodiff device the [`Surrogate`] says what takes its place:
///
/// - [`TopMargin`](Surrogate::TopMargin): the returned value is that without gradients, bit for bit. Queries compare what
///   they got with what they would have got in their next best leaves, at the price of one attention more for each. Keys
///   learn by their weight in their own leaf, through the logarithm of its probability, and by what they would change in
///   the next best ones ([`candidate_keys`](crate::functions::candidate_keys)). What a query adds to the gradient of a route
///   is bounded by the gradient of its context times the size of values. With one candidate no route gets a gradient, and
///   only auxiliary losses train the trees.
/// - [`DenseGradient`](Surrogate::DenseGradient): as published, a straight-through estimator of all leaves through the mask
///   `M = G^q (G^k)^T` of indicators. The value stays hard; dropout is left out of the gradient, whose time and memory grow
///   with `queries · keys`. A query gives no signal if its leaf has no key, or holds less than 1e-18 of the weight of the key
///   that it would attend to most among all keys (logits about 41 apart), where the relaxed quotient would overflow.
/// - [`Soft`](Surrogate::Soft): the value is relaxed as well, by the probabilities of all leaves, so training and inference
///   differ until the temperature is low. An oracle, as costly as the former. It takes no dropout.
///
/// # Shapes
/// - query: `[batch, queries, heads, head_dim]`
/// - key: `[batch, keys, kv_heads, head_dim]`
/// - value: `[batch, keys, kv_heads, value_dim]`
/// - context: `[batch, queries, heads, value_dim]`; 0 for masked queries, and for queries that may see
///   no key at all
///
/// # Panics
/// If an axis is 0 or disagrees with another or with a tree, if the trees of queries and keys have not
/// the same shape, with [`EmptyLeaf::SelfKey`] unless queries and keys are of the same tokens, or with
/// [`Surrogate::Soft`] and dropout on an autodiff device.
#[track_caller]
pub fn tree_fine(
    input: TreeFineInput,
    queries: &RoutingTree,
    keys: &RoutingTree,
    options: TreeFineOptions,
) -> TreeFineOutput {
    check(&input, queries, keys, &options);
    let query_rows = tree_input(input.query.clone(), queries);
    let key_rows = tree_input(input.key.clone(), keys);
    let query = queries.route(query_rows.clone(), input.query_padding.clone());
    let key = keys.route(key_rows.clone(), input.key_padding.clone());
    let call = Call {
        queries,
        keys,
        query_rows,
        key_rows,
        query_leaf: head_leaves(&query, input.query.dims()[2]),
        key_leaf: head_leaves(&key, input.key.dims()[2]),
        within: WithinLeaves::new(queries.shape(), &options),
        input,
    };
    let LeafAttentionOutput { context, lse } = match options.surrogate {
        _ if !call.input.query.device().is_autodiff() => call.hard(),
        Surrogate::TopMargin {
            candidates,
            temperature,
        } => call.top_margin(candidates, temperature),
        Surrogate::DenseGradient { .. } => call.dense_gradient(&options.surrogate),
        Surrogate::Soft { .. } => call.soft(&options.surrogate),
    };
    TreeFineOutput {
        context,
        lse,
        query,
        key,
    }
}

/// One call, its rows routed.
struct Call<'a> {
    input: TreeFineInput,
    queries: &'a RoutingTree,
    keys: &'a RoutingTree,
    /// What routes the queries, `[batch, queries, heads or 1, dim]`.
    query_rows: Tensor<4>,
    /// What routes the keys, `[batch, keys, kv_heads or 1, dim]`.
    key_rows: Tensor<4>,
    /// `[batch, queries, heads]`
    query_leaf: Tensor<3, Int>,
    /// `[batch, keys, kv_heads]`
    key_leaf: Tensor<3, Int>,
    within: WithinLeaves<'a>,
}

impl Call<'_> {
    /// The rows with their leaves.
    fn routed_rows(&self) -> RoutedRows {
        let input = &self.input;
        RoutedRows {
            rows: LeafAttentionInput {
                query: input.query.clone(),
                key: input.key.clone(),
                value: input.value.clone(),
                query_leaf: self.query_leaf.clone(),
                key_leaf: self.key_leaf.clone(),
                key_bias: None,
            },
            own_value: input.is_self.then(|| input.value.clone()),
        }
    }

    /// Attention along hard routes, which get no gradient.
    fn hard(&self) -> LeafAttentionOutput {
        self.within.attend(self.routed_rows())
    }
}

/// What a tree routes: rows by head as they are, or all heads side by side.
///
/// - rows: `[batch, rows, heads, head_dim]`
/// - returns `[batch, rows, heads, head_dim]` or `[batch, rows, 1, heads · head_dim]`
#[track_caller]
pub(crate) fn tree_input(rows: Tensor<4>, tree: &RoutingTree) -> Tensor<4> {
    let [batch, count, heads, head_dim] = rows.dims();
    if tree.dim() == head_dim {
        return rows;
    }
    assert!(
        tree.trees() == 1 && tree.dim() == heads * head_dim,
        "tree_fine: width of the tree: expected {head_dim} for trees of heads, or one tree of {}, got {} of {}",
        heads * head_dim,
        tree.trees(),
        tree.dim()
    );
    rows.reshape([batch, count, 1, heads * head_dim])
}

/// The leaf of every head, `[batch, rows, heads]`.
pub(crate) fn head_leaves(routing: &Routing, heads: usize) -> Tensor<3, Int> {
    to_heads(routing.leaves(), heads)
}

/// `[batch, rows, heads or 1, ..]` -> `[batch, rows, heads, ..]`
pub(crate) fn to_heads<const D: usize, K: Basic>(rows: Tensor<D, K>, heads: usize) -> Tensor<D, K> {
    if rows.dims()[2] == heads {
        rows
    } else {
        rows.repeat_dim(2, heads)
    }
}

/// Zero with the gradient of `value`.
fn nothing_but_gradient<const D: usize>(value: Tensor<D>) -> Tensor<D> {
    value.clone() - value.without_autodiff()
}

#[track_caller]
fn check(
    input: &TreeFineInput,
    queries: &RoutingTree,
    keys: &RoutingTree,
    options: &TreeFineOptions,
) {
    let [batch, count, _, _] = input.query.dims();
    let [_, key_count, _, _] = input.key.dims();
    let (name, got) = ("tree_fine: shape of the trees of keys", keys.shape());
    expect(name, got, queries.shape());
    assert!(
        !input.is_self || count == key_count,
        "tree_fine: axis 1 of key: expected {count}, the number of queries, got {key_count}"
    );
    assert!(
        input.is_self || options.empty_leaf != EmptyLeaf::SelfKey,
        "tree_fine: empty_leaf: expected another policy than self-key where queries and keys are of different tokens, got self-key"
    );
    let axes = axes!("tree_fine", batch)
        .with("queries", count)
        .with("keys", key_count);
    if let Some(mask) = &input.query_padding {
        axes.expect("query_padding", "batch, queries", &mask.dims());
    }
    if let Some(mask) = &input.key_padding {
        axes.expect("key_padding", "batch, keys", &mask.dims());
    }
}
