//! TC-attention: the mean of the values in each node on a query's path.

mod causal;
mod indicators;
mod means;
mod rows;
mod state;

pub use indicators::NodeIndicators;
pub use state::TreeCoarseState;

use super::check::{axes, expect, expect_divisor, expect_some};
use super::masked_attention::{by_head, without_absent};
use super::prefix_attention::{prefix_attention, prefix_sums};
use arbora_tree::CompleteTree;
use arbora_tree::tensors::at_least_single;
use burn::tensor::{Int, Tensor};
use causal::CausalRoutes;
use means::{by_node, counted, each_head, means, path_table, sum_weights};
use rows::{leaf_sums, rows_at};
use serde::{Deserialize, Serialize};

/// Value of a node without keys for the queries that pass it. The paper (arXiv 2208.09015, section 3.2) leaves
/// it open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EmptyNode {
    /// What its parent gives. A root without keys gives 0.
    #[default]
    CarryParent,
    /// Nothing: the term of that depth falls away, the others stay as they are.
    Drop,
}

/// Options of [`tree_coarse`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TreeCoarseOptions {
    /// Whether a query averages over no key after it. With more keys than queries, the queries are the last
    /// tokens: query `i` stands at `i + keys - queries`.
    pub causal: bool,
    /// Value of a node without keys.
    pub empty_node: EmptyNode,
}

/// TC-attention along hard routes: a query takes the mean value of the keys in each node of its path, weighted
/// per depth and otherwise alike for every query (Treeformer, arXiv 2208.09015, section 3.2, equation 4):
/// `out_i = Σ_l alpha_l · ν_{l, P_l(q_i)}`.
///
/// The means are no softmax, and `alpha` is not constrained. The root's mean is part of every output: every token
/// sees all keys (causal: all keys so far). Differentiable in `value` and `alpha`; for gradients to the routes see
/// [`tree_coarse_relaxed`].
///
/// Costs `tokens · value_dim` for the sums of leaves and for one row per query, and `leaves · height · value_dim`
/// for the table of those rows. Causal means differ from query to query, and cost `tokens · (64 + height) · value_dim` and a
/// table of all nodes per 64 tokens. The sums of leaves, and the gradients of rows that several queries read, are
/// added in the order of tokens by the kernels of [`leaf_attention`](crate::functions::leaf_attention()), so the same call gives
/// the same bits. On GPUs these kernels also read every leaf number once per leaf. Where they do not exist (values in
/// double precision; on GPUs more than 256 numbers per value) sums cost `tokens · leaves · value_dim`.
///
/// # Shapes
/// - query_leaves: `[batch, queries, heads]`, the leaf of each query; negative = masked out, and gets 0
/// - key_leaves: `[batch, keys, kv_heads]`, the leaf of each key; negative = masked out. `kv_heads` divides
///   `heads`: query head `h` reads head `h / (heads / kv_heads)`
/// - value: `[batch, keys, kv_heads, value_dim]`
/// - alpha: `[heads, height + 1]` or `[1, height + 1]`, the weight of each depth, root first
/// - returns `[batch, queries, heads, value_dim]`
///
/// Leaves below 0 apart, every leaf must be one of the tree; that is not checked.
///
/// # Panics
/// If an axis disagrees with the others, if there is no query or no key, or if there are more queries than keys with
/// `causal`.
#[track_caller]
pub fn tree_coarse(
    query_leaves: Tensor<3, Int>,
    key_leaves: Tensor<3, Int>,
    value: Tensor<4>,
    alpha: Tensor<2>,
    tree: &CompleteTree,
    options: TreeCoarseOptions,
) -> Tensor<4> {
    check(
        query_leaves.dims(),
        key_leaves.dims(),
        &value,
        &alpha,
        tree,
        options,
    );
    let [_, _, heads] = query_leaves.dims();
    let dtype = value.dtype();
    let (value, alpha) = (at_least_single(value), at_least_single(alpha));
    if options.causal {
        let routes = CausalRoutes {
            query_leaves,
            key_leaves,
            before: None,
            tree,
            empty_node: options.empty_node,
        };
        return routes.attend(value, alpha).cast(dtype);
    }
    let leaves = leaf_sums(counted(value, &key_leaves), key_leaves, tree.leaves());
    let table = path_table(leaves, alpha, heads, tree, options.empty_node);
    let context = rows_at(table, query_leaves.clone().clamp_min(0));
    without_absent(context, query_leaves).cast(dtype)
}

/// TC-attention from indicators of nodes, differentiable in them: what trains the routes.
///
/// With indicators of hard routes it is [`tree_coarse`]. Its gradients are exact and dense: every node of a depth
/// gets one, also those on nobody's path, at a cost linear in the number of tokens,
/// `tokens · nodes · value_dim`; the indicators alone are `tokens · heads · nodes` numbers. With `δ_i` the gradient of output `i`, `c_j` the keys of node `j` of depth `l`,
/// and `γ_j = alpha_l Σ_{i: P_l(q_i) = j} δ_i`:
/// - to the indicator of query `i` in `j`: `alpha_l δ_i · ν_j`
/// - to the indicator of key `i` in `j`: `γ_j · (v_i - ν_j) / c_j`; the second term comes from the count. For an empty
///   node the divisor is 1
///
/// where `ν_j` is what the node gives, so for an empty node what [`EmptyNode`] says; where an empty child carries
/// its parent's mean, its `γ` joins that of the parent. `c_j` is the sum of the node's indicators. The node counts as
/// empty where that is less than 1e-6; relaxed indicators may sum to anything above, also to less than 1, and are
/// divided by it.
///
/// # Shapes
/// - query: indicators `[batch, queries, heads, nodes]`
/// - key: indicators `[batch, keys, kv_heads, nodes]`
/// - value: `[batch, keys, kv_heads, value_dim]`, finite also where a key is masked out
/// - alpha: `[heads, height + 1]` or `[1, height + 1]`, root first
/// - returns `[batch, queries, heads, value_dim]`
///
/// # Panics
/// As [`tree_coarse`], and if the two sides' indicators are of different trees.
#[track_caller]
pub fn tree_coarse_relaxed(
    query: NodeIndicators,
    key: NodeIndicators,
    value: Tensor<4>,
    alpha: Tensor<2>,
    options: TreeCoarseOptions,
) -> Tensor<4> {
    let tree = query.tree().clone();
    assert!(
        &tree == key.tree(),
        "tree_coarse: tree of keys: expected {tree:?} as of queries, got {:?}",
        key.tree()
    );
    let tokens = |[batch, rows, heads, _]: [usize; 4]| [batch, rows, heads];
    let (queries, keys) = (tokens(query.nodes().dims()), tokens(key.nodes().dims()));
    check(queries, keys, &value, &alpha, &tree, options);
    let (dtype, heads) = (value.dtype(), query.nodes().dims()[2]);
    let (value, alpha) = (at_least_single(value), at_least_single(alpha));
    let weight = query.into_nodes().cast(value.dtype()) * by_node(alpha, &tree);
    let key = key.into_nodes().cast(value.dtype());
    let context = if options.causal {
        causal(weight, key, value, &tree, options.empty_node)
    } else {
        let counts = by_head(key.clone().sum_dim(1)).swap_dims(2, 3);
        let values = by_head(key).swap_dims(2, 3).matmul(by_head(value));
        let means = means(values, counts, &tree, options.empty_node);
        let context = by_head(weight).matmul(each_head(means, heads));
        by_head(context)
    };
    context.cast(dtype)
}

/// Causal TC-attention of queries that weigh nodes with `weight`, `[batch, queries, heads, nodes]`.
///
/// What a query takes of a node's mean is what it takes of the node's sum, divided by the keys there so far. So
/// the queries' weights become features of a [`prefix_attention`] whose other side are the keys' indicators.
fn causal(
    weight: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    tree: &CompleteTree,
    empty_node: EmptyNode,
) -> Tensor<4> {
    let ([_, queries, heads, _], [_, keys, ..]) = (weight.dims(), key.dims());
    let counts = prefix_sums(key.clone()).narrow(1, keys - queries, queries);
    let counts = each_head(counts.swap_dims(1, 2), heads).swap_dims(1, 2);
    prefix_attention(sum_weights(weight, counts, tree, empty_node), key, value)
}

/// Checks that axes agree: those of queries and keys are batch, tokens and heads.
#[track_caller]
fn check(
    [batch, queries, heads]: [usize; 3],
    [key_batch, keys, kv_heads]: [usize; 3],
    value: &Tensor<4>,
    alpha: &Tensor<2>,
    tree: &CompleteTree,
    options: TreeCoarseOptions,
) {
    expect_some("tree_coarse: axis 1 of queries", queries);
    expect_some("tree_coarse: axis 1 of keys", keys);
    expect("tree_coarse: axis 0 of keys", key_batch, batch);
    let value_dim = value.dims()[3];
    let axes = axes!("tree_coarse", batch, keys, kv_heads, value_dim);
    axes.expect("value", "batch, keys, kv_heads, value_dim", &value.dims());
    expect_divisor("tree_coarse: kv_heads", kv_heads, heads);
    check_alpha("tree_coarse", alpha, heads, tree);
    assert!(
        !options.causal || queries <= keys,
        "tree_coarse: causal: expected at least as many keys as queries ({queries}), got {keys}"
    );
}

/// Checks that there is a weight of each depth.
#[track_caller]
fn check_alpha(function: &str, alpha: &Tensor<2>, heads: usize, tree: &CompleteTree) {
    let (got, depths) = (alpha.dims(), tree.height() + 1);
    let (shared, own) = ([1, depths], [heads, depths]);
    assert!(
        got == shared || got == own,
        "{function}: alpha [1 or heads, height + 1]: expected {shared:?} or {own:?}, got {got:?}"
    );
}
