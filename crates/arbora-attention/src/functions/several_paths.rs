//! Search along several paths per query.

use super::masked_attention::index_along;
use crate::functions::dense_attention;
use crate::ops::limits::leaf_group;
use crate::ops::reference::MASKED_LOGIT;
use crate::ops::{DenseAttentionOptions, GhostNodes, TreeSearchOptions};
use arbora_tree::tensors::at_least_single;
use burn::tensor::activation::softmax;
use burn::tensor::kind::Basic;
use burn::tensor::{Bool, Int, Tensor};

/// Search along several paths per query, composed of burn's tensor functions: what
/// [`tree_search`](crate::functions::tree_search) takes, but for the route.
///
/// No step holds a row per node of a tree in memory: at most the children of the nodes on the paths.
pub(crate) struct SeveralPaths {
    query: Tensor<4>,       // [batch, queries, heads, head_dim]
    key: Tensor<2>,         // [batch * nodes, heads * head_dim]
    value: Tensor<2>,       // [batch * nodes, heads * value_dim]
    length: Tensor<2, Int>, // [rows, 1], real tokens
    first: Tensor<2, Int>,  // [rows, 1], row of the root in keys and values
    options: TreeSearchOptions,
}

/// What a beam search finds.
pub(crate) struct Beam {
    /// Last node of each path, the most probable first, `[batch, queries, paths]`. Where there are
    /// fewer different paths, the first is repeated.
    pub ends: Tensor<3, Int>,
    /// `[batch, queries, paths]`
    pub log_prob: Tensor<3>,
    /// Inner nodes whose keys were read, `[batch, queries]`.
    pub read: Tensor<2, Int>,
}

/// Attention over what several paths select together.
pub(crate) struct Frontier {
    /// `[batch, queries, heads, value_dim]`
    pub context: Tensor<4>,
    /// Different paths, `[batch, queries]`.
    pub distinct: Tensor<2, Int>,
    /// Size of the selected set, `[batch, queries]`.
    pub selected: Tensor<2, Int>,
    /// Inner nodes that are children of nodes on a path, `[batch, queries]`.
    pub siblings: Tensor<2, Int>,
    /// Leaves under the last nodes, `[batch, queries]`.
    pub leaves: Tensor<2, Int>,
}

impl SeveralPaths {
    pub fn new(
        query: Tensor<4>,
        key: Tensor<4>,
        value: Tensor<4>,
        lengths: Tensor<1, Int>,
        options: TreeSearchOptions,
    ) -> Self {
        let [batch, queries, ..] = query.dims();
        let [_, nodes, heads, head_dim] = key.dims();
        let value_dim = value.dims()[3];
        // The queries of an example share its length and its place in the batch.
        let per_row = |values: Tensor<1, Int>| {
            values
                .reshape([batch, 1])
                .expand([batch, queries])
                .reshape([batch * queries, 1])
        };
        let creation = (&lengths.device(), lengths.dtype());
        let first = Tensor::arange(0..batch as i64, creation) * nodes as i64;
        Self {
            query,
            key: key.reshape([batch * nodes, heads * head_dim]),
            value: value.reshape([batch * nodes, heads * value_dim]),
            length: per_row(lengths),
            first: per_row(first),
            options,
        }
    }

    /// Keeps the `width` most probable partial paths, level by level. Of equally probable ones, the
    /// one further left comes first, so that ties fall alike on every backend.
    ///
    /// Partial paths differ by construction: they are different nodes of one height. A slot without
    /// a path holds the first index past the nodes of its height, whose children no example has.
    pub fn beam(&self, width: usize) -> Beam {
        let shape = &self.options.shape;
        let [batch, queries, ..] = self.query.dims();
        let rows = batch * queries;
        let mut node = self.length.zeros_like(); // [rows, paths]
        let mut score: Option<Tensor<2>> = None; // [rows, paths]
        let mut read = self.length.zeros_like();
        for height in (1..=shape.decisions()).rev() {
            let group = shape.group(height + 1);
            let [_, parents] = node.dims();
            let slots = parents * group;
            let child = self.children(&node, group);
            let real = self.real(height, &child);
            read = read + real.clone().int().sum_dim(2).sum_dim(1).reshape([rows, 1]);
            let mut total = self.log_policy(height, &child, &real);
            if let Some(score) = score {
                total = total + spread(score, group);
            }
            let total = total.mask_fill(real.bool_not(), MASKED_LOGIT);
            let kept = width.min(slots).min(shape.width(height));
            let (best, log_prob) = best(
                total.reshape([rows, slots]),
                child.reshape([rows, slots]),
                kept,
                shape.width(height),
            );
            (node, score) = (best, Some(log_prob));
        }
        let paths = node.dims()[1];
        let past = shape.width(shape.height().min(1)) as i64;
        let empty = node.clone().greater_equal_elem(past);
        let without_any = empty.clone().narrow(1, 0, 1).expand([rows, paths]);
        let best = node.clone().narrow(1, 0, 1).expand([rows, paths]);
        let ends = node
            .mask_where(empty.clone(), best)
            .mask_fill(without_any.clone(), 0);
        let score = score.unwrap_or_else(|| Tensor::zeros([rows, 1], &self.query.device()));
        let best = score.clone().narrow(1, 0, 1).expand([rows, paths]);
        let log_prob = score.mask_where(empty, best).mask_fill(without_any, 0.0);
        Beam {
            ends: ends.reshape([batch, queries, paths]),
            log_prob: log_prob.reshape([batch, queries, paths]),
            read: read.reshape([batch, queries]),
        }
    }

    /// The nodes on the way to each last node, `[batch, queries, paths, decisions + 1]`: the root
    /// first, the last node last.
    pub fn paths(&self, ends: Tensor<3, Int>) -> Tensor<4, Int> {
        let [batch, queries, paths] = ends.dims();
        let mut way = vec![ends];
        for height in 1..=self.options.shape.decisions() {
            let group = self.options.shape.group(height + 1);
            way.push(parent_of(way[height - 1].clone(), group));
        }
        let way = way.into_iter().rev();
        let way = way.map(|node| node.reshape([batch, queries, paths, 1]));
        Tensor::cat(way.collect(), 3)
    }

    /// Real decisions of each path, `[batch, queries, paths]`: at nodes with at least two real children.
    pub fn decisions(&self, path: &Tensor<4, Int>) -> Tensor<3, Int> {
        let shape = &self.options.shape;
        let [batch, queries, paths, steps] = path.dims();
        let node = path.clone().narrow(3, 0, steps - 1);
        let each = node.dims();
        let length = self.length.clone().reshape([batch, queries, 1, 1]);
        let heights = (1..steps).rev();
        // A second child is real where its first leaf is.
        let second = heights.map(|height| {
            let at = node.clone().narrow(3, steps - 1 - height, 1);
            (at * shape.group(height + 1) as i64 + 1) * shape.span(height) as i64
        });
        let second = Tensor::cat(second.collect(), 3);
        let real = second.lower(length.expand(each)).int().sum_dim(3);
        real.reshape([batch, queries, paths])
    }

    /// Attends to the union frontier of the paths to the given last nodes, `[batch, queries, paths]`
    /// in any order, with repetition: the siblings of nodes on a path that are on no path, and all
    /// leaves under the last nodes. These lie over every token exactly once.
    ///
    /// Each node of that set gets one slot. With the paths from left to right, the paths through one
    /// parent are neighbours; such a path takes the children right of its left neighbour's and left
    /// of its own, and the last of them takes also the children right of its own.
    pub fn attend(&self, ends: Tensor<3, Int>) -> Frontier {
        let shape = &self.options.shape;
        let [batch, queries, heads, head_dim] = self.query.dims();
        let [_, width] = self.value.dims();
        let rows = batch * queries;
        let paths = ends.dims()[2];
        let ends = ends.cast(self.length.dtype());
        let mut node = ends.reshape([rows, paths]).sort(1);

        let group = leaf_group(shape);
        let child = self.children(&node, group);
        let [left, _] = neighbours(&node);
        let different = node.clone().not_equal(left);
        let distinct = count(different.clone().reshape([rows, paths, 1]));
        let keep = spread(different, group).bool_and(self.real(0, &child));
        let leaves = count(keep.clone());
        let mut positions = vec![self.positions(0, child)];
        let mut kept = vec![keep.reshape([rows, paths * group])];
        let mut siblings = leaves.zeros_like();

        for height in 1..=shape.decisions() {
            let group = shape.group(height + 1);
            let parent = parent_of(node.clone(), group);
            let child = self.children(&parent, group);
            let [left, right] = neighbours(&parent);
            let leftmost = spread(parent.clone().not_equal(left), group);
            let rightmost = spread(parent.clone().not_equal(right), group);
            let real = self.real(height, &child);
            siblings = siblings + count(leftmost.clone().bool_and(real.clone()));
            let [left, _] = neighbours(&node);
            let after_left = child.clone().greater(spread(left, group));
            let before_own = child.clone().lower(spread(node.clone(), group));
            let after_own = child.clone().greater(spread(node, group));
            let keep = before_own
                .bool_and(after_left.bool_or(leftmost))
                .bool_or(after_own.bool_and(rightmost));
            let keep = match self.options.ghosts {
                GhostNodes::Masked => keep.bool_and(real),
                GhostNodes::Published => keep,
            };
            positions.push(self.positions(height, child));
            kept.push(keep.reshape([rows, paths * group]));
            node = parent;
        }

        let kept = Tensor::cat(kept, 1); // [rows, slots]
        let positions = Tensor::cat(positions, 1);
        let [_, slots] = positions.dims();
        let positions = positions.reshape([rows * slots]);
        let selected = count(kept.clone().reshape([rows, slots, 1]));
        let key = self.key.clone().select(0, positions.clone());
        let value = self.value.clone().select(0, positions);
        let context = dense_attention(
            self.query.clone().reshape([rows, 1, heads, head_dim]),
            key.reshape([rows, slots, heads, head_dim]),
            value.reshape([rows, slots, heads, width / heads]),
            Some(kept.bool_not()),
            DenseAttentionOptions {
                first_key: 0,
                scale: self.options.scale,
            },
        );
        let per_query = |count: Tensor<1, Int>| count.reshape([batch, queries]);
        Frontier {
            context: context.reshape([batch, queries, heads, width / heads]),
            distinct: per_query(distinct),
            selected: per_query(selected),
            siblings: per_query(siblings),
            leaves: per_query(leaves),
        }
    }

    /// Indices of the children of nodes, `[rows, nodes]` -> `[rows, nodes, group]`.
    fn children(&self, node: &Tensor<2, Int>, group: usize) -> Tensor<3, Int> {
        let [rows, nodes] = node.dims();
        let options = (&node.device(), node.dtype());
        let slot = index_along(2, [rows, nodes, group], options);
        spread(node.clone() * group as i64, group) + slot
    }

    /// Whether nodes lie over a token of their example.
    fn real(&self, height: usize, node: &Tensor<3, Int>) -> Tensor<3, Bool> {
        let [rows, ..] = node.dims();
        let length = self.length.clone().reshape([rows, 1, 1]);
        let first_leaf = node.clone() * self.options.shape.span(height) as i64;
        first_leaf.lower(length.expand(node.dims()))
    }

    /// Where the keys and values of nodes are, `[rows, slots]`.
    fn positions(&self, height: usize, node: Tensor<3, Int>) -> Tensor<2, Int> {
        let [rows, parents, group] = node.dims();
        let slots = parents * group;
        let shape = &self.options.shape;
        // Slots past the last stored node are ghosts; any stored node can stand in for them.
        let stored = node
            .reshape([rows, slots])
            .clamp_max(shape.width(height) as i64 - 1);
        stored + shape.offset(height) as i64 + self.first.clone().expand([rows, slots])
    }

    /// Logarithm of the policy among siblings, `[rows, parents, group]`: 0 for a forced step, at
    /// least about -87.
    fn log_policy(
        &self,
        height: usize,
        child: &Tensor<3, Int>,
        real: &Tensor<3, Bool>,
    ) -> Tensor<3> {
        let [rows, parents, group] = child.dims();
        let [_, _, heads, head_dim] = self.query.dims();
        let slots = parents * group;
        let positions = self.positions(height, child.clone());
        let key = self.key.clone().detach();
        let key = key.select(0, positions.reshape([rows * slots]));
        let key = at_least_single(key).reshape([rows, slots, heads, head_dim]);
        let scale = self.options.scale.unwrap_or((head_dim as f64).powf(-0.5));
        let query = at_least_single(self.query.clone().detach())
            .reshape([rows, 1, heads, head_dim])
            .mul_scalar(scale);
        let logits = (query * key).sum_dim(3) / self.options.temperature;
        let all = [rows * parents, group, heads];
        let ghost = real.clone().bool_not().reshape([rows * parents, group, 1]);
        let logits = logits
            .reshape(all)
            .mask_fill(ghost.expand(all), MASKED_LOGIT);
        let policy = softmax(logits, 1).mean_dim(2).reshape(child.dims());
        let forced = real.clone().int().sum_dim(2).lower_elem(2);
        policy
            .mask_fill(forced.expand(child.dims()), 1.0)
            .clamp_min(f64::from(f32::MIN_POSITIVE))
            .log()
    }
}

/// The `kept` best of `[rows, slots]` candidates, the best first: their indices and scores. Of equal
/// scores the lower index is better. Once the candidates above [`MASKED_LOGIT`] have run out the
/// index is `past`.
///
/// A loop in place of a sort: burn's sorts are not stable, and some run on the host.
fn best(
    mut score: Tensor<2>,
    index: Tensor<2, Int>,
    kept: usize,
    past: usize,
) -> (Tensor<2, Int>, Tensor<2>) {
    let all = score.dims();
    let (mut indices, mut scores) = (Vec::new(), Vec::new());
    for _ in 0..kept {
        let best = score.clone().max_dim(1); // [rows, 1]
        let worse = score.clone().lower(best.clone().expand(all));
        let first = index
            .clone()
            .mask_fill(worse, past as i64)
            .min_dim(1)
            .mask_fill(best.clone().lower_elem(0.5 * MASKED_LOGIT), past as i64);
        let chosen = index.clone().equal(first.clone().expand(all));
        score = score.mask_fill(chosen, MASKED_LOGIT);
        indices.push(first);
        scores.push(best);
    }
    (Tensor::cat(indices, 1), Tensor::cat(scores, 1))
}

/// The node above each of the given ones, where `group` share one.
///
/// On libtorch burn divides integers in single precision, which is exact below 2^24 last nodes.
fn parent_of<const D: usize>(node: Tensor<D, Int>, group: usize) -> Tensor<D, Int> {
    node / group as i64
}

/// How many per row, `[rows]`.
fn count(mask: Tensor<3, Bool>) -> Tensor<1, Int> {
    let [rows, ..] = mask.dims();
    mask.int().sum_dim(2).sum_dim(1).reshape([rows])
}

/// The nodes left and right of each in its row; -1, which is no node, beside the ends.
fn neighbours(node: &Tensor<2, Int>) -> [Tensor<2, Int>; 2] {
    let [_, paths] = node.dims();
    let none = node.clone().narrow(1, 0, 1).zeros_like() - 1;
    let all = Tensor::cat(vec![none.clone(), node.clone(), none], 1);
    [all.clone().narrow(1, 0, paths), all.narrow(1, 2, paths)]
}

/// One entry per node for each of its children: `[rows, nodes]` -> `[rows, nodes, group]`
fn spread<K: Basic>(rows: Tensor<2, K>, group: usize) -> Tensor<3, K> {
    let [count, nodes] = rows.dims();
    rows.reshape([count, nodes, 1])
        .expand([count, nodes, group])
}
