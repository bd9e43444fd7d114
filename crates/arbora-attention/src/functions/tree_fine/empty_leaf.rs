//! Hard attention within leaves, and what queries of empty leaves get.

use super::{
    LeafAttentionInput, LeafAttentionOptions, LeafAttentionOutput, TreeFineOptions, leaf_attention,
};
use crate::functions::leaf_attention::{means_of_leaves, zero_rows};
use crate::functions::masked_attention::{index_along, repeat_each, without_absent};
use arbora_tree::shape::CompleteTree;
use burn::tensor::{Int, Tensor};
use serde::{Deserialize, Serialize};

/// Output of a query whose leaf has no visible key. Treeformer does not say; a finite mask
/// before the softmax would silently give the mean of all values.
///
/// Where even the root has no key, every policy gives 0. Padded queries get 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EmptyLeaf {
    /// Zero.
    Zero,
    /// The mean of the values under the deepest ancestor of the leaf that has keys; under a causal rule,
    /// of those keys that the query may see.
    #[default]
    AncestorMean,
    /// Attention to the keys under that ancestor. A query may then read as many keys as dense attention
    /// does.
    AncestorAttend,
    /// The value of the query's own token. In self-attention alone.
    SelfKey,
}

/// Rows with their leaves.
#[derive(Clone)]
pub(crate) struct RoutedRows {
    pub rows: LeafAttentionInput,
    /// The values of the tokens that ask, `[batch, queries, kv_heads, value_dim]`.
    pub own_value: Option<Tensor<4>>,
}

impl RoutedRows {
    /// The same rows as constants.
    pub fn without_autodiff(self) -> Self {
        Self {
            rows: LeafAttentionInput {
                query: self.rows.query.without_autodiff(),
                key: self.rows.key.without_autodiff(),
                value: self.rows.value.without_autodiff(),
                query_leaf: self.rows.query_leaf.without_autodiff(),
                key_leaf: self.rows.key_leaf.without_autodiff(),
                key_bias: None,
            },
            own_value: self.own_value.map(Tensor::without_autodiff),
        }
    }
}

/// How to attend within leaves.
#[derive(Clone, Copy)]
pub(crate) struct WithinLeaves<'a> {
    shape: &'a CompleteTree,
    empty_leaf: EmptyLeaf,
    pub options: LeafAttentionOptions,
}

impl<'a> WithinLeaves<'a> {
    pub fn new(shape: &'a CompleteTree, options: &TreeFineOptions) -> Self {
        Self {
            shape,
            empty_leaf: options.empty_leaf,
            options: LeafAttentionOptions {
                leaves: shape.leaves(),
                scale: options.scale,
                causal: options.causal,
                dropout: options.dropout,
            },
        }
    }

    /// Attention of each query to the keys of its leaf, or what the policy gives it.
    pub fn attend(&self, RoutedRows { rows, own_value }: RoutedRows) -> LeafAttentionOutput {
        let found = leaf_attention(rows.clone(), self.options);
        if self.empty_leaf == EmptyLeaf::Zero || self.shape.height() == 0 {
            return found;
        }
        let unresolved_leaf = unresolved(rows.query_leaf.clone(), &found.lse);
        // Unresolved queries have context 0, and the others get 0 here: a sum puts them together.
        let fallback = match (self.empty_leaf, self.options.causal) {
            (EmptyLeaf::SelfKey, _) => own_values(own_value, unresolved_leaf),
            (EmptyLeaf::AncestorMean, None) => self.ancestor_means(&rows, unresolved_leaf),
            _ => self.attend_at_ancestors(rows, unresolved_leaf),
        };
        LeafAttentionOutput {
            context: found.context + fallback,
            lse: found.lse,
        }
    }

    /// Attends at each ancestor in turn, the lowest first, with the unresolved queries. Without any an attention
    /// reads nothing.
    fn attend_at_ancestors(
        &self,
        mut rows: LeafAttentionInput,
        mut unresolved_leaf: Tensor<3, Int>,
    ) -> Tensor<4> {
        let mut options = self.options;
        rows.key_bias = None;
        if self.empty_leaf == EmptyLeaf::AncestorMean {
            rows.query = zero_rows(rows.query_leaf.dims(), &rows.value);
            rows.key = zero_rows(rows.key_leaf.dims(), &rows.value);
            options.dropout = None;
        }
        let mut total: Option<Tensor<4>> = None;
        for depth in (0..self.shape.height()).rev() {
            options.leaves = self.shape.width(depth);
            let below = self.shape.leaves() / options.leaves;
            let found = leaf_attention(
                LeafAttentionInput {
                    query_leaf: ancestor(unresolved_leaf.clone(), below),
                    key_leaf: ancestor(rows.key_leaf.clone(), below),
                    ..rows.clone()
                },
                options,
            );
            unresolved_leaf = unresolved(unresolved_leaf, &found.lse);
            total = Some(match total {
                None => found.context,
                Some(total) => total + found.context,
            });
        }
        total.expect("a tree with empty leaves has a root above them")
    }

    /// The mean under the deepest ancestor with keys, made once per leaf and read by the
    /// unresolved queries.
    fn ancestor_means(
        &self,
        rows: &LeafAttentionInput,
        unresolved_leaf: Tensor<3, Int>,
    ) -> Tensor<4> {
        let [batch, _, kv_heads, value_dim] = rows.value.dims();
        let leaves = self.shape.leaves();
        let device = rows.query_leaf.device();
        let each_leaf = index_along(1, [batch, leaves, kv_heads], &device);
        // One query in each leaf, and later one key.
        let (key_leaf, value) = (rows.key_leaf.clone(), rows.value.clone());
        let means = means_of_leaves(each_leaf.clone(), key_leaf, value, leaves);
        let counts = means.lse.exp().unsqueeze_dim::<4>(3); // 0 for empty leaves
        let sums = means.context.cast(counts.dtype()) * counts.clone();
        let mut carried: Option<Tensor<4>> = None;
        for depth in 0..=self.shape.height() {
            let width = self.shape.width(depth);
            let below = leaves / width;
            let under = |leaves: Tensor<4>, last: usize| {
                leaves
                    .reshape([batch, width, below, kv_heads * last])
                    .sum_dim(2)
                    .reshape([batch, width, kv_heads, last])
            };
            let count = under(counts.clone(), 1);
            let mean = under(sums.clone(), value_dim) / count.clone().clamp_min(1.0);
            carried = Some(match carried {
                None => mean,
                Some(above) => {
                    let branching = self.shape.branching(depth - 1);
                    let above = above.reshape([batch, 1, width / branching, kv_heads * value_dim]);
                    let above = repeat_each(above, branching);
                    let above = above.reshape([batch, width, kv_heads, value_dim]);
                    let empty = count.lower_elem(0.5).expand(mean.dims());
                    mean.mask_where(empty, above)
                }
            });
        }
        let value = carried.expect("there is a root").cast(rows.value.dtype());
        // The mean of one key is that key.
        means_of_leaves(unresolved_leaf, each_leaf, value, leaves).context
    }
}

/// The leaves of the queries that saw no key; -1 for the others.
fn unresolved(leaf: Tensor<3, Int>, lse: &Tensor<3>) -> Tensor<3, Int> {
    let lse = lse.clone().without_autodiff();
    leaf.mask_fill(lse.greater_elem(f32::MIN / 2.0), -1)
}

/// The node that `below` leaves are under, by leaf; -1 stays.
fn ancestor(leaf: Tensor<3, Int>, below: usize) -> Tensor<3, Int> {
    let masked = leaf.clone().lower_elem(0);
    let leaf = leaf.clamp_min(0);
    // Division of integers rounds differently between backends; what is left is exact.
    let rest = leaf.clone().remainder_scalar(below as i64);
    ((leaf - rest) / below as i64).mask_fill(masked, -1)
}

/// Values of the own tokens for unresolved queries, 0 for the others.
fn own_values(own: Option<Tensor<4>>, unresolved_leaf: Tensor<3, Int>) -> Tensor<4> {
    let own = own.expect("checked: self-key is for self-attention");
    let group = unresolved_leaf.dims()[2] / own.dims()[2];
    without_absent(repeat_each(own, group), unresolved_leaf)
}
