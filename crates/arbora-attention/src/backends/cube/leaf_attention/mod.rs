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

mod backward;
mod forward;

pub(super) use backward::{backward, candidate_gates};
pub(super) use forward::attend;

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
}
