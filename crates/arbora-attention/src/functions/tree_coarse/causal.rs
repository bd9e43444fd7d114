//! Tree-coarse attention to earlier keys only.

use super::EmptyNode;
use super::means::{by_node, counted, each_head, sum_weights, sums_of_depths};
use super::rows::{leaf_sums, rows_at};
use crate::functions::masked_attention::without_absent;
use crate::functions::prefix_attention::{running_sums, shifted, with_zero_rows};
use arbora_tree::{CompleteTree, Routing};
use burn::tensor::{Bool, FloatDType, Int, Tensor, TensorData};

/// Tokens whose pairs are formed; a table of all nodes is held for every `CHUNK` tokens. 16, 32, 64, 128 and 256 took 421,
/// 401, 412, 499 and 773 ms at 4,096 tokens and values of 64, and 124, 133, 150, 232 and 580 ms at 16 (flex, 2 cores).
const CHUNK: usize = 64;

/// Hard routes of queries and keys, and what stands in for the keys before them.
pub(super) struct CausalRoutes<'a> {
    /// `[batch, queries, heads]`; the queries are the last tokens.
    pub query_leaves: Tensor<3, Int>,
    /// `[batch, keys, kv_heads]`
    pub key_leaves: Tensor<3, Int>,
    /// Sums of nodes over the keys before these, `[batch, nodes, kv_heads, value_dim + 1]`, the last column counts.
    pub before: Option<Tensor<4>>,
    pub tree: &'a CompleteTree,
    pub empty_node: EmptyNode,
}

impl CausalRoutes<'_> {
    /// Causal TC-attention along hard routes, `[batch, queries, heads, value_dim]`.
    ///
    /// A query reads the sums of the nodes on its path as they stood before its chunk, and adds the keys of its chunk
    /// up to itself that share the node: `tokens · (CHUNK + height) · value_dim` in all, and a table of nodes per
    /// chunk.
    ///
    /// - value: `[batch, keys, kv_heads, value_dim]`
    /// - alpha: `[heads or 1, height + 1]`, in single precision as the value
    pub fn attend(self, value: Tensor<4>, alpha: Tensor<2>) -> Tensor<4> {
        let [batch, queries, heads] = self.query_leaves.dims();
        let [_, keys, kv_heads] = self.key_leaves.dims();
        let value_dim = value.dims()[3];
        let (width, depths) = (value_dim + 1, self.tree.height() + 1);
        let chunk = CHUNK.min(keys);
        let chunks = keys.div_ceil(chunk);
        let (rows, lead, after) = (batch * chunks, keys - queries, chunks * chunk - keys);

        let query = with_absent(self.query_leaves.clone(), lead, after);
        let query = query.reshape([rows, chunk, heads]);
        let key = with_absent(self.key_leaves.clone(), 0, after);
        let key = key.reshape([rows, chunk, kv_heads]);
        let own = counted(value, &self.key_leaves);
        let own = with_zero_rows(own, 0, after).reshape([rows, chunk, kv_heads, width]);

        let query_nodes = positions(query.clone(), self.tree);
        let earlier = self
            .earlier(own.clone(), key.clone(), batch)
            .map(|sums| path_rows(sums, query_nodes.clone())); // [rows, chunk, heads, depths, width]
        let own = each_head(own.swap_dims(1, 2), heads); // [rows, heads, chunk, width]
        let key_nodes = each_head(positions(key, self.tree).swap_dims(1, 2), heads);
        let query_nodes = query_nodes.swap_dims(1, 2); // [rows, heads, chunk, depths]

        // Which keys of the chunk share a query's node, `[rows, heads, chunk, chunk]`. Absent keys share it too: their
        // rows are zero.
        let all = [rows, heads, chunk, chunk];
        let later = Tensor::<2, Bool>::tril_mask([chunk, chunk], 0, &own.device());
        let later = later.reshape([1, 1, chunk, chunk]).expand(all);
        let together = |depth: usize| {
            let query = query_nodes.clone().narrow(3, depth, 1).expand(all);
            let key = key_nodes.clone().narrow(3, depth, 1).swap_dims(2, 3);
            let together = query.equal(key.expand(all));
            let together = together.cast(FloatDType::from(own.dtype()));
            together.mask_fill(later.clone(), 0.0)
        };
        let present = own.clone().narrow(3, value_dim, 1);
        let counts = (0..depths).map(|depth| together(depth).matmul(present.clone()));
        let counts = Tensor::cat(counts.collect(), 3).swap_dims(1, 2); // [rows, chunk, heads, depths]
        let counts = match &earlier {
            None => counts,
            Some(earlier) => {
                let earlier = earlier.clone().narrow(4, value_dim, 1);
                counts + earlier.reshape([rows, chunk, heads, depths])
            }
        };
        let weight = path_weights(alpha, counts, self.empty_node);

        let by_head = weight.clone().swap_dims(1, 2);
        let pairs = (0..depths)
            .map(|depth| together(depth) * by_head.clone().narrow(3, depth, 1))
            .reduce(|sum, pairs| sum + pairs)
            .expect("a tree has a root");
        let context = pairs.matmul(own.narrow(3, 0, value_dim)).swap_dims(1, 2);
        let context = match earlier {
            None => context,
            Some(earlier) => context + weighted(earlier, weight),
        };
        without_absent(context, query)
            .reshape([batch, chunks * chunk, heads, value_dim])
            .narrow(1, lead, queries)
    }

    /// The sums of nodes before each chunk, `[batch · chunks, nodes, kv_heads, width]`; `None`: no key before.
    fn earlier(&self, own: Tensor<4>, key: Tensor<3, Int>, batch: usize) -> Option<Tensor<4>> {
        let [rows, _, kv_heads, width] = own.dims();
        let chunks = rows / batch;
        if chunks == 1 {
            return self.before.clone();
        }
        let nodes = self.tree.nodes();
        let sums = sums_of_depths(leaf_sums(own, key, self.tree.leaves()), self.tree);
        let sums = Tensor::cat(sums, 1).reshape([batch, chunks, nodes * kv_heads * width]);
        let sums = shifted(running_sums(sums));
        let sums = match &self.before {
            None => sums,
            Some(before) => sums + before.clone().reshape([batch, 1, nodes * kv_heads * width]),
        };
        Some(sums.reshape([rows, nodes, kv_heads, width]))
    }
}

/// Positions in level order of the nodes above leaves, `[batch, tokens, heads, height + 1]`; those of the first leaf
/// for a negative one.
pub(super) fn positions(leaves: Tensor<3, Int>, tree: &CompleteTree) -> Tensor<4, Int> {
    let path = Routing::from_leaves(leaves.clamp_min(0), tree, 1).path;
    let depths = tree.height() + 1;
    let first: Vec<i64> = (0..depths).map(|depth| tree.offset(depth) as i64).collect();
    let first = TensorData::new(first, [1, 1, 1, depths]);
    let first = Tensor::from_data(first, (&path.device(), path.dtype()));
    path + first
}

/// The rows of the nodes on each path, `[batch, tokens, heads, depths, width]`, from those of all nodes
/// `[batch, nodes, kv_heads, width]`.
pub(super) fn path_rows(nodes: Tensor<4>, path: Tensor<4, Int>) -> Tensor<5> {
    let [batch, tokens, heads, depths] = path.dims();
    let width = nodes.dims()[3];
    let index = path
        .swap_dims(2, 3)
        .reshape([batch, tokens * depths, heads]);
    rows_at(nodes, index)
        .reshape([batch, tokens, depths, heads, width])
        .swap_dims(2, 3)
}

/// What queries take of the sums on their path, `[batch, tokens, heads, depths]`, from the counts there.
pub(super) fn path_weights(
    alpha: Tensor<2>,
    counts: Tensor<4>,
    empty_node: EmptyNode,
) -> Tensor<4> {
    // A path is a tree whose nodes have one child each.
    let chain = CompleteTree::uniform(1, counts.dims()[3] - 1);
    let weight = by_node(alpha, &chain).expand(counts.dims());
    sum_weights(weight, counts, &chain, empty_node)
}

/// Rows of paths `[batch, tokens, heads, depths, value_dim + 1]`, weighted and summed, without the counts.
pub(super) fn weighted(rows: Tensor<5>, weight: Tensor<4>) -> Tensor<4> {
    let [batch, tokens, heads, depths, width] = rows.dims();
    let weight = weight.reshape([batch, tokens, heads, depths, 1]);
    (rows.narrow(4, 0, width - 1) * weight)
        .sum_dim(3)
        .reshape([batch, tokens, heads, width - 1])
}

/// Masked tokens before and after `[batch, tokens, heads]`.
fn with_absent(leaves: Tensor<3, Int>, before: usize, after: usize) -> Tensor<3, Int> {
    match (before, after) {
        (0, 0) => leaves,
        more => leaves.pad([(0, 0), more, (0, 0)], -1),
    }
}
