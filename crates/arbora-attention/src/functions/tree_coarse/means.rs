//! Sums and means of values by node.

use super::EmptyNode;
use super::indicators::children_summed;
use crate::functions::masked_attention::{repeat_each, with_ones, without_absent};
use arbora_tree::CompleteTree;
use burn::tensor::kind::Basic;
use burn::tensor::{FloatDType, Int, Tensor};

/// Indicators that sum to less than this are those of a node without keys.
const NO_KEYS: f64 = 1e-6;

/// The weight of each node's depth, `[1, 1, heads or 1, nodes]`.
pub(super) fn by_node(alpha: Tensor<2>, tree: &CompleteTree) -> Tensor<4> {
    let heads = alpha.dims()[0];
    let depths = (0..=tree.height()).map(|depth| {
        let width = tree.width(depth);
        alpha.clone().narrow(1, depth, 1).expand([heads, width])
    });
    Tensor::cat(depths.collect(), 1).reshape([1, 1, heads, tree.nodes()])
}

/// Means of the values of nodes, `[batch, kv_heads, nodes, value_dim]`.
///
/// - values: their sums, of the same shape
/// - counts: of keys, `[batch, kv_heads, nodes, 1]`
pub(super) fn means(
    values: Tensor<4>,
    counts: Tensor<4>,
    tree: &CompleteTree,
    empty_node: EmptyNode,
) -> Tensor<4> {
    let mut depths: Vec<Tensor<4>> = Vec::with_capacity(tree.height() + 1);
    for depth in 0..=tree.height() {
        let own = |sums: &Tensor<4>| {
            sums.clone()
                .narrow(2, tree.offset(depth), tree.width(depth))
        };
        let parent = depths.last().map(|parent| {
            let branching = tree.branching(depth - 1);
            repeat_each(parent.clone(), branching)
        });
        depths.push(mean(own(&values), own(&counts), parent, empty_node));
    }
    Tensor::cat(depths, 2)
}

/// Means of nodes whose parents gave `parent`.
fn mean(
    values: Tensor<4>,
    counts: Tensor<4>,
    parent: Option<Tensor<4>>,
    empty_node: EmptyNode,
) -> Tensor<4> {
    let empty = counts.clone().lower_elem(NO_KEYS);
    let at_least_one = counts.clone().mask_fill(empty.clone(), 1.0);
    match (parent, empty_node) {
        (Some(parent), EmptyNode::CarryParent) => {
            // For an empty node the value is the parent's, and the derivative by the indicator of a key that the
            // node lacks is what it would bring: its value less the parent's.
            let dtype = FloatDType::from(counts.dtype());
            // With another handle to the counts, burn-fusion 0.22.1 computes other numbers on wgpu.
            let lack = (1.0 - counts) * empty.cast(dtype);
            values / at_least_one + parent * lack
        }
        _ => values / at_least_one,
    }
}

/// From what queries take of the means of nodes to what they take of the sums, both
/// `[batch, queries, heads, nodes]`, with the counts of keys that each query sees. The transpose of [`means`].
pub(super) fn sum_weights(
    weight: Tensor<4>,
    counts: Tensor<4>,
    tree: &CompleteTree,
    empty_node: EmptyNode,
) -> Tensor<4> {
    let empty = counts.clone().lower_elem(NO_KEYS);
    let at_least_one = counts.clone().mask_fill(empty.clone(), 1.0);
    if empty_node == EmptyNode::Drop {
        return weight / at_least_one;
    }
    let dtype = FloatDType::from(counts.dtype());
    let lack = (1.0 - counts) * empty.cast(dtype);
    let mut depths: Vec<Tensor<4>> = Vec::with_capacity(tree.height() + 1);
    let mut carried: Option<Tensor<4>> = None;
    for depth in (0..=tree.height()).rev() {
        let (first, width) = (tree.offset(depth), tree.width(depth));
        let of_depth = |rows: &Tensor<4>| rows.clone().narrow(3, first, width);
        let own = match carried {
            None => of_depth(&weight),
            Some(carried) => of_depth(&weight) + carried,
        };
        carried = (depth > 0).then(|| {
            let branching = tree.branching(depth - 1);
            children_summed(own.clone() * of_depth(&lack), branching)
        });
        depths.push(own / of_depth(&at_least_one));
    }
    depths.reverse();
    Tensor::cat(depths, 3)
}

/// What a query of each leaf gets, `[batch, leaves, heads, value_dim]`, from the sums of leaves
/// `[batch, leaves, kv_heads, value_dim + 1]`, whose last column counts keys.
pub(super) fn path_table(
    leaves: Tensor<4>,
    alpha: Tensor<2>,
    heads: usize,
    tree: &CompleteTree,
    empty_node: EmptyNode,
) -> Tensor<4> {
    let value_dim = leaves.dims()[3] - 1;
    let alpha_rows = alpha.dims()[0];
    let mut above: Option<(Tensor<4>, Tensor<4>)> = None; // means and rows of the table
    for (depth, sums) in sums_of_depths(leaves, tree).into_iter().enumerate() {
        let values = sums.clone().narrow(3, 0, value_dim).swap_dims(1, 2);
        let counts = sums.narrow(3, value_dim, 1).swap_dims(1, 2);
        let above_each_child = above.map(|(mean, row)| {
            let branching = tree.branching(depth - 1);
            (repeat_each(mean, branching), repeat_each(row, branching))
        });
        let (parent, row) = above_each_child.unzip();
        let mean = mean(values, counts, parent, empty_node);
        let alpha = alpha
            .clone()
            .narrow(1, depth, 1)
            .reshape([1, alpha_rows, 1, 1]);
        let term = match alpha_rows {
            1 => mean.clone() * alpha,
            _ => each_head(mean.clone(), heads) * alpha,
        };
        let row = match row {
            None => term,
            Some(row) => row + term,
        };
        above = Some((mean, row));
    }
    let (_, table) = above.expect("a tree has a root");
    each_head(table, heads).swap_dims(1, 2)
}

/// Values with one more column that counts the keys, `[batch, keys, kv_heads, value_dim + 1]`: it goes through the same
/// sums. Zeros for masked keys, whatever stood there.
pub(super) fn counted(value: Tensor<4>, leaves: &Tensor<3, Int>) -> Tensor<4> {
    without_absent(with_ones(value), leaves.clone())
}

/// The sums of nodes per depth, root first, from those of leaves: each `[batch, nodes, kv_heads, width]`.
pub(super) fn sums_of_depths(leaves: Tensor<4>, tree: &CompleteTree) -> Vec<Tensor<4>> {
    let [batch, _, kv_heads, width] = leaves.dims();
    let mut depths = vec![leaves];
    for depth in (0..tree.height()).rev() {
        let (parents, branching) = (tree.width(depth), tree.branching(depth));
        let children = depths[depths.len() - 1].clone();
        let parent = children
            .reshape([batch, parents, branching, kv_heads, width])
            .sum_dim(2)
            .reshape([batch, parents, kv_heads, width]);
        depths.push(parent);
    }
    depths.reverse();
    depths
}

/// `[batch, kv_heads, rows, width]` -> `[batch, heads, rows, width]`, each head as often as query heads share it.
pub(super) fn each_head<K: Basic>(rows: Tensor<4, K>, heads: usize) -> Tensor<4, K> {
    let [batch, kv_heads, count, width] = rows.dims();
    if kv_heads == heads {
        return rows;
    }
    rows.reshape([batch, kv_heads, 1, count, width])
        .expand([batch, kv_heads, heads / kv_heads, count, width])
        .reshape([batch, heads, count, width])
}
