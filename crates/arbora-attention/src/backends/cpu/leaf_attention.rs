//! Softmax attention within leaves, forward and backward, and the gradient of candidate gates.
//!
//! Queries and keys are put in the order of their leaves, by counting. A task takes the queries and keys of
//! one leaf, of one example and one head of keys; of a large leaf it takes a part. Work grows with the sum
//! over leaves of queries times keys. Beside results there is the order, a number per query and key, and
//! the tiles of running tasks. What a task does is in `attention_tiles`.

use super::attention_tiles::{
    Attention, AttentionOutputs, Backward, Dropping, Forward, Gradients, KeyPlace, Pairs,
    QueryPlace, Scratch, Shared, Summed,
};
use super::simd::dispatch;
use super::tuning::{QUERIES, TASKS};
use crate::ops::{LeafAttentionOptions, row_state};
use rayon::prelude::*;
use std::ops::Range;

/// One attention within leaves.
#[derive(Clone, Copy)]
pub(crate) struct LeafAttention<'a> {
    pub(crate) attention: Attention<'a>,
    /// `[batch, queries, heads]`
    pub(crate) query_leaf: &'a [i64],
    /// `[batch, keys, kv_heads]`
    pub(crate) key_leaf: &'a [i64],
    /// Added to the logits of a key, `[batch, keys, kv_heads]`; empty where nothing is.
    pub(crate) key_bias: &'a [f32],
    pub(crate) options: LeafAttentionOptions,
}

/// Rows in the order of their leaves, and of their positions within a leaf. Rows without a leaf are behind
/// those of the last one.
struct ByLeaf {
    /// `[groups, leaves + 2]`: where each leaf starts among the rows of its group, where the rows without
    /// a leaf do, and the end.
    starts: Vec<usize>,
    /// `[groups, rows of a group]`
    rows: Vec<usize>,
    per_group: usize,
    leaves: usize,
}

impl ByLeaf {
    /// Of `leaf` `[batch, positions, heads]`, where the heads of a group are neighbours.
    fn new(leaf: &[i64], positions: usize, heads: usize, kv_heads: usize, leaves: usize) -> Self {
        let share = heads / kv_heads;
        let per_group = positions * share;
        let groups = leaf.len().checked_div(per_group).unwrap_or(0);
        let mut by_leaf = Self {
            starts: vec![0; groups * (leaves + 2)],
            rows: vec![0; leaf.len()],
            per_group,
            leaves,
        };
        if leaf.is_empty() {
            return by_leaf;
        }
        let of_row = |row: usize| match usize::try_from(leaf[row]) {
            Ok(leaf) if leaf < leaves => leaf,
            _ => leaves,
        };
        by_leaf
            .rows
            .par_chunks_mut(per_group)
            .zip(by_leaf.starts.par_chunks_mut(leaves + 2))
            .enumerate()
            .for_each(|(group, (rows, starts))| {
                let (example, first_head) = (group / kv_heads, group % kv_heads * share);
                let of_group = || {
                    (0..per_group).map(|at| {
                        let position = example * positions + at / share;
                        position * heads + first_head + at % share
                    })
                };
                // Counts, then ends, which move to the starts while rows are written from behind.
                for row in of_group() {
                    starts[of_row(row)] += 1;
                }
                let mut end = 0;
                for start in starts.iter_mut() {
                    end += *start;
                    *start = end;
                }
                for row in of_group().rev() {
                    let start = &mut starts[of_row(row)];
                    *start -= 1;
                    rows[*start] = row;
                }
            });
        by_leaf
    }

    /// Rows of a leaf of a group; leaf number `leaves` are those without one.
    fn rows(&self, group: usize, leaf: usize) -> &[usize] {
        if self.rows.is_empty() {
            return &[];
        }
        let starts = &self.starts[group * (self.leaves + 2)..][leaf..leaf + 2];
        &self.rows[group * self.per_group..][starts[0]..starts[1]]
    }
}

/// Queries and keys of one call by leaf.
struct Leaves {
    queries: ByLeaf,
    keys: ByLeaf,
    groups: usize,
    leaves: usize,
}

impl Leaves {
    fn new(call: &LeafAttention) -> Self {
        let Attention {
            queries,
            keys,
            heads,
            kv_heads,
            ..
        } = call.attention;
        let leaves = call.options.leaves;
        Self {
            queries: ByLeaf::new(call.query_leaf, queries, heads, kv_heads, leaves),
            keys: ByLeaf::new(call.key_leaf, keys, kv_heads, kv_heads, leaves),
            groups: call.attention.groups(),
            leaves,
        }
    }

    /// All leaves of all groups, and after those of each group the rows without a leaf.
    fn all(&self) -> impl Iterator<Item = [usize; 2]> {
        (0..self.groups).flat_map(|group| (0..=self.leaves).map(move |leaf| [group, leaf]))
    }

    fn queries(&self, [group, leaf]: [usize; 2]) -> &[usize] {
        self.queries.rows(group, leaf)
    }

    /// Keys that the queries of a leaf see.
    fn seen(&self, [group, leaf]: [usize; 2]) -> &[usize] {
        if leaf == self.leaves {
            &[]
        } else {
            self.keys.rows(group, leaf)
        }
    }

    /// The most queries of a leaf.
    fn most_queries(&self) -> usize {
        let counts = self.all().map(|leaf| self.queries(leaf).len());
        counts.max().unwrap_or(0)
    }

    /// Pairs of a query and a key in the same leaf.
    fn pairs(&self, leaf: [usize; 2]) -> usize {
        self.queries(leaf).len() * self.seen(leaf).len()
    }

    /// Parts of the keys of each leaf, as many as make tasks of about the same work. `most` bounds those of
    /// one leaf. Tasks of one leaf are neighbours.
    fn key_parts(&self, most: usize) -> Vec<KeyPart> {
        let all: usize = self.all().map(|leaf| self.pairs(leaf)).sum();
        let task = (all / TASKS).max(1);
        let mut tasks = Vec::new();
        for leaf in self.all() {
            let keys = self.keys.rows(leaf[0], leaf[1]).len();
            let count = self.pairs(leaf).div_ceil(task);
            let count = count.min(keys.div_ceil(QUERIES)).clamp(1, most);
            let length = keys.div_ceil(count).max(1);
            for part in 0..keys.div_ceil(length).max(1) {
                let keys = part * length..keys.min((part + 1) * length);
                tasks.push(KeyPart { leaf, part, keys });
            }
        }
        tasks
    }
}

/// A task of the backward pass: all queries of a leaf, and some of its keys.
struct KeyPart {
    leaf: [usize; 2],
    part: usize,
    keys: Range<usize>,
}

/// Pairs within a leaf, with and without dropout, and pairs with candidates.
#[derive(Clone, Copy)]
struct WithinLeaf<'a, const GATES: bool> {
    call: LeafAttention<'a>,
    /// What all pairs share of the hash that decides on dropout.
    state: u32,
    dropping: Option<Dropping>,
}

impl<'a, const GATES: bool> WithinLeaf<'a, GATES> {
    fn new(call: LeafAttention<'a>) -> Self {
        let Attention { queries, keys, .. } = call.attention;
        assert!(u32::try_from(keys).is_ok() && u32::try_from(queries).is_ok());
        let dropout = call.options.dropping().filter(|_| !GATES);
        Self {
            call,
            state: dropout.map_or(0, |dropout| dropout.state()),
            dropping: dropout.map(|dropout| Dropping {
                threshold: dropout.threshold(),
                factor: dropout.factor() as f32,
            }),
        }
    }
}

impl<const GATES: bool> Pairs for WithinLeaf<'_, GATES> {
    const PLAIN: bool = false;
    const GATES: bool = GATES;
    const NO_KEYS: f32 = f32::MIN;

    #[inline(always)]
    fn query(&self, row: usize) -> QueryPlace {
        let Attention {
            queries,
            keys,
            heads,
            ..
        } = self.call.attention;
        let (query, head) = (row / heads % queries, row % heads);
        let position = match self.call.options.causal {
            None => keys,
            Some(offset) => query.saturating_add(offset).min(keys),
        };
        let state = match self.dropping {
            None => 0,
            Some(_) => {
                let example = row / heads / queries;
                row_state(self.state, example as u32, head as u32, query as u32)
            }
        };
        QueryPlace {
            position: position as u32,
            state,
        }
    }

    #[inline(always)]
    fn key(&self, row: usize) -> KeyPlace {
        let Attention { keys, kv_heads, .. } = self.call.attention;
        KeyPlace {
            position: (row / kv_heads % keys) as u32,
            bias: self.call.key_bias.get(row).copied().unwrap_or(0.0),
        }
    }

    #[inline(always)]
    fn dropping(&self) -> Option<Dropping> {
        self.dropping
    }
}

impl LeafAttention<'_> {
    fn check(&self) {
        assert!(self.options.leaves > 0);
        assert_eq!(self.query_leaf.len(), self.attention.query_rows());
        assert_eq!(self.key_leaf.len(), self.attention.key_rows());
    }

    /// Softmax attention of queries to the keys of their leaf.
    ///
    /// # Shapes
    /// - context: `[batch, queries, heads, value_dim]`
    /// - lse: `[batch, queries, heads]`
    ///
    /// A query that sees no key has context 0 and lse `f32::MIN`.
    pub(crate) fn forward(self, context: &mut [f32], lse: &mut [f32]) {
        self.check();
        self.attention.check(context, lse);
        assert_eq!(self.key_bias.len(), self.attention.key_rows());
        let leaves = Leaves::new(&self);
        let tasks_of = |chunk: usize| -> usize {
            let queries = leaves.all().map(|leaf| leaves.queries(leaf).len());
            queries.map(|queries| queries.div_ceil(chunk)).sum()
        };
        let chunk = if tasks_of(QUERIES) >= TASKS / 2 {
            QUERIES
        } else {
            QUERIES / 4
        };
        let tasks: Vec<([usize; 2], usize)> = leaves
            .all()
            .flat_map(|leaf| {
                let queries = leaves.queries(leaf).len();
                (0..queries).step_by(chunk).map(move |first| (leaf, first))
            })
            .collect();
        let (pairs, most_queries) = (WithinLeaf::<false>::new(self), leaves.most_queries());
        let [context, lse] = [context, lse].map(Shared::new);
        tasks
            .par_iter()
            .with_min_len(tasks.len() / TASKS)
            .for_each_init(Scratch::default, |scratch, (leaf, first)| {
                let queries = leaves.queries(*leaf);
                // SAFETY: a task writes the rows of its queries, which are no other task's: each row is in one leaf of one group, and the
                // queries of a leaf are cut into chunks.
                let [context, lse] = [&context, &lse].map(|shared| unsafe { shared.task() });
                dispatch(Forward {
                    attention: self.attention,
                    pairs,
                    context,
                    lse,
                    scratch,
                    most_queries,
                    queries: &queries[*first..queries.len().min(first + chunk)],
                    keys: leaves.seen(*leaf),
                });
            });
    }

    /// Gradients of [`forward`](Self::forward) with regard to query, key, value and key bias.
    ///
    /// The results are written in full; masked rows get 0.
    pub(crate) fn backward(
        self,
        outputs: AttentionOutputs,
        [d_query, d_key, d_value, d_bias]: [&mut [f32]; 4],
    ) {
        self.attention
            .check_backward(&outputs, [&*d_query, &*d_key, &*d_value]);
        assert_eq!(self.key_bias.len(), self.attention.key_rows());
        // Each part of the keys of a leaf has gradients of queries of its own, which are summed after: with many
        // groups there is work for all without so much memory.
        let most_parts = TASKS.div_ceil(self.attention.groups().max(1));
        self.differentiate::<false>(outputs, [d_query, d_key, d_value, d_bias], most_parts);
    }

    /// The gradient of candidate gates, `[batch, keys, kv_heads]`; the leaves of keys are their candidates.
    pub(crate) fn candidate_gates(self, outputs: AttentionOutputs, d_gate: &mut [f32]) {
        let Attention {
            query, key, value, ..
        } = self.attention;
        self.attention.check_backward(&outputs, [query, key, value]);
        // Queries, keys and values get no gradient.
        self.differentiate::<true>(outputs, [&mut [], &mut [], &mut [], d_gate], TASKS);
    }

    /// - most_parts: of the keys of a leaf
    fn differentiate<const GATES: bool>(
        self,
        outputs: AttentionOutputs,
        [d_query, d_key, d_value, d_bias]: [&mut [f32]; 4],
        most_parts: usize,
    ) {
        self.check();
        assert_eq!(d_bias.len(), self.attention.key_rows());
        let (leaves, pairs) = (Leaves::new(&self), WithinLeaf::<GATES>::new(self));
        let most_queries = leaves.most_queries();
        let tasks = leaves.key_parts(most_parts);
        let key_parts = tasks.iter().map(|task| task.part + 1).max().unwrap_or(1);
        let query_numbers = d_query.len();
        let mut sum_of_query = Summed::new(d_query, key_parts);
        let to_query = sum_of_query.target();
        let [to_key, to_value, to_bias] = [d_key, d_value, d_bias].map(Shared::new);
        tasks
            .par_iter()
            .with_min_len(tasks.len() / TASKS)
            .for_each_init(Scratch::default, |scratch, task| {
                let queries = leaves.queries(task.leaf);
                let keys = &leaves.keys.rows(task.leaf[0], task.leaf[1])[task.keys.clone()];
                // SAFETY: a task writes the rows of its keys, which are no other task's: each row is in one leaf of one group, whose
                // keys are cut into parts. It writes the rows of all queries of its leaf, in the array of its part. Of gates it
                // writes biases alone.
                let mut gradients = unsafe {
                    Gradients {
                        query: to_query.part(task.part, query_numbers),
                        key: to_key.task(),
                        value: to_value.task(),
                        bias: to_bias.task(),
                    }
                };
                if leaves.seen(task.leaf).is_empty() || queries.is_empty() {
                    for row in keys {
                        gradients.bias.clear_row(*row, 1);
                    }
                    if GATES {
                        return;
                    }
                    for row in queries {
                        gradients.query.clear_row(*row, self.attention.head_dim);
                    }
                    for row in keys {
                        gradients.key.clear_row(*row, self.attention.head_dim);
                        gradients.value.clear_row(*row, self.attention.value_dim);
                    }
                    return;
                }
                dispatch(Backward {
                    attention: self.attention,
                    pairs,
                    outputs,
                    gradients,
                    scratch,
                    most_queries,
                    queries,
                    keys,
                });
            });
        sum_of_query.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::ByLeaf;

    #[test]
    fn rows_are_ordered_by_leaf_then_position() {
        // Two positions of two heads, each its own group.
        let by_leaf = ByLeaf::new(&[1, 0, 0, 7], 2, 2, 2, 2);
        assert_eq!(by_leaf.rows(0, 0), [2]);
        assert_eq!(by_leaf.rows(0, 1), [0]);
        assert_eq!(by_leaf.rows(1, 0), [1]);
        assert_eq!(by_leaf.rows(1, 1), [0; 0]);
        assert_eq!(by_leaf.rows(1, 2), [3]);
        // One group of both heads.
        let by_leaf = ByLeaf::new(&[1, 0, 0, -1, 1, 0], 3, 2, 1, 2);
        assert_eq!(by_leaf.rows(0, 0), [1, 2, 5]);
        assert_eq!(by_leaf.rows(0, 1), [0, 4]);
        assert_eq!(by_leaf.rows(0, 2), [3]);
    }
}
