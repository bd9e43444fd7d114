use super::indicators::NodeIndicators;
use super::means::{NodeSums, by_node, each_head, sum_weights};
use super::{EmptyNode, causal};
use arbora_tree::{CompleteTree, Routing};
use burn::tensor::{DType, Device, IndexingUpdateOp, Int, Tensor, TensorData};

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

    /// Numbers held.
    pub fn numbers(&self) -> usize {
        self.sums.dims().iter().product()
    }

    /// Adds keys in leaves `[batch, keys, kv_heads]` (negative = takes no part) with values
    /// `[batch, keys, kv_heads, value_dim]`.
    ///
    /// Writes `height + 1` rows per key.
    ///
    /// # Panics
    /// If an axis disagrees.
    #[track_caller]
    pub fn append(&mut self, key_leaves: Tensor<3, Int>, value: Tensor<4>) {
        let [batch, _, kv_heads, width] = self.sums.dims();
        let keys = key_leaves.dims()[1];
        let expected = [batch, keys, kv_heads, width - 1];
        assert!(
            value.dims() == expected && key_leaves.dims()[..] == expected[..3],
            "tree_coarse_state: value [batch, keys, kv_heads, value_dim]: expected {expected:?}, got {:?} with \
             leaves {:?}",
            value.dims(),
            key_leaves.dims()
        );
        let value = value.cast(DType::F32);
        let ones = Tensor::ones([batch, keys, kv_heads, 1], (&value.device(), value.dtype()));
        let absent = key_leaves
            .clone()
            .lower_elem(0)
            .reshape([batch, keys, kv_heads, 1])
            .expand([batch, keys, kv_heads, width]);
        let rows = Tensor::cat(vec![value, ones], 3).mask_fill(absent, 0.0);
        let path = self.paths(key_leaves); // [batch, keys, kv_heads, depths]
        let depths = path.dims()[3];
        let all = [batch, keys, depths, kv_heads, width];
        let flat = [batch, keys * depths, kv_heads, width];
        let rows = rows
            .reshape([batch, keys, 1, kv_heads, width])
            .expand(all)
            .reshape(flat);
        let index = path
            .swap_dims(2, 3)
            .reshape([batch, keys, depths, kv_heads, 1]);
        let index = index.expand(all).reshape(flat);
        self.sums
            .inplace(|sums| sums.scatter(1, index, rows, IndexingUpdateOp::Add));
    }

    /// What queries in leaves `[batch, queries, heads]` get from the keys so far:
    /// `[batch, queries, heads, value_dim]`, 0 for a negative leaf. `alpha` as in
    /// [`tree_coarse`](crate::tree_coarse).
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
        let alpha = alpha.cast(DType::F32);
        let [_, _, _, width] = self.sums.dims();
        let path = self.paths(query_leaves.clone());
        let depths = path.dims()[3];
        let index = path
            .swap_dims(2, 3)
            .reshape([batch, queries * depths, heads, 1])
            .expand([batch, queries * depths, heads, width]);
        let sums = each_head(self.sums.clone().swap_dims(1, 2), heads).swap_dims(1, 2);
        // [batch, queries, heads, depths, width]
        let rows = sums
            .gather(1, index)
            .reshape([batch, queries, depths, heads, width])
            .swap_dims(2, 3);
        let counts = rows
            .clone()
            .narrow(4, width - 1, 1)
            .reshape([batch, queries, heads, depths]);
        // A path is a tree whose nodes have one child each.
        let chain = CompleteTree::uniform(1, self.tree.height());
        let weight = by_node(alpha, &chain).expand(counts.dims());
        let weight = sum_weights(weight, counts, &chain, empty_node);
        let context = (rows.narrow(4, 0, width - 1)
            * weight.reshape([batch, queries, heads, depths, 1]))
        .sum_dim(3)
        .reshape([batch, queries, heads, width - 1]);
        let absent = query_leaves
            .lower_elem(0)
            .reshape([batch, queries, heads, 1])
            .expand(context.dims());
        context.mask_fill(absent, 0.0)
    }

    /// Causal TC-attention of new tokens, each to all keys so far and to the new ones up to itself, which are
    /// remembered: what [`tree_coarse`](crate::tree_coarse) gives for these tokens with `causal`.
    ///
    /// # Shapes
    /// - query_leaves: `[batch, new, heads]`
    /// - key_leaves: `[batch, new, kv_heads]`
    /// - value: `[batch, new, kv_heads, value_dim]`
    /// - alpha: `[heads or 1, height + 1]`
    /// - returns `[batch, new, heads, value_dim]`
    ///
    /// # Panics
    /// If an axis disagrees.
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
        let before = self.by_head();
        self.append(key_leaves.clone(), value.clone());
        let query = NodeIndicators::of_leaves(query_leaves, &self.tree).into_nodes();
        let weight = query * by_node(alpha.cast(DType::F32), &self.tree);
        let key = NodeIndicators::of_leaves(key_leaves, &self.tree).into_nodes();
        let value = value.cast(DType::F32);
        causal(weight, key, value, Some(before), &self.tree, empty_node).cast(dtype)
    }

    fn by_head(&self) -> NodeSums {
        let value_dim = self.sums.dims()[3] - 1;
        let sums = self.sums.clone().swap_dims(1, 2);
        NodeSums {
            values: sums.clone().narrow(3, 0, value_dim),
            counts: sums.narrow(3, value_dim, 1),
        }
    }

    /// Positions in level order of the nodes above leaves, `[batch, tokens, heads, height + 1]`; those of the
    /// first leaf for a negative one.
    fn paths(&self, leaves: Tensor<3, Int>) -> Tensor<4, Int> {
        let path = Routing::from_leaves(leaves.clamp_min(0), &self.tree, 1).path;
        let depths = self.tree.height() + 1;
        let first: Vec<i64> = (0..depths)
            .map(|depth| self.tree.offset(depth) as i64)
            .collect();
        let first = TensorData::new(first, [1, 1, 1, depths]);
        let first = Tensor::from_data(first, (&path.device(), path.dtype()));
        path + first
    }

    #[track_caller]
    fn check(&self, heads: usize, alpha: &Tensor<2>) {
        let (kv_heads, depths) = (self.sums.dims()[2], self.tree.height() + 1);
        assert!(
            heads.is_multiple_of(kv_heads),
            "tree_coarse_state: heads: expected a multiple of {kv_heads}, got {heads}"
        );
        let got = alpha.dims();
        assert!(
            got == [1, depths] || got == [heads, depths],
            "tree_coarse_state: alpha [1 or heads, height + 1]: expected {:?} or {:?}, got {got:?}",
            [1, depths],
            [heads, depths]
        );
    }
}
