//! Softmax attention over a dense set of keys, forward and backward: which tasks there are, and where
//! they read and write. What a task does is in `attention_tiles`.

use super::attention_tiles::{
    AttentionInputs, AttentionOutputs, Backward, Forward, Gradients, Plain, QUERIES, Scratch,
    Shared, TASKS, TileDims, add_parts, parts, target,
};
use super::simd::dispatch;
use rayon::prelude::*;
use std::ops::Range;

/// Sizes and scale of one attention.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DenseDims {
    /// Examples.
    pub(crate) batch: usize,
    /// Queries per example.
    pub(crate) queries: usize,
    /// Rows stored in key and value per example.
    pub(crate) rows: usize,
    /// Attended are the rows `first_key..rows`.
    pub(crate) first_key: usize,
    /// Heads.
    pub(crate) heads: usize,
    /// Numbers per query and key, of one head.
    pub(crate) head_dim: usize,
    /// Numbers per value, of one head.
    pub(crate) value_dim: usize,
    /// Factor of the dot products.
    pub(crate) scale: f32,
}

impl DenseDims {
    fn keys(&self) -> usize {
        self.rows - self.first_key
    }

    fn groups(&self) -> usize {
        self.batch * self.heads
    }

    /// Row of one head of a query among all of queries, contexts and totals.
    fn query_row(&self, example: usize, query: usize, head: usize) -> usize {
        (example * self.queries + query) * self.heads + head
    }

    /// Row of one head of a key among all of keys and values.
    fn key_row(&self, example: usize, row: usize, head: usize) -> usize {
        (example * self.rows + row) * self.heads + head
    }

    fn tile_dims(&self) -> TileDims {
        TileDims {
            head_dim: self.head_dim,
            value_dim: self.value_dim,
            scale: self.scale,
            queries: self.queries,
        }
    }

    /// Whether a stored row of keys is attended to.
    fn keeps(&self, mask: Option<&[bool]>, example: usize, row: usize) -> bool {
        row >= self.first_key
            && mask.is_none_or(|mask| !mask[example * self.keys() + row - self.first_key])
    }

    fn check(&self, inputs: &AttentionInputs, mask: Option<&[bool]>) {
        let heads = self.groups();
        assert!(self.first_key <= self.rows);
        assert_eq!(inputs.query.len(), heads * self.queries * self.head_dim);
        assert_eq!(inputs.key.len(), heads * self.rows * self.head_dim);
        assert_eq!(inputs.value.len(), heads * self.rows * self.value_dim);
        if let Some(mask) = mask {
            assert_eq!(mask.len(), self.batch * self.keys());
        }
    }
}

/// Softmax attention of all queries of an example over its keys.
///
/// # Shapes
/// - inputs: see [`AttentionInputs`]; all stored rows are keys
/// - mask: `[batch, rows - first_key]`, `true` = masked out
/// - context: `[batch, queries, heads, value_dim]`
/// - lse: `[batch, queries, heads]`, the logarithm of the sum of `exp(scale * query . key)`
///
/// A query without keys has context 0 and lse 0.
///
/// # Panics
/// Where a slice is not of its shape.
pub(crate) fn forward(
    dims: DenseDims,
    inputs: AttentionInputs,
    mask: Option<&[bool]>,
    context: &mut [f32],
    lse: &mut [f32],
) {
    dims.check(&inputs, mask);
    assert_eq!(context.len(), dims.groups() * dims.queries * dims.value_dim);
    assert_eq!(lse.len(), dims.groups() * dims.queries);
    if lse.is_empty() {
        return;
    }
    let chunk = if dims.groups() * dims.queries.div_ceil(QUERIES) >= TASKS / 2 {
        QUERIES
    } else {
        QUERIES / 4
    };
    let chunks = dims.queries.div_ceil(chunk);
    let context = Shared::new(context);
    let lse = Shared::new(lse);
    (0..dims.groups() * chunks)
        .into_par_iter()
        .with_min_len(dims.groups() * chunks / TASKS)
        .for_each_init(Task::default, |memory, task| {
            let first = task % chunks * chunk;
            let (example, head) = (task / chunks / dims.heads, task / chunks % dims.heads);
            memory.list(
                &dims,
                mask,
                [example, head],
                first..dims.queries.min(first + chunk),
                dims.first_key..dims.rows,
            );
            // SAFETY: a task writes the rows of its queries and its head, and no other task has both.
            let [context, lse] = [&context, &lse].map(|shared| unsafe { shared.task() });
            dispatch(Forward {
                dims: dims.tile_dims(),
                pairs: Plain,
                inputs,
                context,
                lse,
                scratch: &mut memory.scratch,
                queries: &memory.queries,
                keys: &memory.keys,
            });
        });
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
        dims: &DenseDims,
        mask: Option<&[bool]>,
        [example, head]: [usize; 2],
        queries: Range<usize>,
        keys: Range<usize>,
    ) {
        self.queries.clear();
        self.queries
            .extend(queries.map(|query| dims.query_row(example, query, head)));
        self.keys.clear();
        self.keys.extend(
            keys.filter(|row| dims.keeps(mask, example, *row))
                .map(|row| dims.key_row(example, row, head)),
        );
    }
}

/// Gradients of [`forward`] with regard to query, key and value.
///
/// The results are written in full; rows that nothing attends to get 0.
///
/// # Panics
/// Where a slice is not of its shape.
pub(crate) fn backward(
    dims: DenseDims,
    inputs: AttentionInputs,
    mask: Option<&[bool]>,
    outputs: AttentionOutputs,
    [d_query, d_key, d_value]: [&mut [f32]; 3],
) {
    let AttentionInputs { query, key, value } = inputs;
    dims.check(&inputs, mask);
    let rows = dims.groups() * dims.queries;
    assert_eq!(outputs.context.len(), rows * dims.value_dim);
    assert_eq!(outputs.lse.len(), rows);
    assert_eq!(outputs.grad.len(), outputs.context.len());
    assert_eq!(d_query.len(), query.len());
    assert_eq!(d_key.len(), key.len());
    assert_eq!(d_value.len(), value.len());
    if rows == 0 || dims.keys() == 0 {
        d_query.fill(0.0);
        d_key.fill(0.0);
        d_value.fill(0.0);
        return;
    }
    // With few heads the longer axis is cut as well, and the gradients of the other are summed after.
    let want = TASKS.div_ceil(dims.groups());
    let (key_chunks, query_chunks) = if dims.keys() >= dims.queries {
        (want.min(dims.keys().div_ceil(QUERIES)), 1)
    } else {
        (1, want.min(dims.queries.div_ceil(QUERIES)))
    };
    let key_chunk = dims.keys().div_ceil(key_chunks);
    let query_chunk = dims.queries.div_ceil(query_chunks);
    let key_chunks = dims.keys().div_ceil(key_chunk);
    let query_chunks = dims.queries.div_ceil(query_chunk);

    let tasks = key_chunks * query_chunks;
    let mut parts_of_query = parts(key_chunks, d_query.len());
    let mut parts_of_key = parts(query_chunks, d_key.len());
    let mut parts_of_value = parts(query_chunks, d_value.len());
    let to_query = target(d_query, &mut parts_of_query);
    let to_key = target(d_key, &mut parts_of_key);
    let to_value = target(d_value, &mut parts_of_value);
    let nothing = Shared::new(&mut []);
    (0..dims.groups() * tasks)
        .into_par_iter()
        .with_min_len(dims.groups() * tasks / TASKS)
        .for_each_init(Task::default, |memory, task| {
            let (group, part) = (task / tasks, task % tasks);
            let (example, head) = (group / dims.heads, group % dims.heads);
            let (key_part, query_part) = (part / query_chunks, part % query_chunks);
            let first_key = dims.first_key + key_part * key_chunk;
            let first_query = query_part * query_chunk;
            let keys = first_key..dims.rows.min(first_key + key_chunk);
            // SAFETY: a task writes the rows of its queries and its head in the part of its keys, those of its keys and its head in
            // the part of its queries, and no bias. No other task has the same queries, keys and head.
            let mut gradients = unsafe {
                Gradients {
                    query: to_query.part(key_part, query.len()),
                    key: to_key.part(query_part, key.len()),
                    value: to_value.part(query_part, value.len()),
                    bias: nothing.task(),
                }
            };
            memory.list(
                &dims,
                mask,
                [example, head],
                first_query..dims.queries.min(first_query + query_chunk),
                keys.clone(),
            );
            // The first task of a head takes the rows before the first key as well.
            let first_row = match key_part {
                0 => 0,
                _ => keys.start,
            };
            for row in (first_row..keys.end).filter(|row| !dims.keeps(mask, example, *row)) {
                let row = dims.key_row(example, row, head);
                gradients.key.clear_row(row, dims.head_dim);
                gradients.value.clear_row(row, dims.value_dim);
            }
            dispatch(Backward {
                dims: dims.tile_dims(),
                pairs: Plain,
                inputs,
                outputs,
                gradients,
                scratch: &mut memory.scratch,
                queries: &memory.queries,
                keys: &memory.keys,
            });
        });
    add_parts(d_query, &parts_of_query);
    add_parts(d_key, &parts_of_key);
    add_parts(d_value, &parts_of_value);
}

#[cfg(test)]
mod tests {
    use super::super::tests::{numbers, on_threads};
    use super::*;

    struct Case {
        dims: DenseDims,
        query: Vec<f32>,
        key: Vec<f32>,
        value: Vec<f32>,
        mask: Option<Vec<bool>>,
        grad: Vec<f32>,
    }

    /// Context, logarithm of the total, and the gradients of query, key and value.
    type Results<T> = [Vec<T>; 5];

    impl Case {
        fn new([batch, queries, rows, first_key, heads, head_dim, value_dim]: [usize; 7]) -> Self {
            let scale = 3.0 / (head_dim as f32).sqrt();
            let dims = DenseDims {
                batch,
                queries,
                rows,
                first_key,
                heads,
                head_dim,
                value_dim,
                scale,
            };
            Self {
                dims,
                query: numbers(batch * queries * heads * head_dim, 1),
                key: numbers(batch * rows * heads * head_dim, 2),
                value: numbers(batch * rows * heads * value_dim, 3),
                mask: None,
                grad: numbers(batch * queries * heads * value_dim, 4),
            }
        }

        fn masked(mut self, masked_out: impl Fn(usize, usize) -> bool) -> Self {
            let keys = self.dims.keys();
            let all = 0..self.dims.batch * keys;
            self.mask = Some(all.map(|at| masked_out(at / keys, at % keys)).collect());
            self
        }

        fn run(&self) -> Results<f32> {
            let dims = self.dims;
            let mask = self.mask.as_deref();
            let nan = |length| vec![f32::NAN; length];
            let (mut context, mut total) = (
                nan(self.grad.len()),
                nan(dims.batch * dims.queries * dims.heads),
            );
            let inputs = AttentionInputs {
                query: &self.query,
                key: &self.key,
                value: &self.value,
            };
            forward(dims, inputs, mask, &mut context, &mut total);
            let mut gradients = [&self.query, &self.key, &self.value].map(|input| nan(input.len()));
            let outputs = AttentionOutputs {
                context: &context,
                lse: &total,
                grad: &self.grad,
            };
            let targets = gradients.each_mut().map(Vec::as_mut_slice);
            backward(dims, inputs, mask, outputs, targets);
            let [d_query, d_key, d_value] = gradients;
            [context, total, d_query, d_key, d_value]
        }

        /// The definition, in double precision.
        fn exact(&self) -> Results<f64> {
            let dims = self.dims;
            let (width, scale) = (dims.value_dim, f64::from(dims.scale));
            let dot = |a: &[f32], b: &[f32]| -> f64 {
                let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
                products.sum()
            };
            let zero = |length| vec![0.0; length];
            let mut context = zero(self.grad.len());
            let mut lse = zero(dims.batch * dims.queries * dims.heads);
            let [mut d_query, mut d_key, mut d_value] =
                [self.query.len(), self.key.len(), self.value.len()].map(zero);
            for (index, lse) in lse.iter_mut().enumerate() {
                let (row, head) = (index / dims.heads, index % dims.heads);
                let (example, query) = (row / dims.queries, row % dims.queries);
                let at_query = dims.query_row(example, query, head) * dims.head_dim;
                let at_context = dims.query_row(example, query, head) * width;
                let q = &self.query[at_query..at_query + dims.head_dim];
                let grad = &self.grad[at_context..at_context + width];
                let kept: Vec<(usize, usize)> = (0..dims.rows)
                    .filter(|row| dims.keeps(self.mask.as_deref(), example, *row))
                    .map(|row| dims.key_row(example, row, head))
                    .map(|row| (row * dims.head_dim, row * width))
                    .collect();
                let logits: Vec<f64> = kept
                    .iter()
                    .map(|&(key, _)| scale * dot(q, &self.key[key..key + dims.head_dim]))
                    .collect();
                let total: f64 = logits.iter().map(|logit| logit.exp()).sum();
                if !kept.is_empty() {
                    *lse = total.ln();
                }
                let d_weights: Vec<f64> = kept
                    .iter()
                    .map(|&(_, value)| dot(grad, &self.value[value..value + width]))
                    .collect();
                let weights: Vec<f64> = logits.iter().map(|logit| logit.exp() / total).collect();
                let mean: f64 = weights.iter().zip(&d_weights).map(|(w, d)| w * d).sum();
                for (index, &(key, value)) in kept.iter().enumerate() {
                    let d_logit = weights[index] * (d_weights[index] - mean) * scale;
                    for column in 0..width {
                        let number = f64::from(self.value[value + column]);
                        context[at_context + column] += weights[index] * number;
                        d_value[value + column] += weights[index] * f64::from(grad[column]);
                    }
                    for column in 0..dims.head_dim {
                        let number = f64::from(self.key[key + column]);
                        d_query[at_query + column] += d_logit * number;
                        d_key[key + column] += d_logit * f64::from(q[column]);
                    }
                }
            }
            [context, lse, d_query, d_key, d_value]
        }

        fn check(&self) {
            let names = ["context", "lse", "d_query", "d_key", "d_value"];
            for ((name, got), exact) in names.into_iter().zip(self.run()).zip(self.exact()) {
                let greatest = exact
                    .iter()
                    .fold(1.0_f64, |most, number| most.max(number.abs()));
                for (at, (got, exact)) in got.iter().zip(&exact).enumerate() {
                    assert!(
                        (f64::from(*got) - exact).abs() <= 4e-6 * greatest,
                        "{name}[{at}]: expected {exact}, got {got}, {:?}",
                        self.dims
                    );
                }
            }
        }
    }

    #[test]
    fn results_are_those_of_the_definition() {
        // batch, queries, rows, first_key, heads, head_dim, value_dim
        for sizes in [
            [1, 1, 1, 0, 1, 1, 1],
            [2, 3, 5, 2, 2, 3, 5],
            [3, 33, 67, 3, 2, 5, 1],
            [1, 17, 130, 0, 3, 16, 20],
            [1, 70, 33, 1, 1, 40, 33],
        ] {
            Case::new(sizes).check();
            Case::new(sizes)
                .masked(|example, key| (key * 7 + example) % 3 == 1)
                .check();
        }
    }

    #[test]
    fn results_do_not_depend_on_how_the_longer_axis_is_cut() {
        // Few heads: the backward pass sums gradients over chunks of keys, then over chunks of queries.
        Case::new([1, 20, 600, 10, 1, 4, 4]).check();
        Case::new([1, 600, 20, 10, 1, 4, 4]).check();
    }

    #[test]
    fn queries_without_keys_are_zero() {
        let cases = [
            Case::new([2, 5, 3, 3, 2, 4, 3]),
            Case::new([2, 5, 9, 2, 2, 4, 3]).masked(|_, _| true),
        ];
        for case in cases {
            assert!(case.run().iter().flatten().all(|number| *number == 0.0));
        }
        // Beside an example that has keys.
        Case::new([2, 5, 9, 2, 2, 4, 3])
            .masked(|example, _| example == 1)
            .check();
    }

    #[test]
    fn empty_batches_and_empty_queries_are_fine() {
        Case::new([0, 5, 9, 2, 2, 4, 3]).check();
        Case::new([2, 0, 9, 2, 2, 4, 3]).check();
    }

    #[test]
    fn a_single_key_gives_its_logit_no_gradient() {
        let [context, _, d_query, d_key, _] = Case::new([2, 40, 3, 2, 2, 5, 7]).run();
        assert!(context.iter().any(|number| *number != 0.0));
        assert!(d_query.iter().chain(&d_key).all(|number| *number == 0.0));
    }

    #[test]
    fn logits_of_any_size_stay_finite() {
        let mut case = Case::new([1, 20, 150, 0, 1, 8, 8]);
        case.dims.scale = 1e4;
        assert!(case.run().iter().flatten().all(|number| number.is_finite()));
    }

    #[test]
    fn results_do_not_depend_on_the_number_of_threads() {
        for sizes in [
            [3, 70, 67, 3, 2, 5, 3],
            [1, 300, 600, 0, 1, 4, 4],
            [1, 600, 300, 0, 1, 4, 4],
        ] {
            let case = Case::new(sizes);
            let [one, three] = [1, 3].map(|threads| {
                let results = on_threads(threads, || case.run());
                results.map(|numbers| numbers.into_iter().map(f32::to_bits).collect::<Vec<_>>())
            });
            assert!(one == three, "{sizes:?}");
        }
    }
}
