//! The sums of a decoder, which grow by a token at a time.

use super::causal::{CausalRoutes, path_rows, path_weights, positions, weighted};
use super::means::{counted, sums_of_depths};
use super::rows::leaf_sums;
use super::{EmptyNode, check_alpha};
use crate::functions::check::{expect, expect_some};
use crate::functions::masked_attention::{select_rows, without_absent};
use arbora_tree::CompleteTree;
use burn::tensor::{DType, Device, IndexingUpdateOp, Int, Tensor};

/// What causal TC-attention remembers of the keys so far: the sum of values and the count of every node,
/// `nodes · (value_dim + 1)` numbers per example and head, however many keys there were.
#[derive(Clone, Debug)]
pub struct TreeCoarseState {
    /// `[batch, nodes, kv_heads, value_dim + 1]` in single precision, nodes in level order, the last column counts
    /// keys.
    sums: Tensor<4>,
    tree: CompleteTree,
}

impl TreeCoarseState {
    /// The state before the first key.
    pub fn new(
        batch: usize,
        kv_heads: usize,
        value_dim: usize,
        tree: &CompleteTree,
        device: &Device,
    ) -> Self {
        expect_some("tree_coarse_state: batch", batch);
        Self {
            sums: Tensor::zeros(
                [batch, tree.nodes(), kv_heads, value_dim + 1],
                (device, DType::F32),
            ),
            tree: tree.clone(),
        }
    }

    /// The tree that leaves belong to.
    pub fn tree(&self) -> &CompleteTree {
        &self.tree
    }

    /// The state of some examples, in the order of `rows`, which are their indices in the batch.
    ///
    /// # Panics
    /// If an index is out of range.
    #[must_use]
    pub fn select(&self, rows: &[usize]) -> Self {
        Self {
            sums: select_rows(&self.sums, rows),
            tree: self.tree.clone(),
        }
    }

    /// Numbers held.
    pub fn numbers(&self) -> usize {
        self.sums.dims().iter().product()
    }

    /// Adds keys in leaves `[batch, keys, kv_heads]` (negative = masked out) with values
    /// `[batch, keys, kv_heads, value_dim]`.
    ///
    /// Writes `height + 1` rows for one key; several are added up per leaf first, and then to every node.
    ///
    /// # Panics
    /// If an axis disagrees, or there is no key.
    #[track_caller]
    pub fn append(&mut self, key_leaves: Tensor<3, Int>, value: Tensor<4>) {
        let [batch, _, kv_heads, width] = self.sums.dims();
        let keys = key_leaves.dims()[1];
        let what = "tree_coarse_state: leaves [batch, keys, kv_heads]";
        expect(what, key_leaves.dims(), [batch, keys, kv_heads]);
        let what = "tree_coarse_state: value [batch, keys, kv_heads, value_dim]";
        expect(what, value.dims(), [batch, keys, kv_heads, width - 1]);
        expect_some("tree_coarse_state: axis 1 of keys", keys);
        let rows = counted(value.cast(DType::F32), &key_leaves);
        if keys > 1 {
            let leaves = leaf_sums(rows, key_leaves, self.tree.leaves());
            let added = Tensor::cat(sums_of_depths(leaves, &self.tree), 1);
            self.sums.inplace(|sums| sums + added);
            return;
        }
        // The nodes of one path are all different: no place is added to twice, so the order does not matter.
        let path = positions(key_leaves, &self.tree); // [batch, 1, kv_heads, depths]
        let depths = path.dims()[3];
        let all = [batch, depths, kv_heads, width];
        let index = path
            .swap_dims(2, 3)
            .reshape([batch, depths, kv_heads, 1])
            .expand(all);
        let rows = rows.expand(all);
        self.sums
            .inplace(|sums| sums.scatter(1, index, rows, IndexingUpdateOp::Add));
    }

    /// What queries in leaves `[batch, queries, heads]` get from the keys so far:
    /// `[batch, queries, heads, value_dim]`, 0 for a negative leaf. `alpha` as in
    /// [`tree_coarse`](crate::functions::tree_coarse).
    ///
    /// Reads `height + 1` rows per query.
    ///
    /// # Panics
    /// If `alpha` has not one column per depth, or heads disagree.
    #[track_caller]
    pub fn read(
        &self,
        query_leaves: Tensor<3, Int>,
        alpha: Tensor<2>,
        empty_node: EmptyNode,
    ) -> Tensor<4> {
        let [batch, queries, heads] = query_leaves.dims();
        self.check(heads, &alpha);
        let path = positions(query_leaves.clone(), &self.tree);
        let depths = path.dims()[3];
        let rows = path_rows(self.sums.clone(), path);
        let counts = rows.clone().narrow(4, rows.dims()[4] - 1, 1);
        let counts = counts.reshape([batch, queries, heads, depths]);
        let weight = path_weights(alpha.cast(DType::F32), counts, empty_node);
        without_absent(weighted(rows, weight), query_leaves)
    }

    /// Causal TC-attention of new tokens, each to all keys so far and to the new ones up to itself, which are
    /// remembered: what [`tree_coarse`](crate::functions::tree_coarse) gives for these tokens with `causal`.
    ///
    /// # Shapes
    /// - query_leaves: `[batch, new, heads]`
    /// - key_leaves: `[batch, new, kv_heads]`
    /// - value: `[batch, new, kv_heads, value_dim]`
    /// - alpha: `[heads or 1, height + 1]`
    /// - returns `[batch, new, heads, value_dim]`
    ///
    /// # Panics
    /// If an axis disagrees, or there is no token.
    #[track_caller]
    pub fn attend(
        &mut self,
        query_leaves: Tensor<3, Int>,
        key_leaves: Tensor<3, Int>,
        value: Tensor<4>,
        alpha: Tensor<2>,
        empty_node: EmptyNode,
    ) -> Tensor<4> {
        let [_, new, heads] = query_leaves.dims();
        self.check(heads, &alpha);
        let dtype = value.dtype();
        if new == 1 {
            self.append(key_leaves, value);
            return self.read(query_leaves, alpha, empty_node).cast(dtype);
        }
        let before = self.sums.clone();
        self.append(key_leaves.clone(), value.clone());
        let routes = CausalRoutes {
            query_leaves,
            key_leaves,
            before: Some(before),
            tree: &self.tree,
            empty_node,
        };
        routes
            .attend(value.cast(DType::F32), alpha.cast(DType::F32))
            .cast(dtype)
    }

    #[track_caller]
    fn check(&self, heads: usize, alpha: &Tensor<2>) {
        let kv_heads = self.sums.dims()[2];
        assert!(
            heads.is_multiple_of(kv_heads),
            "tree_coarse_state: heads: expected a multiple of {kv_heads}, got {heads}"
        );
        check_alpha("tree_coarse_state", alpha, heads, &self.tree);
    }
}
