//! Attention within leaves, its gradients and those of candidate gates, without a matrix of scores in
//! memory.
//!
//! First the rows of each leaf are listed: a unit owns one leaf of one example and head of keys, and reads
//! all leaves of that group. Then, forward and in the gradient of queries, a unit owns one head of a query
//! and reads the keys of its leaf in their order; in the gradients of keys it owns one head of a key and
//! reads the queries of its leaf. Units side by side own neighbours of one leaf, so that they read the same
//! rows at the same time. Beside results there are two numbers per row in the lists, two per leaf, and
//! two per query for gradients.

// Kernels have no slices to iterate over, conditions known at compile time stay apart from the others, and
// assigning operators are not in the language of kernels for every type.
#![allow(
    clippy::needless_range_loop,
    clippy::collapsible_if,
    clippy::assign_op_pattern
)]

use super::tree_search::position_of;
use super::{element, empty, grid, into_contiguous, shapes, vector_size};
use crate::functions::check::Axes;
use crate::ops::reference::{MASKED_LOGIT, SMALLEST_TOTAL};
use crate::ops::{
    AttentionOutput, CandidateInputs, LeafAttentionGradients, LeafAttentionInputs,
    LeafAttentionOptions,
};
use burn::backend::ops::FloatTensorOps;
use burn::backend::{Slice, TensorMetadata};
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

const MASKED: f32 = MASKED_LOGIT as f32;
const SMALLEST: f32 = SMALLEST_TOTAL as f32;

/// The logarithm of the total of a query that sees no key.
const NO_KEYS: f32 = f32::MIN;

/// Queries or keys, for a kernel.
#[derive(CubeType, CubeLaunch)]
struct Side {
    /// Rows of an example.
    positions: usize,
    heads: usize,
    kv_heads: usize,
    leaves: usize,
    /// Rows of all examples and heads.
    rows: usize,
    /// Where its lists start.
    first: usize,
    units: usize,
}

/// Sizes of attention within leaves, for a kernel.
#[derive(CubeType, CubeLaunch)]
struct Sizes {
    queries: usize,
    keys: usize,
    heads: usize,
    kv_heads: usize,
    leaves: usize,
    /// Queries of all examples and heads.
    query_rows: usize,
    /// Keys of all examples and heads.
    key_rows: usize,
    /// What is added to a query's index to get the last key that it may see.
    offset: usize,
    scale: f32,
    /// What all pairs share of the hash that decides on dropout.
    state: u32,
    threshold: u32,
    /// Factor of the weights that stay.
    factor: f32,
    units: usize,
}

/// Lists the rows of a leaf. The lists of a side are: its rows in the order of their leaves, the leaf of
/// each of those, and where each leaf of each group starts and ends. Rows without a leaf come behind the
/// last one.
#[cube(launch_unchecked)]
fn list_kernel<I: Numeric>(
    leaf: &[I],
    lists: &mut [u32],
    side: &Side,
    #[define(I)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= side.units {
        terminate!();
    }
    let buckets = side.leaves + 1;
    let (group, mine) = (ABSOLUTE_POS / buckets, ABSOLUTE_POS % buckets);
    let share = side.heads / side.kv_heads;
    let per_group = side.positions * share;
    let base = group / side.kv_heads * side.positions * side.heads + group % side.kv_heads * share;
    let mut slot = group * per_group;
    for at in 0..per_group {
        let row = base + at / share * side.heads + at % share;
        if bucket_of::<I>(leaf[row], side.leaves) < mine {
            slot += 1;
        }
    }
    let bounds = side.first + 2 * side.rows + 2 * ABSOLUTE_POS;
    lists[bounds] = u32::cast_from(slot);
    for at in 0..per_group {
        let row = base + at / share * side.heads + at % share;
        if bucket_of::<I>(leaf[row], side.leaves) == mine {
            lists[side.first + slot] = u32::cast_from(row);
            lists[side.first + side.rows + slot] = u32::cast_from(mine);
            slot += 1;
        }
    }
    lists[bounds + 1] = u32::cast_from(slot);
}

/// The leaf, or the number of leaves for a row without one.
#[cube]
fn bucket_of<I: Numeric>(leaf: I, leaves: usize) -> usize {
    let mut bucket = leaves;
    if leaf >= I::from_int(0) {
        let number = position_of::<I>(leaf);
        if number < leaves {
            bucket = number;
        }
    }
    bucket
}

/// The row that a unit owns, and those of the other side in the same leaf.
#[derive(CubeType)]
struct Owned {
    row: usize,
    /// Its index among the rows of its example.
    position: usize,
    /// Where the others are listed.
    first: usize,
    end: usize,
}

#[cube]
impl Owned {
    fn query(lists: &[u32], sizes: &Sizes, slot: usize) -> Owned {
        let row = usize::cast_from(lists[slot]);
        let leaf = usize::cast_from(lists[sizes.query_rows + slot]);
        let per_group = sizes.queries * (sizes.heads / sizes.kv_heads);
        let buckets = sizes.leaves + 1;
        let groups = sizes.query_rows / per_group;
        let keys = 2 * sizes.query_rows + 2 * groups * buckets;
        let bounds = keys + 2 * sizes.key_rows + 2 * (slot / per_group * buckets + leaf);
        // A query without a leaf sees no key.
        let listed = select(leaf < sizes.leaves, 1usize, 0usize);
        let first = usize::cast_from(lists[bounds]);
        let count = (usize::cast_from(lists[bounds + 1]) - first) * listed;
        Owned {
            row,
            position: row / sizes.heads % sizes.queries,
            first: keys + first,
            end: keys + first + count,
        }
    }

    fn key(lists: &[u32], sizes: &Sizes, slot: usize) -> Owned {
        let per_group = sizes.keys;
        let buckets = sizes.leaves + 1;
        let groups = sizes.key_rows / per_group;
        let keys = 2 * sizes.query_rows + 2 * groups * buckets;
        let row = usize::cast_from(lists[keys + slot]);
        let leaf = usize::cast_from(lists[keys + sizes.key_rows + slot]);
        let bounds = 2 * sizes.query_rows + 2 * (slot / per_group * buckets + leaf);
        let listed = select(leaf < sizes.leaves, 1usize, 0usize);
        let first = usize::cast_from(lists[bounds]);
        let count = (usize::cast_from(lists[bounds + 1]) - first) * listed;
        Owned {
            row,
            position: row / sizes.kv_heads % sizes.keys,
            first,
            end: first + count,
        }
    }
}

#[cube]
fn load<N: Size>(
    memory: &[Vector<f32, N>],
    row: usize,
    #[comptime] width: usize,
) -> Array<Vector<f32, N>> {
    let mut loaded = Array::<Vector<f32, N>>::new(width);
    #[unroll]
    for i in 0..width {
        loaded[i] = memory[row * width + i];
    }
    loaded
}

#[cube]
fn zeros<N: Size>(#[comptime] width: usize) -> Array<Vector<f32, N>> {
    let mut row = Array::<Vector<f32, N>>::new(width);
    #[unroll]
    for i in 0..width {
        row[i] = Vector::new(0.0f32);
    }
    row
}

/// The dot product of a row in registers and one in memory.
#[cube]
fn dot<N: Size>(
    row: &Array<Vector<f32, N>>,
    memory: &[Vector<f32, N>],
    at: usize,
    #[comptime] width: usize,
) -> f32 {
    let mut sum = Vector::<f32, N>::new(0.0f32);
    #[unroll]
    for i in 0..width {
        sum += row[i] * memory[at * width + i];
    }
    sum.vector_sum()
}

/// `row += factor * memory[at]`
#[cube]
fn add<N: Size>(
    row: &mut Array<Vector<f32, N>>,
    factor: f32,
    memory: &[Vector<f32, N>],
    at: usize,
    #[comptime] width: usize,
) {
    #[unroll]
    for i in 0..width {
        row[i] += Vector::<f32, N>::new(factor) * memory[at * width + i];
    }
}

#[cube]
fn store<N: Size>(
    memory: &mut [Vector<f32, N>],
    at: usize,
    row: &Array<Vector<f32, N>>,
    factor: f32,
    #[comptime] width: usize,
) {
    #[unroll]
    for i in 0..width {
        memory[at * width + i] = Vector::<f32, N>::new(factor) * row[i];
    }
}

/// As `step` of the operator's dropout.
#[cube]
fn step(state: u32, word: u32) -> u32 {
    let mut mixed = (state + 0x9e37_79b9u32) ^ word;
    mixed = mixed ^ (mixed >> 16u32);
    mixed = mixed * 0x7feb_352du32;
    mixed = mixed ^ (mixed >> 15u32);
    mixed = mixed * 0x846c_a68bu32;
    mixed ^ (mixed >> 16u32)
}

/// What the pairs of a query share.
#[cube]
fn row_state(sizes: &Sizes, row: usize) -> u32 {
    let example = row / sizes.heads / sizes.queries;
    let of_example = step(sizes.state, u32::cast_from(example));
    let of_head = step(of_example, u32::cast_from(row % sizes.heads));
    step(of_head, u32::cast_from(row / sizes.heads % sizes.queries))
}

/// The factor of a weight.
#[cube]
fn kept(sizes: &Sizes, state: u32, key: usize) -> f32 {
    let mut factor = 0.0f32;
    if step(state, u32::cast_from(key)) >= sizes.threshold {
        factor = sizes.factor;
    }
    factor
}

#[cube(launch_unchecked)]
fn forward_kernel<N: Size>(
    query: &[Vector<f32, N>],
    key: &[Vector<f32, N>],
    value: &[Vector<f32, N>],
    key_bias: &[f32],
    lists: &[u32],
    context: &mut [Vector<f32, N>],
    lse: &mut [f32],
    sizes: &Sizes,
    #[comptime] causal: bool,
    #[comptime] dropping: bool,
    #[comptime] key_vectors: usize,
    #[comptime] value_vectors: usize,
) {
    if ABSOLUTE_POS >= sizes.units {
        terminate!();
    }
    let owned = Owned::query(lists, sizes, ABSOLUTE_POS);
    let row = load::<N>(query, owned.row, key_vectors);
    let mut sums = zeros::<N>(value_vectors);
    let mut greatest = f32::new(MASKED);
    let mut total = 0.0f32;
    let last = owned.position + sizes.offset;
    let mut state = 0u32;
    if comptime![dropping] {
        state = row_state(sizes, owned.row);
    }
    for at in owned.first..owned.end {
        let key_row = usize::cast_from(lists[at]);
        let key_at = key_row / sizes.kv_heads % sizes.keys;
        // Keys of a leaf are listed in their order: none behind this one is seen either.
        if comptime![causal] {
            if key_at > last {
                break;
            }
        }
        let product = dot::<N>(&row, key, key_row, key_vectors);
        let logit = product * sizes.scale + key_bias[key_row];
        if logit > greatest {
            let shrink = (greatest - logit).exp();
            total *= shrink;
            #[unroll]
            for i in 0..value_vectors {
                sums[i] *= Vector::<f32, N>::new(shrink);
            }
            greatest = logit;
        }
        let mut weight = (logit - greatest).exp();
        total += weight;
        if comptime![dropping] {
            weight *= kept(sizes, state, key_at);
        }
        add::<N>(&mut sums, weight, value, key_row, value_vectors);
    }
    let mut logarithm = f32::new(NO_KEYS);
    if total > 0.0f32 {
        logarithm = total.ln() + greatest;
    }
    lse[owned.row] = logarithm;
    // A query without keys has total 0; any positive divisor leaves it at 0.
    let inverse = 1.0f32 / total.max(SMALLEST);
    store::<N>(context, owned.row, &sums, inverse, value_vectors);
}

/// What the gradients need: of one head of a query the logarithm of its total, and the product of its
/// context and that gradient; behind those of all queries, the biases of keys, over which their
/// gradients are written. Kernels would compute it on the way, but with more buffers, and WebGPU promises
/// eight.
#[cube(launch_unchecked)]
fn statistics_kernel<N: Size>(
    context: &[Vector<f32, N>],
    lse: &[f32],
    grad: &[Vector<f32, N>],
    key_bias: &[f32],
    statistics: &mut [f32],
    query_rows: usize,
    key_rows: usize,
    #[comptime] value_vectors: usize,
) {
    let unit = ABSOLUTE_POS;
    if unit < query_rows {
        let mut mean = Vector::<f32, N>::new(0.0f32);
        #[unroll]
        for i in 0..value_vectors {
            mean += grad[unit * value_vectors + i] * context[unit * value_vectors + i];
        }
        statistics[unit * 2] = lse[unit];
        statistics[unit * 2 + 1] = mean.vector_sum();
    }
    if unit < key_rows {
        statistics[query_rows * 2 + unit] = key_bias[unit];
    }
}

/// Gradients of queries.
#[cube(launch_unchecked)]
fn backward_query_kernel<N: Size>(
    query: &[Vector<f32, N>],
    key: &[Vector<f32, N>],
    value: &[Vector<f32, N>],
    lists: &[u32],
    grad: &[Vector<f32, N>],
    statistics: &[f32],
    d_query: &mut [Vector<f32, N>],
    sizes: &Sizes,
    #[comptime] causal: bool,
    #[comptime] dropping: bool,
    #[comptime] key_vectors: usize,
    #[comptime] value_vectors: usize,
) {
    if ABSOLUTE_POS >= sizes.units {
        terminate!();
    }
    let owned = Owned::query(lists, sizes, ABSOLUTE_POS);
    let row = load::<N>(query, owned.row, key_vectors);
    let of_context = load::<N>(grad, owned.row, value_vectors);
    let mut sums = zeros::<N>(key_vectors);
    let logarithm = statistics[owned.row * 2];
    let mean = statistics[owned.row * 2 + 1];
    let last = owned.position + sizes.offset;
    let mut state = 0u32;
    if comptime![dropping] {
        state = row_state(sizes, owned.row);
    }
    for at in owned.first..owned.end {
        let key_row = usize::cast_from(lists[at]);
        let key_at = key_row / sizes.kv_heads % sizes.keys;
        if comptime![causal] {
            if key_at > last {
                break;
            }
        }
        let bias = statistics[sizes.query_rows * 2 + key_row];
        let product = dot::<N>(&row, key, key_row, key_vectors);
        let mut of_weight = dot::<N>(&of_context, value, key_row, value_vectors);
        if comptime![dropping] {
            of_weight *= kept(sizes, state, key_at);
        }
        let weight = (product * sizes.scale + bias - logarithm).exp();
        let score = weight * (of_weight - mean) * sizes.scale;
        add::<N>(&mut sums, score, key, key_row, key_vectors);
    }
    store::<N>(d_query, owned.row, &sums, 1.0f32, key_vectors);
}

/// Gradients of keys and values, and, in place of the biases, those of biases; zero for rows that take no
/// part.
#[cube(launch_unchecked)]
fn backward_key_kernel<N: Size>(
    query: &[Vector<f32, N>],
    key: &[Vector<f32, N>],
    value: &[Vector<f32, N>],
    lists: &[u32],
    grad: &[Vector<f32, N>],
    statistics: &mut [f32],
    d_key: &mut [Vector<f32, N>],
    d_value: &mut [Vector<f32, N>],
    sizes: &Sizes,
    #[comptime] causal: bool,
    #[comptime] dropping: bool,
    #[comptime] key_vectors: usize,
    #[comptime] value_vectors: usize,
) {
    if ABSOLUTE_POS >= sizes.units {
        terminate!();
    }
    let owned = Owned::key(lists, sizes, ABSOLUTE_POS);
    let of_logit = load::<N>(key, owned.row, key_vectors);
    let of_context = load::<N>(value, owned.row, value_vectors);
    let mut key_sums = zeros::<N>(key_vectors);
    let mut value_sums = zeros::<N>(value_vectors);
    let mut bias_sum = 0.0f32;
    let bias = statistics[sizes.query_rows * 2 + owned.row];
    for at in owned.first..owned.end {
        let query_row = usize::cast_from(lists[at]);
        let mut seen = true;
        if comptime![causal] {
            seen = owned.position <= query_row / sizes.heads % sizes.queries + sizes.offset;
        }
        if seen {
            let logarithm = statistics[query_row * 2];
            let mean = statistics[query_row * 2 + 1];
            let product = dot::<N>(&of_logit, query, query_row, key_vectors);
            let mut of_weight = dot::<N>(&of_context, grad, query_row, value_vectors);
            let weight = (product * sizes.scale + bias - logarithm).exp();
            let mut share = weight;
            if comptime![dropping] {
                let factor = kept(sizes, row_state(sizes, query_row), owned.position);
                of_weight *= factor;
                share *= factor;
            }
            let score = weight * (of_weight - mean);
            bias_sum += score;
            add::<N>(
                &mut key_sums,
                score * sizes.scale,
                query,
                query_row,
                key_vectors,
            );
            add::<N>(&mut value_sums, share, grad, query_row, value_vectors);
        }
    }
    store::<N>(d_key, owned.row, &key_sums, 1.0f32, key_vectors);
    store::<N>(d_value, owned.row, &value_sums, 1.0f32, value_vectors);
    statistics[sizes.query_rows * 2 + owned.row] = bias_sum;
}

/// Gradients of gates; the leaves of keys are their candidates.
#[cube(launch_unchecked)]
fn gate_kernel<N: Size>(
    query: &[Vector<f32, N>],
    key: &[Vector<f32, N>],
    value: &[Vector<f32, N>],
    lists: &[u32],
    grad: &[Vector<f32, N>],
    statistics: &[f32],
    d_gate: &mut [f32],
    sizes: &Sizes,
    #[comptime] causal: bool,
    #[comptime] key_vectors: usize,
    #[comptime] value_vectors: usize,
) {
    if ABSOLUTE_POS >= sizes.units {
        terminate!();
    }
    let owned = Owned::key(lists, sizes, ABSOLUTE_POS);
    let of_logit = load::<N>(key, owned.row, key_vectors);
    let of_context = load::<N>(value, owned.row, value_vectors);
    let mut sum = 0.0f32;
    for at in owned.first..owned.end {
        let query_row = usize::cast_from(lists[at]);
        let mut seen = true;
        if comptime![causal] {
            seen = owned.position <= query_row / sizes.heads % sizes.queries + sizes.offset;
        }
        if seen {
            let product = dot::<N>(&of_logit, query, query_row, key_vectors);
            let of_weight = dot::<N>(&of_context, grad, query_row, value_vectors);
            // Past 80 nothing changes that single precision can tell from 1.
            let logit = (product * sizes.scale - statistics[query_row * 2])
                .max(f32::new(-80.0))
                .min(f32::new(80.0));
            let weight = 1.0f32 / (1.0f32 + (f32::new(0.0) - logit).exp());
            sum += weight * (of_weight - statistics[query_row * 2 + 1]);
        }
    }
    d_gate[owned.row] = sum;
}

struct Problem {
    batch: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    value_dim: usize,
    options: LeafAttentionOptions,
    axes: Axes,
    lists: CubeTensor,
}

impl Problem {
    fn new(
        [query, key, value]: [&CubeTensor; 3],
        [query_leaf, key_leaf]: [CubeTensor; 2],
        options: LeafAttentionOptions,
    ) -> Self {
        let axes = shapes::leaf_attention([
            &query.shape(),
            &key.shape(),
            &value.shape(),
            &query_leaf.shape(),
            &key_leaf.shape(),
        ]);
        let [batch, queries, heads, head_dim] = query.shape().dims();
        let [_, keys, kv_heads, value_dim] = value.shape().dims();
        let bounds = 2 * batch * kv_heads * (options.leaves + 1);
        let rows = batch * (queries * heads + keys * kv_heads);
        let problem = Self {
            batch,
            queries,
            keys,
            heads,
            kv_heads,
            head_dim,
            value_dim,
            options,
            axes,
            lists: empty(query, [2 * rows + 2 * bounds], DType::U32),
        };
        problem.list(query_leaf, queries, heads, 0);
        let first = 2 * problem.query_rows() + bounds;
        problem.list(key_leaf, keys, kv_heads, first);
        problem
    }

    fn check_bias(&self, key_bias: &CubeTensor) {
        let shape = key_bias.shape();
        self.axes
            .expect("key_bias", "batch, keys, kv_heads", &shape);
    }

    fn list(&self, leaf: CubeTensor, positions: usize, heads: usize, first: usize) {
        let leaf = into_contiguous(leaf);
        let units = self.batch * self.kv_heads * (self.options.leaves + 1);
        let (count, dim) = grid(&leaf, units);
        let dtype = element(&leaf);
        let side = SideLaunch::new(
            positions,
            heads,
            self.kv_heads,
            self.options.leaves,
            self.batch * positions * heads,
            first,
            units,
        );
        let client = leaf.client.clone();
        // SAFETY: a unit writes the bounds of its own leaf and group, and as many rows as that leaf has, behind those of the leaves
        // before it: all leaves of a group have its rows together. A number that is no leaf counts as none (`bucket_of`).
        unsafe {
            list_kernel::launch_unchecked(
                &client,
                count,
                dim,
                leaf.into_buffer_arg(),
                self.lists.clone().into_buffer_arg(),
                side,
                dtype,
            );
        }
    }

    fn query_rows(&self) -> usize {
        self.batch * self.queries * self.heads
    }

    fn key_rows(&self) -> usize {
        self.batch * self.keys * self.kv_heads
    }

    fn vector(&self) -> usize {
        vector_size(&[self.head_dim, self.value_dim])
    }

    fn causal(&self) -> bool {
        self.options.causal.is_some()
    }

    fn dropping(&self) -> bool {
        self.options.dropping().is_some()
    }

    fn sizes(&self, units: usize) -> SizesLaunch {
        let dropout = self.options.dropping();
        SizesLaunch::new(
            self.queries,
            self.keys,
            self.heads,
            self.kv_heads,
            self.options.leaves,
            self.query_rows(),
            self.key_rows(),
            self.options.causal.unwrap_or(0).min(self.keys),
            self.options.scale(self.head_dim) as f32,
            dropout.map_or(0, |dropout| dropout.state()),
            dropout.map_or(0, |dropout| dropout.threshold()),
            dropout.map_or(1.0, |dropout| dropout.factor() as f32),
            units,
        )
    }

    /// See [`statistics_kernel`].
    fn statistics(
        &self,
        context: CubeTensor,
        lse: CubeTensor,
        grad: &CubeTensor,
        key_bias: Option<CubeTensor>,
    ) -> CubeTensor {
        let attended = [&context.shape(), &lse.shape(), &grad.shape()];
        shapes::attended(&self.axes, attended);
        let (query_rows, key_rows) = match key_bias {
            Some(_) => (self.query_rows(), self.key_rows()),
            None => (self.query_rows(), 0),
        };
        let statistics = empty(grad, [2 * query_rows + key_rows], DType::F32);
        let (count, dim) = grid(grad, query_rows.max(key_rows));
        let vector = self.vector();
        // Never read where there are none.
        let key_bias = key_bias.unwrap_or_else(|| lse.clone());
        // SAFETY: a unit writes the numbers of its own query and of its own key. Shapes are checked above and, of the bias, by who
        // calls.
        unsafe {
            statistics_kernel::launch_unchecked(
                &grad.client,
                count,
                dim,
                vector,
                context.into_buffer_arg(),
                lse.into_buffer_arg(),
                grad.clone().into_buffer_arg(),
                key_bias.into_buffer_arg(),
                statistics.clone().into_buffer_arg(),
                query_rows,
                key_rows,
                self.value_dim / vector,
            );
        }
        statistics
    }
}

pub(super) fn attend(
    inputs: LeafAttentionInputs<CubeBackend>,
    options: LeafAttentionOptions,
) -> AttentionOutput<CubeBackend> {
    let floats = [inputs.query, inputs.key, inputs.value, inputs.key_bias];
    let [query, key, value, key_bias] = floats.map(into_contiguous);
    let leaves = [inputs.query_leaf, inputs.key_leaf];
    let problem = Problem::new([&query, &key, &value], leaves, options);
    problem.check_bias(&key_bias);
    let (batch, queries, heads) = (problem.batch, problem.queries, problem.heads);
    let context = empty(
        &query,
        [batch, queries, heads, problem.value_dim],
        DType::F32,
    );
    let lse = empty(&query, [batch, queries, heads], DType::F32);
    let units = problem.query_rows();
    let vector = problem.vector();
    let (count, dim) = grid(&query, units);
    // SAFETY: a unit writes the query and head that the lists have at its place; there each stands once. They hold rows and bounds
    // that `list_kernel` wrote, all of them.
    unsafe {
        forward_kernel::launch_unchecked(
            &query.client,
            count,
            dim,
            vector,
            query.clone().into_buffer_arg(),
            key.into_buffer_arg(),
            value.into_buffer_arg(),
            key_bias.into_buffer_arg(),
            problem.lists.clone().into_buffer_arg(),
            context.clone().into_buffer_arg(),
            lse.clone().into_buffer_arg(),
            problem.sizes(units),
            problem.causal(),
            problem.dropping(),
            problem.head_dim / vector,
            problem.value_dim / vector,
        );
    }
    AttentionOutput { context, lse }
}

pub(super) fn backward(
    inputs: LeafAttentionInputs<CubeBackend>,
    output: AttentionOutput<CubeBackend>,
    grad: CubeTensor,
    options: LeafAttentionOptions,
) -> LeafAttentionGradients<CubeBackend> {
    let floats = [inputs.query, inputs.key, inputs.value, inputs.key_bias];
    let [query, key, value, key_bias] = floats.map(into_contiguous);
    let [context, lse, grad] = [output.context, output.lse, grad].map(into_contiguous);
    let leaves = [inputs.query_leaf, inputs.key_leaf];
    let problem = Problem::new([&query, &key, &value], leaves, options);
    problem.check_bias(&key_bias);
    let d_query = empty(&query, query.shape().dims::<4>(), DType::F32);
    let d_key = empty(&query, key.shape().dims::<4>(), DType::F32);
    let d_value = empty(&query, value.shape().dims::<4>(), DType::F32);
    let statistics = problem.statistics(context, lse, &grad, Some(key_bias));
    let vector = problem.vector();
    let (key_vectors, value_vectors) = (problem.head_dim / vector, problem.value_dim / vector);
    let units = problem.query_rows();
    let (count, dim) = grid(&query, units);
    // SAFETY: as in `attend`: a unit writes the gradients of its own query and head.
    unsafe {
        backward_query_kernel::launch_unchecked(
            &query.client,
            count,
            dim,
            vector,
            query.clone().into_buffer_arg(),
            key.clone().into_buffer_arg(),
            value.clone().into_buffer_arg(),
            problem.lists.clone().into_buffer_arg(),
            grad.clone().into_buffer_arg(),
            statistics.clone().into_buffer_arg(),
            d_query.clone().into_buffer_arg(),
            problem.sizes(units),
            problem.causal(),
            problem.dropping(),
            key_vectors,
            value_vectors,
        );
    }
    let units = problem.key_rows();
    let (count, dim) = grid(&query, units);
    // SAFETY: as in `attend`, with keys for queries; a unit writes where its own bias was, too, which only it reads.
    unsafe {
        backward_key_kernel::launch_unchecked(
            &query.client,
            count,
            dim,
            vector,
            query.clone().into_buffer_arg(),
            key.into_buffer_arg(),
            value.into_buffer_arg(),
            problem.lists.clone().into_buffer_arg(),
            grad.into_buffer_arg(),
            statistics.clone().into_buffer_arg(),
            d_key.clone().into_buffer_arg(),
            d_value.clone().into_buffer_arg(),
            problem.sizes(units),
            problem.causal(),
            problem.dropping(),
            key_vectors,
            value_vectors,
        );
    }
    let first = 2 * problem.query_rows();
    let of_biases = Slice::new(first as isize, Some((first + units) as isize), 1);
    let key_bias = CubeBackend::float_reshape(
        CubeBackend::float_slice(statistics, &[of_biases]),
        Shape::from([problem.batch, problem.keys, problem.kv_heads]),
    );
    LeafAttentionGradients {
        query: d_query,
        key: d_key,
        value: d_value,
        key_bias,
    }
}

pub(super) fn candidate_gates(
    inputs: CandidateInputs<CubeBackend>,
    output: AttentionOutput<CubeBackend>,
    grad: CubeTensor,
    options: LeafAttentionOptions,
) -> CubeTensor {
    let [query, key, value] = [inputs.query, inputs.key, inputs.value].map(into_contiguous);
    let [context, lse, grad] = [output.context, output.lse, grad].map(into_contiguous);
    let leaves = [inputs.query_leaf, inputs.candidate_leaf];
    let problem = Problem::new([&query, &key, &value], leaves, options);
    let statistics = problem.statistics(context, lse, &grad, None);
    let (batch, keys, kv_heads) = (problem.batch, problem.keys, problem.kv_heads);
    let d_gate = empty(&query, [batch, keys, kv_heads], DType::F32);
    let units = problem.key_rows();
    let vector = problem.vector();
    let (count, dim) = grid(&query, units);
    // SAFETY: as in `attend`, with keys for queries: a unit writes the gradient of its own gate.
    unsafe {
        gate_kernel::launch_unchecked(
            &query.client,
            count,
            dim,
            vector,
            query.clone().into_buffer_arg(),
            key.into_buffer_arg(),
            value.into_buffer_arg(),
            problem.lists.clone().into_buffer_arg(),
            grad.into_buffer_arg(),
            statistics.into_buffer_arg(),
            d_gate.clone().into_buffer_arg(),
            problem.sizes(units),
            problem.causal(),
            problem.head_dim / vector,
            problem.value_dim / vector,
        );
    }
    d_gate
}
