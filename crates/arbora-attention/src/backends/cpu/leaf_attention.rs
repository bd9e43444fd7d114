//! Softmax attention within leaves, forward and backward, and the gradient of candidate gates.
//!
//! Queries and keys are put in the order of their leaves, by counting. A task takes the queries and keys of
//! one leaf, of one example and one head of keys; of a large leaf it takes a part. Work grows with the sum
//! over leaves of queries times keys. Beside results there is the order, a number per query and key, and
//! the tiles of running tasks. What a task does is in `attention_tiles`.

use super::attention_tiles::{
    AttentionInputs, AttentionOutputs, Backward, Dropping, Forward, Gradients, KeyPlace, Pairs,
    QUERIES, QueryPlace, Scratch, Shared, TASKS, TileDims, add_parts, parts, target,
};
use super::simd::dispatch;
use crate::ops::{Dropout, row_state};
use rayon::prelude::*;
use std::ops::Range;

/// Sizes and options of one attention within leaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeafDims {
    /// Examples.
    pub(crate) batch: usize,
    /// Queries per example.
    pub(crate) queries: usize,
    /// Keys per example.
    pub(crate) keys: usize,
    /// Heads of queries.
    pub(crate) heads: usize,
    /// Heads of keys; divides `heads`.
    pub(crate) kv_heads: usize,
    /// Numbers per query and key, of one head.
    pub(crate) head_dim: usize,
    /// Numbers per value, of one head.
    pub(crate) value_dim: usize,
    /// Leaves.
    pub(crate) leaves: usize,
    /// Factor of the dot products.
    pub(crate) scale: f32,
    /// What is added to a query's index to get its position, if attention is causal.
    pub(crate) causal: Option<usize>,
    /// Dropout, at a rate above 0.
    pub(crate) dropout: Option<Dropout>,
}

impl LeafDims {
    /// Pairs of an example and a head of keys.
    fn groups(&self) -> usize {
        self.batch * self.kv_heads
    }

    fn query_rows(&self) -> usize {
        self.batch * self.queries * self.heads
    }

    fn key_rows(&self) -> usize {
        self.batch * self.keys * self.kv_heads
    }

    fn tile_dims(&self, queries: usize) -> TileDims {
        TileDims {
            head_dim: self.head_dim,
            value_dim: self.value_dim,
            scale: self.scale,
            queries,
        }
    }

    fn check(&self, inputs: &LeafInputs) {
        assert!(self.leaves > 0 && self.heads.is_multiple_of(self.kv_heads));
        let AttentionInputs { query, key, value } = inputs.attention;
        assert_eq!(query.len(), self.query_rows() * self.head_dim);
        assert_eq!(key.len(), self.key_rows() * self.head_dim);
        assert_eq!(value.len(), self.key_rows() * self.value_dim);
        assert_eq!(inputs.query_leaf.len(), self.query_rows());
        assert_eq!(inputs.key_leaf.len(), self.key_rows());
    }

    fn check_outputs(&self, outputs: &AttentionOutputs) {
        assert_eq!(outputs.context.len(), self.query_rows() * self.value_dim);
        assert_eq!(outputs.grad.len(), outputs.context.len());
        assert_eq!(outputs.lse.len(), self.query_rows());
    }
}

/// What is attended with and to.
#[derive(Clone, Copy)]
pub(crate) struct LeafInputs<'a> {
    /// Keys have `kv_heads` heads.
    pub(crate) attention: AttentionInputs<'a>,
    /// `[batch, queries, heads]`
    pub(crate) query_leaf: &'a [i64],
    /// `[batch, keys, kv_heads]`
    pub(crate) key_leaf: &'a [i64],
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
    fn new(dims: &LeafDims, inputs: &LeafInputs) -> Self {
        let (kv_heads, leaves) = (dims.kv_heads, dims.leaves);
        Self {
            queries: ByLeaf::new(
                inputs.query_leaf,
                dims.queries,
                dims.heads,
                kv_heads,
                leaves,
            ),
            keys: ByLeaf::new(inputs.key_leaf, dims.keys, kv_heads, kv_heads, leaves),
            groups: dims.groups(),
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
    dims: LeafDims,
    bias: &'a [f32],
    /// What all pairs share of the hash that decides on dropout.
    state: u32,
    dropping: Option<Dropping>,
}

impl<'a, const GATES: bool> WithinLeaf<'a, GATES> {
    fn new(dims: LeafDims, bias: &'a [f32]) -> Self {
        assert!(u32::try_from(dims.keys).is_ok() && u32::try_from(dims.queries).is_ok());
        Self {
            dims,
            bias,
            state: dims.dropout.map_or(0, |dropout| dropout.state()),
            dropping: dims.dropout.map(|dropout| Dropping {
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
        let dims = &self.dims;
        let (query, head) = (row / dims.heads % dims.queries, row % dims.heads);
        let position = match dims.causal {
            None => dims.keys,
            Some(offset) => query.saturating_add(offset).min(dims.keys),
        };
        let state = match self.dropping {
            None => 0,
            Some(_) => {
                let example = row / dims.heads / dims.queries;
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
        KeyPlace {
            position: (row / self.dims.kv_heads % self.dims.keys) as u32,
            bias: self.bias.get(row).copied().unwrap_or(0.0),
        }
    }

    #[inline(always)]
    fn dropping(&self) -> Option<Dropping> {
        self.dropping
    }
}

/// Softmax attention of queries to the keys of their leaf.
///
/// # Shapes
/// - inputs: see [`LeafInputs`]
/// - key_bias: `[batch, keys, kv_heads]`
/// - context: `[batch, queries, heads, value_dim]`
/// - lse: `[batch, queries, heads]`
///
/// A query that sees no key has context 0 and lse `f32::MIN`.
///
/// # Panics
/// Where a slice is not of its shape.
pub(crate) fn forward(
    dims: LeafDims,
    inputs: LeafInputs,
    key_bias: &[f32],
    context: &mut [f32],
    lse: &mut [f32],
) {
    dims.check(&inputs);
    assert_eq!(key_bias.len(), dims.key_rows());
    assert_eq!(context.len(), dims.query_rows() * dims.value_dim);
    assert_eq!(lse.len(), dims.query_rows());
    let leaves = Leaves::new(&dims, &inputs);
    let most = leaves.most_queries();
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
    let pairs = WithinLeaf::<false>::new(dims, key_bias);
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
                dims: dims.tile_dims(most),
                pairs,
                inputs: inputs.attention,
                context,
                lse,
                scratch,
                queries: &queries[*first..queries.len().min(first + chunk)],
                keys: leaves.seen(*leaf),
            });
        });
}

/// Gradients of [`forward`] with regard to query, key, value and key bias.
///
/// The results are written in full; masked rows get 0.
///
/// # Panics
/// Where a slice is not of its shape.
pub(crate) fn backward(
    dims: LeafDims,
    inputs: LeafInputs,
    key_bias: &[f32],
    outputs: AttentionOutputs,
    [d_query, d_key, d_value, d_bias]: [&mut [f32]; 4],
) {
    dims.check(&inputs);
    assert_eq!(key_bias.len(), dims.key_rows());
    dims.check_outputs(&outputs);
    assert_eq!(d_query.len(), inputs.attention.query.len());
    assert_eq!(d_key.len(), inputs.attention.key.len());
    assert_eq!(d_value.len(), inputs.attention.value.len());
    assert_eq!(d_bias.len(), key_bias.len());
    let leaves = Leaves::new(&dims, &inputs);
    let most = leaves.most_queries();
    // Each part has gradients of queries of its own, which are summed after: with many groups there is
    // work for all without so much memory.
    let tasks = leaves.key_parts(TASKS.div_ceil(dims.groups().max(1)));
    let key_parts = tasks.iter().map(|task| task.part + 1).max().unwrap_or(1);
    let mut parts_of_query = parts(key_parts, d_query.len());
    let to_query = target(d_query, &mut parts_of_query);
    let [to_key, to_value, to_bias] = [d_key, d_value, d_bias].map(Shared::new);
    tasks
        .par_iter()
        .with_min_len(tasks.len() / TASKS)
        .for_each_init(Scratch::default, |scratch, task| {
            let queries = leaves.queries(task.leaf);
            let seen = &leaves.keys.rows(task.leaf[0], task.leaf[1])[task.keys.clone()];
            // SAFETY: a task writes the rows of its keys, which are no other task's: each row is in one leaf of one group, whose keys
            // are cut into parts. It writes the rows of all queries of its leaf, in the array of its part.
            let mut gradients = unsafe {
                Gradients {
                    query: to_query.part(task.part, inputs.attention.query.len()),
                    key: to_key.task(),
                    value: to_value.task(),
                    bias: to_bias.task(),
                }
            };
            let without_leaf = task.leaf[1] == dims.leaves;
            if without_leaf || queries.is_empty() || seen.is_empty() {
                for row in queries {
                    gradients.query.clear_row(*row, dims.head_dim);
                }
                for row in seen {
                    gradients.key.clear_row(*row, dims.head_dim);
                    gradients.value.clear_row(*row, dims.value_dim);
                    gradients.bias.clear_row(*row, 1);
                }
                return;
            }
            dispatch(Backward {
                dims: dims.tile_dims(most),
                pairs: WithinLeaf::<false>::new(dims, key_bias),
                inputs: inputs.attention,
                outputs,
                gradients,
                scratch,
                queries,
                keys: seen,
            });
        });
    add_parts(d_query, &parts_of_query);
}

/// The gradient of candidate gates, `[batch, keys, kv_heads]`; the leaves of keys are their candidates.
///
/// # Panics
/// Where a slice is not of its shape.
pub(crate) fn candidate_gates(
    dims: LeafDims,
    inputs: LeafInputs,
    outputs: AttentionOutputs,
    d_gate: &mut [f32],
) {
    dims.check(&inputs);
    dims.check_outputs(&outputs);
    assert_eq!(d_gate.len(), dims.key_rows());
    let dims = LeafDims {
        dropout: None,
        ..dims
    };
    let leaves = Leaves::new(&dims, &inputs);
    let most = leaves.most_queries();
    let tasks = leaves.key_parts(TASKS);
    let d_gate = Shared::new(d_gate);
    // Queries, keys and values get no gradient.
    let nothing = Shared::new(&mut []);
    tasks
        .par_iter()
        .with_min_len(tasks.len() / TASKS)
        .for_each_init(Scratch::default, |scratch, task| {
            let queries = leaves.queries(task.leaf);
            let seen = &leaves.keys.rows(task.leaf[0], task.leaf[1])[task.keys.clone()];
            // SAFETY: a task writes the rows of its keys, which are no other task's, as in `backward`, and no others.
            let mut gradients = unsafe {
                Gradients {
                    query: nothing.task(),
                    key: nothing.task(),
                    value: nothing.task(),
                    bias: d_gate.task(),
                }
            };
            if task.leaf[1] == dims.leaves || queries.is_empty() {
                for row in seen {
                    gradients.bias.clear_row(*row, 1);
                }
                return;
            }
            dispatch(Backward {
                dims: dims.tile_dims(most),
                pairs: WithinLeaf::<true>::new(dims, &[]),
                inputs: inputs.attention,
                outputs,
                gradients,
                scratch,
                queries,
                keys: seen,
            });
        });
}

#[cfg(test)]
mod tests {
    use super::super::dense_attention::{self, DenseDims};
    use super::super::tests::{numbers, on_threads};
    use super::*;

    struct Case {
        dims: LeafDims,
        query: Vec<f32>,
        key: Vec<f32>,
        value: Vec<f32>,
        bias: Vec<f32>,
        query_leaf: Vec<i64>,
        key_leaf: Vec<i64>,
        grad: Vec<f32>,
    }

    impl Case {
        /// Leaves by `leaf`, a function of numbers in 0..1.
        fn new(dims: LeafDims, leaf: impl Fn(f32) -> i64) -> Self {
            let leaves = |length, seed| -> Vec<i64> {
                let numbers = numbers(length, seed).into_iter();
                numbers.map(|number| leaf(0.5 + 0.5 * number)).collect()
            };
            Self {
                dims,
                query: numbers(dims.query_rows() * dims.head_dim, 1),
                key: numbers(dims.key_rows() * dims.head_dim, 2),
                value: numbers(dims.key_rows() * dims.value_dim, 3),
                bias: numbers(dims.key_rows(), 4),
                query_leaf: leaves(dims.query_rows(), 5),
                key_leaf: leaves(dims.key_rows(), 6),
                grad: numbers(dims.query_rows() * dims.value_dim, 7),
            }
        }

        /// Context, logarithm of the total, the gradients of query, key, value and bias, and that of gates.
        fn run(&self) -> [Vec<f32>; 7] {
            let dims = self.dims;
            let nan = |length| vec![f32::NAN; length];
            let inputs = LeafInputs {
                attention: AttentionInputs {
                    query: &self.query,
                    key: &self.key,
                    value: &self.value,
                },
                query_leaf: &self.query_leaf,
                key_leaf: &self.key_leaf,
            };
            let mut context = nan(self.grad.len());
            let mut lse = nan(dims.query_rows());
            forward(dims, inputs, &self.bias, &mut context, &mut lse);
            let outputs = AttentionOutputs {
                context: &context,
                lse: &lse,
                grad: &self.grad,
            };
            let mut gradients =
                [&self.query, &self.key, &self.value, &self.bias].map(|input| nan(input.len()));
            let targets = gradients.each_mut().map(|gradient| gradient.as_mut_slice());
            backward(dims, inputs, &self.bias, outputs, targets);
            let mut gates = nan(self.bias.len());
            candidate_gates(dims, inputs, outputs, &mut gates);
            let [query, key, value, bias] = gradients;
            [context, lse, query, key, value, bias, gates]
        }
    }

    const DIMS: LeafDims = LeafDims {
        batch: 1,
        queries: 300,
        keys: 700,
        heads: 2,
        kv_heads: 1,
        head_dim: 5,
        value_dim: 7,
        leaves: 3,
        scale: 0.9,
        causal: Some(350),
        dropout: Some(Dropout { rate: 0.3, seed: 1 }),
    };

    #[test]
    fn one_leaf_cut_into_parts_is_dense_attention() {
        let dims = LeafDims {
            heads: 1,
            leaves: 1,
            causal: None,
            dropout: None,
            ..DIMS
        };
        let mut case = Case::new(dims, |_| 0);
        case.bias.fill(0.0);
        let got = case.run();
        let dense = DenseDims {
            batch: 1,
            queries: dims.queries,
            rows: dims.keys,
            first_key: 0,
            heads: 1,
            head_dim: dims.head_dim,
            value_dim: dims.value_dim,
            scale: dims.scale,
        };
        let inputs = AttentionInputs {
            query: &case.query,
            key: &case.key,
            value: &case.value,
        };
        let (mut context, mut total) = (vec![0.0; case.grad.len()], vec![0.0; dims.query_rows()]);
        dense_attention::forward(dense, inputs, None, &mut context, &mut total);
        let mut gradients =
            [&case.query, &case.key, &case.value].map(|input| vec![0.0; input.len()]);
        let outputs = AttentionOutputs {
            context: &context,
            lse: &total,
            grad: &case.grad,
        };
        let targets = gradients.each_mut().map(Vec::as_mut_slice);
        dense_attention::backward(dense, inputs, None, outputs, targets);
        let [d_query, d_key, d_value] = gradients;
        let expected = [context, total, d_query, d_key, d_value];
        for (index, (got, expected)) in got.iter().zip(&expected).enumerate() {
            for (got, expected) in got.iter().zip(expected) {
                assert!(
                    (got - expected).abs() < 1e-5,
                    "{index}: {got}, expected {expected}"
                );
            }
        }
    }

    #[test]
    fn results_do_not_depend_on_the_number_of_threads() {
        // Skewed: most rows share a leaf, some have none, and one leaf is empty.
        let case = Case::new(DIMS, |number| match number {
            0.0..0.1 => -1,
            0.1..0.2 => 2,
            _ => 0,
        });
        let [one, three] = [1, 3].map(|threads| {
            let results = on_threads(threads, || case.run());
            results.map(|numbers| numbers.into_iter().map(f32::to_bits).collect::<Vec<_>>())
        });
        assert!(one == three);
    }

    #[test]
    fn everything_is_written_whatever_the_leaves() {
        for queries_leaf in [-1, 0, 3] {
            for keys_leaf in [-1, 0, 1, 3] {
                let mut case = Case::new(LeafDims { batch: 2, ..DIMS }, |_| 0);
                case.query_leaf.fill(queries_leaf);
                case.key_leaf.fill(keys_leaf);
                assert!(case.run().iter().flatten().all(|number| number.is_finite()));
            }
        }
    }

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
