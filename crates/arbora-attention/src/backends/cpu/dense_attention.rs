//! Softmax attention over a dense set of keys, forward and backward: which tasks there are, and where
//! they read and write. What a task does is in `attention_tiles`.

use super::attention_tiles::{
    Attention, AttentionOutputs, Backward, Forward, Gradients, Plain, Scratch, Shared, Summed,
};
use super::simd::dispatch;
use super::tuning::{QUERIES, TASKS};
use rayon::prelude::*;
use std::ops::Range;

/// Attention whose keys have as many heads as queries, and are stored from `first_key` on.
#[derive(Clone, Copy)]
pub(crate) struct DenseAttention<'a> {
    /// With all stored rows as keys.
    pub(crate) attention: Attention<'a>,
    /// Rows before it are not attended to.
    pub(crate) first_key: usize,
    /// `[batch, keys - first_key]`, `true` = masked out.
    pub(crate) mask: Option<&'a [bool]>,
}

/// Memory of a task, kept for the next one.
#[derive(Default)]
struct Task {
    scratch: Scratch,
    queries: Vec<usize>,
    keys: Vec<usize>,
}

impl Task {
    /// Lists the rows of some queries and of those of some keys that are attended to.
    fn list(
        &mut self,
        call: &DenseAttention,
        [example, head]: [usize; 2],
        queries: Range<usize>,
        mut keys: Range<usize>,
    ) {
        let Attention {
            queries: all,
            heads,
            ..
        } = call.attention;
        self.queries.clear();
        self.queries
            .extend(queries.map(|query| (example * all + query) * heads + head));
        keys.start = keys.start.max(call.first_key);
        self.keys.clear();
        self.keys.extend(
            keys.filter(|row| call.keeps(example, *row))
                .map(|row| call.key_row(example, row, head)),
        );
    }
}

impl DenseAttention<'_> {
    fn keys(&self) -> usize {
        self.attention.keys - self.first_key
    }

    /// Row of one head of a key among all of keys and values.
    fn key_row(&self, example: usize, row: usize, head: usize) -> usize {
        (example * self.attention.keys + row) * self.attention.heads + head
    }

    /// Whether a stored row of keys is attended to.
    fn keeps(&self, example: usize, row: usize) -> bool {
        row >= self.first_key
            && self
                .mask
                .is_none_or(|mask| !mask[example * self.keys() + row - self.first_key])
    }

    fn check(&self) {
        let attention = &self.attention;
        assert!(self.first_key <= attention.keys && attention.heads == attention.kv_heads);
        if let Some(mask) = self.mask {
            assert_eq!(mask.len(), attention.batch * self.keys());
        }
    }

    /// Softmax attention of all queries of an example over its keys.
    ///
    /// # Shapes
    /// - context: `[batch, queries, heads, value_dim]`
    /// - lse: `[batch, queries, heads]`, the logarithm of the sum of `exp(scale * query . key)`
    ///
    /// A query without keys has context 0 and lse 0.
    pub(crate) fn forward(self, context: &mut [f32], lse: &mut [f32]) {
        self.check();
        let attention = self.attention;
        attention.check(context, lse);
        if lse.is_empty() {
            return;
        }
        let chunk = if attention.groups() * attention.queries.div_ceil(QUERIES) >= TASKS / 2 {
            QUERIES
        } else {
            QUERIES / 4
        };
        let chunks = attention.queries.div_ceil(chunk);
        let tasks = attention.groups() * chunks;
        let [context, lse] = [context, lse].map(Shared::new);
        (0..tasks)
            .into_par_iter()
            .with_min_len(tasks / TASKS)
            .for_each_init(Task::default, |memory, task| {
                let first = task % chunks * chunk;
                let group = task / chunks;
                memory.list(
                    &self,
                    [group / attention.heads, group % attention.heads],
                    first..attention.queries.min(first + chunk),
                    0..attention.keys,
                );
                // SAFETY: a task writes the rows of its queries and its head, and no other task has both.
                let [context, lse] = [&context, &lse].map(|shared| unsafe { shared.task() });
                dispatch(Forward {
                    attention,
                    pairs: Plain,
                    context,
                    lse,
                    scratch: &mut memory.scratch,
                    most_queries: attention.queries,
                    queries: &memory.queries,
                    keys: &memory.keys,
                });
            });
    }

    /// Gradients of [`forward`](Self::forward) with regard to query, key and value.
    ///
    /// The results are written in full; rows that nothing attends to get 0.
    pub(crate) fn backward(self, outputs: AttentionOutputs, gradients: [&mut [f32]; 3]) {
        self.check();
        let attention = self.attention;
        attention.check_backward(&outputs, gradients.each_ref().map(|of| &**of));
        if outputs.lse.is_empty() || self.keys() == 0 {
            for gradient in gradients {
                gradient.fill(0.0);
            }
            return;
        }
        // With few heads the longer axis is cut as well, and the gradients of the other are summed after.
        let want = TASKS.div_ceil(attention.groups());
        let (keys, queries) = (self.keys(), attention.queries);
        let (key_chunks, query_chunks) = if keys >= queries {
            (want.min(keys.div_ceil(QUERIES)), 1)
        } else {
            (1, want.min(queries.div_ceil(QUERIES)))
        };
        let (key_chunk, query_chunk) = (keys.div_ceil(key_chunks), queries.div_ceil(query_chunks));
        let (key_chunks, query_chunks) = (keys.div_ceil(key_chunk), queries.div_ceil(query_chunk));

        let per_group = key_chunks * query_chunks;
        let tasks = attention.groups() * per_group;
        let lengths = gradients.each_ref().map(|gradient| gradient.len());
        let [d_query, d_key, d_value] = gradients;
        let mut sums = [
            Summed::new(d_query, key_chunks),
            Summed::new(d_key, query_chunks),
            Summed::new(d_value, query_chunks),
        ];
        let [to_query, to_key, to_value] = sums.each_mut().map(Summed::target);
        let nothing = Shared::new(&mut []);
        (0..tasks)
            .into_par_iter()
            .with_min_len(tasks / TASKS)
            .for_each_init(Task::default, |memory, task| {
                let (group, part) = (task / per_group, task % per_group);
                let (example, head) = (group / attention.heads, group % attention.heads);
                let (key_part, query_part) = (part / query_chunks, part % query_chunks);
                let first_key = self.first_key + key_part * key_chunk;
                let first_query = query_part * query_chunk;
                // The first task of a head takes the rows before the first key as well.
                let first_row = if key_part == 0 { 0 } else { first_key };
                let rows = first_row..attention.keys.min(first_key + key_chunk);
                // SAFETY: a task writes the rows of its queries and its head in the part of its keys, those of its keys and its head in
                // the part of its queries, and no bias. No other task has the same queries, keys and head.
                let mut gradients = unsafe {
                    Gradients {
                        query: to_query.part(key_part, lengths[0]),
                        key: to_key.part(query_part, lengths[1]),
                        value: to_value.part(query_part, lengths[2]),
                        bias: nothing.task(),
                    }
                };
                for row in rows.clone().filter(|row| !self.keeps(example, *row)) {
                    let row = self.key_row(example, row, head);
                    gradients.key.clear_row(row, attention.head_dim);
                    gradients.value.clear_row(row, attention.value_dim);
                }
                let queries = first_query..queries.min(first_query + query_chunk);
                memory.list(&self, [example, head], queries, rows);
                dispatch(Backward {
                    attention,
                    pairs: Plain,
                    outputs,
                    gradients,
                    scratch: &mut memory.scratch,
                    most_queries: attention.queries,
                    queries: &memory.queries,
                    keys: &memory.keys,
                });
            });
        for sum in sums {
            sum.finish();
        }
    }
}
